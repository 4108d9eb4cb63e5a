#include "server/audit.h"

#include <pthread.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "server/auth.h"
#include "server/trickle.h"

enum { TAKEN_EVERY_S = 3600 };

/* Those with a token have a trickle of their own: a stranger's noise must not hide them. */
static struct {
    pthread_mutex_t lock;
    struct trickle strangers, known;
} refusals = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool may_write(const struct request *rq, int64_t *left_out)
{
    (void)pthread_mutex_lock(&refusals.lock);
    struct trickle *t = rq->who.role == ROLE_NONE ? &refusals.strangers : &refusals.known;
    static const struct trickle_rule rule = {AUDIT_BURST, AUDIT_EVERY_MS};
    bool yes = trickle_take(t, &rule, clock_mono_ms(), left_out);
    (void)pthread_mutex_unlock(&refusals.lock);
    return yes;
}

void audit_as(struct request *rq, const char *action, const char *object)
{
    rq->action = action;
    rq->object = object ? arena_fmt(rq->arena, "%s", object) : NULL;
}

static const char SQL_WRITE[] =
    "INSERT INTO audit (role, token_id, name, address, action, object, status, left_out, request)"
    " VALUES ($1, $2, left($3, 200), $4, $5, left($6, 200), $7, $8, $9)";

static const char SQL_TAKEN[] =
    "INSERT INTO audit (role, token_id, name, address, action, object, status, left_out, request)"
    " SELECT $1, $2, left($3, 200), $4, $5, left($6, 200), $7, $8, $9"
    "  WHERE NOT EXISTS (SELECT FROM audit WHERE (token_id, action, object) = ($2, $5, $6)"
    "                       AND at > clock_timestamp() - make_interval(secs => $10))";

static enum status write_row(struct request *rq, const char *sql, int status, int64_t left_out,
                             struct err *e)
{
    const struct principal *who = &rq->who;
    const char *argv[] = {
        role_name(who->role),
        who->token_id[0] ? who->token_id : NULL,
        who->name,
        request_address(rq),
        rq->action ? rq->action : "access",
        rq->object ? rq->object : arena_fmt(rq->arena, "%s %s", rq->method, rq->path),
        db_arg_int(rq->arena, status),
        db_arg_int(rq->arena, left_out),
        rq->id,
        db_arg_int(rq->arena, TAKEN_EVERY_S),
    };
    return db_exec(rq->db, sql, sql == SQL_TAKEN ? 10 : 9, argv, NULL, e);
}

/* The answer is as it is: what cannot be written is said in the log alone. */
static void write_refusal(struct request *rq, int status)
{
    int64_t left_out = 0;
    struct err e = {0};
    if (may_write(rq, &left_out) && write_row(rq, SQL_WRITE, status, left_out, &e)) {
        log_warn("a refusal was not written to the audit log request=%s: %s", rq->id, e.msg);
    }
}

void audit_refused(struct request *rq, const struct response *rs)
{
    bool came_as_somebody = request_header(rq, "Authorization") || request_header(rq, "Cookie");
    if (rq->db && came_as_somebody && (rs->status == 401 || rs->status == 403)) {
        write_refusal(rq, rs->status);
    }
}

enum status audit_taken(struct request *rq, const char *action, const char *object, struct err *e)
{
    audit_as(rq, action, object);
    return write_row(rq, SQL_TAKEN, 200, 0, e);
}

static enum status within(handler_fn *fn, struct request *rq, struct response *rs, struct err *e)
{
    TRY(fn(rq, rs, e));
    return rs->status < 400 && rq->action ? write_row(rq, SQL_WRITE, rs->status, 0, e) : ST_OK;
}

enum status audit_run(handler_fn *fn, struct request *rq, struct response *rs, struct err *e)
{
    if (!rq->db) {
        return fn(rq, rs, e);
    }
    audit_as(rq, NULL, NULL);
    TRY(db_begin(rq->db, e));
    enum status st = within(fn, rq, rs, e);
    if (st == ST_OK && rs->status < 400) {
        return db_commit(rq->db, e);
    }
    db_rollback(rq->db);
    if (st == ST_OK) {
        write_refusal(rq, rs->status);
    }
    return st;
}
