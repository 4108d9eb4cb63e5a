#include "server/blob_fetch.h"

#include <pthread.h>
#include <time.h>

#include "common/clock.h"
#include "common/mem.h"

enum { TOLD_MS = 60 * 1000 }; // an error nobody waited for is kept so long

struct fetch {
    struct fetch *next;
    struct blob_fetches *all;
    struct digest digest;
    int waiting;
    bool done; // and nobody has been told yet
    int64_t done_ms;
    enum status st;
    struct err err;
};

struct blob_fetches {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    struct blob_store *store;
    blob_fetch_fn *fn;
    struct fetch *first;
};

struct blob_fetches *blob_fetches_new(struct blob_store *s, blob_fetch_fn *fn)
{
    struct blob_fetches *f = mem_alloc(sizeof(*f));
    pthread_condattr_t attr;
    f->store = s;
    f->fn = fn;
    (void)pthread_mutex_init(&f->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&f->ended, &attr);
    (void)pthread_condattr_destroy(&attr);
    return f;
}

void blob_fetches_free(struct blob_fetches *f)
{
    if (!f) {
        return;
    }
    while (f->first) {
        struct fetch *next = f->first->next;
        mem_free(f->first);
        f->first = next;
    }
    (void)pthread_cond_destroy(&f->ended);
    (void)pthread_mutex_destroy(&f->lock);
    mem_free(f);
}

/* ---- under the lock ---- */

static struct fetch *find(const struct blob_fetches *f, const struct digest *d)
{
    struct fetch *x = f->first;
    while (x && !digest_equal(&x->digest, d)) {
        x = x->next;
    }
    return x;
}

static void drop(struct blob_fetches *f, struct fetch *x)
{
    struct fetch **p = &f->first;
    while (*p != x) {
        p = &(*p)->next;
    }
    *p = x->next;
    mem_free(x);
}

static void drop_old(struct blob_fetches *f)
{
    int64_t old = clock_mono_ms() - TOLD_MS;
    for (struct fetch *x = f->first; x;) {
        struct fetch *next = x->next;
        if (x->done && x->waiting == 0 && x->done_ms < old) {
            drop(f, x);
        }
        x = next;
    }
}

/* ---- a fetch ---- */

static void run(struct fetch *x)
{
    struct blob_fetches *f = x->all;
    struct err e = {0};
    enum status st = f->fn(f->store, &x->digest, &e);
    (void)pthread_mutex_lock(&f->lock);
    x->st = st;
    x->err = e;
    x->done = true;
    x->done_ms = clock_mono_ms();
    (void)pthread_cond_broadcast(&f->ended);
    if (x->waiting == 0 && st == ST_OK) {
        drop(f, x); // it is in the cache, and there is nothing to tell
    }
    (void)pthread_mutex_unlock(&f->lock);
}

static void *fetch_thread(void *arg)
{
    struct fetch *x = arg;
    struct blob_store *s = x->all->store;
    run(x);
    blob_store_close(s); // its share; x may be gone by now
    return NULL;
}

static bool start_thread(struct fetch *x)
{
    pthread_t id;
    pthread_attr_t attr;
    (void)blob_store_share(x->all->store);
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    bool ok = pthread_create(&id, &attr, fetch_thread, x) == 0;
    (void)pthread_attr_destroy(&attr);
    if (!ok) {
        blob_store_close(x->all->store);
    }
    return ok;
}

static struct fetch *begin(struct blob_fetches *f, const struct digest *d)
{
    struct fetch *x = mem_alloc(sizeof(*x));
    x->all = f;
    x->digest = *d;
    x->next = f->first;
    f->first = x;
    return x;
}

/* ---- waiting ---- */

static struct timespec in_ms(int64_t ms)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t ns = t.tv_nsec + ms % 1000 * 1000000;
    t.tv_sec += (time_t)(ms / 1000 + ns / 1000000000);
    t.tv_nsec = (long)(ns % 1000000000);
    return t;
}

static void wait_for(struct blob_fetches *f, const struct fetch *x, int64_t patience_ms)
{
    struct timespec until = in_ms(patience_ms > 0 ? patience_ms : 0);
    int rc = 0;
    while (!x->done && rc == 0) {
        rc = patience_ms < 0 ? pthread_cond_wait(&f->ended, &f->lock)
                             : pthread_cond_timedwait(&f->ended, &f->lock, &until);
    }
}

enum status blob_fetch_wait(struct blob_fetches *f, const struct digest *d, int64_t patience_ms,
                            bool *coming, struct err *e)
{
    (void)pthread_mutex_lock(&f->lock);
    drop_old(f);
    struct fetch *x = find(f, d);
    bool mine = !x;
    x = x ? x : begin(f, d);
    x->waiting++;
    if (mine && !start_thread(x)) { // then here, with others waiting for it as for any
        (void)pthread_mutex_unlock(&f->lock);
        run(x);
        (void)pthread_mutex_lock(&f->lock);
    }
    wait_for(f, x, patience_ms);
    x->waiting--;
    *coming = !x->done;
    enum status st = x->done ? x->st : ST_RETRY;
    if (st) {
        err_set(e, st, "%s", x->done ? x->err.msg : "the file is on its way from the bucket");
    }
    if (x->done && x->waiting == 0) {
        drop(f, x);
    }
    (void)pthread_mutex_unlock(&f->lock);
    return st;
}

void blob_fetches_count(struct blob_fetches *f, int *under_way, int *waiting)
{
    *under_way = *waiting = 0;
    (void)pthread_mutex_lock(&f->lock);
    for (const struct fetch *x = f->first; x; x = x->next) {
        *under_way += !x->done;
        *waiting += x->waiting;
    }
    (void)pthread_mutex_unlock(&f->lock);
}
