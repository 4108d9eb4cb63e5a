/*
 * download.c - a file's way from the server: what is there of it, the rest, its digest, its name.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/durable.h"
#include "client/transport.h"
#include "common/fault.h"
#include "common/mem.h"

/* FILE.part as it grows. */
struct file_sink {
    int fd;
    int64_t offset; // where the next byte goes
    int64_t limit;  // more than this is refused; -1: none
    int64_t start;  // the offset asked for
    struct sha256 *hash;
    struct download *d;
    bool wrong_range;
    bool too_long;
    int failed; // errno of a write
};

/* The first byte of the body decides whether the resumed part still counts. */
static bool sink_begin(void *ctx, int http, int64_t range_start, int64_t range_total)
{
    struct file_sink *s = ctx;
    if (http == 206) {
        s->wrong_range = range_start != s->start ||
                         (s->d->bytes >= 0 && range_total >= 0 && range_total != s->d->bytes);
        return !s->wrong_range;
    }
    if (s->start > 0) { // the whole file comes: what is there is of another version
        if (ftruncate(s->fd, 0) != 0) {
            s->failed = errno;
            return false;
        }
        struct digest unused;
        sha256_end(s->hash, &unused);
        s->offset = 0;
    }
    return true;
}

static bool sink_bytes(void *ctx, const void *bytes, size_t n)
{
    struct file_sink *s = ctx;
    if (s->limit >= 0 && s->offset + (int64_t)n > s->limit) {
        s->too_long = true;
        return false;
    }
    for (size_t done = 0; done < n;) {
        ssize_t w = FAULT_ERR("base.write") ? -1
                                            : pwrite(s->fd, (const char *)bytes + done, n - done,
                                                     s->offset + (int64_t)done);
        if (w < 0 && errno == EINTR) {
            continue;
        }
        if (w < 0) {
            s->failed = errno;
            return false;
        }
        done += (size_t)w;
    }
    sha256_add(s->hash, bytes, n);
    s->offset += (int64_t)n;
    s->d->received += (int64_t)n;
    if (s->d->progress) {
        s->d->progress(s->d->progress_ctx, s->offset);
    }
    return true;
}

static enum status sync_parent(const char *file, struct err *e)
{
    size_t size = strlen(file) + 1;
    char *copy = mem_alloc(size);
    memcpy(copy, file, size);
    const char *dir = dirname(copy);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    enum status st = ST_OK;
    if (fd < 0 || fsync(fd) != 0) {
        st =
            err_set(e, io_status(errno), "cannot sync the folder of %s: %s", file, strerror(errno));
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    mem_free(copy);
    return st;
}

/* Digest what an earlier try left, so that only the rest travels. */
static enum status hash_part(int fd, struct file_sink *s, struct err *e)
{
    enum { BLOCK = 1 << 18 };
    char *block = mem_alloc(BLOCK);
    enum status st = ST_OK;
    for (;;) {
        ssize_t n = pread(fd, block, BLOCK, s->offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            st = err_set(e, ST_IO, "cannot read the partial download: %s", strerror(errno));
        }
        if (n <= 0) {
            break;
        }
        sha256_add(s->hash, block, (size_t)n);
        s->offset += n;
    }
    mem_free(block);
    return st;
}

/* Room for the rest is taken now: better refused here than with a disk that is full of a part. */
static enum status reserve(int fd, const struct file_sink *s, const struct download *d,
                           struct err *e)
{
    if (d->bytes <= s->offset ||
        fallocate(fd, FALLOC_FL_KEEP_SIZE, s->offset, d->bytes - s->offset) == 0 ||
        io_status(errno) != ST_LIMIT) {
        return ST_OK; // not every file system can; then the writes tell
    }
    int full = errno;
    if (ftruncate(fd, s->offset) != 0) { // what there was of it goes back
        return err_set(e, ST_IO, "cannot shorten %s.part: %s", d->file, strerror(errno));
    }
    return err_set(e, ST_LIMIT, "no room for the %" PRId64 " bytes of %s: %s", d->bytes, d->file,
                   strerror(full));
}

static enum status fetch(struct transport *t, struct arena *a, struct download *d,
                         struct file_sink *s, struct reply *out, struct err *e)
{
    const char *headers[3] = {NULL};
    struct body_sink sink = {sink_begin, sink_bytes, s};
    s->start = s->offset;
    if (s->offset > 0) {
        headers[0] = arena_fmt(a, "Range: bytes=%" PRId64 "-", s->offset);
    }
    if (s->offset > 0 && d->digest) {
        char hex[DIGEST_HEX + 1];
        digest_hex(d->digest, hex);
        headers[1] = arena_fmt(a, "If-Range: \"%s\"", hex);
    }
    enum status st = transport_get(t, a, d->path, headers, &sink, out, e);
    if (s->wrong_range) {
        return err_set(e, ST_CORRUPT, "the server sent another part of %.100s than asked", d->path);
    }
    if (s->too_long) {
        return err_set(e, ST_CORRUPT, "the server sent more than the %" PRId64 " bytes of %.100s",
                       d->bytes, d->path);
    }
    if (s->failed) {
        return err_set(e, io_status(s->failed), "cannot write %s.part: %s", d->file,
                       strerror(s->failed));
    }
    return st;
}

static enum status check_whole(const struct download *d, struct file_sink *s, struct err *e)
{
    if (d->bytes >= 0 && s->offset != d->bytes) {
        return err_set(e, s->offset < d->bytes ? ST_NET : ST_CORRUPT,
                       "%" PRId64 " of %" PRId64 " bytes came", s->offset, d->bytes);
    }
    struct digest got;
    sha256_end(s->hash, &got);
    if (d->digest && !digest_equal(&got, d->digest)) {
        char hex[DIGEST_HEX + 1];
        digest_hex(&got, hex);
        return err_set(e, ST_CORRUPT, "the download has digest %s, not the one asked for", hex);
    }
    return ST_OK;
}

static enum status download_into(struct transport *t, struct arena *a, struct download *d, int fd,
                                 const char *part, struct reply *out, struct err *e)
{
    struct file_sink s = {.fd = fd, .limit = d->bytes, .hash = sha256_new(), .d = d};
    enum status st = hash_part(fd, &s, e);
    bool whole = d->bytes >= 0 && s.offset == d->bytes;
    if (!st && (d->bytes >= 0 && s.offset > d->bytes)) {
        st = err_set(e, ST_CORRUPT, "%s is longer than the file asked for", part);
    } else if (!st && !whole) {
        st = reserve(fd, &s, d, e);
        st = st ? st : fetch(t, a, d, &s, out, e);
        if (out->http == 416) {
            st = err_set(e, ST_CORRUPT, "%s does not fit the file any more", part);
        }
    }
    st = st ? st : check_whole(d, &s, e);
    sha256_free(s.hash);
    if (!st && (FAULT_ERR("base.sync") || fsync(fd) != 0)) {
        st = err_set(e, io_status(errno), "cannot sync %s: %s", part, strerror(errno));
    }
    return st;
}

enum status transport_download(struct transport *t, struct arena *a, struct download *d,
                               struct reply *out, struct err *e)
{
    reply_clear(out);
    const char *part = arena_fmt(a, "%s.part", d->file);
    int fd = open(part, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        return err_set(e, io_status(errno), "cannot create %s: %s", part, strerror(errno));
    }
    enum status st = download_into(t, a, d, fd, part, out, e);
    if (close(fd) != 0 && !st) {
        st = err_set(e, io_status(errno), "cannot close %s: %s", part, strerror(errno));
    }
    if (st == ST_CORRUPT) {
        (void)unlink(part);
    }
    if (!st && (FAULT_ERR("base.rename") || rename(part, d->file) != 0)) {
        st = err_set(e, io_status(errno), "cannot name %s: %s", d->file, strerror(errno));
    }
    return st ? st : sync_parent(d->file, e);
}
