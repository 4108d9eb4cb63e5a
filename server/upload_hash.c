#include "server/upload_hash.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/id.h"
#include "common/log.h"
#include "common/mem.h"

enum {
    KEPT_MAX = 256, // digests kept for uploads that pause between chunks
    READ_SIZE = 1 << 20,
    NICE = 10,
};

struct running {
    char id[ID_LEN + 1]; // "": free
    struct sha256 *hash;
    struct blob_store *store;
    int64_t at, want; // hashed so far; durable so far
    int64_t used_ms;
    bool busy;       // the thread has it
    bool back;       // and shall give it back
    bool unreadable; // its file could not be read: left for the end
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more; // for the thread
    pthread_cond_t idle; // for those who wait for what it has
    bool started;
    struct running kept[KEPT_MAX];
} hashes = {.lock = PTHREAD_MUTEX_INITIALIZER,
            .more = PTHREAD_COND_INITIALIZER,
            .idle = PTHREAD_COND_INITIALIZER};

/* ---- the table; callers hold the lock ---- */

static struct running *find(const char *id)
{
    for (int i = 0; i < KEPT_MAX; i++) {
        if (hashes.kept[i].id[0] && strcmp(hashes.kept[i].id, id) == 0) {
            return &hashes.kept[i];
        }
    }
    return NULL;
}

static void release(struct running *r)
{
    sha256_free(r->hash);
    *r = (struct running){0};
}

/* A free place, or that of what was used least lately; NULL when the thread has the only ones. */
static struct running *place(void)
{
    struct running *best = NULL;
    for (int i = 0; i < KEPT_MAX; i++) {
        struct running *r = &hashes.kept[i];
        if (!r->id[0]) {
            return r;
        }
        if (!r->busy && (!best || r->used_ms < best->used_ms)) {
            best = r;
        }
    }
    if (best) {
        release(best);
    }
    return best;
}

/* The longest waiting one with something to read. */
static struct running *next_work(void)
{
    struct running *best = NULL;
    for (int i = 0; i < KEPT_MAX; i++) {
        struct running *r = &hashes.kept[i];
        if (r->id[0] && !r->busy && !r->back && !r->unreadable && r->at < r->want &&
            (!best || r->used_ms < best->used_ms)) {
            best = r;
        }
    }
    return best;
}

/* ---- the thread ---- */

static bool wanted_back(const struct running *r)
{
    (void)pthread_mutex_lock(&hashes.lock);
    bool back = r->back;
    (void)pthread_mutex_unlock(&hashes.lock);
    return back;
}

/* Reads up to what was durable when it began; the entry is busy, so nobody else changes it. */
static void read_on(struct running *r, int64_t want, unsigned char *block)
{
    int fd = -1;
    if (blob_tmp_open(r->store, r->id, &fd, NULL)) {
        r->unreadable = true;
        return;
    }
    while (r->at < want && !wanted_back(r)) {
        int64_t n = want - r->at < READ_SIZE ? want - r->at : READ_SIZE;
        ssize_t got = pread(fd, block, (size_t)n, r->at);
        if (got > 0) {
            sha256_add(r->hash, block, (size_t)got);
            r->at += got;
        } else if (got == 0 || errno != EINTR) {
            r->unreadable = true;
            break;
        }
    }
    (void)close(fd);
}

static void *thread_main(void *arg)
{
    (void)arg;
    // Connections come first where processors are few: what is not read by then is read at the end.
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
    unsigned char *block = mem_alloc(READ_SIZE);
    (void)pthread_mutex_lock(&hashes.lock);
    for (;;) {
        struct running *r = next_work();
        if (!r) {
            (void)pthread_cond_wait(&hashes.more, &hashes.lock);
            continue;
        }
        int64_t want = r->want;
        r->busy = true;
        (void)pthread_mutex_unlock(&hashes.lock);
        read_on(r, want, block);
        (void)pthread_mutex_lock(&hashes.lock);
        r->busy = false;
        (void)pthread_cond_broadcast(&hashes.idle);
    }
    return NULL;
}

static void start_thread(void)
{
    pthread_t id;
    pthread_attr_t attr;
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    hashes.started = pthread_create(&id, &attr, thread_main, NULL) == 0;
    (void)pthread_attr_destroy(&attr);
    if (!hashes.started) {
        log_warn("no thread for the digests of uploads: they are read at the end");
    }
}

/* ---- for the connections ---- */

void upload_hash_more(struct blob_store *s, const char *id, int64_t bytes)
{
    (void)pthread_mutex_lock(&hashes.lock);
    if (!hashes.started) {
        start_thread();
    }
    struct running *r = find(id);
    if (!r && (r = place())) {
        (void)snprintf(r->id, sizeof(r->id), "%s", id);
        r->hash = sha256_new();
        r->store = s;
    }
    if (r) {
        r->want = bytes > r->want ? bytes : r->want;
        r->used_ms = clock_mono_ms();
        (void)pthread_cond_signal(&hashes.more);
    }
    (void)pthread_mutex_unlock(&hashes.lock);
}

/* The entry, when the thread has given it back, which it does within a block; NULL: there is none.
 * The lock is held. */
static struct running *reclaim(const char *id)
{
    struct running *r = find(id);
    while (r && r->busy) {
        r->back = true;
        (void)pthread_cond_wait(&hashes.idle, &hashes.lock);
        r = find(id);
    }
    return r;
}

struct sha256 *upload_hash_take(const char *id, int64_t *at)
{
    struct sha256 *h = NULL;
    *at = 0;
    (void)pthread_mutex_lock(&hashes.lock);
    struct running *r = reclaim(id);
    if (r) {
        h = r->hash;
        *at = r->at;
        *r = (struct running){0};
    }
    (void)pthread_mutex_unlock(&hashes.lock);
    return h ? h : sha256_new();
}

void upload_hash_forget(const char *id)
{
    int64_t at = 0;
    sha256_free(upload_hash_take(id, &at));
}

void upload_hash_end(const struct blob_store *s)
{
    (void)pthread_mutex_lock(&hashes.lock);
    for (int i = 0; i < KEPT_MAX; i++) {
        char id[ID_LEN + 1];
        memcpy(id, hashes.kept[i].id, sizeof(id));
        struct running *r = hashes.kept[i].store == s && id[0] ? reclaim(id) : NULL;
        if (r) {
            release(r);
        }
    }
    (void)pthread_mutex_unlock(&hashes.lock);
}

enum status upload_hash_rest(int fd, struct sha256 *h, int64_t at, int64_t bytes,
                             struct digest *out, struct err *e)
{
    struct digest d;
    enum status st = ST_OK;
    unsigned char *block = mem_alloc(READ_SIZE);
    while (at < bytes && !st) {
        int64_t n = bytes - at < READ_SIZE ? bytes - at : READ_SIZE;
        ssize_t got = pread(fd, block, (size_t)n, at);
        if (got > 0) {
            sha256_add(h, block, (size_t)got);
            at += got;
        } else if (got == 0) {
            st = err_set(e, ST_CORRUPT, "the file ends early, at byte %" PRId64, at);
        } else if (errno != EINTR) {
            st = err_set(e, ST_IO, "cannot read an upload: %s", strerror(errno));
        }
    }
    sha256_end(h, &d);
    mem_free(block);
    if (!st) {
        *out = d;
    }
    return st;
}
