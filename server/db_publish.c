#include "server/db_publish.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "common/fault.h"
#include "common/json.h"
#include "common/limits.h"
#include "server/db_blob.h"
#include "server/db_event.h"
#include "server/db_predict.h"
#include "server/db_round.h"

/* ---- the locks and the fence ---- */

static const char SQL_FENCE[] =
    "SELECT state, agg_epoch FROM round WHERE id = $1 FOR NO KEY UPDATE";

/* Run, then round; *mine false when the round is closed, aborted, or aggregated
 * by a newer holder. */
static enum status lock_fenced(struct db *db, struct arena *a, const struct fold *f,
                               struct run_row *run, bool *mine, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {db_arg_int(a, f->round_id)};
    int64_t newest = 0;
    *mine = false;
    TRY(db_run_lock_wait(db, a, f->run_id, run, e));
    TRY(db_query(db, a, SQL_FENCE, 1, argv, &rows, e));
    if (run->found && rows.count > 0) {
        TRY(db_int64(&rows, 0, 1, &newest, e));
        *mine = round_fence(round_state_of(db_text(&rows, 0, 0)), newest, f->epoch);
    }
    return ST_OK;
}

static const char SQL_CHECKPOINT[] =
    "INSERT INTO checkpoint (run_id, number, weights, weights_bytes, weights_digest, outer_state,"
    "                        manifest, params, finite, step, step_bytes, step_codec, step_error,"
    "                        step_residual, step_fallback)"
    " VALUES ($1, $2, $3, $4, $5, $6, (SELECT manifest FROM round WHERE id = $7), $8, true, $9,"
    "         $10, $11, $12, $13, $14)";

static const char *step_text(struct arena *a, const struct checkpoint_files *f)
{
    const struct coded_report *r = &f->step_report;
    return f->has_step ? arena_fmt(a,
                                   "; silos that have the one before need %" PRId64
                                   " bytes of %s, error %.3g",
                                   f->step_bytes, codec_name(f->step_codec), r->error)
                       : "";
}

static enum status insert_checkpoint(struct db *db, struct arena *a, struct blob_store *blobs,
                                     const char *run_id, int32_t number, const char *round_id,
                                     const struct checkpoint_files *files, struct err *e)
{
    TRY(db_blob_own(db, a, blobs, &files->weights, files->weights_bytes, e));
    if (files->has_state) {
        TRY(db_blob_own(db, a, blobs, &files->state, files->state_bytes, e));
    }
    if (files->has_step) {
        TRY(db_blob_own(db, a, blobs, &files->step, files->step_bytes, e));
    }
    bool step = files->has_step;
    const struct coded_report *r = &files->step_report;
    const char *argv[] = {run_id,
                          db_arg_int(a, number),
                          db_arg_digest(a, &files->weights),
                          db_arg_int(a, files->weights_bytes),
                          db_arg_digest(a, &files->weights_digest),
                          files->has_state ? db_arg_digest(a, &files->state) : NULL,
                          round_id,
                          db_arg_int(a, files->params),
                          step ? db_arg_digest(a, &files->step) : NULL,
                          step ? db_arg_int(a, files->step_bytes) : NULL,
                          step ? codec_name(files->step_codec) : NULL,
                          step ? db_arg_double(a, r->error) : NULL,
                          step ? db_arg_double(a, r->residual_ratio) : NULL,
                          step ? db_arg_double(a, r->fallback_share) : NULL};
    TRY(db_exec(db, SQL_CHECKPOINT, 14, argv, NULL, e));
    char hex[DIGEST_HEX + 1];
    digest_hex(&files->weights, hex);
    return db_event(db, a,
                    &(struct event){.kind = "checkpoint_created",
                                    .run_id = run_id,
                                    .round = number,
                                    .message = arena_fmt(a, "checkpoint %" PRId32 " is %.12s%s",
                                                         number, hex, step_text(a, files)),
                                    .detail = arena_fmt(a, "{\"sha256\":\"%s\"}", hex)},
                    e);
}

/* ---- publish ---- */

struct publish {
    struct blob_store *blobs;
    const struct fold *f;
    const struct checkpoint_files *files;
    const struct aggregate_stats *stats;
    bool published;
};

static const char SQL_CLOSE[] =
    "UPDATE round q SET state = 'closed', reason = NULL, closed_at = clock_timestamp(),"
    "       aggregate_s = $2,"
    "       delta_norm = $3, outer_step_norm = $4, tokens = x.tokens, train_loss = x.loss"
    "  FROM (SELECT sum(tokens) AS tokens,"
    "               sum(train_loss * tokens ORDER BY slot) / sum(tokens) FILTER (WHERE train_loss "
    "IS NOT NULL)"
    "                   AS loss"
    "          FROM update WHERE round_id = $1 AND state = 'accepted') x"
    " WHERE q.id = $1"
    " RETURNING extract(epoch FROM q.closed_at - q.opened_at),"
    "       (SELECT count(*) FROM update WHERE round_id = q.id AND state = 'accepted'),"
    "       q.silos_expected";
static const char SQL_SPLIT[] =
    "SELECT coalesce(max(t.download_s), 0), coalesce(max(t.train_s), 0), coalesce(max(t.upload_s), "
    "0),"
    "       coalesce((SELECT sum(upload_bytes) FROM traffic WHERE (run_id, number) = ($2, $3)), 0),"
    "       coalesce((SELECT sum(download_bytes) FROM traffic WHERE (run_id, number) = ($2, $3)), "
    "0)"
    "  FROM task t WHERE t.round_id = $1 AND t.state = 'done'";

static enum status record_updates(struct db *db, struct arena *a, const struct publish *p,
                                  struct err *e)
{
    for (int i = 0; i < p->f->update_count; i++) {
        double norm = p->stats->update_norms[i];
        double cosine = p->stats->update_cosines[i];
        const char *argv[] = {p->f->update_ids[i], isfinite(norm) ? db_arg_double(a, norm) : NULL,
                              isfinite(cosine) ? db_arg_double(a, cosine) : NULL};
        TRY(db_exec(db, "UPDATE update SET norm = $2, cosine = $3 WHERE id = $1", 3, argv, NULL,
                    e));
    }
    return ST_OK;
}

static enum status record_metrics(struct db *db, struct arena *a, const struct publish *p,
                                  double round_s, struct err *e)
{
    const struct fold *f = p->f;
    struct db_rows rows;
    const char *argv[] = {db_arg_int(a, f->round_id), f->run_id, db_arg_int(a, f->number)};
    TRY(db_query(db, a, SQL_SPLIT, 3, argv, &rows, e));
    static const char *const names[] = {"download_s", "train_s", "upload_s", "upload_bytes",
                                        "download_bytes"};
    int64_t step = f->steps_before + (int64_t)f->number * f->spec.federation.local_steps;
    for (int i = 0; i < 5; i++) {
        double v = 0.0;
        TRY(db_double(&rows, 0, i, &v, e));
        TRY(db_metric(db, a, f->run_id, NULL, f->number, step, names[i], v, e));
    }
    TRY(db_metric(db, a, f->run_id, NULL, f->number, step, "delta_norm", p->stats->delta_norm, e));
    TRY(db_metric(db, a, f->run_id, NULL, f->number, step, "outer_step_norm",
                  p->stats->outer_step_norm, e));
    TRY(db_metric(db, a, f->run_id, NULL, f->number, step, "aggregate_s", p->stats->seconds, e));
    return db_metric(db, a, f->run_id, NULL, f->number, step, "round_s", round_s, e);
}

/* Whose update was larger than the spec's bound, and what was left of it. */
static const char *clipped_json(struct arena *a, const struct publish *p, int *count)
{
    struct buf b;
    buf_init(&b, LIMIT_REQUEST_ARENA);
    jw_array(&b, NULL);
    *count = 0;
    for (int i = 0; i < p->f->update_count; i++) {
        double factor = p->stats->update_factors[i];
        if (factor < 1.0) {
            (*count)++;
            jw_object(&b, NULL);
            jw_str(&b, "silo", p->f->updates[i].silo_name);
            jw_num(&b, "factor", factor);
            jw_end_object(&b);
        }
    }
    jw_end_array(&b);
    const char *text = arena_fmt(a, "%s", b.data);
    buf_release(&b);
    return text;
}

static enum status close_round(struct db *db, struct arena *a, const struct publish *p,
                               double *round_s, struct err *e)
{
    const struct fold *f = p->f;
    struct db_rows rows;
    const char *argv[] = {db_arg_int(a, f->round_id), db_arg_double(a, p->stats->seconds),
                          db_arg_double(a, p->stats->delta_norm),
                          db_arg_double(a, p->stats->outer_step_norm)};
    TRY(db_query(db, a, SQL_CLOSE, 4, argv, &rows, e));
    TRY(db_double(&rows, 0, 0, round_s, e));
    int clipped = 0;
    const char *who = clipped_json(a, p, &clipped);
    const char *message = arena_fmt(
        a, "round %" PRId32 " closed with %s of %s updates%s", f->number, db_text(&rows, 0, 1),
        db_text(&rows, 0, 2), clipped > 0 ? arena_fmt(a, ", %d of them clipped", clipped) : "");
    return db_event(
        db, a,
        &(struct event){.kind = "round_closed",
                        .run_id = f->run_id,
                        .round = f->number,
                        .message = message,
                        .detail = arena_fmt(a, "{\"accepted\":%s,\"seconds\":%.3f,\"clipped\":%s}",
                                            db_text(&rows, 0, 1), *round_s, who)},
        e);
}

/* The head moves by exactly one, whoever else tries. */
static enum status move_head(struct db *db, struct arena *a, const char *run_id, int32_t number,
                             struct err *e)
{
    int64_t moved = 0;
    const char *argv[] = {run_id, db_arg_int(a, number)};
    TRY(db_exec(db,
                "UPDATE run SET head = $2 WHERE id = $1 AND coalesce(head, -1) = $2::integer - 1",
                2, argv, &moved, e));
    return moved == 1
               ? ST_OK
               : err_set(e, ST_CONFLICT, "the run's head is not checkpoint %" PRId32, number - 1);
}

static bool wants_evaluation(const struct run_spec *s, int32_t number)
{
    return number % s->eval.every == 0 || number == s->federation.rounds;
}

static enum status publish_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct publish *p = ctx;
    const struct fold *f = p->f;
    struct run_row run;
    double round_s = 0.0;
    TRY(lock_fenced(db, a, f, &run, &p->published, e));
    if (!p->published) {
        return ST_OK;
    }
    FAULT("publish.locked");
    TRY(insert_checkpoint(db, a, p->blobs, f->run_id, f->number, db_arg_int(a, f->round_id),
                          p->files, e));
    FAULT("publish.inserted");
    TRY(move_head(db, a, f->run_id, f->number, e));
    FAULT("publish.moved");
    TRY(record_updates(db, a, p, e));
    TRY(db_predict_round(db, a, f->round_id, f->run_id, f->number, e));
    TRY(close_round(db, a, p, &round_s, e));
    FAULT("publish.closed");
    TRY(record_metrics(db, a, p, round_s, e));
    if (wants_evaluation(&f->spec, f->number)) {
        TRY(db_round_ask_evaluation(db, a, f->run_id, f->number, e));
    }
    return db_round_prepare_in(db, f->run_id, e);
}

enum status db_fold_publish(struct db *db, struct blob_store *blobs, const struct fold *f,
                            const struct checkpoint_files *files,
                            const struct aggregate_stats *stats, bool *published, struct err *e)
{
    struct publish p = {.blobs = blobs, .f = f, .files = files, .stats = stats};
    FAULT("publish.begin");
    TRY(db_tx(db, publish_tx, &p, e));
    FAULT("publish.committed");
    *published = p.published;
    return ST_OK;
}

/* ---- damaged inputs ---- */

struct damage {
    struct blob_store *blobs;
    const struct fold *f;
    int index;
    bool fail;
    const char *why;
};

static const char SQL_CORRUPT[] =
    "WITH u AS (UPDATE update SET state = 'corrupt', kept = false WHERE id = $1 AND state = "
    "'accepted'"
    "           RETURNING id, round_id, slot, silo_id)"
    " INSERT INTO event (kind, run_id, round, slot, silo_id, update_id, message, detail)"
    " SELECT 'update_corrupt', $2, $3, u.slot, u.silo_id, u.id,"
    "        'a stored update is damaged and no longer counts: ' || $4,"
    "        jsonb_build_object('why', $4::text) FROM u";
static const char SQL_NEW_MANIFEST[] =
    "UPDATE round q SET manifest = m.m, manifest_rev = manifest_rev + 1, agg_epoch = agg_epoch + 1"
    "  FROM manifest_now m WHERE q.id = $1 AND m.round_id = q.id";
static const char SQL_COUNT_LEFT[] =
    "SELECT coalesce((SELECT n FROM manifest_now WHERE round_id = q.id), 0), q.quorum"
    "  FROM round q WHERE q.id = $1";

/*
 * The damaged file goes, under its row's lock: else the same update, sent again, would be taken for
 * the file that is already there.
 */
static enum status drop_damaged(struct db *db, struct arena *a, const struct damage *d,
                                struct err *e)
{
    const struct digest *digest = &d->f->updates[d->index].sha256;
    const char *argv[] = {db_arg_digest(a, digest)};
    // Nor do the attempts before, from which it may have been carried over, keep it any longer.
    TRY(db_exec(db, "UPDATE update SET kept = false WHERE kept_digest = $1", 1, argv, NULL, e));
    TRY(db_exec(db, "UPDATE blob SET state = 'dead' WHERE digest = $1", 1, argv, NULL, e));
    return blob_remove(d->blobs, digest, e);
}

static enum status corrupt_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    const struct damage *d = ctx;
    struct run_row run;
    bool mine = false;
    TRY(lock_fenced(db, a, d->f, &run, &mine, e));
    if (!mine) {
        return ST_OK;
    }
    const char *argv[] = {d->f->update_ids[d->index], d->f->run_id, db_arg_int(a, d->f->number),
                          d->why};
    const char *round[] = {db_arg_int(a, d->f->round_id)};
    struct db_rows rows;
    int32_t left = 0;
    int32_t quorum = 0;
    TRY(db_exec(db, SQL_CORRUPT, 4, argv, NULL, e));
    FAULT("corrupt.marked");
    TRY(drop_damaged(db, a, d, e));
    FAULT("corrupt.removed");
    TRY(db_query(db, a, SQL_COUNT_LEFT, 1, round, &rows, e));
    TRY(db_int32(&rows, 0, 0, &left, e));
    TRY(db_int32(&rows, 0, 1, &quorum, e));
    return round_keeps_quorum(left, quorum) ? db_exec(db, SQL_NEW_MANIFEST, 1, round, NULL, e)
                                            : db_round_abort(db, a, d->f->run_id, d->f->round_id,
                                                             "a stored update was damaged", e);
}

enum status db_fold_corrupt(struct db *db, struct blob_store *blobs, const struct fold *f, int i,
                            const char *why, struct err *e)
{
    assert(i >= 0 && i < f->update_count);
    struct damage d = {.blobs = blobs, .f = f, .index = i, .why = why};
    return db_tx(db, corrupt_tx, &d, e);
}

static enum status give_up_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    const struct damage *d = ctx;
    struct run_row run;
    bool mine = false;
    TRY(lock_fenced(db, a, d->f, &run, &mine, e));
    if (!mine) {
        return ST_OK;
    }
    const char *round[] = {db_arg_int(a, d->f->round_id), d->why};
    TRY(db_exec(db, "UPDATE round SET reason = $2 WHERE id = $1", 2, round, NULL, e));
    if (run.state != RUN_RUNNING && !d->fail) {
        return ST_OK;
    }
    const char *argv[] = {d->f->run_id, d->why};
    TRY(db_exec(db,
                d->fail ? "UPDATE run SET state = 'failed', finished_at = clock_timestamp(),"
                          " reason = $2, waiting_for = NULL WHERE id = $1"
                        : "UPDATE run SET state = 'paused', reason = $2, waiting_for = NULL"
                          " WHERE id = $1",
                2, argv, NULL, e));
    return db_event(db, a,
                    &(struct event){.kind = d->fail ? "run_failed" : "run_paused",
                                    .run_id = d->f->run_id,
                                    .round = d->f->number,
                                    .message = d->why},
                    e);
}

enum status db_fold_give_up(struct db *db, const struct fold *f, bool fail, const char *why,
                            struct err *e)
{
    struct damage d = {.f = f, .fail = fail, .why = why};
    return db_tx(db, give_up_tx, &d, e);
}

/* ---- checkpoint 0 ---- */

static const char SQL_CREATED[] = "SELECT id, from_weights, from_state FROM run"
                                  " WHERE state = 'created' AND id <> ALL ($1::text[])"
                                  " ORDER BY id";

/* Somebody may have started or stopped it while we waited for the lock. */
static enum status read_created(struct db *db, struct arena *a, const struct db_rows *rows, int i,
                                struct created_run *out, struct err *e)
{
    struct run_row run;
    (void)snprintf(out->run_id, sizeof(out->run_id), "%s", db_text(rows, i, 0));
    out->forked = !db_is_null(rows, i, 1);
    out->from = (struct checkpoint_source){.has_state = !db_is_null(rows, i, 2)};
    if (out->forked) {
        TRY(db_digest(rows, i, 1, &out->from.weights, e));
    }
    if (out->from.has_state) {
        TRY(db_digest(rows, i, 2, &out->from.state, e));
    }
    TRY(db_run_read(db, a, out->run_id, &run, e));
    out->spec = run.spec;
    out->found = run.found && run.state == RUN_CREATED;
    return ST_OK;
}

enum status db_run_next_created(struct db *db, struct arena *a, const char *aside,
                                struct created_run *out, struct err *e)
{
    struct db_rows rows;
    *out = (struct created_run){0};
    TRY(db_query(db, a, SQL_CREATED, 1, &aside, &rows, e));
    for (int i = 0; i < rows.count && !out->found; i++) {
        bool mine = false;
        const char *run_id = db_text(&rows, i, 0);
        TRY(db_work_lock(db, a, run_id, &mine, e));
        if (!mine) {
            continue;
        }
        enum status st = read_created(db, a, &rows, i, out, e);
        if (st || !out->found) {
            db_work_unlock(db, run_id);
        }
        TRY(st);
    }
    return ST_OK;
}

struct start {
    struct blob_store *blobs;
    const char *run_id;
    const struct checkpoint_files *files;
    const char *why;
};

static enum status start_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct start *s = ctx;
    struct run_row run;
    TRY(db_run_lock_wait(db, a, s->run_id, &run, e));
    if (!run.found || run.state != RUN_CREATED) {
        return ST_OK;
    }
    TRY(db_exec(db,
                "UPDATE run SET state = 'running', started_at = clock_timestamp() WHERE id = $1", 1,
                &s->run_id, NULL, e));
    TRY(db_event(db, a,
                 &(struct event){.kind = "run_started",
                                 .run_id = s->run_id,
                                 .round = 0,
                                 .message = arena_fmt(a, "%s started", run.spec.name)},
                 e));
    TRY(insert_checkpoint(db, a, s->blobs, s->run_id, 0, NULL, s->files, e));
    TRY(move_head(db, a, s->run_id, 0, e));
    FAULT("run.started");
    return db_round_prepare_in(db, s->run_id, e);
}

enum status db_run_start(struct db *db, struct blob_store *blobs, const char *run_id,
                         const struct checkpoint_files *files, struct err *e)
{
    struct start s = {.blobs = blobs, .run_id = run_id, .files = files};
    return db_tx(db, start_tx, &s, e);
}

static enum status fail_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct start *s = ctx;
    struct run_row run;
    TRY(db_run_lock_wait(db, a, s->run_id, &run, e));
    if (!run.found || run.state != RUN_CREATED) {
        return ST_OK;
    }
    const char *argv[] = {s->run_id, s->why};
    TRY(db_exec(db, "UPDATE run SET state = 'running' WHERE id = $1", 1, argv, NULL, e));
    TRY(db_exec(db,
                "UPDATE run SET state = 'failed', finished_at = clock_timestamp(), reason = $2"
                " WHERE id = $1",
                2, argv, NULL, e));
    return db_event(
        db, a,
        &(struct event){.kind = "run_failed", .run_id = s->run_id, .round = -1, .message = s->why},
        e);
}

enum status db_run_fail(struct db *db, const char *run_id, const char *why, struct err *e)
{
    struct start s = {.run_id = run_id, .why = why};
    return db_tx(db, fail_tx, &s, e);
}
