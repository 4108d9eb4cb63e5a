/* /api/v1/silos: who takes part, what each does now, and pausing, resuming or revoking one. */
#include <string.h>

#include "common/id.h"
#include "common/limits.h"
#include "server/api.h"
#include "server/api_sql.h"
#include "server/audit.h"
#include "server/auth.h"
#include "server/hub.h"
#include "server/server.h"

/* Sums over all runs. */
#define SILO_FROM                                                                                  \
    " FROM silo s"                                                                                 \
    " CROSS JOIN LATERAL (SELECT coalesce(sum(tokens), 0) AS tokens, count(*) AS rounds"           \
    "   FROM update WHERE silo_id = s.id AND state = 'accepted') n"                                \
    " CROSS JOIN LATERAL (SELECT coalesce(sum(upload_bytes), 0) AS up,"                            \
    "     coalesce(sum(download_bytes), 0) AS down FROM traffic WHERE silo_id = s.id) b"           \
    " LEFT JOIN traffic_day d ON d.silo_id = s.id AND d.day = today()"

/* $1, $2: what it may move in a day, null for as much as it likes. */
#define SILO_JSON                                                                                  \
    "json_build_object(" SILO_MEMBERS ", 'created_at', " TIME_SQL(                                 \
        "s.created_at") ", 'today', json_build_object('upload_bytes', coalesce(d.upload_bytes, "   \
                        "0),"                                                                      \
                        " 'download_bytes', coalesce(d.download_bytes, 0),"                        \
                        " 'upload_limit', $1::bigint, 'download_limit', $2::bigint))"

static const char SQL_LIST[] =
    "SELECT " SILO_JSON ", s.name" SILO_FROM " WHERE s.name > $3 ORDER BY s.name LIMIT $4";

static const char SQL_GET[] = "SELECT " SILO_JSON ", s.state" SILO_FROM " WHERE s.id = $3";

/* A revoked silo loses its tokens in the same statement, which must not begin before its row is
 * ours: a token that a join or a rotation is making meanwhile would go unseen. */
static const char SQL_LOCK[] = "SELECT 1 FROM silo WHERE id = $1 FOR NO KEY UPDATE";

static const char SQL_ACT[] =
    "WITH changed AS ("
    " UPDATE silo SET state = $2 WHERE id = $1 AND state = ANY ($3::text[]) RETURNING id, name"
    "), dead AS ("
    " UPDATE token SET revoked_at = clock_timestamp()"
    "  WHERE $2 = 'revoked' AND silo_id IN (SELECT id FROM changed) AND revoked_at IS NULL"
    "), said AS ("
    " INSERT INTO event (kind, silo_id, message, detail)"
    " SELECT $4, id, 'silo ' || name || ' was ' || $5, jsonb_build_object('by', $6::text) FROM "
    "changed"
    ") SELECT id FROM changed";

static const char *limit_arg(struct request *rq, int64_t bytes)
{
    return bytes > 0 ? db_arg_int(rq->arena, bytes) : NULL;
}

static enum status read_silo(struct request *rq, struct db_rows *rows, struct err *e)
{
    const char *argv[] = {limit_arg(rq, rq->server->daily_upload),
                          limit_arg(rq, rq->server->daily_download), rq->params[0]};
    return db_query(rq->db, rq->arena, SQL_GET, 3, argv, rows, e);
}

static enum status list_silos(struct request *rq, struct response *rs, struct err *e)
{
    struct page page;
    if (!page_read(&page, rq, rs)) {
        return ST_OK;
    }
    const char *argv[] = {limit_arg(rq, rq->server->daily_upload),
                          limit_arg(rq, rq->server->daily_download), page.cursor,
                          page.limit_plus_one};
    struct db_rows rows;
    TRY(db_query(rq->db, rq->arena, SQL_LIST, 4, argv, &rows, e));
    respond_list(rq, rs, &page, &rows);
    return ST_OK;
}

static enum status get_silo(struct request *rq, struct response *rs, struct err *e)
{
    struct db_rows rows;
    TRY(read_silo(rq, &rows, e));
    if (rows.count == 0) {
        return not_found(rq, rs, "silo");
    }
    respond_json(rq, rs, 200, db_text(&rows, 0, 0));
    return ST_OK;
}

static const struct silo_action {
    const char *name;
    const char *to;
    const char *from; /* as a PostgreSQL array */
    const char *kind;
    const char *said;
} actions[] = {
    {"pause", "paused", "{active}", "silo_paused", "paused"},
    {"resume", "active", "{paused}", "silo_resumed", "resumed"},
    {"revoke", "revoked", "{active,paused}", "silo_revoked", "revoked"},
};

static const struct silo_action *find_action(const char *name)
{
    for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++) {
        if (strcmp(actions[i].name, name) == 0) {
            return &actions[i];
        }
    }
    return NULL;
}

struct acting {
    const char *const *argv; /* of SQL_ACT */
    bool changed;
};

static enum status act_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct acting *act = ctx;
    struct db_rows rows;
    TRY(db_query(db, a, SQL_LOCK, 1, act->argv, &rows, e));
    TRY(db_query(db, a, SQL_ACT, 6, act->argv, &rows, e));
    act->changed = rows.count > 0;
    return ST_OK;
}

static enum status act_on_silo(struct request *rq, struct response *rs, struct err *e)
{
    static const char *const keys[] = {"action", NULL};
    if (!only_members(rq, rs, keys)) {
        return ST_OK;
    }
    const char *name = want_member(rq, rs, "action");
    if (!name) {
        return ST_OK;
    }
    const struct silo_action *act = find_action(name);
    if (!act) {
        return bad_member(rq, rs, "/action", "must be pause, resume or revoke");
    }
    audit_as(rq, arena_fmt(rq->arena, "silo_%s", act->name), rq->params[0]);
    const char *argv[] = {rq->params[0], act->to, act->from, act->kind, act->said, rq->who.name};
    struct acting acting = {.argv = argv};
    TRY(db_tx(rq->db, act_tx, &acting, e));
    bool changed = acting.changed;
    struct db_rows rows;
    TRY(read_silo(rq, &rows, e));
    if (rows.count == 0) {
        return not_found(rq, rs, "silo");
    }
    const char *now = db_text(&rows, 0, 0);
    if (!changed && strcmp(db_text(&rows, 0, 1), act->to) != 0) {
        return problem(rq, rs, 409, "SILO_STATE", "read the silo's state again",
                       "a silo in its present state cannot be asked to %s", act->name);
    }
    if (changed && strcmp(act->to, "revoked") == 0) {
        hub_wake(rq->server->hub, "tokens");
    }
    if (!changed) {
        audit_as(rq, NULL, NULL);
    }
    respond_json(rq, rs, 200, now); // asked for what it is already: the same answer, no event
    return ST_OK;
}

// clang-format off
const struct route routes_silos[] = {
    {"GET", "/api/v1/silos", ROLES_PEOPLE, LISTENER_CONTROL, 0, list_silos, NULL},
    {"GET", "/api/v1/silos/{silo}", ROLES_PEOPLE, LISTENER_CONTROL, 0, get_silo, NULL},
    {"POST", "/api/v1/silos/{silo}/actions", ROLES_ADMIN | ROUTE_AUDITED, LISTENER_CONTROL, LIMIT_CONTROL_BODY, act_on_silo, NULL},
    {NULL, NULL, 0, 0, 0, NULL, NULL},
};
// clang-format on
