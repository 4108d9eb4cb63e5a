#include "server/hub.h"

#include <assert.h>
#include <pthread.h>

#include "common/mem.h"

enum { SUBSCRIBERS_MAX = 8 };

struct hub {
    pthread_mutex_t lock;
    int count;
    struct {
        void (*fn)(void *ctx, const char *topic);
        void *ctx;
    } subscribers[SUBSCRIBERS_MAX];
};

struct hub *hub_new(void)
{
    struct hub *h = mem_alloc(sizeof(*h));
    (void)pthread_mutex_init(&h->lock, NULL);
    return h;
}

void hub_free(struct hub *h)
{
    if (h) {
        (void)pthread_mutex_destroy(&h->lock);
        mem_free(h);
    }
}

void hub_wake(struct hub *h, const char *topic)
{
    // Held during the calls, so that after hub_free()'s caller has stopped the wakers nobody runs.
    (void)pthread_mutex_lock(&h->lock);
    for (int i = 0; i < h->count; i++) {
        h->subscribers[i].fn(h->subscribers[i].ctx, topic);
    }
    (void)pthread_mutex_unlock(&h->lock);
}

void hub_subscribe(struct hub *h, void (*fn)(void *ctx, const char *topic), void *ctx)
{
    (void)pthread_mutex_lock(&h->lock);
    assert(h->count < SUBSCRIBERS_MAX);
    h->subscribers[h->count].fn = fn;
    h->subscribers[h->count].ctx = ctx;
    h->count++;
    (void)pthread_mutex_unlock(&h->lock);
}

void hub_unsubscribe(struct hub *h, void (*fn)(void *ctx, const char *topic), void *ctx)
{
    (void)pthread_mutex_lock(&h->lock);
    for (int i = 0; i < h->count; i++) {
        if (h->subscribers[i].fn == fn && h->subscribers[i].ctx == ctx) {
            h->subscribers[i] = h->subscribers[--h->count];
            break;
        }
    }
    (void)pthread_mutex_unlock(&h->lock);
}
