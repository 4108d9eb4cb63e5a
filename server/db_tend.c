#include "server/db_tend.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/log.h"
#include "common/version.h"
#include "server/db_blob.h"
#include "server/db_event.h"
#include "server/db_seat.h"
#include "server/db_step.h"

/* ---- arriving ---- */

/* Seconds in which no server lived; 0 when this is the first one ever. */
static const char SQL_SILENCE[] =
    "SELECT coalesce(extract(epoch FROM clock_timestamp() - max(seen_at)), 0) FROM server_process";
static const char SQL_TASKS_OUT[] =
    "SELECT t.id, " SEAT_COLUMNS "  FROM task t WHERE t.state IN ('pending', 'leased')"
    " ORDER BY t.id FOR UPDATE OF t";
static const char SQL_ROUNDS_OUT[] =
    "SELECT q.id, extract(epoch FROM q.deadline - clock_timestamp()),"
    "       extract(epoch FROM q.cap_at - clock_timestamp())"
    "  FROM round q WHERE q.state = 'open' ORDER BY q.id FOR NO KEY UPDATE OF q";
static const char SQL_DEADLINE[] =
    "UPDATE round SET deadline = least(cap_at, clock_timestamp() + make_interval(secs => $2))"
    " WHERE id = $1";
static const char SQL_ENTER[] =
    "INSERT INTO server_process (boot_id, host, pid, version) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT ON CONSTRAINT server_process_pk DO UPDATE SET seen_at = clock_timestamp()";

/* Nobody is re-dispatched, and no round ends, for our fault. */
static enum status make_good(struct db *db, struct arena *a, double silence_s, struct err *e)
{
    struct db_rows rows;
    struct silo_ids ids = {.arena = a};
    TRY(db_query(db, a, SQL_ROUNDS_OUT, 0, NULL, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        double deadline = 0.0;
        double cap = 0.0;
        TRY(db_double(&rows, i, 1, &deadline, e));
        TRY(db_double(&rows, i, 2, &cap, e));
        const char *argv[] = {db_text(&rows, i, 0),
                              db_arg_double(a, round_outage(deadline, cap, silence_s))};
        TRY(db_exec(db, SQL_DEADLINE, 2, argv, NULL, e));
    }
    TRY(db_query(db, a, SQL_TASKS_OUT, 0, NULL, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        struct seat s;
        TRY(db_seat_read(&rows, i, 1, &ids, &s, e));
        seat_outage(&s, 0.0);
        TRY(db_seat_write(db, a, db_text(&rows, i, 0), &ids, &s, e));
    }
    log_info("no server lived for %.0f s: leases and deadlines are extended", silence_s);
    return ST_OK;
}

static enum status arrive_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    const char *boot_id = ctx;
    struct db_rows rows;
    double silence_s = 0.0;
    // Two servers that start together extend twice at most: harmless.
    TRY(db_query(db, a, SQL_SILENCE, 0, NULL, &rows, e));
    TRY(db_double(&rows, 0, 0, &silence_s, e));
    if (outage_counts(silence_s)) {
        TRY(make_good(db, a, silence_s, e));
    }
    char host[64] = "";
    (void)gethostname(host, sizeof(host) - 1);
    const char *argv[] = {boot_id, host, db_arg_int(a, getpid()), PHOTON_VERSION};
    return db_exec(db, SQL_ENTER, 4, argv, NULL, e);
}

enum status db_tend_arrive(struct db *db, const char *boot_id, struct err *e)
{
    char id[64];
    (void)snprintf(id, sizeof(id), "%s", boot_id);
    return db_tx(db, arrive_tx, id, e);
}

enum status db_tend_alive(struct db *db, const char *boot_id, struct err *e)
{
    TRY(db_exec(db, "UPDATE server_process SET seen_at = clock_timestamp() WHERE boot_id = $1", 1,
                &boot_id, NULL, e));
    return db_exec(db,
                   "DELETE FROM server_process WHERE seen_at < clock_timestamp() - interval '1 day'"
                   "   AND seen_at < (SELECT max(seen_at) FROM server_process)",
                   0, NULL, NULL, e);
}

/* The row stays: its last sign of life tells the next server how long nobody lived. */
enum status db_tend_leave(struct db *db, const char *boot_id, struct err *e)
{
    return db_tend_alive(db, boot_id, e);
}

/* ---- silos and leases ---- */

/* After a start nobody can have been heard of: the time counts from then on. */
static const char SQL_GONE[] =
    "WITH g AS (UPDATE silo s SET gone = true, phase = 'waiting'"
    "     WHERE NOT s.gone"
    "       AND coalesce(s.seen_at, s.created_at) < clock_timestamp() - make_interval(secs => $2)"
    "       AND (SELECT started_at FROM server_process WHERE boot_id = $1)"
    "           < clock_timestamp() - make_interval(secs => $2)"
    "     RETURNING s.id, s.name)"
    " INSERT INTO event (kind, silo_id, message)"
    " SELECT 'silo_gone', g.id, g.name || ' has not been heard of for 75 s' FROM g";

/* Leases past their end whose silo is gone: those that seat_expire() may take. */
static const char SQL_EXPIRED[] =
    "SELECT t.id, t.run_id, t.number, t.slot, t.kind, s.id, s.name, s.gone, " SEAT_COLUMNS
    "  FROM task t JOIN silo s ON s.id = t.silo_id"
    " WHERE t.state = 'leased' AND s.gone AND t.lease_until < clock_timestamp()"
    " FOR UPDATE OF t SKIP LOCKED";
enum { EXPIRED_SEAT = 8 };
static const char SQL_FREE_LEASE[] =
    "WITH t AS (UPDATE task SET phase = NULL WHERE id = $1)"
    " UPDATE lease SET outcome = 'expired', ended_at = clock_timestamp()"
    "  WHERE task_id = $1 AND outcome IS NULL";

static enum status expire_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    (void)ctx;
    struct db_rows rows;
    struct silo_ids ids = {.arena = a};
    TRY(db_query(db, a, SQL_EXPIRED, 0, NULL, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        struct seat s;
        bool gone = false;
        TRY(db_bool(&rows, i, 7, &gone, e));
        TRY(db_seat_read(&rows, i, EXPIRED_SEAT, &ids, &s, e));
        if (!seat_expire(&s, gone, 0.0)) {
            continue;
        }
        int32_t number = 0;
        const char *task[] = {db_text(&rows, i, 0)};
        bool train = strcmp(db_text(&rows, i, 4), "train") == 0;
        TRY(db_int32(&rows, i, 2, &number, e));
        TRY(db_seat_write(db, a, task[0], &ids, &s, e));
        FAULT("expire.freed");
        TRY(db_exec(db, SQL_FREE_LEASE, 1, task, NULL, e));
        const char *what =
            train ? arena_fmt(a, "seat %s of round %" PRId32, db_text(&rows, i, 3), number)
                  : arena_fmt(a, "the evaluation of checkpoint %" PRId32, number);
        TRY(db_event(db, a,
                     &(struct event){.kind = "task_expired",
                                     .run_id = db_text(&rows, i, 1),
                                     .round = number,
                                     .silo_id = db_text(&rows, i, 5),
                                     .message = arena_fmt(a, "%s fell silent and lost %s",
                                                          db_text(&rows, i, 6), what),
                                     .detail = arena_fmt(a, "{\"task\":\"%s\"}", task[0])},
                     e));
    }
    return ST_OK;
}

enum status db_tend_silos(struct db *db, const char *boot_id, struct err *e)
{
    char patience[16];
    (void)snprintf(patience, sizeof(patience), "%d", ROUND_PATIENCE_S);
    const char *argv[] = {boot_id, patience};
    TRY(db_exec(db, SQL_GONE, 2, argv, NULL, e));
    return db_tx(db, expire_tx, NULL, e);
}

/* ---- files ---- */

static const char SQL_LET_GO_CHECKPOINTS[] =
    "WITH g AS (UPDATE checkpoint c SET kept = false FROM run r"
    "     WHERE r.id = c.run_id AND c.kept AND (r.spec ->> 'keep_checkpoints')::integer > 0"
    "       AND c.number <= r.head - (r.spec ->> 'keep_checkpoints')::integer"
    "     RETURNING c.run_id, c.number)"
    " INSERT INTO event (kind, run_id, round, message)"
    " SELECT 'checkpoint_removed', g.run_id, g.number,"
    "        'the file of checkpoint ' || g.number || ' is past its keeping' FROM g";
static const char SQL_LET_GO_UPDATES[] =
    "UPDATE update u SET kept = false FROM round q JOIN run r ON r.id = q.run_id"
    " WHERE q.id = u.round_id AND u.kept AND q.state IN ('closed', 'aborted')"
    "   AND q.number <= r.head - 3";
static const char SQL_LET_GO_UPLOADS[] =
    "UPDATE upload u SET state = 'expired' FROM task t LEFT JOIN round q ON q.id = t.round_id"
    " WHERE t.id = u.task_id AND u.state IN ('open', 'placed')"
    "   AND u.touched_at < clock_timestamp() - CASE WHEN q.state = 'open' THEN interval '72 hours'"
    "                                               ELSE interval '10 minutes' END"
    " RETURNING u.id";
static const char SQL_LET_GO_KEYS[] =
    "DELETE FROM idempotency_key WHERE created_at < clock_timestamp() - interval '2 days'";

static enum status expire_uploads(struct db *db, struct arena *a, struct blob_store *blobs,
                                  struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, SQL_LET_GO_UPLOADS, 0, NULL, &rows, e));
    for (int i = 0; i < rows.count; i++) {
        blob_tmp_remove(blobs, db_text(&rows, i, 0));
    }
    return ST_OK;
}

static enum status tend_files(struct db *db, struct arena *a, struct blob_store *blobs,
                              struct err *e)
{
    TRY(db_exec(db, SQL_LET_GO_CHECKPOINTS, 0, NULL, NULL, e));
    TRY(db_exec(db, SQL_LET_GO_UPDATES, 0, NULL, NULL, e));
    TRY(db_step_let_go(db, e));
    TRY(db_exec(db, SQL_LET_GO_KEYS, 0, NULL, NULL, e));
    TRY(expire_uploads(db, a, blobs, e));
    return db_blob_collect(db, blobs, e);
}

enum status db_tend_files(struct db *db, struct blob_store *blobs, struct err *e)
{
    struct arena *a = arena_new((size_t)16 << 20);
    enum status st = tend_files(db, a, blobs, e);
    arena_free(a);
    return st;
}

/* ---- the chain of events ---- */

/* Of one run and one transaction: a tenth of a second, far below what a statement may take. */
enum { CHAIN_MOST = 1000 };

static const char SQL_UNCHAINED[] =
    "SELECT run_id FROM event WHERE chain IS NULL AND run_id > $1 ORDER BY run_id LIMIT 1";

/* Those of the first run after this one, which it becomes; "" when there is none. */
static enum status chain_next(struct db *db, struct arena *a, char run_id[64], int32_t *linked,
                              struct err *e)
{
    struct db_rows rows;
    const char *after[] = {run_id};
    TRY(db_query(db, a, SQL_UNCHAINED, 1, after, &rows, e));
    (void)snprintf(run_id, 64, "%s", rows.count > 0 ? db_text(&rows, 0, 0) : "");
    if (!run_id[0]) {
        return ST_OK;
    }
    const char *argv[] = {run_id, db_arg_int(a, CHAIN_MOST)};
    TRY(db_query(db, a, "SELECT event_chain($1, $2)", 2, argv, &rows, e));
    return db_int32(&rows, 0, 0, linked, e);
}

enum status db_tend_chain(struct db *db, bool *more, struct err *e)
{
    char run_id[64] = "";
    enum status st = ST_OK;
    *more = false;
    do {
        int32_t linked = 0;
        struct arena *a = arena_new(1 << 20);
        st = chain_next(db, a, run_id, &linked, e);
        arena_free(a);
        *more = *more || linked == CHAIN_MOST;
    } while (!st && run_id[0]);
    return st;
}

/* ---- the audit table ---- */

enum status db_tend_audit(struct db *db, int days, struct err *e)
{
    char text[16];
    const char *argv[] = {text};
    (void)snprintf(text, sizeof(text), "%d", days);
    return days == 0 ? ST_OK
                     : db_exec(db,
                               "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at <"
                               " clock_timestamp() - make_interval(days => $1) ORDER BY at"
                               " LIMIT 10000)",
                               1, argv, NULL, e);
}
