/*
 * http_finish.c - what a handler said becomes the response: an error its problem document, a GET
 * its entity tag.
 */
#include <string.h>

#include "common/hash.h"
#include "common/log.h"
#include "server/http_int.h"
#include "server/server.h"

/* The one table from status to HTTP. The reader of a 5xx finds the reason in our log, by its id. */
static void problem_from(struct exchange *x, enum status st, const struct err *e)
{
    static const struct {
        int status;
        const char *code;
    } table[ST_COUNT] = {
        [ST_INVALID] = {400, "INVALID"},     [ST_DENIED] = {403, "FORBIDDEN"},
        [ST_NOT_FOUND] = {404, "NOT_FOUND"}, [ST_CONFLICT] = {409, "CONFLICT"},
        [ST_LIMIT] = {429, "LIMIT"},         [ST_RETRY] = {503, "UNAVAILABLE"},
        [ST_NOMEM] = {503, "UNAVAILABLE"},
    };
    int status = table[st].status ? table[st].status : 500;
    x->rs.header_count = 0;
    if (status >= 500) {
        log_error("request failed request=%s %s %s status=%s: %s (%s:%d)", x->id, x->rq.method,
                  x->rq.path, status_name(st), e->msg, e->file ? e->file : "?", e->line);
        (void)problem(&x->rq, &x->rs, status, status == 503 ? table[st].code : "INTERNAL",
                      status == 503 ? "try again in a moment"
                                    : "look for this instance in the server's log",
                      "the server could not do this");
    } else {
        (void)problem(&x->rq, &x->rs, status, table[st].code, NULL, "%s", e->msg);
    }
    if (status == 503 || status == 429) {
        response_header(&x->rs, "Retry-After", "2");
    }
}

/* RFC 9110 section 13.1.2: weak comparison with each entity tag of the list, or `*`. */
static bool etag_listed(const char *list, const char *etag)
{
    size_t len = strlen(etag);
    const char *p = list;
    while (*p) {
        p += strspn(p, " \t,");
        if (*p == '*') {
            return true;
        }
        if (strncmp(p, "W/", 2) == 0) {
            p += 2;
        }
        size_t n = strcspn(p, ", \t");
        if (n == len && strncmp(p, etag, n) == 0) {
            return true;
        }
        p += n;
    }
    return false;
}

static void conditional(struct exchange *x)
{
    const char *etag = NULL;
    for (int i = 0; i < x->rs.header_count; i++) {
        if (strcmp(x->rs.headers[i].name, "ETag") == 0) {
            etag = x->rs.headers[i].value;
        }
    }
    if (!etag && x->rs.body) {
        struct digest d;
        char hex[DIGEST_HEX + 1];
        sha256_of(x->rs.body, x->rs.body_len, &d);
        digest_hex(&d, hex);
        etag = arena_fmt(x->rq.arena, "\"%.32s\"", hex);
        response_header(&x->rs, "ETag", etag);
    }
    const char *known = request_header(&x->rq, "If-None-Match");
    if (etag && known && etag_listed(known, etag)) {
        respond_empty(&x->rs, 304);
        x->rs.file_len = 0;
    }
}

void exchange_finish(struct exchange *x, enum status st, const struct err *e)
{
    if (st) {
        problem_from(x, st, e);
    } else if (x->rs.status == 0) {
        struct err none = {0};
        (void)err_set(&none, ST_CORRUPT, "the handler gave no answer");
        problem_from(x, ST_CORRUPT, &none);
    }
    bool get = strcmp(x->rq.method, "GET") == 0 || strcmp(x->rq.method, "HEAD") == 0;
    if (get && x->rs.status == 200 && !x->rs.stream) {
        conditional(x);
    }
    x->step = EXCHANGE_ANSWERED;
}
