#include "server/coordinator.h"

#include <assert.h>
#include <fcntl.h>
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
#include "server/db.h"
#include "server/db_blob.h"
#include "server/db_publish.h"
#include "server/db_round.h"
#include "server/db_tend.h"
#include "server/fold.h"
#include "server/hub.h"
#include "server/mend.h"

enum {
    TICK_MS = 1000,
    RETRY_MS = 500,  // after an error: the database may be coming back
    FULL_MS = 10000, // after a full disk
    FILES_EVERY_MS = 20000,
    KEEP_MS = 1000,
    REAP_EVERY_MS = 3600 * 1000, // files that no row knows
    REST_MS = 20, // at least, between two looks at all runs: a hundred wakes are one look
    LISTEN_MS = 30000,
    STOP_S = 2, // for a thread to end
    ARENA_MAX = 64 << 20,
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
    struct aside aside; // the folder's alone
    int stop_pipe[2];   // readable once stopping: ends the listener's wait
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

/* A task that is done or free, or a round or run that changed, is work for the tender; for the
 * folder it is a round that was sealed. */
static void on_wake(void *ctx, const char *topic)
{
    struct coordinator *c = ctx;
    bool round = strcmp(topic, "rounds") == 0;
    bool run = strncmp(topic, "run:", 4) == 0;
    if (round || run || strcmp(topic, "tasks") == 0) {
        worker_wake(&c->tender);
    }
    if (round || run) {
        worker_wake(&c->folder);
    }
}

/* ---- tender ---- */

static const char SQL_LIVE_RUNS[] =
    "SELECT r.id, r.state, coalesce(q.state, ''),"
    "       EXISTS (SELECT FROM task t WHERE t.run_id = r.id AND t.kind = 'evaluate'"
    "                  AND t.state IN ('pending', 'leased'))"
    "       OR EXISTS (SELECT FROM checkpoint c WHERE c.run_id = r.id AND c.eval_nll IS NULL"
    "                     AND EXISTS (SELECT FROM task t WHERE t.run_id = r.id"
    "                                    AND t.kind = 'evaluate' AND t.number = c.number"
    "                                    AND t.state = 'done'))"
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

/* What is broken must not stand in the way of all else: it is said, and only a database that is
 * away ends the look. */
static enum status go_on(struct coordinator *c, const char *run_id, enum status st,
                         const struct err *e)
{
    if (st == ST_RETRY) {
        return st;
    }
    if (st && strcmp(c->run_error, e->msg) != 0) {
        log_error("run %s: %s", run_id, e->msg);
        (void)snprintf(c->run_error, sizeof(c->run_error), "%s", e->msg);
    }
    return ST_OK;
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
        if (r.evaluating) {
            TRY(go_on(c, r.id, db_round_evaluated(db, r.id, e), e));
        }
        TRY(go_on(c, r.id, tend_run(db, &r, e), e));
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

/* A look costs more, the more there is: rest as long as it took, so that half of the time at most
 * goes into looking. */
static void rest(const struct coordinator *c, int64_t began_ms)
{
    int64_t now = clock_mono_ms();
    int64_t took = now - began_ms;
    int64_t until = now + (took < TICK_MS ? took : TICK_MS);
    do {
        clock_sleep_ms(REST_MS);
    } while (clock_mono_ms() < until && !atomic_load(&c->stopping));
}

static void *tender_main(void *arg)
{
    struct worker *w = arg;
    struct coordinator *c = w->c;
    struct db *db = NULL;
    bool said = false;
    while (!atomic_load(&c->stopping)) {
        struct err e = {0};
        int64_t began_ms = clock_mono_ms();
        enum status st = db ? ST_OK : db_open(&db, c->conninfo, &e);
        if (!st) {
            struct arena *a = arena_new(ARENA_MAX);
            st = tend(c, db, a, &e);
            arena_free(a);
        }
        say_once(&said, "coordinator", st, &e);
        rest(c, began_ms);
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
            struct server *s = c->server;
            st = fold_work(
                &(struct folder){db, s->blobs, s->aggregate_threads, &c->aside, &c->stopping}, &e);
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

static void tend_cache(struct coordinator *c)
{
    int removed = blob_cache_tend(c->server->blobs);
    if (removed > 0) {
        log_info("%d files of the cache gave way", removed);
    }
}

/* In a thread of its own, for neither a large store nor a long log must keep rounds waiting. */
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
        bool more = false;
        tend_cache(c);
        enum status st = db ? ST_OK : db_open(&db, c->conninfo, &e);
        bool mends = !st && mend_wanted(&wanted);
        if (mends) { // one a turn: the rest of the keeping must not wait for all
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
        st = st ? st : db_tend_chain(db, &more, &e);
        say_once(&said, "keeper", st, &e);
        worker_sleep(w, more || mends ? 0 : jittered(KEEP_MS));
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
    hub_wake(c->server->hub, "rounds");
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
