#include "client/reply.h"

#include <string.h>

enum { WAIT_MAX_MS = 60000, WAIT_FIRST_MS = 1000 };

enum status reply_status(int http)
{
    if (http >= 200 && http < 300) {
        return ST_OK;
    }
    switch (http) {
    case 0:
        return ST_NET;
    case 401:
    case 403:
        return ST_DENIED;
    case 404:
        return ST_NOT_FOUND;
    case 409:
    case 410:
    case 412:
        return ST_CONFLICT;
    case 413:
        return ST_LIMIT;
    case 408:
    case 425:
    case 429:
        return ST_RETRY;
    default:
        return http >= 500 ? ST_RETRY : ST_INVALID;
    }
}

bool retry_allowed(int http)
{
    enum status st = reply_status(http);
    return st == ST_RETRY || st == ST_NET;
}

int64_t retry_delay_ms(int attempt, double unit, double retry_after_s)
{
    int64_t most = WAIT_MAX_MS;
    if (attempt < 6) {
        most = (int64_t)WAIT_FIRST_MS << attempt;
    }
    if (most > WAIT_MAX_MS) {
        most = WAIT_MAX_MS;
    }
    int64_t wait = (int64_t)(unit * (double)most);
    // A server that asks for an absurd wait is asked again after an hour at the latest.
    double asked = retry_after_s > 3600.0 ? 3600.0 : retry_after_s;
    int64_t least = asked > 0.0 ? (int64_t)(asked * 1000.0) : 0;
    return wait > least ? wait : least + (least > 0 ? wait / 10 : 0);
}

static const char *text_or(const struct json *o, const char *key)
{
    const char *s = json_str(json_get(o, key));
    return s ? s : "";
}

void reply_read_problem(struct reply *r, struct arena *a)
{
    r->code = "";
    r->detail = "";
    r->hint = "";
    if (!r->json || json_kind(r->json) != JSON_OBJECT || r->http < 400) {
        return;
    }
    r->code = text_or(r->json, "code");
    r->detail = text_or(r->json, "detail");
    r->hint = text_or(r->json, "hint");
    const struct json *errors = json_get(r->json, "errors");
    const struct json *first =
        errors && json_kind(errors) == JSON_ARRAY ? json_at(errors, 0) : NULL;
    bool new = first &&json_kind(first) == JSON_OBJECT &&*text_or(first, "detail") &&
               !strstr(r->detail, text_or(first, "detail"));
    if (new) {
        r->detail = arena_fmt(a, "%s%s%s: %s", r->detail, *r->detail ? ": " : "",
                              text_or(first, "pointer"), text_or(first, "detail"));
    }
}

enum status reply_error(const struct reply *r, struct err *e)
{
    enum status st = reply_status(r->http);
    if (st == ST_OK) {
        return ST_OK;
    }
    const char *hint = r->hint;
    if (!*hint && r->http == 401) {
        hint = "try a valid token (--token-file, PHOTON_TOKEN; a silo: photon-client join --again)";
    } else if (!*hint && r->http == 403) {
        hint = "try a token with a higher role";
    }
    return err_set(e, st, "%s%s%s%s%s", *r->code ? r->code : "", *r->code ? ": " : "",
                   *r->detail ? r->detail : "the server refused the request", *hint ? "; " : "",
                   hint);
}

void reply_clear(struct reply *r)
{
    *r = (struct reply){.text = "",
                        .code = "",
                        .detail = "",
                        .hint = "",
                        .base = "",
                        .step = "",
                        .retry_after_s = -1.0};
}
