#include "server/fold.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/log.h"
#include "server/mend.h"

enum {
    ASIDE_MS = 10000,
    ARENA_MAX = 64 << 20,
};

/* A round that could not be aggregated, or a run that could not be started, must not keep the
 * others from it. */
static void put_aside(struct aside *s, const char *id)
{
    int i = 0;
    while (i < s->count && s->items[i].until_ms > clock_mono_ms()) {
        i++;
    }
    i = i < ASIDE_MAX ? i : 0;
    (void)snprintf(s->items[i].id, sizeof(s->items[i].id), "%s", id);
    s->items[i].until_ms = clock_mono_ms() + ASIDE_MS;
    s->count = i < s->count ? s->count : i + 1;
}

/* Those whose time has not come, as an argument of a statement: runs, or else rounds. */
static const char *aside_ids(const struct aside *s, struct arena *a, bool runs)
{
    const char *ids[ASIDE_MAX];
    int n = 0;
    for (int i = 0; i < s->count; i++) {
        bool run = s->items[i].id[0] == 'r';
        if (clock_mono_ms() < s->items[i].until_ms && run == runs) {
            ids[n++] = s->items[i].id;
        }
    }
    return db_arg_array(a, ids, n);
}

/* The base or its outer state is damaged: made again, and the fold is tried anew; else a person. */
static enum status mend_base(const struct folder *c, const struct fold *f, const char *why,
                             struct err *e)
{
    struct mend m = {.db = c->db, .blobs = c->blobs, .threads = c->threads};
    char advice[MEND_ADVICE];
    int rebuilt = 0;
    enum status st = mend_checkpoint(&m, f->run_id, f->number - 1, &rebuilt, e);
    if (st && st != ST_CORRUPT) {
        return st;
    }
    if (!st && rebuilt > 0) {
        return ST_OK;
    }
    mend_advice(advice, f->number - 1, st ? e->msg : why);
    return db_fold_give_up(c->db, f, false, advice, e);
}

/* Checkpoint 0 of a new run. *did: there was one, look again at once. */
static enum status start_run(const struct folder *c, struct arena *a, bool *did, struct err *e)
{
    struct created_run r;
    struct checkpoint_files files;
    TRY(db_run_next_created(c->db, a, aside_ids(c->aside, a, true), &r, e));
    *did = r.found;
    if (!r.found) {
        return ST_OK;
    }
    enum status st = r.forked ? checkpoint_fork(c->blobs, &r.spec, &r.from, NULL, &files, e)
                              : checkpoint_initial(c->blobs, &r.spec, &files, e);
    FAULT("run.drawn");
    if (!st) {
        st = db_run_start(c->db, c->blobs, r.run_id, &files, e);
    }
    if (st == ST_INVALID || st == ST_CORRUPT) {
        char why[sizeof(e->msg)];
        (void)snprintf(why, sizeof(why), "%s", e->msg);
        st = db_run_fail(c->db, r.run_id, why, e);
    }
    db_work_unlock(c->db, r.run_id);
    if (st && st != ST_RETRY) { // tried again in a while, and the others before
        log_error("checkpoint 0 of %s cannot be made: %s", r.run_id, e->msg);
        put_aside(c->aside, r.run_id);
        return ST_OK;
    }
    return st;
}

/* What to do about a fold that failed. Repeating a full disk or a lost connection may help. */
static enum status fold_failed(const struct folder *c, const struct fold *f, enum status st,
                               int corrupt, struct err *e)
{
    char why[sizeof(e->msg)];
    (void)snprintf(why, sizeof(why), "%s", e->msg);
    log_error("round %" PRId32 " of %s cannot be aggregated: %s", f->number, f->run_id, why);
    if (st == ST_CORRUPT && corrupt >= 0) {
        return db_fold_corrupt(c->db, c->blobs, f, corrupt, why, e);
    }
    if (st == ST_CORRUPT) {
        return mend_base(c, f, why, e);
    }
    return st == ST_INVALID ? db_fold_give_up(c->db, f, true, why, e) : st;
}

struct checkpoint_job fold_job(const struct fold *f, struct blob_store *blobs, int threads)
{
    return (struct checkpoint_job){.blobs = blobs,
                                   .spec = &f->spec,
                                   .round = f->number,
                                   .outer_before = f->outer_before,
                                   .base = f->base,
                                   .state = f->has_state ? &f->state : NULL,
                                   .updates = f->updates,
                                   .update_count = f->update_count,
                                   .down = f->down,
                                   .threads = threads};
}

static enum status fold_one(const struct folder *c, const struct fold *f, struct arena *a,
                            struct err *e)
{
    struct checkpoint_job job = fold_job(f, c->blobs, c->threads);
    struct checkpoint_files files;
    size_t size = (size_t)(f->update_count + 1) * sizeof(double);
    struct aggregate_stats stats = {.update_norms = arena_alloc(a, size),
                                    .update_cosines = arena_alloc(a, size),
                                    .update_factors = arena_alloc(a, size)};
    int corrupt = -1;
    enum status st = checkpoint_next(&job, &files, &stats, &corrupt, e);
    if (st) {
        return fold_failed(c, f, st, corrupt, e);
    }
    FAULT("fold.made");
    bool published = false;
    st = db_fold_publish(c->db, c->blobs, f, &files, &stats, &published, e);
    if (st) {
        log_error("checkpoint %" PRId32 " of %s cannot be published: %s", f->number, f->run_id,
                  e->msg);
        return st;
    }
    if (published) {
        log_info("%s: checkpoint %" PRId32 " of %d updates in %.2f s", f->spec.name, f->number,
                 f->update_count, stats.seconds);
    } else {
        log_info("%s: round %" PRId32 " was published by somebody else", f->spec.name, f->number);
    }
    return ST_OK;
}

static enum status fold_next(const struct folder *c, struct arena *a, bool *did, struct err *e)
{
    struct fold f;
    TRY(db_fold_begin(c->db, a, aside_ids(c->aside, a, false), &f, e));
    *did = f.found;
    if (!f.found) {
        return ST_OK;
    }
    enum status st = fold_one(c, &f, a, e);
    db_work_unlock(c->db, f.run_id);
    if (st && st != ST_RETRY) { // tried again in a while, and the others before
        put_aside(c->aside, db_arg_int(a, f.round_id));
        return ST_OK;
    }
    return st;
}

enum status fold_work(const struct folder *c, struct err *e)
{
    bool did = true;
    enum status st = ST_OK;
    while (did && !st && !atomic_load(c->stopping)) {
        bool started = false;
        struct arena *a = arena_new(ARENA_MAX);
        st = fold_next(c, a, &did, e);
        if (!st) {
            st = start_run(c, a, &started, e);
        }
        did = did || started;
        arena_free(a);
    }
    return st;
}
