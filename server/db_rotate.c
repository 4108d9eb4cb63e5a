#include "server/db_rotate.h"

#include <stdio.h>

#include "server/api_sql.h"

struct rotating {
    const char *silo_id, *token_id;
    const struct digest *hash;
    int64_t grace_s, ttl_s;
    struct rotation out;
    struct refusal no;
};

/* The silo's row is what orders two of them; the state of its tokens is read under it. */
static enum status rotate_check(struct db *db, struct arena *a, struct rotating *r, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, "SELECT state = 'revoked' FROM silo WHERE id = $1 FOR NO KEY UPDATE", 1,
                 &r->silo_id, &rows, e));
    bool revoked = false;
    TRY(db_bool(&rows, 0, 0, &revoked, e));
    const char *argv[] = {r->token_id, r->silo_id};
    TRY(db_query(db, a,
                 "SELECT EXISTS (SELECT FROM token n WHERE n.silo_id = t.silo_id"
                 "                  AND n.role = 'silo' AND n.created_at > t.created_at"
                 "                  AND n.revoked_at IS NULL AND n.used_at IS NOT NULL)"
                 "  FROM token t WHERE t.id = $1 AND t.silo_id = $2 AND t.role = 'silo'"
                 "   AND t.revoked_at IS NULL"
                 "   AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp())",
                 2, argv, &rows, e));
    bool rotated = false;
    if (revoked || rows.count == 0) {
        refuse(&r->no, 401, "UNAUTHENTICATED", "the token is revoked or expired");
        return ST_OK;
    }
    TRY(db_bool(&rows, 0, 0, &rotated, e));
    if (rotated) {
        refuse(&r->no, 409, "TOKEN_ROTATED", "a newer token of this silo is in use already");
    }
    return ST_OK;
}

static const char SQL_OLD_ENDS[] =
    "UPDATE token SET expires_at = least(expires_at, clock_timestamp() + make_interval(secs => $2))"
    " WHERE id = $1 RETURNING " TIME_SQL("expires_at");

static const char SQL_NEW_TOKEN[] =
    "WITH t AS ("
    " INSERT INTO token (id, hash, role, name, silo_id, expires_at)"
    " SELECT $1, $2, 'silo', name, id, clock_timestamp() + make_interval(secs => $4::double "
    "precision) FROM silo WHERE id = $3 RETURNING *"
    "), said AS ("
    " INSERT INTO event (kind, silo_id, message, detail)"
    " SELECT 'token_created', silo_id, name || ' has a new token', jsonb_build_object('token', id)"
    "   FROM t"
    ") SELECT " TIME_SQL("expires_at") " FROM t";

static enum status rotate_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct rotating *r = ctx;
    struct db_rows rows;
    r->no = (struct refusal){0};
    TRY(rotate_check(db, a, r, e));
    if (r->no.code) {
        return ST_OK;
    }
    const char *others[] = {r->silo_id, r->token_id};
    TRY(db_exec(db,
                "UPDATE token SET revoked_at = clock_timestamp()"
                " WHERE silo_id = $1 AND id <> $2 AND role = 'silo' AND revoked_at IS NULL",
                2, others, NULL, e));
    const char *old[] = {r->token_id, db_arg_int(a, r->grace_s)};
    TRY(db_query(db, a, SQL_OLD_ENDS, 2, old, &rows, e));
    (void)snprintf(r->out.old_expires_at, sizeof(r->out.old_expires_at), "%s",
                   db_text(&rows, 0, 0));
    const char *made[] = {r->out.token_id, db_arg_digest(a, r->hash), r->silo_id,
                          r->ttl_s > 0 ? db_arg_int(a, r->ttl_s) : NULL};
    TRY(db_query(db, a, SQL_NEW_TOKEN, 4, made, &rows, e));
    const char *until = rows.count > 0 ? db_text(&rows, 0, 0) : NULL;
    (void)snprintf(r->out.expires_at, sizeof(r->out.expires_at), "%s", until ? until : "");
    return ST_OK;
}

enum status db_silo_rotate(struct db *db, const char *silo_id, const char *token_id,
                           const struct digest *token_hash, int64_t grace_s, int64_t ttl_s,
                           struct rotation *out, struct refusal *no, struct err *e)
{
    struct rotating r = {.silo_id = silo_id,
                         .token_id = token_id,
                         .hash = token_hash,
                         .grace_s = grace_s,
                         .ttl_s = ttl_s};
    id_new('k', r.out.token_id);
    TRY(db_tx(db, rotate_tx, &r, e));
    *out = r.out;
    *no = r.no;
    return ST_OK;
}
