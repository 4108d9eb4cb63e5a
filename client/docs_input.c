#include "client/docs_input.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "common/mem.h"

enum { GZIP_WINDOW = 15 + 16 }; // zlib: the largest window, gzip's header and checks

struct input {
    char path[200]; // for messages
    int fd;         // -1: memory
    const unsigned char *memory;
    size_t memory_len;
    int64_t size; // as stored; -1: compressed
    int64_t *consumed;
    bool gzip;
    bool raw_end;   // the stored bytes are all read
    bool in_member; // a gzip member has begun and not ended
    z_stream z;
    unsigned char *raw; // stored bytes that zlib takes from
    unsigned char *out;
    size_t at;   // of out, what was given
    size_t have; // of out
    size_t last; // where the last call's bytes began
};

static struct input *start(const char *path, int fd, bool gzip, int64_t size, int64_t *consumed)
{
    struct input *in = mem_alloc(sizeof(*in));
    (void)snprintf(in->path, sizeof(in->path), "%s", path);
    in->fd = fd;
    in->gzip = gzip;
    in->size = gzip ? -1 : size;
    in->consumed = consumed;
    in->out = mem_alloc(INPUT_BLOCK);
    if (gzip) {
        in->raw = mem_alloc(INPUT_BLOCK);
        int rc = inflateInit2(&in->z, GZIP_WINDOW);
        assert(rc == Z_OK);
        (void)rc;
    }
    return in;
}

enum status input_open(struct input **out, const char *path, bool gzip, int64_t *consumed,
                       struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open %.160s: %s", path,
                       strerror(errno));
    }
    struct stat s;
    if (fstat(fd, &s)) {
        (void)close(fd);
        return err_set(e, ST_IO, "cannot look at %.160s: %s", path, strerror(errno));
    }
    *out = start(path, fd, gzip, s.st_size, consumed);
    return ST_OK;
}

struct input *input_memory(const char *path, const void *bytes, size_t len, bool gzip,
                           int64_t *consumed)
{
    struct input *in = start(path, -1, gzip, (int64_t)len, consumed);
    in->memory = bytes;
    in->memory_len = len;
    return in;
}

void input_close(struct input *in)
{
    if (!in) {
        return;
    }
    if (in->fd >= 0) {
        (void)close(in->fd);
    }
    if (in->gzip) {
        (void)inflateEnd(&in->z);
    }
    mem_free(in->raw);
    mem_free(in->out);
    mem_free(in);
}

/* Stored bytes into a block; *n is 0 at their end. */
static enum status read_raw(struct input *in, unsigned char *into, size_t *n, struct err *e)
{
    if (in->fd < 0) {
        *n = in->memory_len < INPUT_BLOCK ? in->memory_len : INPUT_BLOCK;
        if (*n > 0) {
            memcpy(into, in->memory, *n);
        }
        in->memory += *n;
        in->memory_len -= *n;
    } else {
        ssize_t got;
        do {
            got = read(in->fd, into, INPUT_BLOCK);
        } while (got < 0 && errno == EINTR);
        if (got < 0) {
            return err_set(e, ST_IO, "cannot read %.160s: %s", in->path, strerror(errno));
        }
        *n = (size_t)got;
    }
    if (in->consumed) {
        *in->consumed += (int64_t)*n;
    }
    return ST_OK;
}

/* Fill out from gzip members, one after the other. */
static enum status inflate_block(struct input *in, struct err *e)
{
    in->z.next_out = in->out;
    in->z.avail_out = INPUT_BLOCK;
    while (in->z.avail_out > 0) {
        if (in->z.avail_in == 0 && !in->raw_end) {
            size_t n = 0;
            TRY(read_raw(in, in->raw, &n, e));
            in->z.next_in = in->raw;
            in->z.avail_in = (unsigned)n;
            in->raw_end = n == 0;
        }
        if (in->z.avail_in == 0) {
            if (in->in_member) {
                return err_set(e, ST_CORRUPT, "%.160s is cut short: its gzip stream has no end",
                               in->path);
            }
            break;
        }
        in->in_member = true;
        int rc = inflate(&in->z, Z_NO_FLUSH);
        if (rc == Z_STREAM_END) {
            in->in_member = false;
            (void)inflateReset(&in->z);
        } else if (rc != Z_OK && rc != Z_BUF_ERROR) {
            return err_set(e, ST_CORRUPT, "%.120s is no sound gzip file: %s", in->path,
                           in->z.msg ? in->z.msg : "bad data");
        }
    }
    in->have = INPUT_BLOCK - in->z.avail_out;
    return ST_OK;
}

enum status input_some(struct input *in, size_t most, const char **out, size_t *n, struct err *e)
{
    if (in->at == in->have) {
        in->at = in->have = 0;
        TRY(in->gzip ? inflate_block(in, e) : read_raw(in, in->out, &in->have, e));
    }
    size_t left = in->have - in->at;
    *n = left < most ? left : most;
    *out = (const char *)in->out + in->at;
    in->last = in->at;
    in->at += *n;
    return ST_OK;
}

enum status input_block(struct input *in, const char **out, size_t *n, struct err *e)
{
    return input_some(in, INPUT_BLOCK, out, n, e);
}

void input_again(struct input *in)
{
    in->at = in->last;
}

int64_t input_size(const struct input *in)
{
    return in->size;
}
