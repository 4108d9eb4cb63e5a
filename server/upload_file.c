#include "server/upload_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/id.h"
#include "common/mem.h"

enum {
    LOCK_WAIT_MS = 2000,
    LOCK_POLL_MS = 20,
    RUNNING_MAX = 256, // digests kept for uploads that pause between chunks
    READ_SIZE = 1 << 20,
};

struct upload_file {
    struct upload_file *next; // among the open ones
    pthread_mutex_t lock;     // between its thread and whoever takes it over
    char id[ID_LEN + 1];
    int fd; // -1: taken over
    int64_t at, end;
    struct sha256 *chunk;
    struct sha256 *whole; // NULL when it does not reach up to where the chunk begins
    int64_t whole_at;
};

static struct {
    pthread_mutex_t lock; // taken before a file's own
    struct upload_file *open;
    struct {
        char id[ID_LEN + 1];
        struct sha256 *hash;
        int64_t at;
        int64_t used_ms;
    } running[RUNNING_MAX];
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- running digests ---- */

/* The digest of the first *at bytes, which leaves the registry; a fresh one
 * when nothing is known. */
struct sha256 *upload_file_running(const char *id, int64_t *at)
{
    struct sha256 *h = NULL;
    *at = 0;
    (void)pthread_mutex_lock(&registry.lock);
    for (int i = 0; i < RUNNING_MAX && !h; i++) {
        if (registry.running[i].hash && strcmp(registry.running[i].id, id) == 0) {
            h = registry.running[i].hash;
            *at = registry.running[i].at;
            registry.running[i].hash = NULL;
        }
    }
    (void)pthread_mutex_unlock(&registry.lock);
    return h ? h : sha256_new();
}

/* Replaces what was known of it, or what was used least lately. */
static void put_running(const char *id, struct sha256 *hash, int64_t at)
{
    (void)pthread_mutex_lock(&registry.lock);
    int slot = 0;
    for (int i = 0; i < RUNNING_MAX; i++) {
        if (registry.running[i].hash && strcmp(registry.running[i].id, id) == 0) {
            slot = i;
            break;
        }
        bool better = !registry.running[i].hash ||
                      registry.running[i].used_ms < registry.running[slot].used_ms;
        if (registry.running[slot].hash && better) {
            slot = i;
        }
    }
    struct sha256 *old = registry.running[slot].hash;
    (void)snprintf(registry.running[slot].id, sizeof(registry.running[slot].id), "%s", id);
    registry.running[slot].hash = hash;
    registry.running[slot].at = at;
    registry.running[slot].used_ms = clock_mono_ms();
    (void)pthread_mutex_unlock(&registry.lock);
    sha256_free(old);
}

void upload_file_forget(const char *id)
{
    int64_t at = 0;
    sha256_free(upload_file_running(id, &at));
}

/* ---- one writer ---- */

static bool try_lock(int fd)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_SETLK, &l) == 0;
}

/* An older writer of this process gives up the file; its connection's thread will see it. */
static void take_over(const char *id)
{
    (void)pthread_mutex_lock(&registry.lock);
    for (struct upload_file **f = &registry.open; *f; f = &(*f)->next) {
        if (strcmp((*f)->id, id) == 0) {
            struct upload_file *old = *f;
            *f = old->next;
            (void)pthread_mutex_lock(&old->lock);
            (void)close(old->fd);
            old->fd = -1;
            (void)pthread_mutex_unlock(&old->lock);
            break;
        }
    }
    (void)pthread_mutex_unlock(&registry.lock);
}

static enum status lock_file(int fd, const char *id, struct err *e)
{
    for (int64_t left = LOCK_WAIT_MS; !try_lock(fd); left -= LOCK_POLL_MS) {
        if (left <= 0) {
            return err_set(e, ST_CONFLICT, "another server writes the upload %s", id);
        }
        clock_sleep_ms(LOCK_POLL_MS);
    }
    return ST_OK;
}

enum status upload_file_open(struct upload_file **out, struct blob_store *s, const char *id,
                             int64_t offset, int64_t bytes, struct err *e)
{
    int fd = -1;
    take_over(id);
    TRY(blob_tmp_open(s, id, &fd, e));
    enum status st = lock_file(fd, id, e);
    if (st) {
        (void)close(fd);
        return st;
    }
    struct upload_file *f = mem_alloc(sizeof(*f));
    (void)pthread_mutex_init(&f->lock, NULL);
    (void)snprintf(f->id, sizeof(f->id), "%s", id);
    f->fd = fd;
    f->at = offset;
    f->end = offset + bytes;
    f->chunk = sha256_new();
    f->whole = upload_file_running(id, &f->whole_at);
    if (f->whole_at > offset) { // cannot be; then it is read again at the end
        sha256_free(f->whole);
        f->whole = NULL;
    } else if (f->whole_at < offset) { // does not reach this far: keep what there is for the end
        put_running(id, f->whole, f->whole_at);
        f->whole = NULL;
    }
    (void)pthread_mutex_lock(&registry.lock);
    f->next = registry.open;
    registry.open = f;
    (void)pthread_mutex_unlock(&registry.lock);
    *out = f;
    return ST_OK;
}

void upload_file_close(struct upload_file *f)
{
    if (!f) {
        return;
    }
    (void)pthread_mutex_lock(&registry.lock);
    for (struct upload_file **p = &registry.open; *p; p = &(*p)->next) {
        if (*p == f) {
            *p = f->next;
            break;
        }
    }
    (void)pthread_mutex_unlock(&registry.lock); // from here on nobody takes it over
    if (f->fd >= 0) {
        (void)close(f->fd);
    }
    sha256_free(f->chunk);
    sha256_free(f->whole);
    (void)pthread_mutex_destroy(&f->lock);
    mem_free(f);
}

static enum status write_all(struct upload_file *f, const char *p, size_t len, struct err *e)
{
    while (len > 0) {
        ssize_t n = FAULT_ERR("upload.write") ? -1 : pwrite(f->fd, p, len, f->at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            bool full = errno == ENOSPC || errno == EDQUOT;
            return err_set(e, full ? ST_LIMIT : ST_IO, "cannot write the upload %s: %s", f->id,
                           strerror(errno));
        }
        p += n;
        f->at += n;
        len -= (size_t)n;
    }
    return ST_OK;
}

static enum status taken_over(const struct upload_file *f, struct err *e)
{
    return err_set(e, ST_CONFLICT, "a newer request writes the upload %s", f->id);
}

enum status upload_file_add(struct upload_file *f, const void *data, size_t len, struct err *e)
{
    (void)pthread_mutex_lock(&f->lock);
    enum status st = ST_OK;
    if (f->fd < 0) {
        st = taken_over(f, e);
    } else if ((int64_t)len > f->end - f->at) {
        st = err_set(e, ST_INVALID, "the chunk is longer than it said");
    } else {
        st = write_all(f, data, len, e);
    }
    (void)pthread_mutex_unlock(&f->lock);
    TRY(st);
    sha256_add(f->chunk, data, len);
    if (f->whole) {
        sha256_add(f->whole, data, len);
    }
    return ST_OK;
}

enum status upload_file_check(struct upload_file *f, const struct digest *chunk, struct err *e)
{
    if (f->at < f->end) {
        return err_set(e, ST_INVALID, "the chunk is %" PRId64 " bytes shorter than it said",
                       f->end - f->at);
    }
    struct digest got;
    sha256_end(f->chunk, &got);
    if (!digest_equal(&got, chunk)) {
        return err_set(e, ST_CORRUPT, "the chunk's bytes do not have the digest that was said");
    }
    (void)pthread_mutex_lock(&f->lock);
    enum status st = ST_OK;
    if (f->fd < 0) {
        st = taken_over(f, e);
    } else if (FAULT_ERR("upload.sync") || fdatasync(f->fd)) {
        st = err_set(e, ST_IO, "cannot sync the upload %s: %s", f->id, strerror(errno));
    }
    (void)pthread_mutex_unlock(&f->lock);
    FAULT("upload.synced");
    return st;
}

void upload_file_keep(struct upload_file *f)
{
    if (f->whole) {
        put_running(f->id, f->whole, f->end);
        f->whole = NULL;
    }
}

enum status upload_file_digest_rest(int fd, struct sha256 *h, int64_t at, int64_t bytes,
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
