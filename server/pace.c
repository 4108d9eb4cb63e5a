#include "server/pace.h"

#include <pthread.h>

#include "common/clock.h"
#include "common/mem.h"

static const double BURST_MS = 100.0;

struct pace {
    pthread_mutex_t lock;
    double bytes_per_ms;
    double free_ms; // up to here the time is taken
};

struct pace *pace_new(int64_t bytes_per_s)
{
    struct pace *p = mem_alloc(sizeof(*p));
    (void)pthread_mutex_init(&p->lock, NULL);
    p->bytes_per_ms = (double)bytes_per_s / 1000.0;
    return p;
}

void pace_free(struct pace *p)
{
    if (p) {
        (void)pthread_mutex_destroy(&p->lock);
        mem_free(p);
    }
}

int64_t pace_book(struct pace *p, size_t bytes, int64_t now_ms)
{
    (void)pthread_mutex_lock(&p->lock);
    double earliest = (double)now_ms - BURST_MS;
    p->free_ms = p->free_ms > earliest ? p->free_ms : earliest;
    p->free_ms += (double)bytes / p->bytes_per_ms;
    double wait = p->free_ms - (double)now_ms;
    (void)pthread_mutex_unlock(&p->lock);
    return wait > 0.0 ? (int64_t)wait : 0;
}

void pace_take(struct pace *p, size_t bytes)
{
    int64_t wait = p ? pace_book(p, bytes, clock_mono_ms()) : 0;
    if (wait > 0) {
        clock_sleep_ms(wait);
    }
}
