/*
 * Whole update files of a tiny model. The first byte says which rung and k, the second where the
 * file comes from:
 *
 *     even   what follows is the file
 *     odd    64 bytes, over and over, are the values of a file that is written here; each 3 bytes
 *            after them change one of its bytes
 *
 * Properties: what is written reads back as the writer was told, under the digest and within the
 * size that it was said to have, and values that no rung can hold are refused; a file that is
 * opened has the size of its parts, and each of its groups is finite numbers or is refused in
 * words.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/codec_file.h"
#include "common/mem.h"

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

enum { ARENA = 64 << 20, HEAD = 2, VALUES = 64, EDIT = 3 };

static const struct st_meta BEFORE[] = {{"kind", "update"}, {"run", "r"}};
static const struct st_meta AFTER[] = {{"silo", "s"}, {"tokens", NULL}};
static const struct coded_meta META = {BEFORE, 2, AFTER, 2};
static const struct st_meta AFTER_SAID[] = {{"silo", "s"}, {"tokens", "0000000000000064"}};
static const struct coded_meta META_SAID = {BEFORE, 2, AFTER_SAID, 2};

struct bed {
    struct arena *a;
    struct param_table table;
    enum codec codec;
    int32_t k;
    int fd;
    const unsigned char *pattern; // of the values, VALUES bytes
    float *told;                  // what a reader should see
};

static void must(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void pour(int fd, const void *bytes, size_t size)
{
    must(pwrite(fd, bytes, size, 0) == (ssize_t)size);
}

/* Whether each group is what was told, or at least numbers; ST_CORRUPT of the first that is not. */
static enum status read_all(const struct bed *b, const struct coded_file *f, bool as_told)
{
    uint8_t *scratch = mem_alloc(CODED_SCRATCH);
    float *v = mem_alloc(CODEC_GROUP * sizeof(*v));
    enum status st = ST_OK;
    struct err e = {0};
    for (int32_t i = 0; i < b->table.count && !st; i++) {
        for (int64_t g = 0; g < coded_groups(&b->table, i) && !st; g++) {
            int64_t first = 0;
            int64_t n = 0;
            coded_group(&b->table, i, g, &first, &n);
            st = coded_read(f, b->fd, i, g, scratch, v, &e);
            must(!st || e.msg[0] != '\0');
            for (int64_t j = 0; j < n && !st; j++) {
                must(isfinite(v[j]));
            }
            must(st || !as_told || memcmp(v, b->told + first, (size_t)n * sizeof(*v)) == 0);
        }
    }
    mem_free(scratch);
    mem_free(v);
    return st;
}

static void open_and_read(const struct bed *b, bool as_told)
{
    struct coded_file f;
    struct err e = {0};
    double norm = -1.0;
    enum status st = coded_open(&f, b->a, b->fd, &b->table, b->codec, b->k, &META, &e);
    must(!st || e.msg[0] != '\0');
    must(!st || !as_told);
    if (st) {
        return;
    }
    must(f.bytes == lseek(b->fd, 0, SEEK_END));
    st = read_all(b, &f, as_told);
    must(coded_norm(&f, b->fd, &norm, &e) == st);
    must(st || norm >= 0.0);
}

/* ---- a file of our own ---- */

static float value(const struct bed *b, int64_t i)
{
    float v;
    memcpy(&v, b->pattern + i * (int64_t)sizeof(v) % VALUES, sizeof(v));
    return v;
}

static enum status read_u(void *ctx, int64_t first, int64_t n, float *u, double *fresh,
                          struct err *e)
{
    const struct bed *b = ctx;
    (void)e;
    for (int64_t i = 0; i < n; i++) {
        u[i] = value(b, first + i);
        *fresh += (double)u[i] * (double)u[i];
    }
    return ST_OK;
}

static enum status wrote_v(void *ctx, int64_t first, int64_t n, const float *u, const float *v,
                           struct err *e)
{
    struct bed *b = ctx;
    (void)u;
    (void)e;
    memcpy(b->told + first, v, (size_t)n * sizeof(*v));
    return ST_OK;
}

static bool can_be_coded(const struct bed *b)
{
    bool can = true;
    for (int64_t i = 0; i < VALUES / (int64_t)sizeof(float); i++) {
        can = can && fabsf(value(b, i)) <= 0x1p100F; // false for a NaN
    }
    return can;
}

/* False: no rung holds these values, and it is said. */
static bool write_file(struct bed *b)
{
    struct coding c;
    struct coded_source source = {b, read_u, wrote_v};
    struct err e = {0};
    int scratch = memfd_create("scratch", MFD_CLOEXEC);
    must(scratch >= 0);
    enum status st = coding_run(&c, b->a, scratch, &b->table, b->codec, b->k, &source, &e);
    must((st == ST_OK) == can_be_coded(b));
    if (!st) {
        struct digest said;
        struct digest got;
        int64_t bytes = 0;
        must(coding_place(&c, b->a, b->fd, &META_SAID, &said, &bytes, &e) == ST_OK);
        must(bytes <= coded_bytes_max(&b->table, b->codec, b->k, &META));
        unsigned char *file = mem_alloc((size_t)bytes);
        must(pread(b->fd, file, (size_t)bytes, 0) == bytes);
        sha256_of(file, (size_t)bytes, &got);
        must(digest_equal(&said, &got));
        mem_free(file);
    }
    must(close(scratch) == 0);
    return st == ST_OK;
}

static void harm(const struct bed *b, const unsigned char *edits, size_t size)
{
    off_t bytes = lseek(b->fd, 0, SEEK_END);
    for (; size >= EDIT; edits += EDIT, size -= EDIT) {
        off_t at = (edits[0] | edits[1] << 8) % bytes;
        unsigned char byte = 0;
        must(pread(b->fd, &byte, 1, at) == 1);
        byte ^= edits[2];
        must(pwrite(b->fd, &byte, 1, at) == 1);
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size)
{
    if (size < HEAD) {
        return 0;
    }
    struct model_spec m = {
        .d_model = 6, .n_heads = 1, .n_layers = 1, .vocab_size = 45, .seq_len = 3, .bias = true};
    struct bed b = {.a = arena_new(ARENA),
                    .codec = (enum codec)(bytes[0] % CODEC_COUNT),
                    .k = bytes[0] / CODEC_COUNT % 2 ? CODEC_K_MAX : CODEC_K,
                    .fd = memfd_create("file", MFD_CLOEXEC)};
    must(b.fd >= 0);
    b.table = params_table(b.a, &m);
    bool made = bytes[1] % 2;
    bytes += HEAD;
    size -= HEAD;
    if (!made) {
        pour(b.fd, bytes, size);
        open_and_read(&b, false);
    } else if (size >= VALUES) {
        b.pattern = bytes;
        b.told = arena_alloc(b.a, (size_t)b.table.total * sizeof(float));
        if (write_file(&b)) {
            open_and_read(&b, true);
            harm(&b, bytes + VALUES, size - VALUES);
            open_and_read(&b, false);
        }
    }
    must(close(b.fd) == 0);
    arena_free(b.a);
    return 0;
}
