/*
 * http_herald.c - who of the parked polls is called back: one look for all of them.
 *
 * A thousand silos that each looked for work every second would keep the database busy with saying
 * no. So one thread asks for all: which silos may find a task now, and which tokens have just
 * ended. It asks when a task may be free (topic "tasks"), when a token ended ("tokens"), and each
 * second. Its answer is a hint: a poll that is called claims as ever, and one that never is looks
 * again by itself now and then (http_work.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "server/http_int.h"
#include "server/server.h"

enum {
    SPARES_AT_ONCE = 100,      // of the silos that may take an open seat
    EVALUATIONS_AT_ONCE = 128, // of those with one to do: more than are called at once
    TEXT_MAX = 4 << 20
};

/*
 * Silos with a task of their own to take; some of those without a seat where a seat has lost its
 * silo; tokens that ended within the longest poll. Evaluations can wait, the others come first. It
 * may name too many silos, never too few for long: db_task_claim() decides.
 */
static const char SQL_CALL[] =
    "SELECT t.silo_id, false FROM task t JOIN run r ON r.id = t.run_id"
    "  JOIN round q ON q.id = t.round_id"
    " WHERE t.state = 'pending' AND t.free_at <= clock_timestamp() AND t.kind = 'train'"
    "   AND q.state = 'open' AND r.state = 'running'"
    " UNION ALL (SELECT t.silo_id, true FROM task t JOIN run r ON r.id = t.run_id"
    " WHERE t.state = 'pending' AND t.free_at <= clock_timestamp() AND t.kind = 'evaluate'"
    "   AND r.state IN ('running', 'finished')"
    " ORDER BY random() LIMIT $2)" // some may be away: each its turn
    " UNION ALL (SELECT s.id, false FROM round q JOIN run r ON r.id = q.run_id, silo s"
    " WHERE q.state = 'open' AND r.state = 'running' AND s.state = 'active' AND NOT s.gone"
    "   AND EXISTS (SELECT FROM task t WHERE t.round_id = q.id"
    "          AND CASE t.state WHEN 'pending' THEN t.open_at WHEN 'leased' THEN t.lease_until END"
    "              <= clock_timestamp())"
    "   AND NOT EXISTS (SELECT FROM task t WHERE t.round_id = q.id AND t.silo_id = s.id"
    "                      AND t.kind = 'train' AND t.state IN ('pending', 'leased', 'done'))"
    " ORDER BY array_position(q.eligible, s.name), random() LIMIT $1)" // in their turn
    " UNION ALL SELECT id, false FROM token"
    " WHERE least(revoked_at, expires_at) BETWEEN clock_timestamp() - interval '1 minute'"
    "                                         AND clock_timestamp()";

struct herald {
    struct server *server;
    struct work *work;
    pthread_mutex_t lock;
    pthread_cond_t poke;
    bool poked;
    bool stop;
    bool silent; // the database did not answer last time: said once
    pthread_t thread;
};

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static enum status call(struct herald *h, struct db *db, struct arena *a, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {db_arg_int(a, SPARES_AT_ONCE), db_arg_int(a, EVALUATIONS_AT_ONCE)};
    TRY(db_query(db, a, SQL_CALL, 2, argv, &rows, e));
    struct {
        const char **ids;
        int count;
    } lists[2] = {0}; // those who cannot wait, those who can
    for (int k = 0; k < 2; k++) {
        lists[k].ids = arena_alloc(a, (size_t)(rows.count + 1) * sizeof(*lists[k].ids));
    }
    for (int i = 0; i < rows.count; i++) {
        bool can_wait = false;
        TRY(db_bool(&rows, i, 1, &can_wait, e));
        lists[can_wait].ids[lists[can_wait].count++] = db_text(&rows, i, 0);
    }
    for (int k = 0; k < 2; k++) {
        qsort(lists[k].ids, (size_t)lists[k].count, sizeof(*lists[k].ids), by_text);
        work_call(h->work, lists[k].ids, lists[k].count, k == 1);
    }
    return ST_OK;
}

static void look(struct herald *h)
{
    struct db *db = NULL;
    struct err e = {0};
    struct arena *a = arena_new(TEXT_MAX);
    enum status st = db_pool_take(h->server->pool, &db, &e);
    if (st == ST_OK) {
        st = call(h, db, a, &e);
        db_pool_give(h->server->pool, db);
    }
    arena_free(a);
    if (st && !h->silent) {
        log_warn("waiting silos look for themselves: %s", e.msg);
    }
    h->silent = st != ST_OK;
}

/* Until poked, or a second is over. */
static void doze(struct herald *h)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 1;
    int rc = 0;
    while (!h->poked && !h->stop && rc != ETIMEDOUT) {
        rc = pthread_cond_timedwait(&h->poke, &h->lock, &until);
    }
    h->poked = false;
}

static void *herald_main(void *ctx)
{
    struct herald *h = ctx;
    (void)pthread_mutex_lock(&h->lock);
    while (!h->stop) {
        doze(h);
        (void)pthread_mutex_unlock(&h->lock);
        if (work_parked(h->work) > 0) {
            look(h);
        }
        (void)pthread_mutex_lock(&h->lock);
    }
    (void)pthread_mutex_unlock(&h->lock);
    return NULL;
}

/* One for the process: the hub may still poke it when the listeners are gone. */
static struct herald the_herald = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct herald *herald_new(struct server *server, struct work *w)
{
    struct herald *h = &the_herald;
    h->server = server;
    h->work = w;
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&h->poke, &attr);
    (void)pthread_condattr_destroy(&attr);
    if (pthread_create(&h->thread, NULL, herald_main, h) != 0) {
        log_error("cannot start the herald of waiting requests");
        abort(); // at start-up: there is nobody to answer
    }
    return h;
}

void herald_poke(struct herald *h)
{
    (void)pthread_mutex_lock(&h->lock);
    h->poked = true;
    (void)pthread_cond_signal(&h->poke);
    (void)pthread_mutex_unlock(&h->lock);
}

void herald_stop(struct herald *h)
{
    (void)pthread_mutex_lock(&h->lock);
    h->stop = true;
    (void)pthread_cond_signal(&h->poke);
    (void)pthread_mutex_unlock(&h->lock);
    (void)pthread_join(h->thread, NULL);
}
