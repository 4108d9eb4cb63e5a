/* The thread that watches the ranks of one meeting. */
#include "kernels/cuda/watch.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <new>

#include "kernels/backend.h"

enum { EVERY_NS = 100 * 1000 * 1000 };

struct watch {
    struct backend_meeting meeting;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t ending;
    pthread_t thread;
    struct watch_rank ranks[BACKEND_RANKS_MAX];
    bool here[BACKEND_RANKS_MAX];
    bool told[BACKEND_RANKS_MAX];
    int members;
    bool off;
    char why[256];
    bool ends;
    struct watch *next;
};

static pthread_mutex_t watches_lock = PTHREAD_MUTEX_INITIALIZER;
static struct watch *watches;

static void blame(struct watch *w, const struct watch_rank *guilty, const char *what)
{
    (void)snprintf(w->why, sizeof(w->why),
                   "GPU %d (rank %d): %s; all ranks were stopped. Try again, with NCCL_DEBUG=WARN; "
                   "if it stays, look for Xid in dmesg or leave this GPU out of --device",
                   guilty->device, guilty->rank, what);
    w->off = true;
}

/* Each once, those too who came when it had happened. */
static void call_off(struct watch *w)
{
    for (int i = 0; i < BACKEND_RANKS_MAX; i++) {
        if (w->here[i] && !w->told[i]) {
            w->told[i] = true;
            w->ranks[i].call_off(w->ranks[i].ctx, w->why);
        }
    }
}

static void look_at_all(struct watch *w)
{
    for (int i = 0; i < BACKEND_RANKS_MAX && !w->off; i++) {
        if (w->here[i]) {
            double since_s = 0;
            const struct watch_rank *r = &w->ranks[i];
            const char *what = r->look(r->ctx, &since_s);
            if (!what && since_s > r->patience_s) {
                what = "the ranks have waited for each other too long";
            }
            if (what) {
                blame(w, r, what);
            }
        }
    }
}

static void *watching(void *arg)
{
    struct watch *w = static_cast<struct watch *>(arg);
    (void)pthread_mutex_lock(&w->lock);
    while (!w->ends) {
        look_at_all(w);
        if (w->off) {
            call_off(w);
        }
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_nsec += EVERY_NS;
        t.tv_sec += t.tv_nsec / 1000000000;
        t.tv_nsec %= 1000000000;
        (void)pthread_cond_timedwait(&w->ending, &w->lock, &t);
    }
    (void)pthread_mutex_unlock(&w->lock);
    return nullptr;
}

static struct watch *begin(const struct backend_meeting *meeting)
{
    struct watch *w = new (std::nothrow) watch{};
    if (!w) {
        return nullptr;
    }
    pthread_condattr_t attr;
    w->meeting = *meeting;
    (void)pthread_mutex_init(&w->lock, nullptr);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&w->ending, &attr);
    (void)pthread_condattr_destroy(&attr);
    if (pthread_create(&w->thread, nullptr, watching, w)) {
        delete w;
        return nullptr;
    }
    w->next = watches;
    watches = w;
    return w;
}

struct watch *watch_join(const void *meeting, const struct watch_rank *r)
{
    struct backend_meeting at;
    memcpy(&at, meeting, sizeof(at));
    (void)pthread_mutex_lock(&watches_lock);
    struct watch *w = watches;
    while (w && memcmp(&w->meeting, &at, sizeof(at)) != 0) {
        w = w->next;
    }
    w = w ? w : begin(&at);
    if (w) {
        (void)pthread_mutex_lock(&w->lock);
        w->ranks[r->rank] = *r;
        w->here[r->rank] = true;
        w->told[r->rank] = false;
        w->members++;
        (void)pthread_mutex_unlock(&w->lock);
    }
    (void)pthread_mutex_unlock(&watches_lock);
    return w;
}

void watch_leave(struct watch *w, int rank)
{
    (void)pthread_mutex_lock(&watches_lock);
    (void)pthread_mutex_lock(&w->lock);
    w->here[rank] = false;
    w->ends = --w->members == 0;
    bool last = w->ends;
    (void)pthread_cond_signal(&w->ending);
    (void)pthread_mutex_unlock(&w->lock);
    if (last) {
        struct watch **at = &watches;
        while (*at != w) {
            at = &(*at)->next;
        }
        *at = w->next;
        (void)pthread_join(w->thread, nullptr);
        (void)pthread_cond_destroy(&w->ending);
        (void)pthread_mutex_destroy(&w->lock);
        delete w;
    }
    (void)pthread_mutex_unlock(&watches_lock);
}
