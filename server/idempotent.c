#include "server/idempotent.h"

#include <string.h>

#include "common/hash.h"
#include "server/api.h"

enum { KEY_MAX = 128 };

/* Waits for another request with the key that is under way; it commits or makes way. The
 * coordinator sweeps old keys: a DELETE here would only run after the INSERT had met the old row.
 */
static const char SQL_CLAIM[] =
    "INSERT INTO idempotency_key (token_id, key, request) VALUES ($1, $2, decode($3, 'hex'))"
    " ON CONFLICT DO NOTHING RETURNING key";

static const char SQL_FIND[] =
    "SELECT encode(request, 'hex'), status, answer, location FROM idempotency_key"
    " WHERE token_id = $1 AND key = $2";

static const char SQL_STORE[] = "UPDATE idempotency_key SET status = $3, answer = $4, location = $5"
                                " WHERE token_id = $1 AND key = $2";

static void request_digest(const struct request *rq, char hex[DIGEST_HEX + 1])
{
    struct sha256 *h = sha256_new();
    sha256_add(h, rq->method, strlen(rq->method) + 1);
    sha256_add(h, rq->path, strlen(rq->path) + 1);
    const char *dry = request_query(rq, "dry_run");
    sha256_add(h, dry ? dry : "", dry ? strlen(dry) + 1 : 1);
    sha256_add(h, rq->body, rq->body_len);
    struct digest d;
    sha256_end(h, &d);
    sha256_free(h);
    digest_hex(&d, hex);
}

static enum status replay(struct request *rq, struct response *rs, const char *key, const char *hex,
                          struct err *e)
{
    const char *argv[] = {rq->who.token_id, key};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_FIND, 2, argv, &rows, e));
    if (rows.count == 0 || !db_text(&rows, 0, 1)) {
        return err_set(e, ST_RETRY, "the request with that key has just ended");
    }
    if (strcmp(db_text(&rows, 0, 0), hex) != 0) {
        return problem(rq, rs, 422, "KEY_REUSED", "draw a new key for each request",
                       "this Idempotency-Key belongs to another request");
    }
    int32_t status = 0;
    TRY(db_int32(&rows, 0, 1, &status, e));
    respond_json(rq, rs, status, db_text(&rows, 0, 2));
    if (db_text(&rows, 0, 3)) {
        response_header(rs, "Location", db_text(&rows, 0, 3));
    }
    return ST_OK;
}

static enum status store(struct request *rq, const struct response *rs, const char *key,
                         struct err *e)
{
    const char *location = NULL;
    for (int i = 0; i < rs->header_count; i++) {
        if (strcmp(rs->headers[i].name, "Location") == 0) {
            location = rs->headers[i].value;
        }
    }
    const char *argv[] = {rq->who.token_id, key, arena_fmt(rq->arena, "%d", rs->status), rs->body,
                          location};
    struct db_rows rows;
    return db_query(rq->db, rq->arena, SQL_STORE, 5, argv, &rows, e);
}

static enum status within(handler_fn *fn, struct request *rq, struct response *rs, const char *key,
                          struct err *e)
{
    char hex[DIGEST_HEX + 1];
    request_digest(rq, hex);
    const char *argv[] = {rq->who.token_id, key, hex};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_CLAIM, 3, argv, &rows, e));
    if (rows.count == 0) {
        return replay(rq, rs, key, hex, e);
    }
    TRY(fn(rq, rs, e));
    return rs->status < 300 ? store(rq, rs, key, e) : ST_OK;
}

enum status idempotent(handler_fn *fn, struct request *rq, struct response *rs, struct err *e)
{
    const char *key = request_header(rq, "Idempotency-Key");
    if (!key) {
        return fn(rq, rs, e);
    }
    size_t len = strlen(key);
    for (const char *p = key; *p; p++) {
        len = *p < '!' || *p > '~' ? 0 : len;
    }
    if (len == 0 || len > KEY_MAX) {
        return problem(rq, rs, 400, "BAD_PARAMETER", NULL,
                       "Idempotency-Key must be 1 to %d visible ASCII characters", KEY_MAX);
    }
    return within(fn, rq, rs, key, e);
}
