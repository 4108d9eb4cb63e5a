/*
 * http_work.c - the workers that run control handlers, and the requests that wait aside.
 *
 *     suspended --> queue --> a worker --> answered --> resumed
 *                     ^          |
 *                     +- parked <+     back on a wake of its topic, each second, at its deadline
 *
 * One lock guards queue and parked list; handlers run without it. A wake that comes while a handler
 * looks, before its request is parked, would be lost: the count of wakes before and after tells,
 * and such a request is tried again soon instead of after a second.
 */
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/mem.h"
#include "server/auth.h"
#include "server/http_int.h"
#include "server/hub.h"
#include "server/server.h"

enum { WORKERS_MAX = 64, TICK_MS = 100, RETRIES = 3 };

/* Parked requests look again each second, but all together at most this often a second. */
static const double LOOKS_PER_S = 250.0;

static const double SOON_S = 0.02;

struct work {
    struct http *http;
    pthread_mutex_t lock;
    pthread_cond_t ready;
    struct exchange *first, *last; /* queue */
    struct exchange *parked;
    int parked_count;
    int busy; /* queued or with a worker */
    unsigned long wakes;
    bool draining;
    bool stop;
    int worker_count;
    pthread_t workers[WORKERS_MAX];
    pthread_t ticker;
};

/* ---- the queue; callers hold the lock ---- */

static void queue(struct work *w, struct exchange *x)
{
    x->next = NULL;
    if (w->last) {
        w->last->next = x;
    } else {
        w->first = x;
    }
    w->last = x;
    w->busy++;
    (void)pthread_cond_signal(&w->ready);
}

/* Parked requests for which due() says so go back to the queue. */
static void unpark(struct work *w, bool (*due)(struct exchange *x, const void *ctx),
                   const void *ctx)
{
    struct exchange **at = &w->parked;
    while (*at) {
        struct exchange *x = *at;
        if (due(x, ctx)) {
            *at = x->next;
            w->parked_count--;
            queue(w, x);
        } else {
            at = &x->next;
        }
    }
}

static bool wants_topic(struct exchange *x, const void *topic)
{
    return x->rs.park_topic && strcmp(x->rs.park_topic, topic) == 0;
}

static bool is_due(struct exchange *x, const void *now_s)
{
    double now = *(const double *)now_s;
    x->rq.expired = x->rq.expired || now >= x->rs.park_until_s;
    return x->rq.expired || now >= x->retry_at_s;
}

static bool always(struct exchange *x, const void *ctx)
{
    (void)ctx;
    x->rq.expired = true;
    return true;
}

static bool any(struct exchange *x, const void *ctx)
{
    (void)x;
    (void)ctx;
    return true;
}

/* hub's callback, from any thread. A revoked token ends its parked requests now,
 * not in a second. */
static void on_wake(void *ctx, const char *topic)
{
    struct work *w = ctx;
    bool tokens = strcmp(topic, "tokens") == 0;
    if (tokens) {
        auth_forget();
    }
    (void)pthread_mutex_lock(&w->lock);
    w->wakes++;
    unpark(w, tokens ? any : wants_topic, topic);
    (void)pthread_mutex_unlock(&w->lock);
}

static void park(struct work *w, struct exchange *x)
{
    double now = clock_mono_s();
    (void)pthread_mutex_lock(&w->lock);
    double wait = 1.0 + (double)w->parked_count / LOOKS_PER_S;
    x->retry_at_s = now + (w->wakes == x->wakes_seen ? wait : SOON_S);
    x->rq.attempt++;
    if (w->draining) {
        x->rq.expired = true;
        queue(w, x);
    } else {
        x->next = w->parked;
        w->parked = x;
        w->parked_count++;
    }
    (void)pthread_mutex_unlock(&w->lock);
}

/* ---- one attempt ---- */

bool exchange_db_take(struct exchange *x)
{
    struct err e = {0};
    if (x->rq.db) {
        return true;
    }
    if (db_pool_take(x->http->server->pool, &x->rq.db, &e) == ST_OK) {
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
        db_pool_give(x->http->server->pool, x->rq.db);
        x->rq.db = NULL;
    }
}

enum status exchange_authenticate(struct exchange *x, struct err *e)
{
    unsigned roles = x->match.route->roles;
    return roles & ROLES_ANYBODY ? ST_OK : auth_check(&x->rq, &x->rs, roles, e);
}

/* The one table from status to HTTP. The reader of a 5xx finds the reason in our log, by its id. */
static void problem_from(struct exchange *x, enum status st, const struct err *e)
{
    static const struct {
        int status;
        const char *code;
    } table[ST_COUNT] = {
        [ST_INVALID] = {400, "INVALID"},     [ST_DENIED] = {403, "FORBIDDEN"},
        [ST_NOT_FOUND] = {404, "NOT_FOUND"}, [ST_CONFLICT] = {409, "CONFLICT"},
        [ST_LIMIT] = {429, "LIMIT"},         [ST_RETRY] = {503, "UNAVAILABLE"},
        [ST_NOMEM] = {503, "UNAVAILABLE"},
    };
    int status = table[st].status ? table[st].status : 500;
    x->rs.header_count = 0;
    if (status >= 500) {
        log_error("request failed request=%s %s %s status=%s: %s (%s:%d)", x->id, x->rq.method,
                  x->rq.path, status_name(st), e->msg, e->file ? e->file : "?", e->line);
        (void)problem(&x->rq, &x->rs, status, status == 503 ? table[st].code : "INTERNAL",
                      status == 503 ? "try again in a moment"
                                    : "look for this instance in the server's log",
                      "the server could not do this");
    } else {
        (void)problem(&x->rq, &x->rs, status, table[st].code, NULL, "%s", e->msg);
    }
    if (status == 503 || status == 429) {
        response_header(&x->rs, "Retry-After", "2");
    }
}

/* RFC 9110 section 13.1.2: weak comparison with each entity tag of the list, or `*`. */
static bool etag_listed(const char *list, const char *etag)
{
    size_t len = strlen(etag);
    const char *p = list;
    while (*p) {
        p += strspn(p, " \t,");
        if (*p == '*') {
            return true;
        }
        if (strncmp(p, "W/", 2) == 0) {
            p += 2;
        }
        size_t n = strcspn(p, ", \t");
        if (n == len && strncmp(p, etag, n) == 0) {
            return true;
        }
        p += n;
    }
    return false;
}

static void conditional(struct exchange *x)
{
    const char *etag = NULL;
    for (int i = 0; i < x->rs.header_count; i++) {
        if (strcmp(x->rs.headers[i].name, "ETag") == 0) {
            etag = x->rs.headers[i].value;
        }
    }
    if (!etag && x->rs.body) {
        struct digest d;
        char hex[DIGEST_HEX + 1];
        sha256_of(x->rs.body, x->rs.body_len, &d);
        digest_hex(&d, hex);
        etag = arena_fmt(x->rq.arena, "\"%.32s\"", hex);
        response_header(&x->rs, "ETag", etag);
    }
    const char *known = request_header(&x->rq, "If-None-Match");
    if (etag && known && etag_listed(known, etag)) {
        respond_empty(&x->rs, 304);
        x->rs.file_len = 0;
    }
}

void exchange_finish(struct exchange *x, enum status st, const struct err *e)
{
    if (st) {
        problem_from(x, st, e);
    } else if (x->rs.status == 0) {
        struct err none = {0};
        (void)err_set(&none, ST_CORRUPT, "the handler gave no answer");
        problem_from(x, ST_CORRUPT, &none);
    }
    bool get = strcmp(x->rq.method, "GET") == 0 || strcmp(x->rq.method, "HEAD") == 0;
    if (get && x->rs.status == 200 && !x->rs.stream) {
        conditional(x);
    }
    x->step = EXCHANGE_ANSWERED;
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
        parse_body(x);
    }
    return x->rs.status ? ST_OK : x->match.route->handler(&x->rq, &x->rs, e);
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
        park(w, x);
        return;
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
        while (!w->first && !w->stop) {
            (void)pthread_cond_wait(&w->ready, &w->lock);
        }
        struct exchange *x = w->first;
        if (!x) {
            break;
        }
        w->first = x->next;
        if (!w->first) {
            w->last = NULL;
        }
        x->wakes_seen = w->wakes;
        (void)pthread_mutex_unlock(&w->lock);
        attempt(w, x);
        (void)pthread_mutex_lock(&w->lock);
        w->busy--;
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
        unpark(w, is_due, &now);
        (void)pthread_mutex_unlock(&w->lock);
        if (stop) {
            return NULL;
        }
        if (now - swept >= 1.0) {
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
    int wanted = workers < 1 ? 1 : workers > WORKERS_MAX ? WORKERS_MAX : workers;
    while (w->worker_count < wanted &&
           pthread_create(&w->workers[w->worker_count], NULL, worker_main, w) == 0) {
        w->worker_count++;
    }
    if (w->worker_count == 0 || pthread_create(&w->ticker, NULL, ticker_main, w) != 0) {
        log_error("cannot start the request workers");
        abort(); // at start-up: there is nobody to answer
    }
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
        unpark(w, always, NULL);
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
    (void)pthread_mutex_lock(&w->lock);
    w->stop = true;
    (void)pthread_cond_broadcast(&w->ready);
    (void)pthread_mutex_unlock(&w->lock);
    for (int i = 0; i < w->worker_count; i++) {
        (void)pthread_join(w->workers[i], NULL);
    }
    (void)pthread_join(w->ticker, NULL);
}
