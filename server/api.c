#include "server/api.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/nearest.h"

enum { PAGE_DEFAULT = 50, LIST_MAX = 32 * 1024 * 1024 };

enum status bad_parameter(struct request *rq, struct response *rs, const char *name,
                          const char *detail)
{
    struct problem_item item = {.pointer = arena_fmt(rq->arena, "?%s", name), .detail = detail};
    return problem_items(rq, rs, 400, "BAD_PARAMETER", NULL,
                         arena_fmt(rq->arena, "the parameter '%s' %s", name, detail), &item, 1);
}

bool query_int(int64_t *out, struct request *rq, struct response *rs, const char *name, int64_t min,
               int64_t max, int64_t fallback)
{
    const char *text = request_query(rq, name);
    if (!text) {
        *out = fallback;
        return true;
    }
    size_t len = strlen(text);
    int64_t v =
        len > 0 && len <= 15 && strspn(text, "0123456789") == len ? strtoll(text, NULL, 10) : -1;
    if (v < min || v > max) {
        (void)bad_parameter(
            rq, rs, name,
            arena_fmt(rq->arena, "must be a whole number from %" PRId64 " to %" PRId64, min, max));
        return false;
    }
    *out = v;
    return true;
}

bool page_read(struct page *out, struct request *rq, struct response *rs)
{
    struct page p = {.cursor = request_query(rq, "cursor")};
    if (!query_int(&p.limit, rq, rs, "limit", 1, LIMIT_PAGE, PAGE_DEFAULT)) {
        return false;
    }
    p.cursor = p.cursor ? p.cursor : "";
    size_t len = strlen(p.cursor);
    if (len > 64 ||
        strspn(p.cursor, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                         "_-.") != len) {
        (void)bad_parameter(rq, rs, "cursor", "must be a next_cursor of an earlier answer");
        return false;
    }
    p.limit_plus_one = arena_fmt(rq->arena, "%" PRId64, p.limit + 1);
    *out = p;
    return true;
}

void respond_list(struct request *rq, struct response *rs, const struct page *page,
                  const struct db_rows *rows)
{
    struct buf b;
    buf_init(&b, LIST_MAX);
    jw_object(&b, NULL);
    jw_array(&b, "items");
    int shown = rows->count;
    const char *next = NULL;
    if (page && shown > page->limit) {
        shown = (int)page->limit;
        next = db_text(rows, shown - 1, 1);
    }
    for (int i = 0; i < shown; i++) {
        jw_raw(&b, NULL, db_text(rows, i, 0));
    }
    jw_end_array(&b);
    jw_str(&b, "next_cursor", next);
    jw_end_object(&b);
    respond_buf(rq, rs, 200, &b);
}

void respond_all(struct request *rq, struct response *rs, const struct db_rows *rows)
{
    respond_list(rq, rs, NULL, rows);
}

enum status not_found(struct request *rq, struct response *rs, const char *what)
{
    return problem(rq, rs, 404, "NOT_FOUND", NULL, "there is no such %s", what);
}

enum status bad_member(struct request *rq, struct response *rs, const char *pointer,
                       const char *detail)
{
    struct problem_item item = {.pointer = pointer, .detail = detail};
    return problem_items(rq, rs, 422, "UNPROCESSABLE", NULL,
                         arena_fmt(rq->arena, "%s %s", pointer, detail), &item, 1);
}

bool only_members(struct request *rq, struct response *rs, const char *const *keys)
{
    for (int i = 0; i < json_len(rq->json); i++) {
        const char *key = json_key_at(rq->json, i);
        bool known = false;
        for (const char *const *k = keys; *k && !known; k++) {
            known = strcmp(*k, key) == 0;
        }
        if (!known) {
            const char *meant = nearest(key, keys);
            const char *detail = meant
                                     ? arena_fmt(rq->arena, "is unknown; did you mean '%s'?", meant)
                                     : "is unknown";
            (void)bad_member(rq, rs, arena_fmt(rq->arena, "/%.64s", key), detail);
            return false;
        }
    }
    return true;
}

const char *want_member(struct request *rq, struct response *rs, const char *key)
{
    const struct json *v = json_get(rq->json, key);
    if (v && json_str(v)) {
        return json_str(v);
    }
    (void)bad_member(rq, rs, arena_fmt(rq->arena, "/%s", key),
                     v ? "must be a string" : "is missing");
    return NULL;
}
