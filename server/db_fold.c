/*
 * db_fold.c - what an aggregation reads: the lock of its run, its inputs, and those of a checkpoint
 * that is made once more.
 */
#include <inttypes.h>
#include <stdio.h>

#include "common/fault.h"
#include "common/log.h"
#include "server/db_blob.h"
#include "server/db_event.h"
#include "server/db_publish.h"
#include "server/db_step.h"
#include "server/downlink.h"

enum { STALE_S = 30 }; // without a sign of life, where one comes each second

/* ---- what to aggregate ---- */

/* A paused run closes its live round, unless that is what it was paused for. */
static const char SQL_SEALED[] =
    "SELECT q.id, q.run_id FROM round q JOIN run r ON r.id = q.run_id"
    " WHERE q.state = 'aggregating' AND q.id <> ALL ($1::bigint[])"
    "   AND (r.state = 'running' OR (r.state = 'paused' AND q.reason IS NULL))"
    " ORDER BY q.sealed_at, q.id";
static const char SQL_RAISE[] =
    "UPDATE round SET agg_epoch = agg_epoch + 1 WHERE id = $1 AND state = 'aggregating'"
    " RETURNING id, run_id, number, agg_epoch";
static const char SQL_INPUTS[] =
    "SELECT u.id, u.digest, s.name, u.tokens, u.codec FROM update u JOIN silo s ON s.id = u.silo_id"
    " WHERE u.round_id = $1 AND u.state = 'accepted' ORDER BY u.slot";

static enum status read_inputs(struct db *db, struct arena *a, struct fold *f, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {db_arg_int(a, f->round_id)};
    TRY(db_query(db, a, SQL_INPUTS, 1, argv, &rows, e));
    size_t n = (size_t)rows.count;
    f->update_count = rows.count;
    f->updates = arena_alloc(a, (n + 1) * sizeof(*f->updates));
    f->update_ids = arena_alloc(a, (n + 1) * sizeof(*f->update_ids));
    for (int i = 0; i < rows.count; i++) {
        f->update_ids[i] = db_text(&rows, i, 0);
        TRY(db_digest(&rows, i, 1, &f->updates[i].sha256, e));
        f->updates[i].silo_name = db_text(&rows, i, 2);
        TRY(db_int64(&rows, i, 3, &f->updates[i].tokens, e));
        TRY(codec_parse(&f->updates[i].codec, db_text(&rows, i, 4), e));
    }
    return ST_OK;
}

static enum status read_base(struct db *db, struct arena *a, struct fold *f, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {f->run_id, db_arg_int(a, f->number - 1)};
    TRY(db_query(db, a,
                 "SELECT weights, outer_state FROM checkpoint WHERE run_id = $1 AND number = $2", 2,
                 argv, &rows, e));
    if (rows.count == 0) {
        return err_set(e, ST_CORRUPT, "round %" PRId32 " has no base", f->number);
    }
    TRY(db_digest(&rows, 0, 0, &f->base, e));
    f->has_state = !db_is_null(&rows, 0, 1);
    return f->has_state ? db_digest(&rows, 0, 1, &f->state, e) : ST_OK;
}

static enum status choose_rung(struct db *db, struct arena *a, struct fold *f, struct err *e)
{
    int32_t tripped = 0;
    TRY(db_step_tripped(db, a, f->run_id, f->number - 1, &tripped, e));
    f->down = downlink_rung(&f->spec, f->number, tripped);
    return ST_OK;
}

struct begin {
    struct arena *keep; // the caller's: what is read outlives the transaction
    const char *round_id;
    struct fold *out;
};

static enum status begin_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    (void)a;
    struct begin *b = ctx;
    struct fold f = {0};
    struct db_rows rows;
    TRY(db_query(db, b->keep, SQL_RAISE, 1, &b->round_id, &rows, e));
    FAULT("fold.raised");
    f.found = rows.count > 0;
    if (f.found) {
        struct run_row run;
        TRY(db_int64(&rows, 0, 0, &f.round_id, e));
        (void)snprintf(f.run_id, sizeof(f.run_id), "%s", db_text(&rows, 0, 1));
        TRY(db_int32(&rows, 0, 2, &f.number, e));
        TRY(db_int64(&rows, 0, 3, &f.epoch, e));
        TRY(db_run_read(db, b->keep, f.run_id, &run, e));
        f.spec = run.spec;
        f.steps_before = run.steps_before;
        f.outer_before = run.outer_before;
        TRY(read_base(db, b->keep, &f, e));
        TRY(read_inputs(db, b->keep, &f, e));
        TRY(choose_rung(db, b->keep, &f, e));
    }
    *b->out = f;
    return ST_OK;
}

/*
 * Ends the session that holds the run's lock when its server has given no sign of life for a while,
 * as one that was stopped in mid-work: else the run would wait for it. Should it wake up, its lock
 * is gone and the fence refuses what it made. A session is named after its server
 * (db_work_named()).
 */
static const char SQL_EVICT[] =
    "SELECT pg_terminate_backend(l.pid), s.application_name"
    "  FROM pg_locks l JOIN pg_stat_activity s ON s.pid = l.pid"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
    "   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    "   AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended($1, 0)"
    "   AND s.application_name LIKE 'p\\_%'"
    "   AND NOT EXISTS (SELECT FROM server_process p WHERE p.boot_id = s.application_name"
    "                      AND p.seen_at > clock_timestamp() - make_interval(secs => $2))";

enum status db_work_lock(struct db *db, struct arena *a, const char *run_id, bool *mine,
                         struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, "SELECT pg_try_advisory_lock(hashtextextended($1, 0))", 1, &run_id, &rows,
                 e));
    TRY(db_bool(&rows, 0, 0, mine, e));
    if (*mine) {
        return ST_OK;
    }
    const char *argv[] = {run_id, db_arg_int(a, STALE_S)};
    TRY(db_query(db, a, SQL_EVICT, 2, argv, &rows, e));
    if (rows.count > 0) {
        log_warn("server %s gives no sign of life: its work on %s is taken over",
                 db_text(&rows, 0, 1), run_id);
    }
    return ST_OK; // the lock comes free in a moment: the next look takes it
}

enum status db_work_named(struct db *db, const char *boot_id, struct err *e)
{
    return db_exec(db, "SELECT set_config('application_name', $1, false)", 1, &boot_id, NULL, e);
}

void db_work_unlock(struct db *db, const char *run_id)
{
    struct err e = {0};
    if (db_exec(db, "SELECT pg_advisory_unlock(hashtextextended($1, 0))", 1, &run_id, NULL, &e)) {
        log_warn("cannot give back the lock of %s: %s", run_id, e.msg); // it ends with the session
    }
}

enum status db_fold_begin(struct db *db, struct arena *a, const char *aside, struct fold *out,
                          struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {aside};
    *out = (struct fold){0};
    TRY(db_query(db, a, SQL_SEALED, 1, argv, &rows, e));
    for (int i = 0; i < rows.count && !out->found; i++) {
        bool mine = false;
        const char *run_id = db_text(&rows, i, 1);
        TRY(db_work_lock(db, a, run_id, &mine, e));
        if (!mine) {
            continue;
        }
        struct begin b = {a, db_text(&rows, i, 0), out};
        enum status st = db_tx(db, begin_tx, &b, e);
        if (st || !out->found) {
            db_work_unlock(db, run_id);
        }
        TRY(st);
    }
    return ST_OK;
}

/* ---- once more ---- */

static const char SQL_MADE_OF[] =
    "SELECT c.weights, c.weights_bytes, c.weights_digest, c.params, c.outer_state, q.id, "
    "c.kept_step, c.step_bytes, c.step_codec"
    "  FROM checkpoint c LEFT JOIN round q ON (q.run_id, q.number, q.state) = (c.run_id, c.number,"
    " 'closed') WHERE (c.run_id, c.number) = ($1, $2)";
static const char SQL_OF_FILE[] =
    "SELECT run_id, number FROM checkpoint WHERE weights = $1 OR outer_state = $1 OR kept_step = $1"
    " ORDER BY kept DESC, number, run_id LIMIT $2";
static const char SQL_STATE_BYTES[] = "SELECT bytes FROM blob WHERE digest = $1";

static enum status read_files(struct db *db, struct arena *a, const struct db_rows *rows,
                              struct checkpoint_files *f, struct err *e)
{
    struct checkpoint_files got = {.has_state = !db_is_null(rows, 0, 4)};
    TRY(db_digest(rows, 0, 0, &got.weights, e));
    TRY(db_int64(rows, 0, 1, &got.weights_bytes, e));
    TRY(db_digest(rows, 0, 2, &got.weights_digest, e));
    TRY(db_int64(rows, 0, 3, &got.params, e));
    if (got.has_state) {
        struct db_rows bytes;
        TRY(db_digest(rows, 0, 4, &got.state, e));
        const char *argv[] = {db_arg_digest(a, &got.state)};
        TRY(db_query(db, a, SQL_STATE_BYTES, 1, argv, &bytes, e));
        TRY(bytes.count ? db_int64(&bytes, 0, 0, &got.state_bytes, e) : ST_OK);
    }
    got.has_step = !db_is_null(rows, 0, 6);
    if (got.has_step) {
        TRY(db_digest(rows, 0, 6, &got.step, e));
        TRY(db_int64(rows, 0, 7, &got.step_bytes, e));
    }
    if (!db_is_null(rows, 0, 8)) {
        TRY(codec_parse(&got.step_codec, db_text(rows, 0, 8), e));
    }
    *f = got;
    return ST_OK;
}

enum status db_fold_again(struct db *db, struct arena *a, const char *run_id, int32_t number,
                          struct fold *out, struct checkpoint_files *files, struct err *e)
{
    struct fold f = {.number = number};
    struct run_row run;
    struct db_rows rows;
    const char *argv[] = {run_id, db_arg_int(a, number)};
    TRY(db_query(db, a, SQL_MADE_OF, 2, argv, &rows, e));
    f.found = rows.count > 0;
    if (f.found) {
        (void)snprintf(f.run_id, sizeof(f.run_id), "%s", run_id);
        TRY(read_files(db, a, &rows, files, e));
        TRY(db_run_read(db, a, run_id, &run, e));
        f.spec = run.spec;
        f.outer_before = run.outer_before;
        f.parent = run.parent;
        f.parent_checkpoint = run.parent_checkpoint;
    }
    if (f.found && number > 0) {
        TRY(db_int64(&rows, 0, 5, &f.round_id, e));
        TRY(read_base(db, a, &f, e));
        TRY(read_inputs(db, a, &f, e));
        f.down = files->step_codec;
    }
    *out = f;
    return ST_OK;
}

enum status db_fold_of_file(struct db *db, const struct digest *d, struct checkpoint_name *out,
                            int *count, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    struct db_rows rows = {0};
    const char *argv[] = {db_arg_digest(a, d), db_arg_int(a, *count)};
    enum status st = db_query(db, a, SQL_OF_FILE, 2, argv, &rows, e);
    for (int i = 0; i < rows.count && !st; i++) {
        (void)snprintf(out[i].run_id, sizeof(out[i].run_id), "%s", db_text(&rows, i, 0));
        st = db_int32(&rows, i, 1, &out[i].number, e);
    }
    *count = rows.count;
    arena_free(a);
    return st;
}

struct rebuilt {
    struct blob_store *blobs;
    const struct fold *f;
    const struct checkpoint_files *files;
};

static enum status rebuilt_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    const struct rebuilt *r = ctx;
    char hex[DIGEST_HEX + 1];
    digest_hex(&r->files->weights, hex);
    TRY(db_blob_own(db, a, r->blobs, &r->files->weights, r->files->weights_bytes, e));
    if (r->files->has_state) {
        TRY(db_blob_own(db, a, r->blobs, &r->files->state, r->files->state_bytes, e));
    }
    if (r->files->has_step) {
        TRY(db_blob_own(db, a, r->blobs, &r->files->step, r->files->step_bytes, e));
    }
    return db_event(db, a,
                    &(struct event){.kind = "checkpoint_rebuilt",
                                    .run_id = r->f->run_id,
                                    .round = r->f->number,
                                    .message = arena_fmt(a,
                                                         "a file of checkpoint %" PRId32
                                                         " was lost or damaged; it was made "
                                                         "again, bit for bit",
                                                         r->f->number),
                                    .detail = arena_fmt(a, "{\"sha256\":\"%s\"}", hex)},
                    e);
}

enum status db_fold_rebuilt(struct db *db, struct blob_store *blobs, const struct fold *f,
                            const struct checkpoint_files *files, struct err *e)
{
    struct rebuilt r = {.blobs = blobs, .f = f, .files = files};
    return db_tx(db, rebuilt_tx, &r, e);
}

static const char SQL_HEAD_LOST[] =
    "WITH r AS (UPDATE run SET state = 'paused', reason = $2, waiting_for = NULL FROM checkpoint c"
    "     WHERE run.state = 'running' AND (c.run_id, c.number) = (run.id, run.head)"
    "       AND (c.weights = $1 OR c.outer_state = $1) RETURNING run.id, run.head)"
    " INSERT INTO event (kind, run_id, round, message) SELECT 'run_paused', r.id, r.head, $2 FROM "
    "r";

enum status db_fold_head_lost(struct db *db, const struct digest *d, const char *why, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    const char *argv[] = {db_arg_digest(a, d), why};
    enum status st = db_exec(db, SQL_HEAD_LOST, 2, argv, NULL, e);
    arena_free(a);
    return st;
}
