#include "client/beat.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "common/buf.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/mem.h"

enum {
    POINTS_MAX = 20000,
    TICK_LEAST_MS = 1000, // numbers and step go out together, so that a page moves while it trains
    TICK_MOST_MS = 5000,
    ARENA_MAX = 16 * 1024 * 1024,
    BODY_MAX = 512
};

struct point {
    int64_t step;
    const char *name;
    double value;
};

struct beat {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct transport *transport; // the thread's alone
    char task[32];
    int64_t epoch;
    double heartbeat_s;
    atomic_bool quit;
    int64_t flush_until_ms; // once quitting
    // under the lock
    const char *phase;
    int64_t step;
    int64_t told_step; // the step of the newest heartbeat
    double tokens_per_s;
    bool phase_is_new; // or the first step was taken: send it at once
    enum beat_order order;
    char reason[240];
    struct point *points; // a ring
    int first, count;
};

static bool thread_cancelled(void *ctx)
{
    struct beat *b = ctx;
    return atomic_load(&b->quit) && clock_mono_ms() > b->flush_until_ms;
}

static enum beat_order order_of(const struct reply *r)
{
    if (!*r->code) { // not the server's word, but that of something before it
        return BEAT_CONTINUE;
    }
    if (r->http == 410) {
        return BEAT_STOPPED;
    }
    if (r->http == 401 || r->http == 403) {
        return BEAT_DENIED;
    }
    if (r->http == 409) {
        return strcmp(r->code, "ROUND_CLOSED") == 0 ? BEAT_CLOSED : BEAT_STALE;
    }
    return r->http == 404 ? BEAT_STALE : BEAT_CONTINUE;
}

static void note_order(struct beat *b, enum beat_order order, const char *why)
{
    (void)pthread_mutex_lock(&b->lock);
    if (order != BEAT_CONTINUE && b->order == BEAT_CONTINUE) {
        b->order = order;
        (void)snprintf(b->reason, sizeof(b->reason), "%s", why);
    }
    (void)pthread_mutex_unlock(&b->lock);
}

static void send_beat(struct beat *b, struct arena *a)
{
    struct buf body;
    buf_init(&body, BODY_MAX);
    (void)pthread_mutex_lock(&b->lock);
    jw_object(&body, NULL);
    jw_int(&body, "epoch", b->epoch);
    jw_int(&body, "step", b->step);
    jw_str(&body, "phase", b->phase);
    jw_num(&body, "tokens_per_s", b->tokens_per_s);
    jw_end_object(&body);
    b->phase_is_new = false;
    b->told_step = b->step;
    (void)pthread_mutex_unlock(&b->lock);

    struct reply r;
    struct err e = {0};
    const char *path = arena_fmt(a, "/silo/v1/tasks/%s/heartbeat", b->task);
    enum status st = transport_call(b->transport, a, "POST", path, body.data, &r, &e);
    buf_release(&body);
    if (st) {
        enum beat_order order = order_of(&r);
        log_debug("heartbeat: %s", e.msg);
        note_order(b, order, e.msg);
        return;
    }
    const char *order = r.json ? json_str(json_get(r.json, "order")) : NULL;
    if (order && strcmp(order, "cancel") == 0) {
        note_order(b, BEAT_CANCEL, "the server cancelled the task");
    }
}

/* Prints up to one batch; the number of points in it. */
static int print_points(struct beat *b, struct buf *body)
{
    (void)pthread_mutex_lock(&b->lock);
    int n = b->count < LIMIT_METRICS_POINTS ? b->count : LIMIT_METRICS_POINTS;
    jw_object(body, NULL);
    jw_int(body, "epoch", b->epoch);
    jw_array(body, "points");
    for (int i = 0; i < n; i++) {
        const struct point *p = &b->points[(b->first + i) % POINTS_MAX];
        jw_object(body, NULL);
        jw_int(body, "step", p->step);
        jw_str(body, "name", p->name);
        jw_num(body, "value", p->value);
        jw_end_object(body);
    }
    jw_end_array(body);
    jw_end_object(body);
    (void)pthread_mutex_unlock(&b->lock);
    return n;
}

/* False when nothing could be sent now. */
static bool send_points(struct beat *b, struct arena *a)
{
    struct buf body;
    buf_init(&body, LIMIT_METRICS_BODY);
    int n = print_points(b, &body);
    bool done = n == 0;
    if (n > 0) {
        struct reply r;
        struct err e = {0};
        const char *path = arena_fmt(a, "/silo/v1/tasks/%s/metrics", b->task);
        enum status st = transport_call(b->transport, a, "POST", path, body.data, &r, &e);
        done = st == ST_OK || !retry_allowed(r.http); // a refused batch is not sent twice
        if (st) {
            log_debug("metrics: %s", e.msg);
        }
        if (done) {
            // Only this thread removes, and a full ring drops its oldest under the lock.
            (void)pthread_mutex_lock(&b->lock);
            int sent = n < b->count ? n : b->count;
            b->first = (b->first + sent) % POINTS_MAX;
            b->count -= sent;
            (void)pthread_mutex_unlock(&b->lock);
        }
    }
    buf_release(&body);
    return done;
}

static int points_waiting(struct beat *b)
{
    (void)pthread_mutex_lock(&b->lock);
    int n = b->count;
    (void)pthread_mutex_unlock(&b->lock);
    return n;
}

/* Sleeps until something is due; true when the phase changed or it is time to go. */
static bool wait_until(struct beat *b, int64_t due_ms)
{
    int64_t left = due_ms - clock_mono_ms();
    struct timespec at;
    (void)clock_gettime(CLOCK_MONOTONIC, &at);
    left = left > 0 ? left : 0;
    at.tv_sec += (time_t)(left / 1000);
    at.tv_nsec += (long)(left % 1000) * 1000000L;
    if (at.tv_nsec >= 1000000000L) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000L;
    }
    (void)pthread_mutex_lock(&b->lock);
    while (!b->phase_is_new && !atomic_load(&b->quit)) {
        if (pthread_cond_timedwait(&b->wake, &b->lock, &at) == ETIMEDOUT) {
            break;
        }
    }
    bool woken = b->phase_is_new || atomic_load(&b->quit);
    (void)pthread_mutex_unlock(&b->lock);
    return woken;
}

/* Between two looks at what there is to send: a fifth of the heartbeat's period, within bounds. */
static int64_t tick_ms(const struct beat *b)
{
    int64_t ms = (int64_t)(b->heartbeat_s * 1000.0 / 5.0);
    return ms < TICK_LEAST_MS ? TICK_LEAST_MS : ms > TICK_MOST_MS ? TICK_MOST_MS : ms;
}

static void *beat_loop(void *ctx)
{
    struct beat *b = ctx;
    int64_t last_beat = clock_mono_ms() - (int64_t)(b->heartbeat_s * 1000.0); // due at once
    int64_t next_tick = clock_mono_ms();
    while (!atomic_load(&b->quit)) {
        bool woken = wait_until(b, next_tick);
        if (atomic_load(&b->quit)) {
            break;
        }
        struct arena *a = arena_new(ARENA_MAX);
        bool due = (double)(clock_mono_ms() - last_beat) >= b->heartbeat_s * 1000.0;
        bool numbers = points_waiting(b) > 0;
        if (woken || due || numbers) {
            send_beat(b, a);
            last_beat = clock_mono_ms();
        }
        if (numbers) {
            (void)send_points(b, a);
        }
        next_tick = clock_mono_ms() + tick_ms(b);
        arena_free(a);
    }
    for (bool ok = true; ok && points_waiting(b) > 0 && clock_mono_ms() < b->flush_until_ms;) {
        struct arena *a = arena_new(ARENA_MAX);
        ok = send_points(b, a);
        arena_free(a);
    }
    return NULL;
}

enum status beat_start(struct beat **out, const struct beat_config *c, struct err *e)
{
    struct beat *b = mem_alloc(sizeof(*b));
    struct transport_config tc = {.url = c->url,
                                  .token = c->token,
                                  .ca_file = c->ca_file,
                                  .pin = c->pin,
                                  .fresh_token = c->fresh_token,
                                  .fresh_ctx = c->fresh_ctx,
                                  .cancelled = thread_cancelled,
                                  .cancel_ctx = b};
    enum status st = transport_open(&b->transport, &tc, e);
    if (st) {
        mem_free(b);
        return st;
    }
    transport_timeout(b->transport, c->heartbeat_s > 10.0 ? c->heartbeat_s : 10.0);
    (void)snprintf(b->task, sizeof(b->task), "%s", c->task);
    b->epoch = c->epoch;
    b->heartbeat_s = c->heartbeat_s;
    b->phase = "download";
    b->points = mem_alloc(POINTS_MAX * sizeof(*b->points));
    (void)pthread_mutex_init(&b->lock, NULL);
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&b->wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    int rc = pthread_create(&b->thread, NULL, beat_loop, b);
    if (rc != 0) {
        transport_close(b->transport);
        mem_free(b->points);
        mem_free(b);
        return err_set(e, ST_NOMEM, "cannot start the heartbeat: %s", strerror(rc));
    }
    *out = b;
    return ST_OK;
}

void beat_stop(struct beat *b, double flush_s)
{
    if (!b) {
        return;
    }
    (void)pthread_mutex_lock(&b->lock);
    b->flush_until_ms = clock_mono_ms() + (int64_t)(flush_s * 1000.0);
    atomic_store(&b->quit, true);
    (void)pthread_cond_signal(&b->wake);
    (void)pthread_mutex_unlock(&b->lock);
    (void)pthread_join(b->thread, NULL);
    transport_close(b->transport);
    (void)pthread_cond_destroy(&b->wake);
    (void)pthread_mutex_destroy(&b->lock);
    mem_free(b->points);
    mem_free(b);
}

void beat_report(struct beat *b, const char *phase, int64_t step, double tokens_per_s)
{
    (void)pthread_mutex_lock(&b->lock);
    if (b->phase != phase || (b->told_step == 0 && step > 0)) {
        b->phase_is_new = true;
        (void)pthread_cond_signal(&b->wake);
    }
    b->phase = phase;
    b->step = step;
    b->tokens_per_s = tokens_per_s;
    (void)pthread_mutex_unlock(&b->lock);
}

void beat_point(struct beat *b, int64_t step, const char *name, double value)
{
    (void)pthread_mutex_lock(&b->lock);
    if (b->count == POINTS_MAX) {
        b->first = (b->first + 1) % POINTS_MAX;
        b->count--;
    }
    b->points[(b->first + b->count) % POINTS_MAX] = (struct point){step, name, value};
    b->count++;
    (void)pthread_mutex_unlock(&b->lock);
}

enum beat_order beat_order(struct beat *b)
{
    (void)pthread_mutex_lock(&b->lock);
    enum beat_order order = b->order;
    (void)pthread_mutex_unlock(&b->lock);
    return order;
}

void beat_reason(struct beat *b, char *out, size_t size)
{
    (void)pthread_mutex_lock(&b->lock);
    (void)snprintf(out, size, "%s", b->reason);
    (void)pthread_mutex_unlock(&b->lock);
}
