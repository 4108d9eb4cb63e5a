/*
 * http_work.c - the workers that run control handlers, and the requests that wait aside.
 *
 *     suspended --> queue --> a worker --> answered --> resumed
 *                     ^          |
 *                     +- parked <+     back on a wake of its topic, when called, at its deadline
 *
 * One lock guards queues and parked list; handlers run without it. Which of the queues is served
 * next is a rule of its own (http_turn.h). Polls for tasks are not woken by their topic: the herald
 * calls those that may find one (http_herald.c). A wake that comes while a handler looks, before
 * its request is parked, would be lost: the count of wakes before and after tells, and such a
 * request is tried again soon.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/mem.h"
#include "server/audit.h"
#include "server/auth.h"
#include "server/http_int.h"
#include "server/http_turn.h"
#include "server/hub.h"
#include "server/server.h"

enum {
    TICK_MS = 100,
    RETRIES = 3,
    ENOUGH = 3,          // requests per worker: a herd is called only while there are fewer
    PARKED_OF_TOKEN = 8, // an agent has one poll; one that asks again may have a few
};

/* Parked polls look again by themselves each second, and requests that wait for a file, which
 * nobody wakes, this often; but all of a kind together not more than that. */
static const double READY_S = 0.2;
static const double LOOKS_PER_S = 100.0;

static const double SOON_S = 0.02;

/* What is over its time ends within a second of it, also when this thread wakes late. */
static const double SWEEP_S = 0.5;

struct queue {
    struct exchange *first, *last;
};

struct work {
    struct http *http;
    struct herald *herald;
    pthread_mutex_t lock;
    pthread_cond_t ready;
    struct queue queues[TURN_COUNT];
    struct turns turns;
    bool call_more; // the herald had more to call than it may at once
    struct exchange *parked;
    int parked_count;
    int busy; /* queued or with a worker */
    unsigned long wakes, task_wakes;
    bool draining;
    bool stop;
    pthread_t workers[HTTP_WORKERS_MAX];
    pthread_t ticker;
};

/* ---- the queue; callers hold the lock ---- */

static void queue(struct work *w, struct exchange *x)
{
    struct queue *q = &w->queues[x->called ? TURN_CALLED : x->woken ? TURN_WOKEN : TURN_FRESH];
    x->next = NULL;
    if (q->last) {
        q->last->next = x;
    } else {
        q->first = x;
    }
    q->last = x;
    w->busy++;
    (void)pthread_cond_signal(&w->ready);
}

/* What a worker should do next; NULL: nothing that it may. */
static struct exchange *unqueue(struct work *w)
{
    bool waits[TURN_COUNT];
    for (int i = 0; i < TURN_COUNT; i++) {
        waits[i] = w->queues[i].first != NULL;
    }
    enum turn turn = turn_next(&w->turns, waits);
    if (turn == TURN_NONE) {
        return NULL;
    }
    struct queue *q = &w->queues[turn];
    struct exchange *x = q->first;
    q->first = x->next;
    if (!q->first) {
        q->last = NULL;
    }
    w->turns.parked_busy += x->woken;
    return x;
}

/* Parked requests for which due() says so go back to the queue; calls: to the first one. */
static void unpark(struct work *w, bool (*due)(struct exchange *x, void *ctx), void *ctx,
                   bool calls)
{
    struct exchange **at = &w->parked;
    while (*at) {
        struct exchange *x = *at;
        if (due(x, ctx)) {
            *at = x->next;
            w->parked_count--;
            x->woken = true;
            x->called = calls;
            queue(w, x);
        } else {
            at = &x->next;
        }
    }
}

static bool wants_topic(const struct exchange *x, const char *topic)
{
    return x->rs.park_topic && strcmp(x->rs.park_topic, topic) == 0;
}

static bool is_woken(struct exchange *x, void *topic)
{
    return wants_topic(x, *(const char **)topic);
}

static bool is_due(struct exchange *x, void *now_s)
{
    double now = *(const double *)now_s;
    x->rq.expired = x->rq.expired || now >= x->rs.park_until_s;
    bool due = x->rq.expired || now >= x->retry_at_s;
    x->known = x->known && !due; // nobody has said that the token still holds
    return due;
}

struct names {
    const char *const *ids;
    int count;
    int room; // how many may be called
    bool more;
};

static int by_name(const void *key, const void *item)
{
    return strcmp(key, *(const char *const *)item);
}

static bool is_named(const char *id, const struct names *n)
{
    return bsearch(id, n->ids, (size_t)n->count, sizeof(*n->ids), by_name) != NULL;
}

static bool is_called(struct exchange *x, void *ctx)
{
    struct names *n = ctx;
    bool ended = is_named(x->rq.who.token_id, n);
    x->known = x->known && !ended;
    if (!ended && !(wants_topic(x, "tasks") && is_named(x->rq.who.silo_id, n))) {
        return false;
    }
    if (n->room == 0) {
        n->more = true;
        return false;
    }
    n->room--;
    return true;
}

/* Those that wait for their turn with what is less urgent are called too. */
static void promote(struct work *w, struct names *n)
{
    struct exchange *x = w->queues[TURN_WOKEN].first;
    w->queues[TURN_WOKEN] = (struct queue){0};
    while (x) {
        struct exchange *next = x->next;
        w->busy--; // queue() counts it again
        x->called = is_called(x, n);
        queue(w, x);
        x = next;
    }
}

static bool always(struct exchange *x, void *ctx)
{
    (void)ctx;
    x->rq.expired = true;
    return true;
}

/* hub's callback, from any thread. A revoked token ends its parked requests now, not in a second.
 */
static void on_wake(void *ctx, const char *topic)
{
    struct work *w = ctx;
    bool tokens = strcmp(topic, "tokens") == 0;
    if (tokens) {
        auth_forget();
    }
    bool calls = tokens || strcmp(topic, "tasks") == 0;
    (void)pthread_mutex_lock(&w->lock);
    if (calls) {
        w->task_wakes++;
    } else {
        w->wakes++;
        unpark(w, is_woken, &topic, false);
    }
    (void)pthread_mutex_unlock(&w->lock);
    if (calls) {
        herald_poke(w->herald);
    }
}

int work_parked(struct work *w)
{
    (void)pthread_mutex_lock(&w->lock);
    int n = w->parked_count;
    (void)pthread_mutex_unlock(&w->lock);
    return n;
}

void work_call(struct work *w, const char *const *ids, int count, bool can_wait)
{
    struct names names = {.ids = ids, .count = count, .room = INT_MAX};
    (void)pthread_mutex_lock(&w->lock);
    if (can_wait) {
        int room = ENOUGH * w->turns.workers - w->busy;
        names.room = room > 0 ? room : 0;
    }
    if (!can_wait && count > 0) {
        promote(w, &names);
    }
    unpark(w, is_called, &names, !can_wait);
    w->call_more = w->call_more || names.more;
    (void)pthread_mutex_unlock(&w->lock);
}

/* How many look as this one does: for a task, or whether a file is ready. */
static int parked_alike(const struct work *w, const struct exchange *like)
{
    int n = 0;
    for (const struct exchange *x = w->parked; x; x = x->next) {
        n += wants_topic(x, "tasks") == wants_topic(like, "tasks");
    }
    return n;
}

static int parked_of(const struct work *w, const char *token_id)
{
    int n = 0;
    for (const struct exchange *x = w->parked; x; x = x->next) {
        n += strcmp(x->rq.who.token_id, token_id) == 0;
    }
    return n;
}

/* False: this token has enough requests waiting. */
static bool park(struct work *w, struct exchange *x)
{
    double now = clock_mono_s();
    (void)pthread_mutex_lock(&w->lock);
    if (x->rq.attempt == 0 && parked_of(w, x->rq.who.token_id) >= PARKED_OF_TOKEN) {
        (void)pthread_mutex_unlock(&w->lock);
        return false;
    }
    bool for_task = wants_topic(x, "tasks");
    double wait = (for_task ? 1.0 : READY_S) + parked_alike(w, x) / LOOKS_PER_S;
    bool call_again = for_task && w->task_wakes != x->task_wakes_seen;
    x->retry_at_s = now + (for_task || w->wakes == x->wakes_seen ? wait : SOON_S);
    x->rq.attempt++;
    x->known = true;
    if (w->draining) {
        x->rq.expired = true;
        x->woken = true;
        x->called = false;
        queue(w, x);
    } else {
        x->next = w->parked;
        w->parked = x;
        w->parked_count++;
    }
    (void)pthread_mutex_unlock(&w->lock);
    if (call_again) {
        herald_poke(w->herald);
    }
    return true;
}

/* ---- one attempt ---- */

static struct db_pool *pool_of(const struct exchange *x)
{
    const struct server *s = x->http->server;
    return x->listener == LISTENER_BULK ? s->bulk_pool : s->pool;
}

bool exchange_db_take(struct exchange *x)
{
    struct err e = {0};
    if (x->rq.db) {
        return true;
    }
    if (db_pool_take(pool_of(x), &x->rq.db, &e) == ST_OK) {
        return true;
    }
    x->rq.db = NULL;
    if (x->match.route && (x->match.route->roles & ROLES_ANYBODY)) {
        return true; // healthz and the page answer without a database
    }
    log_warn("no database connection request=%s: %s", x->id, e.msg);
    (void)problem(&x->rq, &x->rs, 503, "UNAVAILABLE", "try again in a moment",
                  "the database cannot be reached");
    response_header(&x->rs, "Retry-After", "2");
    return false;
}

void exchange_db_give(struct exchange *x)
{
    if (x->rq.db) {
        db_pool_give(pool_of(x), x->rq.db);
        x->rq.db = NULL;
    }
}

void request_db_give(struct request *rq)
{
    exchange_db_give(rq->conn);
}

bool request_db_take(struct request *rq)
{
    return exchange_db_take(rq->conn);
}

/* Whatever is posted to control is one JSON object. */
static void parse_body(struct exchange *x)
{
    const struct route *r = x->match.route;
    if (r->sink || r->body_max == 0 || x->rq.json) {
        return;
    }
    struct err e = {0};
    const struct json *doc = NULL;
    if (!utf8_valid(x->rq.body, x->rq.body_len)) {
        (void)problem(&x->rq, &x->rs, 400, "MALFORMED_JSON", NULL, "the body is not UTF-8");
    } else if (json_parse(&doc, x->rq.arena, x->rq.body, x->rq.body_len, &e)) {
        (void)problem(&x->rq, &x->rs, 400, "MALFORMED_JSON", "send one JSON object", "%s", e.msg);
    } else if (json_kind(doc) != JSON_OBJECT) {
        (void)problem(&x->rq, &x->rs, 400, "MALFORMED_JSON", NULL,
                      "the body must be a JSON object");
    } else {
        x->rq.json = doc;
    }
}

static enum status call_handler(struct exchange *x, struct err *e)
{
    TRY(exchange_authenticate(x, e));
    if (x->rs.status == 0) {
        TRY(exchange_may_ask(x, e));
        parse_body(x);
    }
    const struct route *r = x->match.route;
    if (x->rs.status) {
        return ST_OK;
    }
    return r->roles & ROUTE_AUDITED ? audit_run(r->handler, &x->rq, &x->rs, e)
                                    : r->handler(&x->rq, &x->rs, e);
}

/* Transient failures (a deadlock, a lost connection) are repeated here, a bounded
 * number of times. */
static void attempt(struct work *w, struct exchange *x)
{
    struct err e = {0};
    enum status st = ST_RETRY;
    if (x->rq.attempt > 0 && conn_peer_gone(x->conn)) {
        // Nobody reads the answer: a task must not be leased to a connection that is gone.
        x->rs = (struct response){0};
        st =
            problem(&x->rq, &x->rs, 408, "CLIENT_GONE", NULL, "the client hung up while it waited");
    }
    for (int n = 0; st == ST_RETRY && n < RETRIES; n++) {
        if (n > 0) {
            clock_sleep_ms(20);
        }
        x->rs = (struct response){0};
        if (!exchange_db_take(x)) {
            st = ST_OK;
            break;
        }
        st = call_handler(x, &e);
        exchange_db_give(x);
    }
    if (st == ST_OK && x->rs.parked && !x->rq.expired) {
        if (park(w, x)) {
            return; // x is another thread's from here on
        }
        x->rs = (struct response){0};
        st = err_set(&e, ST_LIMIT, "one token may have %d requests waiting", PARKED_OF_TOKEN);
    }
    exchange_finish(x, st, &e);
    exchange_resume(x);
}

/* ---- threads ---- */

static void *worker_main(void *ctx)
{
    struct work *w = ctx;
    (void)pthread_mutex_lock(&w->lock);
    for (;;) {
        struct exchange *x = unqueue(w);
        if (!x && w->stop) {
            break;
        }
        if (!x) {
            (void)pthread_cond_wait(&w->ready, &w->lock);
            continue;
        }
        bool woken = x->woken; // x may be another thread's, or gone, after the attempt
        bool call = w->call_more && w->busy < (ENOUGH - 1) * w->turns.workers;
        w->call_more = w->call_more && !call;
        x->wakes_seen = w->wakes;
        x->task_wakes_seen = w->task_wakes;
        (void)pthread_mutex_unlock(&w->lock);
        if (call) {
            herald_poke(w->herald);
        }
        attempt(w, x);
        (void)pthread_mutex_lock(&w->lock);
        w->busy--;
        w->turns.parked_busy -= woken;
    }
    (void)pthread_mutex_unlock(&w->lock);
    return NULL;
}

static void *ticker_main(void *ctx)
{
    struct work *w = ctx;
    double swept = clock_mono_s();
    for (;;) {
        clock_sleep_ms(TICK_MS);
        double now = clock_mono_s();
        (void)pthread_mutex_lock(&w->lock);
        bool stop = w->stop;
        unpark(w, is_due, &now, false);
        (void)pthread_mutex_unlock(&w->lock);
        paced_tick(&w->http->paced, clock_mono_ms());
        atomic_store(&w->http->beat_ms, clock_mono_ms());
        if (stop) {
            return NULL;
        }
        if (now - swept >= SWEEP_S) {
            (void)conns_sweep(&w->http->conns, now);
            swept = now;
        }
    }
}

/* One for the process: the hub may still wake it when the listeners are gone. */
static struct work the_work = {.lock = PTHREAD_MUTEX_INITIALIZER,
                               .ready = PTHREAD_COND_INITIALIZER};

struct work *work_new(struct http *h, int workers)
{
    struct work *w = &the_work;
    w->http = h;
    int wanted = workers < 1 ? 1 : workers > HTTP_WORKERS_MAX ? HTTP_WORKERS_MAX : workers;
    (void)pthread_mutex_lock(&w->lock); // the first of them is at work already
    while (w->turns.workers < wanted &&
           pthread_create(&w->workers[w->turns.workers], NULL, worker_main, w) == 0) {
        w->turns.workers++;
    }
    (void)pthread_mutex_unlock(&w->lock);
    if (w->turns.workers == 0 || pthread_create(&w->ticker, NULL, ticker_main, w) != 0) {
        log_error("cannot start the request workers");
        abort(); // at start-up: there is nobody to answer
    }
    w->herald = herald_new(h->server, w);
    hub_subscribe(h->server->hub, on_wake, w);
    return w;
}

void work_submit(struct work *w, struct exchange *x)
{
    (void)pthread_mutex_lock(&w->lock);
    queue(w, x);
    (void)pthread_mutex_unlock(&w->lock);
}

void work_drain(struct work *w)
{
    for (;;) {
        (void)pthread_mutex_lock(&w->lock);
        w->draining = true;
        unpark(w, always, NULL, false);
        int left = w->busy + w->parked_count;
        (void)pthread_mutex_unlock(&w->lock);
        if (left == 0) {
            return;
        }
        clock_sleep_ms(5);
    }
}

void work_stop(struct work *w)
{
    herald_stop(w->herald);
    (void)pthread_mutex_lock(&w->lock);
    w->stop = true;
    (void)pthread_cond_broadcast(&w->ready);
    (void)pthread_mutex_unlock(&w->lock);
    for (int i = 0; i < w->turns.workers; i++) {
        (void)pthread_join(w->workers[i], NULL);
    }
    (void)pthread_join(w->ticker, NULL);
}
