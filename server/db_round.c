#include "server/db_round.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/fault.h"
#include "common/id.h"
#include "server/db_event.h"
#include "server/db_run.h"
#include "server/deadline.h"
#include "server/round.h"

/* ---- a pending round ---- */

static const char SQL_PREPARE[] =
    "INSERT INTO round (run_id, number, attempt, silos_expected, quorum)"
    " SELECT r.id, r.head + 1,"
    "        (SELECT coalesce(max(attempt), 0) + 1 FROM round"
    "          WHERE run_id = r.id AND number = r.head + 1),"
    "        r.silos_per_round, r.min_silos"
    "   FROM run r"
    "  WHERE r.id = $1 AND r.state = 'running' AND r.head < r.rounds"
    "    AND NOT EXISTS (SELECT FROM round WHERE run_id = r.id"
    "                       AND state IN ('pending', 'open', 'aggregating'))";

enum status db_round_prepare_in(struct db *db, const char *run_id, struct err *e)
{
    return db_exec(db, SQL_PREPARE, 1, &run_id, NULL, e);
}

static enum status prepare_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    const char *run_id = ctx;
    struct run_row run;
    TRY(db_run_lock(db, a, run_id, &run, e));
    return run.found ? db_round_prepare_in(db, run_id, e) : ST_OK;
}

enum status db_round_prepare(struct db *db, const char *run_id, struct err *e)
{
    char id[ID_LEN + 1];
    (void)snprintf(id, sizeof(id), "%s", run_id);
    return db_tx(db, prepare_tx, id, e);
}

/* ---- sealing and aborting ---- */

static const char SQL_OPEN_ROUND[] = "SELECT id, number, silos_expected, quorum FROM round"
                                     " WHERE run_id = $1 AND state = 'open' FOR NO KEY UPDATE";

/* The newest claim of a seat that changed hands and is at work. */
static const char SQL_REDISPATCHED[] =
    "SELECT extract(epoch FROM max(l.claimed_at) - clock_timestamp()),"
    "       (SELECT extract(epoch FROM deadline - clock_timestamp()) FROM round WHERE id = $1),"
    "       (SELECT extract(epoch FROM cap_at - clock_timestamp()) FROM round WHERE id = $1)"
    "  FROM task t JOIN lease l ON l.task_id = t.id AND l.outcome IS NULL"
    " WHERE t.round_id = $1 AND t.lease_epoch > 1" // few
    "   AND EXISTS (SELECT FROM lease o WHERE o.task_id = l.task_id"
    "                  AND o.epoch < l.epoch AND o.silo_id <> l.silo_id)"
    " HAVING count(*) > 0";
static const char SQL_EXTEND[] =
    "UPDATE round SET deadline = least(cap_at, clock_timestamp() + make_interval(secs => $2))"
    " WHERE id = $1";

static enum status extend(struct db *db, struct arena *a, const struct run_row *run,
                          const char *round_id, int32_t number, struct err *e)
{
    struct db_rows rows;
    struct deadline_estimate d;
    double claimed = 0.0;
    double deadline = 0.0;
    double cap = 0.0;
    TRY(db_query(db, a, SQL_REDISPATCHED, 1, &round_id, &rows, e));
    if (rows.count == 0) {
        return ST_OK;
    }
    TRY(db_double(&rows, 0, 0, &claimed, e));
    TRY(db_double(&rows, 0, 1, &deadline, e));
    TRY(db_double(&rows, 0, 2, &cap, e));
    TRY(db_round_estimate(db, a, run->id, number, &d, e));
    double task_s = deadline_task_seconds(&d, run->spec.federation.deadline_k,
                                          run->spec.federation.local_steps);
    if (task_s <= 0.0) {
        return ST_OK;
    }
    double later = round_deadline(deadline, cap, claimed, task_s);
    if (later < deadline + 1.0) { // what the clock moved meanwhile is no reason to write
        return ST_OK;
    }
    const char *argv[] = {round_id, db_arg_double(a, later)};
    return db_exec(db, SQL_EXTEND, 2, argv, NULL, e);
}

/* Counted after the lock was had, by the clock of this moment. */
static const char SQL_PROGRESS[] =
    "SELECT (SELECT count(*) FROM update WHERE round_id = q.id AND state = 'accepted'),"
    "       (SELECT count(*) FROM task WHERE round_id = q.id AND state = 'pending'),"
    "       (SELECT count(*) FROM task WHERE round_id = q.id AND state = 'leased'),"
    "       q.deadline <= clock_timestamp(), q.cap_at <= clock_timestamp()"
    "  FROM round q WHERE q.id = $1";

/* Tasks first, their leases after them: the other way round a claim beside it leaves one open. */
static enum status cancel_seats(struct db *db, const char *round_id, struct err *e)
{
    TRY(db_exec(
        db,
        "UPDATE task SET state = 'cancelled', lease_until = NULL, done_at = clock_timestamp()"
        " WHERE round_id = $1 AND state IN ('pending', 'leased')",
        1, &round_id, NULL, e));
    return db_exec(
        db,
        "UPDATE lease SET outcome = 'cancelled', ended_at = clock_timestamp()"
        " WHERE outcome IS NULL AND task_id IN (SELECT id FROM task WHERE round_id = $1)",
        1, &round_id, NULL, e);
}

static enum status seal(struct db *db, struct arena *a, const char *run_id, const char *round_id,
                        int32_t number, const struct round_progress *p, struct err *e)
{
    TRY(db_exec(db,
                "UPDATE round SET state = 'aggregating', sealed_at = clock_timestamp(),"
                "       manifest = (SELECT m FROM manifest_now WHERE round_id = $1)"
                " WHERE id = $1",
                1, &round_id, NULL, e));
    FAULT("seal.marked");
    TRY(cancel_seats(db, round_id, e));
    FAULT("seal.cancelled");
    return db_event(
        db, a,
        &(struct event){.kind = "round_sealed",
                        .run_id = run_id,
                        .round = number,
                        .message = arena_fmt(a, "round %" PRId32 " sealed with %d of %d updates",
                                             number, p->accepted, p->expected),
                        .detail = arena_fmt(a, "{\"accepted\":%d,\"dropped\":%d}", p->accepted,
                                            p->pending + p->leased)},
        e);
}

static enum status pause_starved(struct db *db, struct arena *a, const char *run_id, int32_t number,
                                 const char *reason, struct err *e)
{
    const char *text =
        arena_fmt(a, "round %" PRId32 " was given up %d times: %s", number, ROUND_ATTEMPTS, reason);
    const char *argv[] = {run_id, text};
    TRY(db_exec(db,
                "UPDATE run SET state = 'paused', reason = $2, waiting_for = NULL"
                " WHERE id = $1 AND state = 'running'",
                2, argv, NULL, e));
    return db_event(
        db, a,
        &(struct event){.kind = "run_starved", .run_id = run_id, .round = number, .message = text},
        e);
}

static const char SQL_ABORT[] =
    "UPDATE round SET state = 'aborted', closed_at = clock_timestamp(), reason = $2 WHERE id = $1"
    " RETURNING number, attempt, (SELECT state = 'running' FROM run WHERE id = run_id)";

enum status db_round_abort(struct db *db, struct arena *a, const char *run_id, int64_t round_id,
                           const char *reason, struct err *e)
{
    struct db_rows rows;
    const char *id = db_arg_int(a, round_id);
    const char *argv[] = {id, reason};
    int32_t number = 0;
    int32_t attempt = 0;
    bool running = false;
    TRY(db_query(db, a, SQL_ABORT, 2, argv, &rows, e));
    TRY(db_int32(&rows, 0, 0, &number, e));
    TRY(db_int32(&rows, 0, 1, &attempt, e));
    TRY(db_bool(&rows, 0, 2, &running, e));
    FAULT("abort.marked");
    TRY(cancel_seats(db, id, e));
    TRY(db_event(db, a,
                 &(struct event){
                     .kind = "round_aborted",
                     .run_id = run_id,
                     .round = number,
                     .message = arena_fmt(a, "round %" PRId32 " was given up: %s", number, reason),
                     .detail = arena_fmt(a, "{\"attempt\":%" PRId32 "}", attempt)},
                 e));
    if (!running) {
        return ST_OK;
    }
    return round_tries_again(attempt) ? db_round_prepare_in(db, run_id, e)
                                      : pause_starved(db, a, run_id, number, reason, e);
}

static enum status read_progress(struct db *db, struct arena *a, const char *round_id,
                                 struct round_progress *p, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, SQL_PROGRESS, 1, &round_id, &rows, e));
    TRY(db_int32(&rows, 0, 0, &p->accepted, e));
    TRY(db_int32(&rows, 0, 1, &p->pending, e));
    TRY(db_int32(&rows, 0, 2, &p->leased, e));
    TRY(db_bool(&rows, 0, 3, &p->deadline_passed, e));
    return db_bool(&rows, 0, 4, &p->cap_passed, e);
}

static enum status judge_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct run_row run;
    TRY(db_run_lock(db, a, ctx, &run, e));
    if (!run.found) {
        return ST_OK;
    }
    struct db_rows rows;
    const char *argv[] = {run.id};
    TRY(db_query(db, a, SQL_OPEN_ROUND, 1, argv, &rows, e));
    if (rows.count == 0) {
        return ST_OK;
    }
    FAULT("seal.locked");
    const char *round_id = db_text(&rows, 0, 0);
    int32_t number = 0;
    int64_t id = 0;
    struct round_progress p = {0};
    TRY(db_int64(&rows, 0, 0, &id, e));
    TRY(db_int32(&rows, 0, 1, &number, e));
    TRY(db_int32(&rows, 0, 2, &p.expected, e));
    TRY(db_int32(&rows, 0, 3, &p.quorum, e));

    TRY(extend(db, a, &run, round_id, number, e));
    TRY(read_progress(db, a, round_id, &p, e));
    FAULT("seal.counted");
    switch (round_judge(&p)) {
    case ROUND_SEAL:
        return seal(db, a, run.id, round_id, number, &p, e);
    case ROUND_ABORT:
        return db_round_abort(db, a, run.id, id,
                              arena_fmt(a, "%d of %d updates came%s", p.accepted, p.quorum,
                                        p.cap_passed ? " in time" : ""),
                              e);
    case ROUND_OPEN:
    case ROUND_RECALL:
    case ROUND_WAIT:
    default:
        return ST_OK;
    }
}

enum status db_round_judge(struct db *db, const char *run_id, struct err *e)
{
    char id[ID_LEN + 1];
    (void)snprintf(id, sizeof(id), "%s", run_id);
    return db_tx(db, judge_tx, id, e);
}

static enum status end_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct run_row run;
    TRY(db_run_lock(db, a, ctx, &run, e));
    if (!run.found || run.state == RUN_RUNNING || run.state == RUN_PAUSED) {
        return ST_OK;
    }
    struct db_rows rows;
    const char *argv[] = {run.id};
    TRY(db_query(db, a,
                 "SELECT id FROM round WHERE run_id = $1"
                 " AND state IN ('pending', 'open', 'aggregating') FOR NO KEY UPDATE",
                 1, argv, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        int64_t id = 0;
        TRY(db_int64(&rows, i, 0, &id, e));
        TRY(db_round_abort(db, a, run.id, id, "the run ended", e));
    }
    return ST_OK;
}

enum status db_round_end(struct db *db, const char *run_id, struct err *e)
{
    char id[ID_LEN + 1];
    (void)snprintf(id, sizeof(id), "%s", run_id);
    return db_tx(db, end_tx, id, e);
}
