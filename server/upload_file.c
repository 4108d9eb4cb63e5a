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
#include "common/crc32c.h"
#include "common/fault.h"
#include "common/id.h"
#include "common/mem.h"
#include "server/upload_hash.h"

enum {
    LOCK_WAIT_MS = 2000,
    LOCK_POLL_MS = 20,
    BEHIND = 4 * 1024 * 1024, // written and not yet under way to the disk, at most
};

struct upload_file {
    struct upload_file *next; // among the open ones
    pthread_mutex_t lock;     // between its thread and whoever takes it over
    int users;                // of this memory: its owner and who takes it over; the registry's
    char id[ID_LEN + 1];
    struct blob_store *store;
    int64_t writer_epoch;
    int fd; // -1: taken over
    int64_t at, end;
    int64_t pushed; // up to here the disk has been told to write
    struct chunk_digest want;
    struct sha256 *sha256; // NULL when the digest is a CRC
    uint32_t crc32c;
};

static struct {
    pthread_mutex_t lock; // never held while a file's own is waited for: that may be at its disk
    struct upload_file *open;
} registry = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- one writer ---- */

static bool try_lock(int fd)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_SETLK, &l) == 0;
}

/* Nobody finds it any more. The caller holds the registry's lock. */
static void unlist(const struct upload_file *f)
{
    for (struct upload_file **p = &registry.open; *p; p = &(*p)->next) {
        if (*p == f) {
            *p = f->next;
            return;
        }
    }
}

static void leave(struct upload_file *f)
{
    (void)pthread_mutex_lock(&registry.lock);
    bool last = --f->users == 0;
    (void)pthread_mutex_unlock(&registry.lock);
    if (last) {
        sha256_free(f->sha256);
        (void)pthread_mutex_destroy(&f->lock);
        mem_free(f);
    }
}

static void close_locked(struct upload_file *f)
{
    (void)pthread_mutex_lock(&f->lock);
    if (f->fd >= 0) {
        (void)close(f->fd);
        f->fd = -1;
    }
    (void)pthread_mutex_unlock(&f->lock);
}

/* Who has the upload open, or NULL. The caller holds the registry's lock. */
static struct upload_file *find(const char *id)
{
    struct upload_file *f = registry.open;
    while (f && strcmp(f->id, id) != 0) {
        f = f->next;
    }
    return f;
}

/*
 * An older writer of this process gives up the file; its connection's thread will see it. A newer
 * one keeps it: the request that asks was overtaken on its way.
 */
static enum status take_over(const char *id, int64_t writer_epoch, struct err *e)
{
    (void)pthread_mutex_lock(&registry.lock);
    struct upload_file *old = find(id);
    bool newer = old && old->writer_epoch > writer_epoch;
    if (old && !newer) {
        unlist(old);
        old->users++;
    }
    (void)pthread_mutex_unlock(&registry.lock);
    if (newer) {
        return err_set(e, ST_CONFLICT, "a newer request writes the upload %s", id);
    }
    if (old) {
        close_locked(old);
        leave(old);
    }
    return ST_OK;
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
                             int64_t writer_epoch, int64_t offset, int64_t bytes,
                             const struct chunk_digest *want, struct err *e)
{
    int fd = -1;
    TRY(take_over(id, writer_epoch, e));
    TRY(blob_tmp_open(s, id, &fd, e));
    enum status st = lock_file(fd, id, e);
    if (st) {
        (void)close(fd);
        return st;
    }
    struct upload_file *f = mem_alloc(sizeof(*f));
    (void)pthread_mutex_init(&f->lock, NULL);
    f->users = 1;
    (void)snprintf(f->id, sizeof(f->id), "%s", id);
    f->store = s;
    f->writer_epoch = writer_epoch;
    f->fd = fd;
    f->at = f->pushed = offset;
    f->end = offset + bytes;
    f->want = *want;
    f->sha256 = want->is_crc ? NULL : sha256_new();
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
    unlist(f);
    (void)pthread_mutex_unlock(&registry.lock); // from here on nobody takes it over
    close_locked(f);                            // but somebody may be at it
    leave(f);
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
    // The disk works while the rest arrives, so that the sync at the end waits for little. Only a
    // beginning: what fails here fails there again.
    if (f->at - f->pushed >= BEHIND) {
        (void)sync_file_range(f->fd, f->pushed, f->at - f->pushed, SYNC_FILE_RANGE_WRITE);
        f->pushed = f->at;
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
    if (f->sha256) {
        sha256_add(f->sha256, data, len);
    } else {
        f->crc32c = crc32c_add(f->crc32c, data, len);
    }
    return ST_OK;
}

static bool has_its_digest(struct upload_file *f)
{
    struct digest got;
    if (f->want.is_crc) {
        return f->crc32c == f->want.crc32c;
    }
    sha256_end(f->sha256, &got);
    return digest_equal(&got, &f->want.sha256);
}

enum status upload_file_check(struct upload_file *f, struct err *e)
{
    if (f->at < f->end) {
        return err_set(e, ST_INVALID, "the chunk is %" PRId64 " bytes shorter than it said",
                       f->end - f->at);
    }
    if (!has_its_digest(f)) {
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
    upload_hash_more(f->store, f->id, f->end);
}
