/*
 * api.h - what the handlers of the people's API share: paging, lists, parameters that name things.
 *
 * A read is one statement that builds its JSON; the handler adds what only C knows and sends it.
 */
#ifndef SERVER_API_H
#define SERVER_API_H

#include <stdint.h>

#include "common/status.h"
#include "server/http.h"

/* ?limit= and ?cursor= of a list. cursor is "" at the beginning; it is opaque to callers. */
struct page {
    int64_t limit;
    const char *cursor;
    const char *limit_plus_one; /* text, for the statement: one more tells whether a page follows */
};

/*
 * False when a problem was put into rs (400 BAD_PARAMETER).
 */
bool page_read(struct page *out, struct request *rq, struct response *rs);

/*
 * {"items":[…],"next_cursor":…} from rows of (json, cursor), page.limit of them at most; a row more
 * than that means there is another page, which begins after the last row shown.
 */
void respond_list(struct request *rq, struct response *rs, const struct page *page,
                  const struct db_rows *rows);

/* {"items":[…],"next_cursor":null} from rows of (json). */
void respond_all(struct request *rq, struct response *rs, const struct db_rows *rows);

/* 404 with what was not found. */
enum status not_found(struct request *rq, struct response *rs, const char *what);

/* 400 BAD_PARAMETER naming the query parameter. */
enum status bad_parameter(struct request *rq, struct response *rs, const char *name,
                          const char *detail);

/* 422 for an unknown or wrong member: pointer is a JSON pointer. */
enum status bad_member(struct request *rq, struct response *rs, const char *pointer,
                       const char *detail);

/* rq->json holds exactly known keys? False: rs is a 422 naming the nearest known one. */
bool only_members(struct request *rq, struct response *rs, const char *const *keys);

/* A required string member: NULL when rs is a 422. */
const char *want_member(struct request *rq, struct response *rs, const char *key);

/* A whole number in the query, within bounds; fallback when absent. False: rs is a 400. */
bool query_int(int64_t *out, struct request *rq, struct response *rs, const char *name, int64_t min,
               int64_t max, int64_t fallback);

#endif
