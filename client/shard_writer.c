#include "client/shard_writer.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/hash.h"
#include "common/mem.h"

enum { BUFFER = 1024 * 1024 };

struct shard_writer {
    const char *dir;
    enum split split;
    int32_t width;
    int64_t shard_tokens;
    int fd; // -1: none is open
    char temporary[PATH_MAX];
    struct manifest_shard *shards;
    int32_t count; // finished ones
    int32_t room;
    int64_t in_shard; // tokens
    int64_t tokens;
    size_t filled;
    unsigned char buffer[BUFFER];
};

struct shard_writer *shard_writer_new(const char *dir, enum split split, int32_t width,
                                      int64_t shard_tokens)
{
    assert((width == 2 || width == 4) && shard_tokens > 0 && shard_tokens <= INT32_MAX);
    struct shard_writer *w = mem_alloc(sizeof(*w));
    w->dir = dir;
    w->split = split;
    w->width = width;
    w->shard_tokens = shard_tokens;
    w->fd = -1;
    return w;
}

void shard_writer_free(struct shard_writer *w)
{
    if (!w) {
        return;
    }
    if (w->fd >= 0) {
        (void)close(w->fd);
        (void)unlink(w->temporary);
    }
    mem_free(w->shards);
    mem_free(w);
}

static enum status write_all(int fd, const void *bytes, size_t len, const char *path, struct err *e)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, (const char *)bytes + done, len - done);
        if (n < 0 && errno != EINTR) {
            return err_set(e, ST_IO, "cannot write %.160s: %s", path, strerror(errno));
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return ST_OK;
}

static enum status sync_folder(const char *dir, struct err *e)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool bad = fd < 0 || fsync(fd) != 0;
    enum status st =
        bad ? err_set(e, ST_IO, "cannot sync %.160s: %s", dir, strerror(errno)) : ST_OK;
    if (fd >= 0) {
        (void)close(fd);
    }
    return st;
}

static enum status path_in(char out[PATH_MAX], const char *dir, const char *name, const char *end,
                           struct err *e)
{
    int n = snprintf(out, PATH_MAX, "%s/%s%s", dir, name, end);
    return n < PATH_MAX ? ST_OK : err_set(e, ST_INVALID, "the path %.100s is too long", dir);
}

static void shard_name(const struct shard_writer *w, char out[SHARD_NAME_MAX])
{
    (void)snprintf(out, SHARD_NAME_MAX, "%s-%05d.bin", SPLIT_NAMES[w->split], w->count % 100000);
}

static enum status begin_shard(struct shard_writer *w, struct err *e)
{
    char name[SHARD_NAME_MAX];
    shard_name(w, name);
    TRY(path_in(w->temporary, w->dir, name, ".tmp", e));
    w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (w->fd < 0) {
        return err_set(e, ST_IO, "cannot make %.160s: %s", w->temporary, strerror(errno));
    }
    static const unsigned char nothing[SHARD_HEAD_BYTES]; // the head is known at the end
    w->in_shard = 0;
    return write_all(w->fd, nothing, sizeof(nothing), w->temporary, e);
}

static enum status flush(struct shard_writer *w, struct err *e)
{
    size_t n = w->filled;
    w->filled = 0;
    return write_all(w->fd, w->buffer, n, w->temporary, e);
}

static struct manifest_shard *next_place(struct shard_writer *w)
{
    if (w->count == w->room) {
        int32_t room = w->room ? 2 * w->room : 16;
        struct manifest_shard *more = mem_alloc((size_t)room * sizeof(*more));
        if (w->count > 0) {
            memcpy(more, w->shards, (size_t)w->count * sizeof(*more));
        }
        mem_free(w->shards);
        w->shards = more;
        w->room = room;
    }
    return &w->shards[w->count];
}

static enum status end_shard(struct shard_writer *w, struct err *e)
{
    unsigned char head[SHARD_HEAD_BYTES];
    char path[PATH_MAX];
    struct manifest_shard *s = next_place(w);
    *s = (struct manifest_shard){.split = w->split, .tokens = w->in_shard};
    shard_name(w, s->file);
    shard_head_write(&(struct shard_head){.width = w->width, .tokens = w->in_shard}, head);
    TRY(flush(w, e));
    TRY(path_in(path, w->dir, s->file, "", e));
    if (pwrite(w->fd, head, sizeof(head), 0) != (ssize_t)sizeof(head) || fsync(w->fd)) {
        return err_set(e, ST_IO, "cannot write %.160s: %s", w->temporary, strerror(errno));
    }
    struct digest d;
    int64_t bytes = 0;
    TRY(sha256_file(w->temporary, &d, &bytes, e));
    digest_hex(&d, s->sha256);
    if (rename(w->temporary, path)) {
        return err_set(e, ST_IO, "cannot rename %.160s: %s", w->temporary, strerror(errno));
    }
    (void)close(w->fd);
    w->fd = -1;
    w->count++;
    return ST_OK;
}

enum status shard_writer_add(struct shard_writer *w, const int32_t *ids, int32_t count,
                             struct err *e)
{
    for (int32_t i = 0; i < count; i++) {
        if (w->fd < 0) {
            if (w->count == SHARDS_MAX / 2) {
                return err_set(e, ST_LIMIT, "over %d shards; try larger --shard-tokens",
                               SHARDS_MAX / 2);
            }
            TRY(begin_shard(w, e));
        }
        uint32_t id = (uint32_t)ids[i];
        for (int32_t b = 0; b < w->width; b++) {
            w->buffer[w->filled++] = (unsigned char)(id >> (8 * b));
        }
        w->in_shard++;
        w->tokens++;
        if (w->filled == BUFFER) {
            TRY(flush(w, e));
        }
        if (w->in_shard == w->shard_tokens) {
            TRY(end_shard(w, e));
        }
    }
    return ST_OK;
}

enum status shard_writer_end(struct shard_writer *w, struct err *e)
{
    return w->fd >= 0 ? end_shard(w, e) : ST_OK;
}

int32_t shard_writer_shards(const struct shard_writer *w, const struct manifest_shard **out)
{
    *out = w->shards;
    return w->count;
}

int64_t shard_writer_tokens(const struct shard_writer *w)
{
    return w->tokens;
}

enum status folder_put(const char *dir, const char *name, const void *bytes, size_t len,
                       struct err *e)
{
    char path[PATH_MAX];
    char temporary[PATH_MAX];
    TRY(path_in(path, dir, name, "", e));
    TRY(path_in(temporary, dir, name, ".tmp", e));
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        return err_set(e, ST_IO, "cannot make %.160s: %s", temporary, strerror(errno));
    }
    enum status st = write_all(fd, bytes, len, temporary, e);
    if (!st && fsync(fd)) {
        st = err_set(e, ST_IO, "cannot sync %.160s: %s", temporary, strerror(errno));
    }
    (void)close(fd);
    if (!st && rename(temporary, path)) {
        st = err_set(e, ST_IO, "cannot rename %.160s: %s", temporary, strerror(errno));
    }
    if (st) {
        (void)unlink(temporary);
        return st;
    }
    return sync_folder(dir, e);
}
