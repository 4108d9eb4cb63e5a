#include "server/db_task.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/fault.h"
#include "common/id.h"
#include "server/db_round.h"
#include "server/db_run.h"

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

/* ---- claim ---- */

struct claim_work {
    const char *silo_id;
    const char *agent;
    struct arena *keep;
    struct silo_ids ids; // of the transaction; the claiming silo is number 0
    struct task task;
    bool found;
};

/* What it holds or was drawn for, best first: what it holds already; an evaluation, which is short
 * and reads the file it has anyway; its own seat. */
static const char SQL_OWN[] =
    "SELECT t.id FROM task t LEFT JOIN round q ON q.id = t.round_id"
    " WHERE t.silo_id = $1 AND t.state IN ('pending', 'leased')"
    "   AND (t.kind = 'evaluate' OR q.state = 'open')"
    " ORDER BY t.state = 'leased' DESC, t.kind = 'evaluate' DESC, t.created_at, t.slot";

/* Rounds with a seat whose silo has had its time, and none of this silo's. Narrows the search and
 * decides nothing: seats_claim_over() does. */
static const char SQL_OTHERS[] =
    "SELECT q.id FROM round q JOIN run r ON r.id = q.run_id"
    " WHERE q.state = 'open' AND r.state = 'running'"
    "   AND EXISTS (SELECT FROM task t WHERE t.round_id = q.id AND t.silo_id <> $1"
    "          AND CASE t.state WHEN 'pending' THEN t.open_at WHEN 'leased' THEN t.lease_until END"
    "              <= clock_timestamp())"
    "   AND NOT EXISTS (SELECT FROM task t WHERE t.round_id = q.id AND t.silo_id = $1"
    "                      AND t.state IN ('pending', 'leased', 'done'))"
    " ORDER BY q.created_at";

#define SQL_ASIDE                                                                                  \
    " EXISTS (SELECT FROM run_silo x WHERE (x.run_id, x.silo_id) = (q.run_id, s.id)"               \
    "            AND x.aside_rounds > 0)"

/* All seats of a round; the task is seated last where it is looked for. */
static const char SQL_SEATS[] =
    "SELECT t.id, " SEAT_COLUMNS "  FROM task t WHERE t.round_id = $1 ORDER BY t.slot";
static const char SQL_DRAWN[] =
    "SELECT s.id, s.state = 'active' AND s.seen_at > clock_timestamp() - make_interval(secs => "
    "$2)," SQL_ASIDE "  FROM round q, unnest(q.eligible) WITH ORDINALITY AS d (name, place)"
    "  JOIN silo s ON s.name = d.name WHERE q.id = $1 ORDER BY d.place";
static const char SQL_ROUND[] =
    "SELECT r.state, q.state, extract(epoch FROM q.deadline - clock_timestamp()), q.run_id,"
    "       q.number, s.state = 'active'," SQL_ASIDE
    "  FROM round q JOIN run r ON r.id = q.run_id JOIN silo s ON s.id = $2 WHERE q.id = $1";

static enum status read_seats(struct db *db, struct arena *a, struct claim_work *c,
                              const char *round_id, struct seats *r, const char ***ids,
                              struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, SQL_SEATS, 1, &round_id, &rows, e));
    struct seat *seat = arena_alloc(a, (size_t)(rows.count + 1) * sizeof(*seat));
    *ids = arena_alloc(a, (size_t)(rows.count + 1) * sizeof(**ids));
    for (int i = 0; i < rows.count; i++) {
        (*ids)[i] = db_text(&rows, i, 0);
        TRY(db_seat_read(&rows, i, 1, &c->ids, &seat[i], e));
    }
    r->seat = seat;
    r->count = rows.count;
    return ST_OK;
}

static enum status read_drawn(struct db *db, struct arena *a, struct claim_work *c,
                              const char *round_id, struct seats *r, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {round_id, db_arg_int(a, ROUND_PATIENCE_S)};
    TRY(db_query(db, a, SQL_DRAWN, 2, argv, &rows, e));
    struct spare *drawn = arena_alloc(a, (size_t)(rows.count + 1) * sizeof(*drawn));
    for (int i = 0; i < rows.count; i++) {
        drawn[i].silo = silo_number_of(&c->ids, db_text(&rows, i, 0));
        TRY(db_bool(&rows, i, 1, &drawn[i].here, e));
        TRY(db_bool(&rows, i, 2, &drawn[i].aside, e));
    }
    r->drawn = drawn;
    r->drawn_count = rows.count;
    return ST_OK;
}

/* The task of another silo that this one may take over in that round; NULL: none. */
static enum status judge_others(struct db *db, struct arena *a, struct claim_work *c,
                                const char *round_id, const char **task_id, struct err *e)
{
    struct db_rows rows;
    struct seats r = {0};
    struct claimant me = {.silo = silo_number_of(&c->ids, c->silo_id)};
    const char **ids = NULL;
    int32_t number = 0;
    *task_id = NULL;
    const char *argv[] = {round_id, c->silo_id};
    TRY(db_query(db, a, SQL_ROUND, 2, argv, &rows, e));
    if (rows.count == 0) {
        return ST_OK;
    }
    r.run = run_state_of(db_text(&rows, 0, 0));
    r.round = round_state_of(db_text(&rows, 0, 1));
    TRY(db_double(&rows, 0, 2, &r.deadline, e));
    TRY(db_int32(&rows, 0, 4, &number, e));
    TRY(db_bool(&rows, 0, 5, &me.active, e));
    TRY(db_bool(&rows, 0, 6, &me.aside, e));
    struct deadline_estimate d;
    struct run_row run;
    TRY(db_run_read(db, a, db_text(&rows, 0, 3), &run, e));
    TRY(db_round_estimate(db, a, run.id, number, &d, e));
    r.task_s = d.known ? d.m * run.spec.federation.local_steps : 0.0;
    TRY(read_seats(db, a, c, round_id, &r, &ids, e));
    TRY(read_drawn(db, a, c, round_id, &r, e));
    int i = seats_claim_over(&r, &me, 0.0);
    *task_id = i < 0 ? NULL : ids[i];
    return ST_OK;
}

/* Under the task's lock, unless somebody else has it: then rows is empty. */
static const char SQL_LOCK_CLAIM[] =
    "SELECT t.id, t.kind, t.run_id, r.name, t.number, r.rounds, t.slot, t.base, c.weights,"
    "       c.weights_bytes, r.spec_text, s.name, s.state, r.state, coalesce(q.state, ''),"
    "       r.steps_before, t.steps, " SEAT_COLUMNS "  FROM task t"
    "  JOIN silo s ON s.id = $2"
    "  JOIN run r ON r.id = t.run_id"
    "  JOIN checkpoint c ON (c.run_id, c.number) = (t.run_id, t.base) AND c.kept"
    "  LEFT JOIN round q ON q.id = t.round_id"
    " WHERE t.id = $1 AND s.state <> 'revoked' FOR UPDATE OF t SKIP LOCKED";
enum { LOCK_CLAIM_BEFORE = 15, LOCK_CLAIM_STEPS, LOCK_CLAIM_SEAT };

static enum status read_claim(const struct db_rows *rows, struct claim_work *c, struct err *e)
{
    struct task *t = &c->task;
    copy_text(t->id, sizeof(t->id), db_text(rows, 0, 0));
    t->evaluate = strcmp(db_text(rows, 0, 1), "evaluate") == 0;
    copy_text(t->run_id, sizeof(t->run_id), db_text(rows, 0, 2));
    copy_text(t->run_name, sizeof(t->run_name), db_text(rows, 0, 3));
    TRY(db_int32(rows, 0, 4, &t->number, e));
    TRY(db_int32(rows, 0, 5, &t->rounds, e));
    TRY(db_int32(rows, 0, 6, &t->slot, e));
    TRY(db_int32(rows, 0, 7, &t->base, e));
    TRY(db_digest(rows, 0, 8, &t->base_sha256, e));
    TRY(db_int64(rows, 0, 9, &t->base_bytes, e));
    TRY(db_int64(rows, 0, LOCK_CLAIM_BEFORE, &t->steps_before, e));
    TRY(db_int32(rows, 0, LOCK_CLAIM_STEPS, &t->steps, e));
    t->spec_text = arena_fmt(c->keep, "%s", db_text(rows, 0, 10));
    return ST_OK;
}

static enum status claim_event(struct db *db, struct arena *a, const struct claim_work *c,
                               enum claim how, const char *silo_name, struct err *e)
{
    const struct task *t = &c->task;
    const char *what = t->evaluate
                           ? arena_fmt(a, "the evaluation of checkpoint %" PRId32, t->number)
                           : arena_fmt(a, "seat %" PRId32 " of round %" PRId32, t->slot, t->number);
    const char *message = arena_fmt(a, "%s took %s%s", silo_name, what,
                                    how == CLAIM_AGAIN  ? " again"
                                    : how == CLAIM_OVER ? " over"
                                                        : "");
    const char *argv[] = {t->run_id,
                          db_arg_int(a, t->number),
                          db_arg_int(a, t->slot),
                          c->silo_id,
                          message,
                          t->id,
                          db_arg_int(a, t->epoch),
                          t->evaluate ? "evaluate" : "train"};
    return db_exec(db,
                   "INSERT INTO event (kind, run_id, round, slot, silo_id, message, detail) VALUES"
                   " ('task_claimed', $1, $2, $3, $4, $5,"
                   "  jsonb_build_object('task', $6::text, 'epoch', $7::bigint, 'kind', $8::text))",
                   8, argv, NULL, e);
}

static const char SQL_END_LEASE[] =
    "UPDATE lease SET ended_at = clock_timestamp(),"
    "       outcome = CASE WHEN silo_id = $2 THEN 'superseded' ELSE 'expired' END"
    " WHERE task_id = $1 AND outcome IS NULL";
static const char SQL_BEGIN_LEASE[] =
    "WITH t AS (UPDATE task SET phase = NULL, step = CASE WHEN $4 THEN 0 ELSE step END"
    "     WHERE id = $1 RETURNING id, lease_epoch, run_id),"
    " s AS (INSERT INTO run_silo (run_id, silo_id) SELECT run_id, $2 FROM t"
    "       ON CONFLICT DO NOTHING)"
    " INSERT INTO lease (task_id, epoch, silo_id, agent) SELECT id, lease_epoch, $2, $3 FROM t";

static enum status take(struct db *db, struct arena *a, struct claim_work *c, struct seat *s,
                        enum claim how, const char *silo_name, struct err *e)
{
    seat_take(s, silo_number_of(&c->ids, c->silo_id), 0.0);
    c->task.epoch = s->epoch;
    const char *argv[] = {c->task.id, c->silo_id, c->agent, how == CLAIM_OVER ? "t" : "f"};
    TRY(db_exec(db, SQL_END_LEASE, 2, argv, NULL, e));
    TRY(db_seat_write(db, a, c->task.id, &c->ids, s, e));
    TRY(db_exec(db, SQL_BEGIN_LEASE, 4, argv, NULL, e));
    FAULT("claim.taken");
    TRY(claim_event(db, a, c, how, silo_name, e));
    c->found = true;
    return ST_OK;
}

/*
 * Lock the task and ask the rule again, with what is true now. round_id NULL: it is the silo's own.
 */
static enum status try_claim(struct db *db, struct arena *a, struct claim_work *c,
                             const char *task_id, const char *round_id, struct err *e)
{
    struct db_rows rows;
    struct seat s;
    const char *argv[] = {task_id, c->silo_id};
    TRY(db_query(db, a, SQL_LOCK_CLAIM, 2, argv, &rows, e));
    if (rows.count == 0) {
        return ST_OK;
    }
    FAULT("claim.locked");
    TRY(db_seat_read(&rows, 0, LOCK_CLAIM_SEAT, &c->ids, &s, e));
    struct claimant me = {.silo = silo_number_of(&c->ids, c->silo_id),
                          .active = strcmp(db_text(&rows, 0, 12), "active") == 0};
    enum claim how = seat_claim_own(&s, &me, run_state_of(db_text(&rows, 0, 13)),
                                    round_state_of(db_text(&rows, 0, 14)), 0.0);
    if (how == CLAIM_NO && round_id) {
        const char *still = NULL;
        TRY(judge_others(db, a, c, round_id, &still, e));
        how = still && strcmp(still, task_id) == 0 ? CLAIM_OVER : CLAIM_NO;
    }
    if (how == CLAIM_NO) {
        return ST_OK;
    }
    TRY(read_claim(&rows, c, e));
    return take(db, a, c, &s, how, db_text(&rows, 0, 11), e);
}

static enum status claim_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct claim_work *c = ctx;
    struct db_rows rows;
    c->found = false;
    c->ids = (struct silo_ids){.arena = a};
    (void)silo_number_of(&c->ids, c->silo_id);
    TRY(db_query(db, a, SQL_OWN, 1, &c->silo_id, &rows, e));
    for (int i = 0; i < rows.count && !c->found; i++) {
        TRY(try_claim(db, a, c, db_text(&rows, i, 0), NULL, e));
    }
    if (c->found) {
        return ST_OK;
    }
    TRY(db_query(db, a, SQL_OTHERS, 1, &c->silo_id, &rows, e));
    for (int i = 0; i < rows.count && !c->found; i++) {
        const char *round_id = db_text(&rows, i, 0);
        const char *task_id = NULL;
        TRY(judge_others(db, a, c, round_id, &task_id, e));
        if (task_id) {
            TRY(try_claim(db, a, c, task_id, round_id, e));
        }
    }
    return ST_OK;
}

enum status db_task_claim(struct db *db, struct arena *a, const char *silo_id, const char *agent,
                          struct task *out, bool *found, struct err *e)
{
    struct claim_work c = {.silo_id = silo_id, .agent = agent, .keep = a};
    enum status st = db_tx(db, claim_tx, &c, e);
    FAULT("claim.committed");
    if (st == ST_CONFLICT) {
        c.found = false; // another request of this silo took a seat of the same round just now
        st = ST_OK;
    }
    TRY(st);
    *found = c.found;
    if (c.found) {
        *out = c.task;
    }
    return ST_OK;
}

/* ---- what to fetch meanwhile ---- */

/* Of the newest run whose live round builds on its head: who comes late to it can be ready. */
static const char SQL_NEXT_BASE[] =
    "WITH b AS (SELECT r.id, s.id AS silo_id, c.weights, c.weights_bytes"
    "       FROM run r JOIN round q ON q.run_id = r.id AND q.state IN ('pending', 'open')"
    "       JOIN checkpoint c ON (c.run_id, c.number) = (r.id, q.base) AND c.kept"
    "       JOIN silo s ON s.id = $1 AND s.state = 'active' AND s.agent IS NOT NULL"
    "        AND coalesce(s.tokenizer_sha256, '') = coalesce(r.spec -> 'tokenizer' ->> 'sha256', "
    "'')"
    "      WHERE r.state = 'running' ORDER BY r.id DESC LIMIT 1),"
    " m AS (INSERT INTO run_silo (run_id, silo_id) SELECT id, silo_id FROM b ON CONFLICT DO "
    "NOTHING)"
    " SELECT encode(weights, 'hex'), weights_bytes FROM b";

enum status db_task_next_base(struct db *db, struct arena *a, const char *silo_id,
                              struct next_base *out, struct err *e)
{
    struct db_rows rows;
    *out = (struct next_base){0};
    TRY(db_query(db, a, SQL_NEXT_BASE, 1, &silo_id, &rows, e));
    if (rows.count > 0) {
        copy_text(out->sha256, sizeof(out->sha256), db_text(&rows, 0, 0));
        TRY(db_int64(&rows, 0, 1, &out->bytes, e));
        out->found = true;
    }
    return ST_OK;
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

/* Late points are still true: a lease that was once this silo's is enough. */
static const char SQL_METRICS_OF[] =
    "SELECT t.run_id, t.number, s.name, r.steps_before + r.rounds::bigint * r.local_steps"
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
    int64_t last_step = 0;
    TRY(db_int64(&rows, 0, 3, &last_step, e));
    for (int i = 0; i < b->count; i++) {
        if (b->points[i].step > last_step) {
            refuse(&b->no, 422, "UNPROCESSABLE",
                   "/points/%d/step is beyond the run's last step, %" PRId64, i, last_step);
            return ST_OK;
        }
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
