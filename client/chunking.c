#include "client/chunking.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "common/mem.h"

enum { BLOCK = 1 << 18, GROW = 4 };

int64_t chunk_next(int64_t bytes, double seconds, bool whole, int64_t most)
{
    int64_t next = bytes / 2;
    if (whole) {
        double aim = seconds > 0.0 ? (double)bytes / seconds * CHUNK_AIM_S : (double)most;
        next = aim < (double)GROW * (double)bytes ? (int64_t)aim : GROW * bytes;
    }
    next -= next % CHUNK_LEAST;
    next = next < CHUNK_LEAST ? CHUNK_LEAST : next;
    return next < most ? next : most;
}

struct ahead {
    int fd;
    bool begun; // the thread runs, or has ended and was not joined
    pthread_t thread;
    int64_t offset, bytes;
    uint32_t crc32c;
    int failed; // errno; -1: the file is shorter
};

static int crc_of(int fd, int64_t offset, int64_t bytes, uint32_t *out)
{
    uint32_t crc = 0;
    int failed = 0;
    char *block = mem_alloc(BLOCK);
    for (int64_t done = 0; done < bytes && !failed;) {
        int64_t left = bytes - done;
        ssize_t n = pread(fd, block, left < BLOCK ? (size_t)left : BLOCK, offset + done);
        if (n > 0) {
            crc = crc32c_add(crc, block, (size_t)n);
            done += n;
        } else if (n == 0 || errno != EINTR) {
            failed = n == 0 ? -1 : errno;
        }
    }
    mem_free(block);
    *out = crc;
    return failed;
}

static void *thread_main(void *arg)
{
    struct ahead *a = arg;
    a->failed = crc_of(a->fd, a->offset, a->bytes, &a->crc32c);
    return NULL;
}

struct ahead *ahead_new(int fd)
{
    struct ahead *a = mem_alloc(sizeof(*a));
    a->fd = fd;
    return a;
}

static bool join(struct ahead *a)
{
    bool was = a->begun;
    if (was) {
        (void)pthread_join(a->thread, NULL);
    }
    a->begun = false;
    return was;
}

void ahead_free(struct ahead *a)
{
    if (a) {
        (void)join(a);
        mem_free(a);
    }
}

void ahead_start(struct ahead *a, int64_t offset, int64_t bytes)
{
    (void)join(a);
    a->offset = offset;
    a->bytes = bytes;
    a->begun = bytes > 0 && pthread_create(&a->thread, NULL, thread_main, a) == 0;
}

enum status ahead_take(struct ahead *a, int64_t offset, int64_t *bytes, uint32_t *crc32c,
                       struct err *e)
{
    bool fits = join(a) && a->offset == offset;
    if (!fits) {
        a->bytes = *bytes;
        a->failed = crc_of(a->fd, offset, *bytes, &a->crc32c);
    }
    if (a->failed) {
        return err_set(e, ST_IO, "cannot read the update file: %s",
                       a->failed < 0 ? "it is shorter than noted" : strerror(a->failed));
    }
    *bytes = a->bytes;
    *crc32c = a->crc32c;
    return ST_OK;
}
