#include "server/mend.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/fault.h"
#include "common/id.h"
#include "common/log.h"
#include "server/db_step.h"
#include "server/fold.h"

enum {
    ARENA_MAX = 64 << 20,
    DEPTH_MAX = 64, // parents in a row; updates are kept for three rounds
    NAMES_MAX = 16, // checkpoints that share one file
    WANTED_MAX = 64,
    TAKEN_MAX = 256,
    TAKEN_MS = 10 * 60 * 1000,
};

/* ---- making it again ---- */

static enum status looks_sound(const struct mend *m, const struct digest *d, bool *sound,
                               struct err *e)
{
    int64_t bytes = 0;
    struct err why = {0};
    enum status st = blob_verify(m->blobs, d, &bytes, &why);
    *sound = st == ST_OK;
    if (st && st != ST_NOT_FOUND && st != ST_CORRUPT) {
        return err_set(e, st, "%s", why.msg);
    }
    return ST_OK;
}

/* Only what makes the bits: who wrote an update, its tokens, its order. */
static enum status fold_again(const struct mend *m, const struct fold *f,
                              const struct checkpoint_files *files, struct err *e)
{
    struct checkpoint_job job = fold_job(f, m->blobs, m->threads);
    job.again = files;
    struct checkpoint_files made;
    struct aggregate_stats stats = {0};
    struct err why = {0};
    int corrupt = -1;
    enum status st = checkpoint_next(&job, &made, &stats, &corrupt, &why);
    if (st == ST_CORRUPT && corrupt >= 0) {
        char hex[DIGEST_HEX + 1];
        digest_hex(&f->updates[corrupt].sha256, hex);
        return err_set(e, st, "the update %.12s of %s for round %" PRId32 ": %.80s", hex,
                       f->updates[corrupt].silo_name, f->number, why.msg);
    }
    return st ? err_set(e, st == ST_INVALID ? ST_CORRUPT : st, "%.200s", why.msg) : ST_OK;
}

/* Checkpoint 0 of a fork once more, from its parent's files, which are sound by now. */
static enum status fork_again(const struct mend *m, struct arena *a, const struct fold *f,
                              const struct checkpoint_files *files, struct err *e)
{
    struct fold parent;
    struct checkpoint_files from;
    struct checkpoint_files made;
    TRY(db_fold_again(m->db, a, f->parent, f->parent_checkpoint, &parent, &from, e));
    if (!parent.found) {
        return err_set(e, ST_CORRUPT, "the run that it was forked from is not there");
    }
    struct checkpoint_source source = {
        .weights = from.weights, .has_state = files->has_state, .state = from.state};
    return checkpoint_fork(m->blobs, &f->spec, &source, files, &made, e);
}

static enum status make_again(const struct mend *m, struct arena *a, const struct fold *f,
                              const struct checkpoint_files *files, struct err *e)
{
    if (f->number == 0 && f->parent) {
        return fork_again(m, a, f, files, e);
    }
    if (f->number == 0) {
        return checkpoint_initial_again(m->blobs, &f->spec, files, e);
    }
    if (f->update_count == 0) {
        return err_set(e, ST_CORRUPT, "round %" PRId32 " has no updates", f->number);
    }
    return fold_again(m, f, files, e);
}

static enum status mend_at(const struct mend *m, const char *run_id, int32_t number, int depth,
                           int *rebuilt, struct err *e);

static enum status mend_in(const struct mend *m, struct arena *a, const char *run_id,
                           int32_t number, int depth, int *rebuilt, struct err *e)
{
    struct fold f;
    struct checkpoint_files files;
    bool weights = false;
    bool state = true;
    bool step = true;
    TRY(db_fold_again(m->db, a, run_id, number, &f, &files, e));
    if (!f.found) {
        return err_set(e, ST_NOT_FOUND, "there is no checkpoint %" PRId32, number);
    }
    TRY(looks_sound(m, &files.weights, &weights, e));
    if (files.has_state) {
        TRY(looks_sound(m, &files.state, &state, e));
    }
    if (files.has_step) {
        TRY(looks_sound(m, &files.step, &step, e));
    }
    if (weights && state && step) {
        return ST_OK;
    }
    log_warn("checkpoint %" PRId32 " of %s is damaged: making it again", number, run_id);
    if (number > 0) {
        TRY(mend_at(m, run_id, number - 1, depth + 1, rebuilt, e));
    } else if (f.parent) {
        TRY(mend_at(m, f.parent, f.parent_checkpoint, depth + 1, rebuilt, e));
    }
    TRY(make_again(m, a, &f, &files, e));
    FAULT("mend.made");
    TRY(db_fold_rebuilt(m->db, m->blobs, &f, &files, e));
    log_info("checkpoint %" PRId32 " of %s was rebuilt", number, run_id);
    ++*rebuilt;
    return ST_OK;
}

static enum status mend_at(const struct mend *m, const char *run_id, int32_t number, int depth,
                           int *rebuilt, struct err *e)
{
    if (depth > DEPTH_MAX) {
        return err_set(e, ST_CORRUPT, "the %d checkpoints before it are damaged too", depth);
    }
    struct arena *a = arena_new(ARENA_MAX);
    enum status st = mend_in(m, a, run_id, number, depth, rebuilt, e);
    arena_free(a);
    return st;
}

enum status mend_checkpoint(const struct mend *m, const char *run_id, int32_t number, int *rebuilt,
                            struct err *e)
{
    *rebuilt = 0;
    return mend_at(m, run_id, number, 0, rebuilt, e);
}

enum status mend_file(const struct mend *m, const struct digest *d, int *rebuilt, struct err *e)
{
    struct checkpoint_name names[NAMES_MAX];
    int count = NAMES_MAX;
    enum status st = ST_NOT_FOUND;
    *rebuilt = 0;
    TRY(db_fold_of_file(m->db, d, names, &count, e));
    if (count == 0) {
        return err_set(e, ST_NOT_FOUND, "it is no checkpoint's file");
    }
    for (int i = 0; i < count && (st == ST_NOT_FOUND || st == ST_CORRUPT); i++) {
        st = mend_at(m, names[i].run_id, names[i].number, 0, rebuilt, e);
    }
    return st;
}

void mend_advice(char out[MEND_ADVICE], int32_t number, const char *why)
{
    (void)snprintf(out, MEND_ADVICE,
                   "a file of checkpoint %" PRId32
                   " is damaged and cannot be made again: %.200s; put "
                   "sound copies back into store/blobs from a backup, then resume, or begin a run "
                   "from an earlier checkpoint",
                   number, why);
}

void mend_now(const struct mend *m, const struct digest *d)
{
    struct err e = {0};
    struct checkpoint_name name = {.number = -1};
    char hex[DIGEST_HEX + 1];
    char advice[MEND_ADVICE];
    int count = 1;
    int rebuilt = 0;
    digest_hex(d, hex);
    enum status st = mend_file(m, d, &rebuilt, &e);
    bool step = false;
    if (st == ST_CORRUPT && db_step_lost(m->db, d, &step, NULL) == ST_OK && step) {
        log_warn("the step %.12s is lost: silos take whole weights instead", hex);
        return;
    }
    if (st) {
        log_error("the file %.12s cannot be mended: %s", hex, e.msg);
    }
    if (st == ST_CORRUPT && db_fold_of_file(m->db, d, &name, &count, NULL) == ST_OK && count > 0) {
        mend_advice(advice, name.number, e.msg);
        if (db_fold_head_lost(m->db, d, advice, &e)) {
            log_error("nor could its run be paused: %s",
                      e.msg); // the next one who asks tries again
        }
    }
}

/* ---- who wants a file looked at ---- */

static struct {
    pthread_mutex_t lock;
    struct digest wanted[WANTED_MAX];
    int wanted_count;
    struct {
        struct digest d;
        char silo_id[ID_LEN + 1]; // empty: it was suspected, and is looked at
        int64_t at_ms;            // 0: empty
    } taken[TAKEN_MAX];
    int next_taken;
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER};

void mend_want(const struct digest *d)
{
    (void)pthread_mutex_lock(&registry.lock);
    bool there = false;
    for (int i = 0; i < registry.wanted_count; i++) {
        there = there || digest_equal(&registry.wanted[i], d);
    }
    if (!there && registry.wanted_count == WANTED_MAX) {
        memmove(&registry.wanted[0], &registry.wanted[1],
                (WANTED_MAX - 1) * sizeof(registry.wanted[0]));
        registry.wanted_count--;
    }
    if (!there) {
        registry.wanted[registry.wanted_count++] = *d;
    }
    (void)pthread_mutex_unlock(&registry.lock);
}

bool mend_wanted(struct digest *out)
{
    (void)pthread_mutex_lock(&registry.lock);
    bool any = registry.wanted_count > 0;
    if (any) {
        *out = registry.wanted[--registry.wanted_count];
    }
    (void)pthread_mutex_unlock(&registry.lock);
    return any;
}

enum status mend_open_within(struct blob_store *s, const struct digest *d, int64_t patience_ms,
                             int *fd, int64_t *bytes, bool *coming, struct err *e)
{
    enum status st = blob_open_within(s, d, patience_ms, fd, bytes, coming, e);
    if (st == ST_NOT_FOUND || st == ST_CORRUPT) {
        mend_want(d);
        return err_set(e, ST_RETRY, "the file is lost or damaged; it is being made again");
    }
    return st;
}

enum status mend_open(struct blob_store *s, const struct digest *d, int *fd, int64_t *bytes,
                      struct err *e)
{
    bool coming = false;
    return mend_open_within(s, d, -1, fd, bytes, &coming, e);
}

bool mend_taken_again(const char *silo_id, const struct digest *d, int64_t now_ms)
{
    int mine = -1;
    bool looked_at = false;
    (void)pthread_mutex_lock(&registry.lock);
    for (int i = 0; i < TAKEN_MAX; i++) {
        if (registry.taken[i].at_ms && now_ms - registry.taken[i].at_ms < TAKEN_MS &&
            digest_equal(&registry.taken[i].d, d)) {
            looked_at = looked_at || !*registry.taken[i].silo_id;
            mine = strcmp(registry.taken[i].silo_id, silo_id) == 0 ? i : mine;
        }
    }
    bool again = mine >= 0 && !looked_at;
    if (again) {
        registry.taken[mine].silo_id[0] = '\0';
        registry.taken[mine].at_ms = now_ms ? now_ms : 1;
    } else if (!looked_at) {
        int i = registry.next_taken;
        registry.next_taken = (i + 1) % TAKEN_MAX;
        registry.taken[i].d = *d;
        registry.taken[i].at_ms = now_ms ? now_ms : 1;
        (void)snprintf(registry.taken[i].silo_id, sizeof(registry.taken[i].silo_id), "%s", silo_id);
    }
    (void)pthread_mutex_unlock(&registry.lock);
    return again;
}
