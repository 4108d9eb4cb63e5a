#include "server/update.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "common/limits.h"
#include "common/mem.h"

enum { VALUES = 65536, LANES = 8 };

struct st_meta *update_meta(struct arena *a, const struct update_expected *u)
{
    char *base = arena_alloc(a, DIGEST_HEX + 1);
    digest_hex(&u->base, base);
    struct st_meta *m = arena_alloc(a, UPDATE_META_COUNT * sizeof(*m));
    m[0] = (struct st_meta){"kind", "update"};
    m[1] = (struct st_meta){"run", u->run_name};
    m[2] = (struct st_meta){"round", arena_fmt(a, "%08" PRId32, u->round)};
    m[3] = (struct st_meta){"base", base};
    m[4] = (struct st_meta){"codec", "f32"};
    m[5] = (struct st_meta){"silo", u->silo_name};
    m[6] = (struct st_meta){"tokens", arena_fmt(a, "%016" PRId64, u->tokens)};
    m[7] = (struct st_meta){"steps", arena_fmt(a, "%016" PRId64, u->steps)};
    return m;
}

static enum status check_meta(const struct st_header *h, struct arena *a,
                              const struct update_expected *want, struct err *e)
{
    const struct st_meta *m = update_meta(a, want);
    const char *format = st_meta_get(h, "format");
    if (!format || strcmp(format, "pt") != 0) {
        return err_set(e, ST_CORRUPT, "the metadata must say format 'pt'");
    }
    for (int i = 0; i < UPDATE_META_COUNT; i++) {
        bool any = (strcmp(m[i].key, "tokens") == 0 && want->tokens < 0) ||
                   (strcmp(m[i].key, "steps") == 0 && want->steps < 0);
        if (any) {
            continue;
        }
        const char *got = st_meta_get(h, m[i].key);
        if (!got) {
            return err_set(e, ST_CORRUPT, "the metadata lack '%s'", m[i].key);
        }
        if (strcmp(got, m[i].value) != 0) {
            return err_set(e, ST_CORRUPT, "the metadata say %s '%.64s', wanted '%s'", m[i].key, got,
                           m[i].value);
        }
    }
    return ST_OK;
}

static enum status read_full(int fd, void *out, size_t size, int64_t offset, struct err *e);

/* The header's length is part of the plan; looked at before a parser works on a
 * header of any other. */
static enum status check_length(int fd, struct arena *a, const struct param_table *table,
                                const struct update_expected *want, struct err *e)
{
    int64_t len = 0;
    (void)st_params_header(a, table, update_meta(a, want), UPDATE_META_COUNT, &len);
    uint8_t word[8];
    TRY(read_full(fd, word, sizeof(word), 0, e));
    uint64_t got = 0;
    for (int i = 7; i >= 0; i--) {
        got = got << 8 | word[i];
    }
    if (got != (uint64_t)len - sizeof(word)) {
        return err_set(e, ST_CORRUPT, "the header has %" PRIu64 " bytes, wanted %" PRId64, got,
                       len - (int64_t)sizeof(word));
    }
    return ST_OK;
}

enum status update_check_header(int fd, const struct param_table *table,
                                const struct update_expected *want, int64_t *data_offset,
                                struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct st_header h = {0};
    enum status st = check_length(fd, a, table, want, e);
    if (!st) {
        st = st_read(&h, a, fd, e);
    }
    if (!st) {
        st = check_meta(&h, a, want, e);
    }
    if (!st) {
        st = st_check_params(&h, table, e);
    }
    if (!st) {
        *data_offset = h.data_offset;
    }
    arena_free(a);
    return st;
}

static enum status read_full(int fd, void *out, size_t size, int64_t offset, struct err *e)
{
    char *p = out;
    while (size > 0) {
        ssize_t n = pread(fd, p, size, offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_set(e, ST_IO, "cannot read: %s", strerror(errno));
        }
        if (n == 0) {
            return err_set(e, ST_CORRUPT, "the file ends early, at byte %" PRId64, offset);
        }
        p += n;
        offset += n;
        size -= (size_t)n;
    }
    return ST_OK;
}

/* Index of the first value with an exponent of all ones, which is Inf or NaN; -1
 * when there is none. */
static int64_t first_bad(const float *v, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &v[i], sizeof(bits));
        if ((bits & 0x7f800000U) == 0x7f800000U) {
            return i;
        }
    }
    return -1;
}

static double sum_of_squares(const float *v, int64_t n)
{
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            lane[l] += (double)v[i + l] * (double)v[i + l];
        }
    }
    double sum = 0.0;
    for (; i < n; i++) {
        sum += (double)v[i] * (double)v[i];
    }
    for (int l = 0; l < LANES; l++) {
        sum += lane[l];
    }
    return sum;
}

enum status update_check_values(int fd, int64_t data_offset, int64_t count, double *norm,
                                struct err *e)
{
    float *v = mem_alloc(VALUES * sizeof(*v));
    double sum = 0.0;
    enum status st = ST_OK;
    for (int64_t at = 0; at < count && !st; at += VALUES) {
        int64_t n = count - at < VALUES ? count - at : VALUES;
        st = read_full(fd, v, (size_t)n * sizeof(*v), data_offset + at * (int64_t)sizeof(*v), e);
        int64_t bad = st ? -1 : first_bad(v, n);
        if (bad >= 0) {
            st = err_set(e, ST_CORRUPT, "value %" PRId64 " of %" PRId64 " is not finite", at + bad,
                         count);
        }
        sum += st ? 0.0 : sum_of_squares(v, n);
    }
    mem_free(v);
    if (!st) {
        *norm = sqrt(sum);
    }
    return st;
}
