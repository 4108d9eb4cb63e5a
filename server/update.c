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
    m[4] = (struct st_meta){"codec", codec_name(u->codec)};
    m[5] = (struct st_meta){"silo", u->silo_name};
    m[6] = (struct st_meta){"tokens", arena_fmt(a, "%016" PRId64, u->tokens)};
    m[7] = (struct st_meta){"steps", arena_fmt(a, "%016" PRId64, u->steps)};
    return m;
}

struct coded_meta update_coded_meta(struct arena *a, const struct update_expected *u)
{
    enum { CODEC = 4, TOKENS = 6, STEPS = 7 };
    struct st_meta *m = update_meta(a, u);
    m[TOKENS].value = u->tokens < 0 ? NULL : m[TOKENS].value;
    m[STEPS].value = u->steps < 0 ? NULL : m[STEPS].value;
    return (struct coded_meta){.before = m,
                               .before_count = CODEC,
                               .after = m + CODEC + 1,
                               .after_count = UPDATE_META_COUNT - CODEC - 1};
}

enum status update_open(struct coded_file *out, struct arena *a, int fd,
                        const struct param_table *table, const struct update_expected *want,
                        struct err *e)
{
    struct coded_meta meta = update_coded_meta(a, want);
    return coded_open(out, a, fd, table, want->codec, want->k, &meta, e);
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

/* Index of the first value below zero; -1 when there is none. */
static int64_t first_negative(const float *v, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (v[i] < 0.0F) {
            return i;
        }
    }
    return -1;
}

static enum status check_values(int fd, int64_t data_offset, int64_t count, bool squares,
                                double *norm, struct err *e)
{
    float *v = mem_alloc(VALUES * sizeof(*v));
    double sum = 0.0;
    enum status st = ST_OK;
    for (int64_t at = 0; at < count && !st; at += VALUES) {
        int64_t n = count - at < VALUES ? count - at : VALUES;
        st = read_full(fd, v, (size_t)n * sizeof(*v), data_offset + at * (int64_t)sizeof(*v), e);
        int64_t bad = st ? -1 : first_bad(v, n);
        int64_t negative = st || bad >= 0 || !squares ? -1 : first_negative(v, n);
        if (bad >= 0) {
            st = err_set(e, ST_CORRUPT, "value %" PRId64 " of %" PRId64 " is not finite", at + bad,
                         count);
        } else if (negative >= 0) {
            st = err_set(e, ST_CORRUPT, "second moment %" PRId64 " of %" PRId64 " is below zero",
                         at + negative, count);
        }
        sum += st ? 0.0 : sum_of_squares(v, n);
    }
    mem_free(v);
    if (!st) {
        *norm = sqrt(sum);
    }
    return st;
}

enum status update_check_values(int fd, int64_t data_offset, int64_t count, double *norm,
                                struct err *e)
{
    return check_values(fd, data_offset, count, false, norm, e);
}

enum status update_check_squares(int fd, int64_t data_offset, int64_t count, struct err *e)
{
    double unused = 0.0;
    return check_values(fd, data_offset, count, true, &unused, e);
}
