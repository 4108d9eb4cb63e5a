#include "server/aggregate_block.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "common/wide.h"

enum { LANES = 8 }; // partial sums: the compiler may use vector registers, the order stays ours

int64_t aggregate_array_at(const struct aggregate_job *j, int64_t offset, int i)
{
    return offset + i * j->table->total * (int64_t)sizeof(float);
}

bool aggregate_moments(const struct aggregate_job *j)
{
    return j->layout && j->layout->part_at[LAYOUT_M] >= 0;
}

/* ---- its list, and what a thread works with ---- */

struct block *blocks_make(const struct param_table *t, int64_t *count)
{
    int64_t n = t->count ? 0 : (t->total + AGGREGATE_BLOCK - 1) / AGGREGATE_BLOCK;
    for (int32_t i = 0; i < t->count; i++) {
        n += coded_groups(t, i);
    }
    struct block *list = mem_alloc(((size_t)n + 1) * sizeof(*list));
    struct block *b = list;
    for (int32_t i = 0; i < t->count; i++) {
        for (int64_t g = 0; g < coded_groups(t, i); g++, b++) {
            b->tensor = i;
            b->group = g;
            coded_group(t, i, g, &b->at, &b->n);
        }
    }
    for (int64_t at = 0; !t->count && at < t->total; at += AGGREGATE_BLOCK, b++) {
        b->at = at;
        b->n = t->total - at < AGGREGATE_BLOCK ? t->total - at : AGGREGATE_BLOCK;
    }
    *count = n;
    return list;
}

void bench_init(struct bench *b, const struct aggregate_job *j)
{
    int inputs = j->input_count;
    int kept = inputs < KEPT_INPUTS ? inputs : KEPT_INPUTS;
    size_t block = AGGREGATE_BLOCK;
    b->corrupt = -1;
    b->scratch = mem_alloc(CODED_SCRATCH);
    b->raw = mem_alloc(block * sizeof(float));
    b->kept = mem_alloc((size_t)kept * block * sizeof(float));
    b->delta = mem_alloc(block * sizeof(double));
    b->x = mem_alloc(block * sizeof(double));
    b->before = mem_alloc(block * sizeof(double));
    b->sq = mem_alloc((size_t)inputs * sizeof(double));
    b->dot = mem_alloc((size_t)inputs * sizeof(double));
    b->out_x = mem_alloc(block * sizeof(float));
    for (int a = 0; a < outer_arrays(j->spec->outer.name); a++) {
        b->arrays[a] = mem_alloc(block * sizeof(double));
        b->out_arrays[a] = mem_alloc(block * sizeof(float));
    }
}

void bench_release(struct bench *b)
{
    mem_free(b->scratch);
    mem_free(b->raw);
    mem_free(b->kept);
    mem_free(b->delta);
    mem_free(b->x);
    mem_free(b->before);
    mem_free(b->sq);
    mem_free(b->dot);
    mem_free(b->out_x);
    for (int a = 0; a < OUTER_ARRAYS_MAX; a++) {
        mem_free(b->arrays[a]);
        mem_free(b->out_arrays[a]);
    }
}

/* ---- files ---- */

enum status block_read(int fd, int64_t offset, float *out, int64_t n, struct err *e)
{
    char *p = (char *)out;
    int64_t left = n * (int64_t)sizeof(float);
    while (left > 0) {
        ssize_t got = pread(fd, p, (size_t)left, offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return err_set(e, ST_IO, "cannot read: %s", strerror(errno));
        }
        if (got == 0) {
            return err_set(e, ST_CORRUPT, "the file ends early, at byte %lld", (long long)offset);
        }
        p += got;
        offset += got;
        left -= got;
    }
    return ST_OK;
}

static enum status write_block(int fd, int64_t offset, const float *in, int64_t n, struct err *e)
{
    const char *p = (const char *)in;
    int64_t left = n * (int64_t)sizeof(float);
    while (left > 0) {
        ssize_t put = pwrite(fd, p, (size_t)left, offset);
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put <= 0) {
            return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot write: %s",
                           strerror(errno));
        }
        p += put;
        offset += put;
        left -= put;
    }
    return ST_OK;
}

/* An exponent of all ones is Inf or NaN; looked at as bits, so that no
 * compiler flag can hide it. */
static WIDE bool all_finite(const float *v, int64_t n)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &v[i], sizeof(bits));
        bad |= (bits & 0x7f800000U) == 0x7f800000U;
    }
    return bad == 0;
}

/* ---- sums ---- */

static double fold_lanes(const double *lane)
{
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* delta += w v; returns the sum of v squared. */
static WIDE double add_scaled(double *delta, const float *v, double w, int64_t n)
{
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            double d = (double)v[i + l];
            delta[i + l] += w * d;
            lane[l] += d * d;
        }
    }
    for (int l = 0; i < n; i++, l++) {
        double d = (double)v[i];
        delta[i] += w * d;
        lane[l] += d * d;
    }
    return fold_lanes(lane);
}

static WIDE double dot_with(const double *delta, const float *v, int64_t n)
{
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            lane[l] += delta[i + l] * (double)v[i + l];
        }
    }
    for (int l = 0; i < n; i++, l++) {
        lane[l] += delta[i] * (double)v[i];
    }
    return fold_lanes(lane);
}

static WIDE double sum_sq_diff(const double *a, const double *b, int64_t n)
{
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            double d = b ? a[i + l] - b[i + l] : a[i + l];
            lane[l] += d * d;
        }
    }
    for (int l = 0; i < n; i++, l++) {
        double d = b ? a[i] - b[i] : a[i];
        lane[l] += d * d;
    }
    return fold_lanes(lane);
}

/* ---- a block ---- */

/* A block of update k, as finite numbers. */
static enum status decode_input(const struct mix *w, struct bench *b, int k, enum layout_part part,
                                const struct block *at, float *out, struct err *e)
{
    const struct aggregate_input *in = &w->job->inputs[k];
    const struct layout *l = w->job->layout;
    int32_t tensor = l ? l->index[part][at->tensor] : at->tensor;
    if (tensor < 0) { // it does not travel: no delta
        memset(out, 0, (size_t)at->n * sizeof(*out));
        return ST_OK;
    }
    if (in->coded) {
        return coded_read(in->coded, in->fd, tensor, at->group, b->scratch, out, e);
    }
    TRY(block_read(in->fd, in->data_offset + at->at * (int64_t)sizeof(float), out, at->n, e));
    return all_finite(out, at->n)
               ? ST_OK
               : err_set(e, ST_CORRUPT, "a value near element %lld is not finite",
                         (long long)at->at);
}

/* The same; a trouble is put down to the update. */
static enum status read_input(const struct mix *w, struct bench *b, int k, enum layout_part part,
                              const struct block *at, float *out, struct err *e)
{
    enum status st = decode_input(w, b, k, part, at, out, e);
    b->corrupt = st ? k : -1;
    return st;
}

enum status block_measure(const struct mix *w, struct bench *b, const struct block *at,
                          struct err *e)
{
    for (int k = 0; k < w->job->input_count; k++) {
        TRY(read_input(w, b, k, LAYOUT_WEIGHTS, at, b->raw, e));
        b->sq[k] = add_scaled(b->delta, b->raw, 0.0, at->n);
    }
    return ST_OK;
}

/* D of this block, with each update's share of the norms. */
static enum status sum_block(const struct mix *w, struct bench *b, const struct block *at,
                             struct err *e)
{
    const struct aggregate_job *j = w->job;
    int64_t n = at->n;
    memset(b->delta, 0, (size_t)n * sizeof(*b->delta));
    for (int k = 0; k < j->input_count; k++) {
        float *v = k < KEPT_INPUTS ? b->kept + (int64_t)k * AGGREGATE_BLOCK : b->raw;
        TRY(read_input(w, b, k, LAYOUT_WEIGHTS, at, v, e));
        b->sq[k] = add_scaled(b->delta, v, w->weights[k], n);
    }
    b->delta_sq = sum_sq_diff(b->delta, NULL, n);
    if (!w->cosines) {
        return ST_OK;
    }
    for (int k = 0; k < j->input_count; k++) {
        const float *v = b->kept + (int64_t)k * AGGREGATE_BLOCK;
        if (k >= KEPT_INPUTS) {
            TRY(read_input(w, b, k, LAYOUT_WEIGHTS, at, b->raw, e));
            v = b->raw;
        }
        b->dot[k] = dot_with(b->delta, v, n);
    }
    return ST_OK;
}

/* Means of the updates' moments of this block, where the run averages them. */
static enum status mean_moments(const struct mix *w, struct bench *b, const struct block *at,
                                struct err *e)
{
    static const enum layout_part MOMENTS[] = {LAYOUT_M, LAYOUT_V};
    const struct aggregate_job *j = w->job;
    int64_t n = at->n;
    for (int i = 0; i < 2 && aggregate_moments(j); i++) {
        memset(b->x, 0, (size_t)n * sizeof(*b->x));
        for (int k = 0; k < j->input_count; k++) {
            TRY(read_input(w, b, k, MOMENTS[i], at, b->raw, e));
            (void)add_scaled(b->x, b->raw, w->shares[k], n);
        }
        for (int64_t p = 0; p < n; p++) {
            b->raw[p] = (float)b->x[p];
        }
        int64_t offset = j->out_moments[MOMENTS[i]] + at->at * (int64_t)sizeof(float);
        TRY(write_block(j->out_fd, offset, b->raw, n, e));
    }
    return ST_OK;
}

/* The outer state of this block before the step. */
static enum status read_arrays(const struct aggregate_job *j, struct bench *b, int64_t skip,
                               int64_t n, struct err *e)
{
    if (j->state_fd < 0) {
        outer_begin(j->spec->outer.name, b->x, b->arrays, n);
        return ST_OK;
    }
    for (int a = 0; a < outer_arrays(j->spec->outer.name); a++) {
        TRY(block_read(j->state_fd, aggregate_array_at(j, j->state_offset, a) + skip, b->raw, n,
                       e));
        for (int64_t i = 0; i < n; i++) {
            b->arrays[a][i] = (double)b->raw[i];
        }
    }
    return ST_OK;
}

static enum status write_arrays(const struct aggregate_job *j, struct bench *b, int64_t skip,
                                int64_t n, struct err *e)
{
    for (int a = 0; a < outer_arrays(j->spec->outer.name) && j->out_state_fd >= 0; a++) {
        for (int64_t i = 0; i < n; i++) {
            b->out_arrays[a][i] = (float)b->arrays[a][i];
        }
        b->finite = b->finite && all_finite(b->out_arrays[a], n);
        TRY(write_block(j->out_state_fd, aggregate_array_at(j, j->out_state_offset, a) + skip,
                        b->out_arrays[a], n, e));
    }
    return ST_OK;
}

/* Do updates hold this tensor? What they do not hold stays as it is, outer state and all. */
static bool travels(const struct aggregate_job *j, int32_t tensor)
{
    return !j->layout || j->layout->index[LAYOUT_WEIGHTS][tensor] >= 0;
}

/* Weights and state of this block before and after the outer step. */
static enum status step_block(const struct mix *w, struct bench *b, const struct block *at,
                              struct err *e)
{
    const struct aggregate_job *j = w->job;
    int64_t n = at->n;
    int64_t skip = at->at * (int64_t)sizeof(float);
    TRY(block_read(j->base_fd, j->base_offset + skip, b->raw, n, e));
    for (int64_t i = 0; i < n; i++) {
        b->x[i] = b->before[i] = (double)b->raw[i];
    }
    TRY(read_arrays(j, b, skip, n, e));

    if (travels(j, at->tensor)) {
        outer_step(&j->spec->outer, j->round, b->x, b->arrays, b->delta, n);
    }

    for (int64_t i = 0; i < n; i++) {
        b->out_x[i] = (float)b->x[i];
        b->x[i] = (double)b->out_x[i]; // the step as stored, rounding included
    }
    b->step_sq = sum_sq_diff(b->x, b->before, n);
    b->finite = all_finite(b->out_x, n);
    TRY(write_block(j->out_fd, j->out_offset + skip, b->out_x, n, e));
    return write_arrays(j, b, skip, n, e);
}

enum status block_fold(const struct mix *w, struct bench *b, const struct block *at, struct err *e)
{
    TRY(sum_block(w, b, at, e));
    TRY(mean_moments(w, b, at, e));
    return step_block(w, b, at, e);
}
