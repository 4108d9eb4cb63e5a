#include "server/checkpoint_int.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/limits.h"
#include "common/mem.h"

/* ---- writing ---- */

enum status checkpoint_write(int fd, const void *data, size_t size, int64_t offset, struct err *e)
{
    const char *p = data;
    while (size > 0) {
        ssize_t n = FAULT_ERR("checkpoint.write") ? -1 : pwrite(fd, p, size, offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot write a checkpoint: %s",
                           strerror(errno));
        }
        p += n;
        offset += n;
        size -= (size_t)n;
    }
    return ST_OK;
}
enum status checkpoint_read(int fd, void *out, int64_t size, int64_t at, struct err *e)
{
    for (char *p = out; size > 0;) {
        ssize_t n = pread(fd, p, (size_t)size, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? err_set(e, ST_IO, "cannot read a checkpoint: %s", strerror(errno))
                         : err_set(e, ST_CORRUPT, "the file ends early, at byte %" PRId64, at);
        }
        p += n;
        at += n;
        size -= n;
    }
    return ST_OK;
}

static const char *array_name(const struct run_spec *spec, int i)
{
    return i < outer_arrays(spec->outer.name) ? outer_array_name(spec->outer.name, i) : "y";
}

struct param_table checkpoint_state_table(struct arena *a, const struct param_table *t,
                                          const struct run_spec *spec)
{
    int arrays = outer_arrays(spec->outer.name) + (spec->codec.down != CODEC_F32 ? 1 : 0);
    struct param *items = arena_alloc(a, ((size_t)(arrays * t->count) + 1) * sizeof(*items));
    for (int i = 0; i < arrays * t->count; i++) {
        int array = i / t->count;
        items[i] = t->items[i % t->count];
        items[i].name = arena_fmt(a, "%s.%s", array_name(spec, array), items[i].name);
        items[i].offset += array * t->total;
    }
    return (struct param_table){
        .count = arrays * t->count, .total = arrays * t->total, .items = items};
}

enum status checkpoint_out_create(struct checkpoint_out *o, struct blob_store *blobs, int64_t bytes,
                                  struct err *e)
{
    char id[ID_LEN + 1];
    id_new('c', id);
    o->blobs = blobs;
    o->bytes = bytes;
    (void)snprintf(o->tmp, sizeof(o->tmp), "file-%s", id);
    enum status st = blob_tmp_create(blobs, o->tmp, bytes, &o->fd, e);
    if (st) {
        o->fd = -1;
    }
    return st;
}

enum status checkpoint_out_scratch(struct checkpoint_out *o, struct blob_store *blobs,
                                   struct err *e)
{
    TRY(checkpoint_out_create(o, blobs, 0, e));
    blob_tmp_remove(blobs, o->tmp);
    return ST_OK;
}

enum status checkpoint_out_hash(struct checkpoint_out *o, struct sha256 *data_hash, struct err *e)
{
    unsigned char *block = mem_alloc(READ_SIZE);
    enum status st = ST_OK;
    for (int64_t at = o->data_offset; at < o->bytes && !st;) {
        int64_t n = o->bytes - at < READ_SIZE ? o->bytes - at : READ_SIZE;
        st = checkpoint_read(o->fd, block, n, at, e);
        if (!st) {
            sha256_add(o->hash, block, (size_t)n);
            if (data_hash) {
                sha256_add(data_hash, block, (size_t)n);
            }
        }
        at += n;
    }
    mem_free(block);
    return st;
}

enum status checkpoint_out_open(struct checkpoint_out *o, struct blob_store *blobs,
                                const struct run_spec *spec, const struct param_table *table,
                                const char *kind, int32_t round, struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    int64_t len = 0;
    const void *header = run_header(a, spec, table, kind, round, &len);
    o->data_offset = len;
    enum status st =
        checkpoint_out_create(o, blobs, len + table->total * (int64_t)sizeof(float), e);
    if (!st) {
        o->hash = sha256_new();
        sha256_add(o->hash, header, (size_t)len);
        st = checkpoint_write(o->fd, header, (size_t)len, 0, e);
    }
    arena_free(a);
    return st;
}

enum status checkpoint_out_place_as(struct checkpoint_out *o, const struct digest *d, struct err *e)
{
    FAULT("checkpoint.written");
    if (o->want && !digest_equal(d, o->want)) {
        return err_set(e, ST_CORRUPT, "what it was made of gives another file now");
    }
    TRY(o->want ? blob_replace(o->blobs, o->tmp, d, e) : blob_place(o->blobs, o->tmp, d, e));
    FAULT("checkpoint.placed");
    return ST_OK;
}

enum status checkpoint_out_place(struct checkpoint_out *o, struct digest *d, struct err *e)
{
    sha256_end(o->hash, d);
    return checkpoint_out_place_as(o, d, e);
}

void checkpoint_out_release(struct checkpoint_out *o)
{
    if (o->fd >= 0) {
        (void)close(o->fd);
        blob_tmp_remove(o->blobs, o->tmp); // absent once placed
        o->fd = -1;
    }
    sha256_free(o->hash);
    o->hash = NULL;
}
/* ---- reading ---- */

struct check_work {
    struct blob_store *blobs;
    struct checkpoint_in *inputs;
    int count;
    int next;
    pthread_mutex_t lock;
};

static enum status check_open(struct blob_store *blobs, struct checkpoint_in *in, struct err *e)
{
    enum status st = blob_open(blobs, &in->want, &in->fd, &in->bytes, e);
    if (st) {
        in->fd = -1;
        return st == ST_NOT_FOUND ? err_set(e, ST_CORRUPT, "the file is missing") : st;
    }
    struct sha256 *h = sha256_new();
    unsigned char *block = mem_alloc(READ_SIZE);
    int64_t at = 0;
    while (!st) {
        ssize_t n = pread(in->fd, block, READ_SIZE, at);
        if (n == 0) {
            break;
        }
        if (n > 0) {
            sha256_add(h, block, (size_t)n);
            at += n;
        } else if (errno == EIO) {
            st = err_set(e, ST_CORRUPT, "the disk cannot read byte %" PRId64, at);
        } else if (errno != EINTR) {
            st = err_set(e, ST_IO, "cannot read: %s", strerror(errno));
        }
    }
    struct digest got;
    sha256_end(h, &got);
    if (!st && !digest_equal(&got, &in->want)) {
        st = err_set(e, ST_CORRUPT, "the file is not what it was when it was stored");
    }
    mem_free(block);
    sha256_free(h);
    return st;
}

/* A copy that was kept here may be damaged while what it is a copy of is sound. */
enum status checkpoint_in_check(struct blob_store *blobs, struct checkpoint_in *in, struct err *e)
{
    enum status st = check_open(blobs, in, e);
    if (st == ST_CORRUPT && in->fd >= 0 && blob_distrust(blobs, &in->want)) {
        (void)close(in->fd);
        st = check_open(blobs, in, e);
    }
    return st;
}

void checkpoint_in_close(struct checkpoint_in *in)
{
    if (in->fd >= 0) {
        (void)close(in->fd);
        in->fd = -1;
    }
}

static void *check_some(void *arg)
{
    struct check_work *w = arg;
    for (;;) {
        (void)pthread_mutex_lock(&w->lock);
        int i = w->next < w->count ? w->next++ : -1;
        (void)pthread_mutex_unlock(&w->lock);
        if (i < 0) {
            return NULL;
        }
        w->inputs[i].st = checkpoint_in_check(w->blobs, &w->inputs[i], &w->inputs[i].err);
    }
}

void checkpoint_in_check_all(struct blob_store *blobs, struct checkpoint_in *inputs, int count,
                             int threads)
{
    enum { MOST = 16 };
    struct check_work w = {.blobs = blobs, .inputs = inputs, .count = count};
    (void)pthread_mutex_init(&w.lock, NULL);
    pthread_t ids[MOST];
    int started = 0;
    int wanted = threads < count ? threads : count;
    while (started < wanted - 1 && started < MOST &&
           pthread_create(&ids[started], NULL, check_some, &w) == 0) {
        started++;
    }
    (void)check_some(&w);
    for (int i = 0; i < started; i++) {
        (void)pthread_join(ids[i], NULL);
    }
    (void)pthread_mutex_destroy(&w.lock);
}

enum status checkpoint_in_check_header(struct checkpoint_in *in, const struct run_spec *spec,
                                       const struct param_table *table, const char *kind,
                                       int32_t round, struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    int64_t len = 0;
    const char *want = run_header(a, spec, table, kind, round, &len);
    char *got = arena_alloc(a, (size_t)len);
    enum status st = ST_OK;
    if (in->bytes != len + table->total * (int64_t)sizeof(float) ||
        pread(in->fd, got, (size_t)len, 0) != len || memcmp(got, want, (size_t)len) != 0) {
        st = err_set(e, ST_CORRUPT, "not the %s of round %" PRId32 " of this run", kind, round);
    }
    in->data_offset = len;
    arena_free(a);
    return st;
}