#include "server/db_task.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/fault.h"
#include "common/id.h"
#include "common/limits.h"
#include "server/db_event.h"

void refuse(struct refusal *r, int status, const char *code, const char *fmt, ...)
{
    r->status = status;
    r->code = code;
    r->offset = -1;
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(r->detail, sizeof(r->detail), fmt, ap);
    va_end(ap);
}

static void copy_text(char *out, size_t size, const char *text)
{
    (void)snprintf(out, size, "%s", text ? text : "");
}

/* ---- who holds it ---- */

static const char SQL_LOCK_ROUND[] =
    "SELECT q.state FROM round q WHERE q.id = (SELECT round_id FROM task WHERE id = $1)"
    " FOR SHARE";
static const char SQL_LOCK_TASK[] =
    "SELECT t.run_id, coalesce(t.round_id, 0), t.number, t.slot, t.plan_tokens, t.steps, r.state,"
    "       " SEAT_COLUMNS "  FROM task t JOIN run r ON r.id = t.run_id"
    " WHERE t.id = $1 FOR UPDATE OF t";
enum { LOCK_TASK_SEAT = 7 };

/* Why the silo does not hold it, for the silo. */
static void refuse_hold(const struct task_lock *l, int silo, const char *run, const char *round,
                        struct refusal *no)
{
    const struct seat *s = &l->seat;
    bool anew = s->silo == silo && s->state == SEAT_LEASED;
    switch (l->hold) {
    case HOLD_RUN_OVER:
        refuse(no, 410, "RUN_STOPPED", "the run was %s", run);
        break;
    case HOLD_ROUND_OVER:
        refuse(no, 409, "ROUND_CLOSED", "round %" PRId32 " is %s; this work is not counted",
               l->number, round);
        break;
    case HOLD_DONE:
        refuse(no, 409, "OTHER_UPDATE_COUNTED", "this task is done");
        break;
    case HOLD_LOST:
        refuse(no, 409, "STALE_LEASE",
               anew ? "the task was claimed anew under epoch %" PRId64
                    : "the task is no longer this silo's; its epoch is %" PRId64,
               s->epoch);
        break;
    case HOLD_YES:
    default:
        break;
    }
}

enum status db_task_lock(struct db *db, struct arena *a, const char *task_id, const char *silo_id,
                         int64_t epoch, struct task_lock *out, struct refusal *no, struct err *e)
{
    struct db_rows rows;
    struct task_lock l = {.ids = {.arena = a}};
    const char *argv[] = {task_id};
    FAULT("task.lock");
    TRY(db_query(db, a, SQL_LOCK_ROUND, 1, argv, &rows, e));
    FAULT("task.round_locked");
    const char *round = rows.count ? db_text(&rows, 0, 0) : "";
    TRY(db_query(db, a, SQL_LOCK_TASK, 1, argv, &rows, e));
    FAULT("task.locked");
    if (rows.count == 0) {
        refuse(no, 404, "NOT_FOUND", "there is no such task");
        return ST_OK;
    }
    copy_text(l.run_id, sizeof(l.run_id), db_text(&rows, 0, 0));
    TRY(db_int64(&rows, 0, 1, &l.round_id, e));
    TRY(db_int32(&rows, 0, 2, &l.number, e));
    TRY(db_int32(&rows, 0, 3, &l.slot, e));
    TRY(db_int64(&rows, 0, 4, &l.plan_tokens, e));
    TRY(db_int32(&rows, 0, 5, &l.steps, e));
    const char *run = db_text(&rows, 0, 6);
    TRY(db_seat_read(&rows, 0, LOCK_TASK_SEAT, &l.ids, &l.seat, e));
    int silo = silo_number_of(&l.ids, silo_id);
    l.evaluate = l.seat.evaluate;
    l.done = l.seat.state == SEAT_DONE;
    l.hold = seat_hold(&l.seat, silo, epoch, run_state_of(run), round_state_of(round));
    refuse_hold(&l, silo, run, round, no);
    *out = l;
    return ST_OK;
}

/* ---- heartbeat ---- */

struct beat {
    const char *task_id, *silo_id;
    const struct heartbeat *hb;
    bool drain;
    struct refusal no;
};

static const char SQL_BEAT[] =
    "WITH t AS (UPDATE task SET lease_until = clock_timestamp() + make_interval(secs => $4),"
    "           step = greatest(step, $5), phase = coalesce($6, phase),"
    "           tokens_per_s = coalesce($7, tokens_per_s)"
    "     WHERE id = $1 AND silo_id = $2 AND lease_epoch = $3 AND state = 'leased'"
    "     RETURNING id, lease_epoch),"
    " l AS (UPDATE lease SET beat_at = clock_timestamp(), step = greatest(step, $5) FROM t"
    "     WHERE (task_id, epoch) = (t.id, t.lease_epoch)),"
    " s AS (UPDATE silo SET seen_at = clock_timestamp(), gone = false, phase = coalesce($6, phase),"
    "           tokens_per_s = coalesce($7, tokens_per_s) FROM t WHERE silo.id = $2)"
    " SELECT (SELECT state FROM silo WHERE id = $2) <> 'active' FROM t";

static enum status beat_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct beat *b = ctx;
    struct task_lock lock = {0};
    b->no = (struct refusal){0};
    TRY(db_task_lock(db, a, b->task_id, b->silo_id, b->hb->epoch, &lock, &b->no, e));
    if (b->no.code) {
        if (strcmp(b->no.code, "OTHER_UPDATE_COUNTED") == 0) {
            b->no.code = "STALE_LEASE"; // there is nothing left to keep alive
        }
        return ST_OK;
    }
    struct db_rows rows;
    const char *argv[] = {b->task_id,
                          b->silo_id,
                          db_arg_int(a, b->hb->epoch),
                          db_arg_int(a, LEASE_S),
                          db_arg_int(a, b->hb->step),
                          b->hb->phase,
                          isnan(b->hb->tokens_per_s) ? NULL
                                                     : db_arg_double(a, b->hb->tokens_per_s)};
    TRY(db_query(db, a, SQL_BEAT, 7, argv, &rows, e));
    return db_bool(&rows, 0, 0, &b->drain, e);
}

enum status db_task_heartbeat(struct db *db, const char *task_id, const char *silo_id,
                              const struct heartbeat *hb, bool *drain, struct refusal *no,
                              struct err *e)
{
    struct beat b = {.task_id = task_id, .silo_id = silo_id, .hb = hb};
    TRY(db_tx(db, beat_tx, &b, e));
    *drain = b.drain;
    *no = b.no;
    return ST_OK;
}

/* ---- metrics ---- */

struct batch {
    const char *task_id, *silo_id;
    int64_t epoch;
    const struct metric_point *points;
    int count;
    int64_t stored;
    struct refusal no;
};

/*
 * Late points are still true: a lease that was once this silo's is enough. But they are of the
 * task's round, from the step of the checkpoint before it to that of its own, however many of these
 * the silo was to take.
 */
static const char SQL_METRICS_OF[] =
    "SELECT t.run_id, t.number, s.name,"
    "       r.steps_before + greatest(t.number - 1, 0)::bigint * r.local_steps,"
    "       r.steps_before + t.number::bigint * r.local_steps"
    "  FROM lease l JOIN task t ON t.id = l.task_id JOIN silo s ON s.id = l.silo_id"
    "  JOIN run r ON r.id = t.run_id"
    " WHERE (l.task_id, l.epoch, l.silo_id) = ($1, $2, $3)";

/*
 * A batch is what a silo measured since its batch before, or since it took the task: its points are
 * laid evenly over that time, so that a curve over time does not climb in stairs.
 */
static const char SQL_STORE_POINTS[] =
    "WITH fresh AS (SELECT p.*, row_number() OVER w AS place, count(*) OVER (PARTITION BY p.name) n"
    "    FROM unnest($4::bigint[], $5::text[], $6::double precision[]) AS p (step, name, value)"
    "    WHERE NOT EXISTS (SELECT FROM metric m WHERE m.run_id = $1 AND m.silo_id = $2"
    "                         AND (m.round, m.step, m.name) = ($3::integer, p.step, p.name))"
    "    WINDOW w AS (PARTITION BY p.name ORDER BY p.step)),"
    " now AS (SELECT clock_timestamp() AS at)"
    " INSERT INTO metric (run_id, silo_id, round, step, name, value, at)"
    " SELECT $1, $2, $3, p.step, p.name, p.value,"
    "        now.at - (now.at - least(now.at, greatest(l.claimed_at, m.at))) * (1 - p.place / "
    "p.n::double precision)"
    "   FROM fresh p CROSS JOIN now"
    "   JOIN lease l ON (l.task_id, l.epoch) = ($7, $8)"
    "   LEFT JOIN metric_latest m ON (m.run_id, m.silo_id, m.name) = ($1, $2, p.name)"
    " ON CONFLICT DO NOTHING";

static enum status store_points(struct db *db, struct arena *a, struct batch *b, const char *run_id,
                                const char *round, struct err *e)
{
    size_t n = (size_t)b->count;
    const char **steps = arena_alloc(a, n * sizeof(*steps));
    const char **names = arena_alloc(a, n * sizeof(*names));
    const char **values = arena_alloc(a, n * sizeof(*values));
    for (size_t i = 0; i < n; i++) {
        steps[i] = db_arg_int(a, b->points[i].step);
        names[i] = b->points[i].name;
        values[i] = db_arg_double(a, b->points[i].value);
    }
    const char *argv[] = {run_id,
                          b->silo_id,
                          round,
                          db_arg_array(a, steps, b->count),
                          db_arg_array(a, names, b->count),
                          db_arg_array(a, values, b->count),
                          b->task_id,
                          db_arg_int(a, b->epoch)};
    return db_exec(db, SQL_STORE_POINTS, 8, argv, &b->stored, e);
}

/*
 * Names of this batch that have no curve yet; and how many have, asked only when there are any.
 * What the server adds of this silo's evaluations is not the silo's.
 */
static const char SQL_NAMES[] =
    "WITH fresh AS (SELECT DISTINCT p.name FROM unnest($3::text[]) AS p (name)"
    "    WHERE NOT EXISTS (SELECT FROM metric_latest m"
    "                       WHERE (m.run_id, m.name, m.silo_id) = ($1, p.name, $2)))"
    " SELECT count(*), CASE WHEN count(*) > 0 THEN (SELECT count(*) FROM metric_latest m"
    "                          WHERE (m.run_id, m.silo_id) = ($1, $2)"
    "                            AND m.name NOT IN ('eval_loss', 'eval_bpb')) ELSE 0 END FROM "
    "fresh";

static enum status has_room(struct db *db, struct arena *a, struct batch *b, const char *run_id,
                            struct err *e)
{
    struct db_rows rows;
    int64_t fresh = 0;
    int64_t known = 0;
    const char **names = arena_alloc(a, (size_t)b->count * sizeof(*names));
    for (int i = 0; i < b->count; i++) {
        names[i] = b->points[i].name;
    }
    const char *argv[] = {run_id, b->silo_id, db_arg_array(a, names, b->count)};
    TRY(db_query(db, a, SQL_NAMES, 3, argv, &rows, e));
    TRY(db_int64(&rows, 0, 0, &fresh, e));
    TRY(db_int64(&rows, 0, 1, &known, e));
    if (fresh > 0 && known + fresh > LIMIT_METRICS_NAMES) {
        refuse(&b->no, 422, "TOO_MANY_NAMES",
               "a silo may have %d curves in a run; there are %" PRId64
               ", and these points begin %" PRId64 " others",
               LIMIT_METRICS_NAMES, known, fresh);
    }
    return ST_OK;
}

static enum status metrics_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct batch *b = ctx;
    struct db_rows rows;
    b->no = (struct refusal){0};
    b->stored = 0;
    const char *of[] = {b->task_id, db_arg_int(a, b->epoch), b->silo_id};
    TRY(db_query(db, a, SQL_METRICS_OF, 3, of, &rows, e));
    if (rows.count == 0) {
        refuse(&b->no, 409, "STALE_LEASE", "this silo never held that task under that epoch");
        return ST_OK;
    }
    const char *run_id = db_text(&rows, 0, 0);
    const char *round = db_text(&rows, 0, 1);
    const char *silo = db_text(&rows, 0, 2);
    int64_t first_step = 0;
    int64_t last_step = 0;
    TRY(db_int64(&rows, 0, 3, &first_step, e));
    TRY(db_int64(&rows, 0, 4, &last_step, e));
    for (int i = 0; i < b->count; i++) {
        if (b->points[i].step < first_step || b->points[i].step > last_step) {
            refuse(&b->no, 422, "UNPROCESSABLE",
                   "/points/%d/step must be from %" PRId64 " to %" PRId64 ", as it is of round %s",
                   i, first_step, last_step, round);
            return ST_OK;
        }
    }
    TRY(has_room(db, a, b, run_id, e));
    if (b->no.code) {
        return ST_OK;
    }
    TRY(store_points(db, a, b, run_id, round, e));
    if (b->stored == 0) {
        return ST_OK;
    }
    const struct metric_point *last = &b->points[b->count - 1];
    const char *argv[] = {
        run_id,
        round,
        b->silo_id,
        arena_fmt(a, "%s sent %" PRId64 " points up to step %" PRId64, silo, b->stored, last->step),
        db_arg_int(a, b->stored),
        db_arg_int(a, last->step)};
    return db_exec(db,
                   "INSERT INTO event (kind, run_id, round, silo_id, message, detail) VALUES"
                   " ('metrics_added', $1, $2, $3, $4,"
                   "  jsonb_build_object('points', $5::bigint, 'step', $6::bigint))",
                   6, argv, NULL, e);
}

enum status db_task_metrics(struct db *db, const char *task_id, const char *silo_id, int64_t epoch,
                            const struct metric_point *points, int count, int64_t *stored,
                            struct refusal *no, struct err *e)
{
    struct batch b = {task_id, silo_id, epoch, points, count, 0, {0}};
    if (count > 0) {
        TRY(db_tx(db, metrics_tx, &b, e));
    }
    *stored = b.stored;
    *no = b.no;
    return ST_OK;
}

/* ---- result of an evaluation ---- */

struct outcome {
    const char *task_id, *silo_id;
    int64_t epoch;
    const struct eval_result *result;
    const char *code, *detail;
    char run_id[ID_LEN + 1];
    struct refusal no;
};

/* Who claims more than there was to evaluate would outweigh all others. */
static enum status within_plan(struct db *db, struct arena *a, struct outcome *o, struct err *e)
{
    struct db_rows rows;
    int64_t most = 0;
    const char *argv[] = {o->run_id};
    TRY(db_query(db, a,
                 "SELECT (spec #>> '{eval,windows}')::bigint * (spec #>> '{model,seq_len}')::bigint"
                 "  FROM run WHERE id = $1",
                 1, argv, &rows, e));
    TRY(db_int64(&rows, 0, 0, &most, e));
    if (o->result->tokens > most) {
        refuse(&o->no, 422, "TOO_MANY_TOKENS",
               "the plan has %" PRId64 " tokens, the evaluation claims %" PRId64, most,
               o->result->tokens);
    }
    return ST_OK;
}

static enum status result_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct outcome *o = ctx;
    struct task_lock lock = {0};
    o->no = (struct refusal){0};
    TRY(db_task_lock(db, a, o->task_id, o->silo_id, o->epoch, &lock, &o->no, e));
    if (o->no.code && !lock.done) {
        return ST_OK;
    }
    if (!lock.evaluate) {
        refuse(&o->no, 422, "NOT_AN_EVALUATION", "the task is a training; finish its upload");
        return ST_OK;
    }
    copy_text(o->run_id, sizeof(o->run_id), lock.run_id);
    const char *epoch = db_arg_int(a, o->epoch);
    if (lock.done) { // whose was it? A repeat gets the same answer
        struct db_rows rows;
        const char *argv[] = {o->task_id, epoch, o->silo_id};
        o->no = (struct refusal){0};
        TRY(db_query(db, a,
                     "SELECT 1 FROM lease WHERE (task_id, epoch, silo_id, outcome)"
                     " = ($1, $2, $3, 'accepted')",
                     3, argv, &rows, e));
        if (rows.count == 0) {
            refuse(&o->no, 409, "STALE_LEASE", "the task is done under another epoch");
        }
        return ST_OK;
    }
    TRY(within_plan(db, a, o, e));
    if (o->no.code) {
        return ST_OK;
    }
    const struct eval_result *r = o->result;
    const char *argv[] = {o->task_id,
                          epoch,
                          db_arg_double(a, r->nll),
                          db_arg_int(a, r->tokens),
                          db_arg_int(a, r->bytes),
                          db_arg_double(a, r->seconds),
                          db_arg_double(a, r->download_s),
                          o->silo_id};
    return db_exec(db,
                   "WITH t AS (UPDATE task SET state = 'done', done_at = clock_timestamp(),"
                   "           lease_until = NULL, nll = $3, eval_tokens = $4, eval_bytes = $5,"
                   "           eval_s = $6, download_s = $7 WHERE id = $1 RETURNING id),"
                   " s AS (UPDATE silo SET phase = 'waiting' WHERE id = $8)"
                   " UPDATE lease SET ended_at = clock_timestamp(), outcome = 'accepted' FROM t"
                   "  WHERE (task_id, epoch) = (t.id, $2)",
                   8, argv, NULL, e);
}

enum status db_task_result(struct db *db, const char *task_id, const char *silo_id, int64_t epoch,
                           const struct eval_result *r, char *run_id, struct refusal *no,
                           struct err *e)
{
    struct outcome o = {.task_id = task_id, .silo_id = silo_id, .epoch = epoch, .result = r};
    TRY(db_tx(db, result_tx, &o, e));
    copy_text(run_id, ID_LEN + 1, o.run_id);
    *no = o.no;
    return ST_OK;
}

/* ---- release and failure ---- */

static const char SQL_FAIL[] =
    "WITH l AS (UPDATE lease SET ended_at = clock_timestamp(),"
    "           outcome = CASE WHEN $3 THEN 'failed' ELSE 'released' END"
    "     WHERE task_id = $1 AND outcome IS NULL),"
    " s AS (UPDATE silo SET fails = fails + $3::boolean::integer,"
    "           failures = failures + $3::boolean::integer, phase = 'waiting' WHERE id = $2"
    "       RETURNING fails, name)"
    " UPDATE task SET phase = NULL, fail_code = $4, fail_detail = $5 WHERE id = $1"
    "  RETURNING state, run_id, number, slot, attempt, (SELECT fails FROM s), (SELECT name FROM s)";

static enum status fail_event(struct db *db, struct arena *a, const struct db_rows *task,
                              const char *silo_id, const char *task_id, const char *code,
                              const char *detail, struct err *e)
{
    bool failed = strcmp(db_text(task, 0, 0), "failed") == 0;
    const char *name = db_text(task, 0, 6);
    const char *argv[] = {failed ? "task_failed" : "task_released",
                          db_text(task, 0, 1),
                          db_text(task, 0, 2),
                          db_text(task, 0, 3),
                          silo_id,
                          arena_fmt(a, "%s gave its task back: %s%s%.120s%s", name, code,
                                    detail[0] ? " (" : "", detail, detail[0] ? ")" : ""),
                          task_id,
                          code,
                          detail};
    return db_exec(db,
                   "INSERT INTO event (kind, run_id, round, slot, silo_id, message, detail) VALUES"
                   " ($1, $2, $3, $4, $5, $6,"
                   "  jsonb_build_object('task', $7::text, 'code', $8::text, 'detail', $9::text))",
                   9, argv, NULL, e);
}

/* Some failures in a row and the silo sits out some rounds of this run. */
static enum status set_aside(struct db *db, struct arena *a, const char *run_id,
                             const char *silo_id, const char *name, struct err *e)
{
    const char *argv[] = {run_id, silo_id, db_arg_int(a, SILO_ASIDE_ROUNDS),
                          arena_fmt(a, "%s failed %d times in a row and sits out %d rounds", name,
                                    SILO_FAILS_ASIDE, SILO_ASIDE_ROUNDS)};
    TRY(db_exec(db, "UPDATE run_silo SET aside_rounds = $3 WHERE run_id = $1 AND silo_id = $2", 3,
                argv, NULL, e));
    const char *event[] = {run_id, silo_id, argv[3]};
    return db_exec(db,
                   "INSERT INTO event (kind, run_id, silo_id, message) VALUES"
                   " ('silo_aside', $1, $2, $3)",
                   3, event, NULL, e);
}

enum status db_task_fail(struct db *db, struct arena *a, const char *task_id, const char *silo_id,
                         const char *code, const char *detail, struct err *e)
{
    struct db_rows rows;
    struct silo_ids ids = {.arena = a};
    struct seat s;
    bool counts = false;
    uint16_t draw = 0;
    int32_t fails = 0;
    random_bytes(&draw, sizeof(draw));
    TRY(db_query(db, a, "SELECT " SEAT_COLUMNS " FROM task t WHERE t.id = $1", 1, &task_id, &rows,
                 e));
    TRY(db_seat_read(&rows, 0, 0, &ids, &s, e));
    if (!seat_fail(&s, code, draw / 65536.0, &counts, 0.0)) {
        return err_set(e, ST_INVALID, "unknown code '%.40s'", code);
    }
    TRY(db_seat_write(db, a, task_id, &ids, &s, e));
    const char *argv[] = {task_id, silo_id, counts ? "t" : "f", code, detail};
    TRY(db_query(db, a, SQL_FAIL, 5, argv, &rows, e));
    TRY(db_int32(&rows, 0, 5, &fails, e));
    TRY(fail_event(db, a, &rows, silo_id, task_id, code, detail, e));
    if (counts && silo_set_aside(fails)) {
        return set_aside(db, a, db_text(&rows, 0, 1), silo_id, db_text(&rows, 0, 6), e);
    }
    return ST_OK;
}

static enum status release_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct outcome *o = ctx;
    struct task_lock lock = {0};
    o->no = (struct refusal){0};
    TRY(db_task_lock(db, a, o->task_id, o->silo_id, o->epoch, &lock, &o->no, e));
    if (!o->no.code) {
        return db_task_fail(db, a, o->task_id, o->silo_id, o->code, o->detail, e);
    }
    if (o->no.status == 404) {
        return ST_OK;
    }
    // Given back before, or lost meanwhile: either way the silo does not hold it, which
    // is what it asked.
    struct db_rows rows;
    const char *argv[] = {o->task_id, db_arg_int(a, o->epoch), o->silo_id};
    TRY(db_query(db, a, "SELECT 1 FROM lease WHERE (task_id, epoch, silo_id) = ($1, $2, $3)", 3,
                 argv, &rows, e));
    if (rows.count > 0) {
        o->no = (struct refusal){0};
    }
    return ST_OK;
}

enum status db_task_release(struct db *db, const char *task_id, const char *silo_id, int64_t epoch,
                            const char *code, const char *detail, struct refusal *no, struct err *e)
{
    struct outcome o = {
        .task_id = task_id, .silo_id = silo_id, .epoch = epoch, .code = code, .detail = detail};
    TRY(db_tx(db, release_tx, &o, e));
    *no = o.no;
    return ST_OK;
}
