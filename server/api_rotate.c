/*
 * A silo's next token, asked for with the one it has.
 */
#include "server/api.h"
#include "server/api_silo.h"
#include "server/audit.h"
#include "server/auth.h"
#include "server/db_rotate.h"

enum { GRACE_MIN_S = 60, GRACE_MAX_S = 7 * 86400, GRACE_S = 86400, TTL_MAX_S = 400 * 86400 };

/* A whole number that may be absent. False: rs is a 422. */
static bool optional_int(struct request *rq, struct response *rs, const char *key, int64_t max,
                         int64_t *out)
{
    return !json_get(rq->json, key) || silo_want_int(rq, rs, key, GRACE_MIN_S, max, out);
}

enum status api_rotate(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const keys[] = {"grace_s", "ttl_s", NULL};
    int64_t grace_s = GRACE_S;
    int64_t ttl_s = 0;
    if (!silo_protocol(rq, rs) || !only_members(rq, rs, keys) ||
        !optional_int(rq, rs, "grace_s", GRACE_MAX_S, &grace_s) ||
        !optional_int(rq, rs, "ttl_s", TTL_MAX_S, &ttl_s)) {
        return ST_OK;
    }
    char secret[SECRET_LEN + 1];
    struct digest hash;
    struct rotation made;
    struct refusal no = {0};
    secret_new(secret, &hash);
    audit_as(rq, "token_rotate", rq->who.token_id);
    TRY(db_silo_rotate(rq->db, rq->who.silo_id, rq->who.token_id, &hash, grace_s, ttl_s, &made, &no,
                       e));
    if (no.code) {
        return respond_refusal(rq, rs, &no);
    }
    audit_as(rq, "token_rotate", made.token_id);
    struct buf b;
    buf_init(&b, 1024);
    jw_object(&b, NULL);
    jw_str(&b, "token", secret);
    jw_str(&b, "id", made.token_id);
    jw_str(&b, "expires_at", made.expires_at[0] ? made.expires_at : NULL);
    jw_str(&b, "old_expires_at", made.old_expires_at);
    jw_end_object(&b);
    respond_buf(rq, rs, 201, &b);
    response_header(rs, "Cache-Control", "no-store");
    return ST_OK;
}
