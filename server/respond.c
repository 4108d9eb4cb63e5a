/* Responses: what a handler says, put into the form that http.c sends. No
 * socket is touched here. */
#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "server/http.h"

void response_header(struct response *rs, const char *name, const char *value)
{
    int max = (int)(sizeof(rs->headers) / sizeof(rs->headers[0]));
    assert(rs->header_count < max);
    rs->headers[rs->header_count].name = name;
    rs->headers[rs->header_count].value = value;
    rs->header_count++;
}

void respond_json(struct request *rq, struct response *rs, int status, const char *json)
{
    (void)rq;
    rs->status = status;
    rs->content_type = "application/json";
    rs->body = json;
    rs->body_len = strlen(json);
}

void respond_buf(struct request *rq, struct response *rs, int status, struct buf *b)
{
    if (b->full) { // half a document must never look like a whole one
        buf_release(b);
        (void)problem(rq, rs, 429, "LIMIT", "ask for less at once", "the answer is too large");
        response_header(rs, "Retry-After", "2");
        return;
    }
    rs->status = status;
    if (!rs->content_type) {
        rs->content_type = "application/json";
    }
    rs->body_len = b->len;
    char *text = buf_take(b);
    arena_defer(rq->arena, mem_free, text);
    rs->body = text;
}

void respond_empty(struct response *rs, int status)
{
    rs->status = status;
    rs->content_type = NULL;
    rs->body = NULL;
    rs->body_len = 0;
}

void response_park(struct response *rs, const char *topic, double until_s)
{
    rs->parked = true;
    rs->park_topic = topic;
    rs->park_until_s = until_s;
}

/* The reason phrases of RFC 9110 for what this server answers. */
static const struct {
    int status;
    const char *title;
} titles[] = {
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {408, "Request Timeout"},
    {409, "Conflict"},
    {410, "Gone"},
    {411, "Length Required"},
    {413, "Content Too Large"},
    {415, "Unsupported Media Type"},
    {416, "Range Not Satisfiable"},
    {422, "Unprocessable Content"},
    {429, "Too Many Requests"},
    {500, "Internal Server Error"},
    {503, "Service Unavailable"},
    {507, "Insufficient Storage"},
};

static const char *title_of(int status)
{
    for (size_t i = 0; i < sizeof(titles) / sizeof(titles[0]); i++) {
        if (titles[i].status == status) {
            return titles[i].title;
        }
    }
    return "Error";
}

enum status problem_items(struct request *rq, struct response *rs, int status, const char *code,
                          const char *hint, const char *detail, const struct problem_item *items,
                          int count)
{
    struct buf b;
    buf_init(&b, 64 * 1024);
    jw_object(&b, NULL);
    jw_str(&b, "type", "about:blank");
    jw_str(&b, "title", title_of(status));
    jw_int(&b, "status", status);
    jw_str(&b, "code", code);
    jw_str(&b, "detail", detail);
    if (hint) {
        jw_str(&b, "hint", hint);
    }
    jw_str(&b, "instance", rq->id ? rq->id : "");
    if (count > 0) {
        jw_array(&b, "errors");
        for (int i = 0; i < count; i++) {
            jw_object(&b, NULL);
            jw_str(&b, "pointer", items[i].pointer);
            jw_str(&b, "detail", items[i].detail);
            jw_end_object(&b);
        }
        jw_end_array(&b);
    }
    jw_end_object(&b);

    // What a handler had begun to say before it failed must not go out with the problem.
    rs->file_len = 0;
    rs->parked = false;
    rs->stream = false;
    rs->content_type = "application/problem+json";
    respond_buf(rq, rs, status, &b);
    return ST_OK;
}

enum status problem(struct request *rq, struct response *rs, int status, const char *code,
                    const char *hint, const char *detail_fmt, ...)
{
    char detail[512];
    va_list ap;
    va_start(ap, detail_fmt);
    (void)vsnprintf(detail, sizeof(detail), detail_fmt, ap);
    va_end(ap);
    return problem_items(rq, rs, status, code, hint, detail, NULL, 0);
}

void problem_add_int(struct request *rq, struct response *rs, const char *key, int64_t value)
{
    assert(rs->body_len > 0 && rs->body[rs->body_len - 1] == '}');
    rs->body = arena_fmt(rq->arena, "%.*s,\"%s\":%" PRId64 "}", (int)rs->body_len - 1, rs->body,
                         key, value);
    rs->body_len = strlen(rs->body);
}
