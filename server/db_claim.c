/*
 * db_claim.c - which task a silo gets, and what it may fetch while there is none.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/fault.h"
#include "server/db_event.h"
#include "server/db_round.h"
#include "server/db_run.h"
#include "server/db_task.h"

static void copy_text(char *out, size_t size, const char *text)
{
    (void)snprintf(out, size, "%s", text ? text : "");
}

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
    "                      AND t.kind = 'train' AND t.state IN ('pending', 'leased', 'done'))"
    " ORDER BY q.created_at";

#define SQL_TOKENS_FIT                                                                             \
    " coalesce(s.tokenizer_sha256, '') = coalesce(r.spec -> 'tokenizer' ->> 'sha256', '')"
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
    "       q.number, s.state = 'active'," SQL_ASIDE "," SQL_TOKENS_FIT
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

/*
 * The task of another silo that this one may take over in that round; NULL: none. The run is not
 * locked: the task is, and then this is asked again (try_claim()); who seals or aborts a round
 * waits for that lock before a seat is cancelled; task_silo_once keeps a silo from a second seat.
 * So spares do not wait for each other, and one that finds its seat taken looks again.
 */
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
    TRY(db_bool(&rows, 0, 7, &me.tokens_fit, e));
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
    "WITH b AS (SELECT r.id, s.id AS silo_id, c.weights, c.weights_bytes, c.number"
    "       FROM run r JOIN round q ON q.run_id = r.id AND q.state IN ('pending', 'open')"
    "       JOIN checkpoint c ON (c.run_id, c.number) = (r.id, q.base) AND c.kept"
    "       JOIN silo s ON s.id = $1 AND s.state = 'active' AND s.agent IS NOT NULL"
    "        AND" SQL_TOKENS_FIT " WHERE r.state = 'running' ORDER BY r.id DESC LIMIT 1),"
    " m AS (INSERT INTO run_silo (run_id, silo_id) SELECT id, silo_id FROM b ON CONFLICT DO "
    "NOTHING)"
    " SELECT encode(weights, 'hex'), weights_bytes, id, number FROM b";

enum status db_task_next_base(struct db *db, struct arena *a, const char *silo_id,
                              struct next_base *out, struct err *e)
{
    struct db_rows rows;
    *out = (struct next_base){0};
    TRY(db_query(db, a, SQL_NEXT_BASE, 1, &silo_id, &rows, e));
    if (rows.count > 0) {
        copy_text(out->sha256, sizeof(out->sha256), db_text(&rows, 0, 0));
        TRY(db_int64(&rows, 0, 1, &out->bytes, e));
        copy_text(out->run_id, sizeof(out->run_id), db_text(&rows, 0, 2));
        TRY(db_int32(&rows, 0, 3, &out->number, e));
        out->found = true;
    }
    return ST_OK;
}
