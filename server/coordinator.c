#include "server/coordinator.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/hash.h"
#include "common/id.h"
#include "common/log.h"
#include "common/mem.h"
#include "server/checkpoint.h"
#include "server/db.h"
#include "server/db_blob.h"
#include "server/db_publish.h"
#include "server/db_round.h"
#include "server/db_tend.h"
#include "server/hub.h"
#include "server/mend.h"

enum {
    TICK_MS = 1000,
    RETRY_MS = 500,  // after an error: the database may be coming back
    FULL_MS = 10000, // after a full disk
    FILES_EVERY_MS = 20000,
    KEEP_MS = 1000,
    REAP_EVERY_MS = 3600 * 1000, // files that no row knows
    LISTEN_MS = 30000,
    STOP_S = 2,     // for a thread to end
    ASIDE_MAX = 64, // rounds that could not be aggregated, remembered at once
    ARENA_MAX = 64 << 20,
};

/* A round that could not be aggregated, or a run that could not be started, must not keep the
 * others from it. */
struct aside {
    char id[ID_LEN + 1];
    int64_t until_ms;
};

/* A thread that sleeps until its time or a wake. */
struct worker {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool started;
    bool woken;
    struct coordinator *c;
};

struct coordinator {
    struct server *server;
    const char *conninfo;
    char boot_id[ID_LEN + 1];
    atomic_bool stopping;
    struct worker tender;
    struct worker folder;
    struct worker keeper;
    pthread_t listener;
    bool listener_started;
    int stop_pipe[2];              // readable once stopping: ends the listener's wait
    struct aside aside[ASIDE_MAX]; // the folder's alone
    int aside_count;
    char run_error[sizeof(((struct err *)0)->msg)]; // said last: not again at every tick
};

/* ---- sleeping and waking ---- */

static void worker_init(struct worker *w, struct coordinator *c)
{
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&w->lock, NULL);
    (void)pthread_cond_init(&w->cond, &attr);
    (void)pthread_condattr_destroy(&attr);
    w->c = c;
}

static void worker_wake(struct worker *w)
{
    (void)pthread_mutex_lock(&w->lock);
    w->woken = true;
    (void)pthread_cond_signal(&w->cond);
    (void)pthread_mutex_unlock(&w->lock);
}

static void worker_sleep(struct worker *w, int64_t ms)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t ns = until.tv_nsec + ms % 1000 * 1000000;
    until.tv_sec += (time_t)(ms / 1000 + ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    int rc = 0;
    (void)pthread_mutex_lock(&w->lock);
    while (!w->woken && !atomic_load(&w->c->stopping) && rc == 0) {
        rc = pthread_cond_timedwait(&w->cond, &w->lock, &until);
    }
    w->woken = false;
    (void)pthread_mutex_unlock(&w->lock);
}

/* Servers that tick together would always meet at the same rows. */
static int64_t jittered(int64_t ms)
{
    uint8_t r = 0;
    random_bytes(&r, sizeof(r));
    return ms - ms / 8 + ms / 4 * r / 256;
}

/* A task that is done or free, or a run that changed, is work for the tender; a seal, for the
 * folder, is an event. */
static void on_wake(void *ctx, const char *topic)
{
    struct coordinator *c = ctx;
    bool event = strcmp(topic, "events") == 0;
    if (!event && strcmp(topic, "tokens") != 0) {
        worker_wake(&c->tender);
    }
    if (event || strncmp(topic, "run:", 4) == 0) {
        worker_wake(&c->folder);
    }
}

/* ---- tender ---- */

static const char SQL_LIVE_RUNS[] =
    "SELECT r.id, r.state, coalesce(q.state, ''),"
    "       EXISTS (SELECT FROM task t WHERE t.run_id = r.id AND t.kind = 'evaluate'"
    "                  AND (t.state IN ('pending', 'leased')"
    "                       OR (t.state = 'done' AND EXISTS (SELECT FROM checkpoint c"
    "                             WHERE (c.run_id, c.number) = (t.run_id, t.number) AND c.eval_nll "
    "IS NULL))))"
    "           AS evaluating,"
    "       r.head IS NOT DISTINCT FROM r.rounds AS at_end"
    "  FROM run r"
    "  LEFT JOIN round q ON q.run_id = r.id AND q.state IN ('pending', 'open', 'aggregating')"
    " WHERE r.state IN ('running', 'paused') OR q.id IS NOT NULL"
    "    OR (r.state IN ('stopped', 'failed', 'finished')"
    "        AND EXISTS (SELECT FROM task t WHERE t.run_id = r.id AND t.kind = 'evaluate'"
    "                       AND t.state IN ('pending', 'leased')))"
    " ORDER BY r.id";

struct live_run {
    const char *id;
    const char *state;
    const char *round;
    bool evaluating;
    bool at_end;
};

static enum status tend_run(struct db *db, const struct live_run *r, struct err *e)
{
    bool running = strcmp(r->state, "running") == 0;
    bool paused = strcmp(r->state, "paused") == 0;
    if (r->evaluating) {
        TRY(db_round_evaluated(db, r->id, e));
    }
    if (!running && !paused) {
        return r->round[0] ? db_round_end(db, r->id, e) : ST_OK;
    }
    if (strcmp(r->round, "open") == 0) {
        return db_round_judge(db, r->id, e);
    }
    if (!running) {
        return ST_OK;
    }
    if (!r->round[0]) {
        return r->at_end ? db_round_finish(db, r->id, e) : db_round_prepare(db, r->id, e);
    }
    return strcmp(r->round, "pending") == 0 ? db_round_open(db, r->id, e) : ST_OK;
}

static enum status tend_runs(struct coordinator *c, struct db *db, struct arena *a, struct err *e)
{
    struct db_rows rows;
    TRY(db_query(db, a, SQL_LIVE_RUNS, 0, NULL, &rows, e));
    for (int i = 0; i < rows.count && !atomic_load(&c->stopping); i++) {
        struct live_run r = {.id = db_text(&rows, i, 0),
                             .state = db_text(&rows, i, 1),
                             .round = db_text(&rows, i, 2)};
        TRY(db_bool(&rows, i, 3, &r.evaluating, e));
        TRY(db_bool(&rows, i, 4, &r.at_end, e));
        enum status st = tend_run(db, &r, e);
        if (st == ST_RETRY) {
            return st;
        }
        // One run that is broken must not stand in the way of the others.
        if (st && strcmp(c->run_error, e->msg) != 0) {
            log_error("run %s: %s", r.id, e->msg);
            (void)snprintf(c->run_error, sizeof(c->run_error), "%s", e->msg);
        }
    }
    return ST_OK;
}

static enum status tend(struct coordinator *c, struct db *db, struct arena *a, struct err *e)
{
    TRY(db_tend_alive(db, c->boot_id, e));
    TRY(db_tend_silos(db, c->boot_id, e));
    return tend_runs(c, db, a, e);
}

/* Says an error once, not at every tick while the database is away. */
static void say_once(bool *said, const char *who, enum status st, const struct err *e)
{
    if (st && !*said) {
        log_warn("%s: %s", who, e->msg);
    } else if (!st && *said) {
        log_info("%s: going on", who);
    }
    *said = st != ST_OK;
}

static void *tender_main(void *arg)
{
    struct worker *w = arg;
    struct coordinator *c = w->c;
    struct db *db = NULL;
    bool said = false;
    while (!atomic_load(&c->stopping)) {
        struct err e = {0};
        enum status st = db ? ST_OK : db_open(&db, c->conninfo, &e);
        if (!st) {
            struct arena *a = arena_new(ARENA_MAX);
            st = tend(c, db, a, &e);
            arena_free(a);
        }
        say_once(&said, "coordinator", st, &e);
        worker_sleep(w, jittered(st ? RETRY_MS : TICK_MS));
    }
    struct err e = {0};
    if (db && db_tend_leave(db, c->boot_id, &e)) {
        log_debug("leaving without a word: %s", e.msg);
    }
    db_close(db);
    return NULL;
}

/* ---- folder ---- */

static void put_aside(struct coordinator *c, const char *id)
{
    int i = 0;
    while (i < c->aside_count && c->aside[i].until_ms > clock_mono_ms()) {
        i++;
    }
    i = i < ASIDE_MAX ? i : 0;
    (void)snprintf(c->aside[i].id, sizeof(c->aside[i].id), "%s", id);
    c->aside[i].until_ms = clock_mono_ms() + FULL_MS;
    c->aside_count = i < c->aside_count ? c->aside_count : i + 1;
}

/* Those whose time has not come, as an argument of a statement: runs, or else rounds. */
static const char *aside_ids(const struct coordinator *c, struct arena *a, bool runs)
{
    const char *ids[ASIDE_MAX];
    int n = 0;
    for (int i = 0; i < c->aside_count; i++) {
        bool run = c->aside[i].id[0] == 'r';
        if (clock_mono_ms() < c->aside[i].until_ms && run == runs) {
            ids[n++] = c->aside[i].id;
        }
    }
    return db_arg_array(a, ids, n);
}

/* The base or its outer state is damaged: made again, and the fold is tried anew; else a person. */
static enum status mend_base(struct coordinator *c, struct db *db, const struct fold *f,
                             const char *why, struct err *e)
{
    struct mend m = {.db = db, .blobs = c->server->blobs, .threads = c->server->aggregate_threads};
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
    return db_fold_give_up(db, f, false, advice, e);
}

/* Checkpoint 0 of a new run. *did: there was one, look again at once. */
static enum status start_run(struct coordinator *c, struct db *db, struct arena *a, bool *did,
                             struct err *e)
{
    struct created_run r;
    struct checkpoint_files files;
    TRY(db_run_next_created(db, a, aside_ids(c, a, true), &r, e));
    *did = r.found;
    if (!r.found) {
        return ST_OK;
    }
    enum status st = r.forked ? checkpoint_fork(c->server->blobs, &r.spec, &r.from, NULL, &files, e)
                              : checkpoint_initial(c->server->blobs, &r.spec, &files, e);
    FAULT("run.drawn");
    if (!st) {
        st = db_run_start(db, c->server->blobs, r.run_id, &files, e);
    }
    if (st == ST_INVALID || st == ST_CORRUPT) {
        char why[sizeof(e->msg)];
        (void)snprintf(why, sizeof(why), "%s", e->msg);
        st = db_run_fail(db, r.run_id, why, e);
    }
    db_work_unlock(db, r.run_id);
    if (st && st != ST_RETRY) { // tried again in a while, and the others before
        log_error("checkpoint 0 of %s cannot be made: %s", r.run_id, e->msg);
        put_aside(c, r.run_id);
        return ST_OK;
    }
    return st;
}

/* What to do about a fold that failed. Repeating a full disk or a lost connection may help. */
static enum status fold_failed(struct coordinator *c, struct db *db, const struct fold *f,
                               enum status st, int corrupt, struct err *e)
{
    char why[sizeof(e->msg)];
    (void)snprintf(why, sizeof(why), "%s", e->msg);
    log_error("round %" PRId32 " of %s cannot be aggregated: %s", f->number, f->run_id, why);
    if (st == ST_CORRUPT && corrupt >= 0) {
        return db_fold_corrupt(db, c->server->blobs, f, corrupt, why, e);
    }
    if (st == ST_CORRUPT) {
        return mend_base(c, db, f, why, e);
    }
    return st == ST_INVALID ? db_fold_give_up(db, f, true, why, e) : st;
}

static enum status fold_one(struct coordinator *c, struct db *db, const struct fold *f,
                            struct arena *a, struct err *e)
{
    struct checkpoint_job job = {.blobs = c->server->blobs,
                                 .spec = &f->spec,
                                 .round = f->number,
                                 .outer_before = f->outer_before,
                                 .base = f->base,
                                 .state = f->has_state ? &f->state : NULL,
                                 .updates = f->updates,
                                 .update_count = f->update_count,
                                 .down = f->down,
                                 .threads = c->server->aggregate_threads};
    struct checkpoint_files files;
    size_t size = (size_t)(f->update_count + 1) * sizeof(double);
    struct aggregate_stats stats = {.update_norms = arena_alloc(a, size),
                                    .update_cosines = arena_alloc(a, size),
                                    .update_factors = arena_alloc(a, size)};
    int corrupt = -1;
    enum status st = checkpoint_next(&job, &files, &stats, &corrupt, e);
    if (st) {
        return fold_failed(c, db, f, st, corrupt, e);
    }
    FAULT("fold.made");
    bool published = false;
    st = db_fold_publish(db, c->server->blobs, f, &files, &stats, &published, e);
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

static enum status fold_next(struct coordinator *c, struct db *db, struct arena *a, bool *did,
                             struct err *e)
{
    struct fold f;
    TRY(db_fold_begin(db, a, aside_ids(c, a, false), &f, e));
    *did = f.found;
    if (!f.found) {
        return ST_OK;
    }
    enum status st = fold_one(c, db, &f, a, e);
    db_work_unlock(db, f.run_id);
    if (st && st != ST_RETRY) { // tried again in a while, and the others before
        put_aside(c, db_arg_int(a, f.round_id));
        return ST_OK;
    }
    return st;
}

static enum status fold(struct coordinator *c, struct db *db, struct err *e)
{
    bool did = true;
    enum status st = ST_OK;
    while (did && !st && !atomic_load(&c->stopping)) {
        bool started = false;
        struct arena *a = arena_new(ARENA_MAX);
        st = fold_next(c, db, a, &did, e);
        if (!st) {
            st = start_run(c, db, a, &started, e);
        }
        did = did || started;
        arena_free(a);
    }
    return st;
}

static void *folder_main(void *arg)
{
    struct worker *w = arg;
    struct coordinator *c = w->c;
    struct db *db = NULL;
    bool said = false;
    while (!atomic_load(&c->stopping)) {
        struct err e = {0};
        enum status st = db ? ST_OK : db_open(&db, c->conninfo, &e);
        st = st ? st : db_work_named(db, c->boot_id, &e); // anew after each loss of the connection
        if (!st) {
            st = fold(c, db, &e);
        }
        say_once(&said, "aggregation", st, &e);
        worker_sleep(w, jittered(st == ST_LIMIT || st == ST_IO ? FULL_MS : TICK_MS));
    }
    db_close(db);
    return NULL;
}

/* ---- keeper ---- */

static enum status reap(struct coordinator *c, struct db *db, struct err *e)
{
    int removed = 0;
    TRY(db_blob_reap(db, c->server->blobs, c->server->orphan_age_s, &removed, e));
    if (removed > 0) {
        log_info("%d old files that no row knows were removed", removed);
    }
    return ST_OK;
}

/* Files: in a thread of its own, for a large store must not keep rounds waiting. */
static void *keeper_main(void *arg)
{
    struct worker *w = arg;
    struct coordinator *c = w->c;
    struct db *db = NULL;
    bool said = false;
    int64_t files_at_ms = 0;
    int64_t reap_at_ms = 0;
    while (!atomic_load(&c->stopping)) {
        struct err e = {0};
        struct digest wanted;
        enum status st = db ? ST_OK : db_open(&db, c->conninfo, &e);
        while (!st && !atomic_load(&c->stopping) && mend_wanted(&wanted)) {
            struct mend m = {db, c->server->blobs, c->server->aggregate_threads};
            mend_now(&m, &wanted);
        }
        if (!st && clock_mono_ms() >= files_at_ms) {
            files_at_ms = clock_mono_ms() + jittered(FILES_EVERY_MS);
            st = db_tend_files(db, c->server->blobs, &e);
        }
        if (!st && clock_mono_ms() >= reap_at_ms) {
            reap_at_ms = clock_mono_ms() + jittered(REAP_EVERY_MS);
            st = reap(c, db, &e);
            st = st ? st : db_tend_audit(db, c->server->audit_days, &e);
        }
        say_once(&said, "files", st, &e);
        worker_sleep(w, jittered(KEEP_MS));
    }
    db_close(db);
    return NULL;
}

/* ---- listener ---- */

static enum status listen_once(struct coordinator *c, struct db *db, struct err *e)
{
    char topic[128];
    TRY(db_wait_notify(db, LISTEN_MS, c->stop_pipe[0], topic, sizeof(topic), e));
    if (topic[0]) {
        hub_wake(c->server->hub, topic);
    }
    return ST_OK;
}

static void wake_all(struct coordinator *c)
{
    hub_wake(c->server->hub, "tasks"); // what was sent while nobody listened is lost
    hub_wake(c->server->hub, "events");
    hub_wake(c->server->hub, "tokens");
}

static void *listener_main(void *arg)
{
    struct coordinator *c = arg;
    struct db *db = NULL;
    while (!atomic_load(&c->stopping)) {
        struct err e = {0};
        enum status st = ST_OK;
        if (!db) {
            st = db_open(&db, c->conninfo, &e);
            st = st ? st : db_listen(db, "photon", &e);
            wake_all(c);
        }
        if (!st) {
            st = listen_once(c, db, &e);
        }
        if (st) { // the tender says why; requests look again each second meanwhile
            db_close(db);
            db = NULL;
            clock_sleep_ms(RETRY_MS);
        }
    }
    db_close(db);
    return NULL;
}

/* ---- start and stop ---- */

static enum status start_thread(pthread_t *t, void *(*fn)(void *), void *arg, bool *started,
                                struct err *e)
{
    int rc = pthread_create(t, NULL, fn, arg);
    *started = rc == 0;
    return rc ? err_set(e, ST_IO, "cannot start a thread: %s", strerror(rc)) : ST_OK;
}

static enum status arrive(struct coordinator *c, struct err *e)
{
    struct db *db = NULL;
    TRY(db_open(&db, c->conninfo, e));
    int lost = 0;
    enum status st = db_tend_arrive(db, c->boot_id, e);
    st = st ? st : db_blob_lost_uploads(db, c->server->blobs, &lost, e);
    db_close(db);
    return st;
}

static enum status start(struct coordinator *c, struct err *e)
{
    TRY(arrive(c, e));
    FAULT("start.arrived");
    hub_subscribe(c->server->hub, on_wake, c);
    TRY(start_thread(&c->tender.thread, tender_main, &c->tender, &c->tender.started, e));
    TRY(start_thread(&c->folder.thread, folder_main, &c->folder, &c->folder.started, e));
    TRY(start_thread(&c->keeper.thread, keeper_main, &c->keeper, &c->keeper.started, e));
    return start_thread(&c->listener, listener_main, c, &c->listener_started, e);
}

enum status coordinator_start(struct coordinator **out, struct server *server, const char *conninfo,
                              struct err *e)
{
    struct coordinator *c = mem_alloc(sizeof(*c));
    c->server = server;
    c->conninfo = conninfo;
    id_new('p', c->boot_id);
    worker_init(&c->tender, c);
    worker_init(&c->folder, c);
    worker_init(&c->keeper, c);
    c->stop_pipe[0] = c->stop_pipe[1] = -1;
    enum status st = pipe2(c->stop_pipe, O_CLOEXEC) ? err_set(e, ST_IO, "no pipe") : start(c, e);
    if (st) {
        (void)coordinator_stop(c);
        return st;
    }
    *out = c;
    return ST_OK;
}

/* False: it is still at work after so long. */
static bool worker_stop(struct worker *w, int patience_s)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += patience_s;
    worker_wake(w);
    return !w->started || pthread_clockjoin_np(w->thread, NULL, CLOCK_MONOTONIC, &until) == 0;
}

bool coordinator_stop(struct coordinator *c)
{
    if (!c) {
        return true;
    }
    atomic_store(&c->stopping, true);
    if (c->stop_pipe[1] >= 0) {
        (void)close(c->stop_pipe[1]); // the reading end becomes readable: end of file
    }
    bool ended = worker_stop(&c->tender, STOP_S);
    ended = worker_stop(&c->folder, STOP_S) && ended;
    ended = worker_stop(&c->keeper, STOP_S) && ended;
    if (c->listener_started) {
        (void)pthread_join(c->listener, NULL);
    }
    if (!ended) {
        log_info("an aggregation under way is left to the next start");
        return false;
    }
    if (c->stop_pipe[0] >= 0) {
        (void)close(c->stop_pipe[0]);
    }
    hub_unsubscribe(c->server->hub, on_wake, c);
    (void)pthread_cond_destroy(&c->tender.cond);
    (void)pthread_cond_destroy(&c->folder.cond);
    (void)pthread_cond_destroy(&c->keeper.cond);
    (void)pthread_mutex_destroy(&c->tender.lock);
    (void)pthread_mutex_destroy(&c->folder.lock);
    (void)pthread_mutex_destroy(&c->keeper.lock);
    mem_free(c);
    return true;
}
