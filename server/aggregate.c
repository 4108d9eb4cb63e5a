#include "server/aggregate.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/wide.h"

enum {
    THREADS_MAX = 64,
    LANES = 8, // partial sums: the compiler may use vector registers, the order stays ours
    // Inputs whose block is kept in memory between the sum and the cosines; those beyond are read
    // again (from the page cache), so that memory does not grow with the number of updates.
    KEPT_INPUTS = 16,
    // Output is pushed to the disk and dropped from the page cache in windows of this many blocks.
    WINDOW_BLOCKS = 128,
};

/* A block: a group of a tensor, or a stretch of a table that names none. */
struct block {
    int64_t at, n; // of the flat order
    int32_t tensor;
    int64_t group;
};

/* What one thread works with; one block of everything. */
struct bench {
    uint8_t *scratch; // a coded group's bytes
    float *raw;       // bytes as they are in a file
    float *kept;      // [KEPT_INPUTS][AGGREGATE_BLOCK]
    double *delta;    // D
    double *x;
    double *before;                   // x of the base, for the step's norm
    double *arrays[OUTER_ARRAYS_MAX]; // the outer state
    // This block's part of the sums over all parameters.
    double delta_sq, step_sq;
    double *sq;  // [input_count]
    double *dot; // [input_count]
    bool finite;
    // What was written, kept until the digests' turn comes.
    float *out_x;
    float *out_arrays[OUTER_ARRAYS_MAX];
};

struct work {
    const struct aggregate_job *job;
    struct aggregate_stats *stats;
    double *shares;  // [input_count], add up to 1
    double *weights; // [input_count], shares after clipping
    double *factors; // [input_count], what the norm's bound leaves
    struct block *list;
    int64_t blocks;
    bool measuring; // norms alone, before the pass that sums

    pthread_mutex_t lock;
    pthread_cond_t turned;
    int64_t next; // to be handed out
    int64_t turn; // to be folded into the sums
    bool stop;
    enum status st;
    struct err err;
    int corrupt_input;

    // Sums in block order.
    double delta_sq, step_sq;
    double *sq;
    double *dot;
    bool finite;
    int64_t bytes_read;
};

/* Where array i of an outer state begins. */
static int64_t array_offset(const struct aggregate_job *j, int64_t offset, int i)
{
    return offset + i * j->table->total * (int64_t)sizeof(float);
}

static bool has_moments(const struct aggregate_job *j)
{
    return j->layout && j->layout->part_at[LAYOUT_M] >= 0;
}

/* ---- one block ---- */

static enum status read_block(int fd, int64_t offset, float *out, int64_t n, struct err *e)
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

/* The work in order: every tensor's groups. */
static struct block *make_blocks(const struct param_table *t, int64_t *count)
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

/* A block of update k, as finite numbers. */
static enum status read_input(const struct work *w, struct bench *b, int k, enum layout_part part,
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
    TRY(read_block(in->fd, in->data_offset + at->at * (int64_t)sizeof(float), out, at->n, e));
    return all_finite(out, at->n)
               ? ST_OK
               : err_set(e, ST_CORRUPT, "a value near element %lld is not finite",
                         (long long)at->at);
}

/* Each update's share of its norm, nothing else. */
static enum status measure_block(const struct work *w, struct bench *b, const struct block *at,
                                 int *corrupt, struct err *e)
{
    for (int k = 0; k < w->job->input_count; k++) {
        enum status st = read_input(w, b, k, LAYOUT_WEIGHTS, at, b->raw, e);
        if (st) {
            *corrupt = k;
            return st;
        }
        b->sq[k] = add_scaled(b->delta, b->raw, 0.0, at->n);
    }
    return ST_OK;
}

/* D of this block, with each update's share of the norms. */
static enum status sum_block(struct work *w, struct bench *b, const struct block *at, int *corrupt,
                             struct err *e)
{
    const struct aggregate_job *j = w->job;
    int64_t n = at->n;
    memset(b->delta, 0, (size_t)n * sizeof(*b->delta));
    for (int k = 0; k < j->input_count; k++) {
        float *v = k < KEPT_INPUTS ? b->kept + (int64_t)k * AGGREGATE_BLOCK : b->raw;
        enum status st = read_input(w, b, k, LAYOUT_WEIGHTS, at, v, e);
        if (st) {
            *corrupt = k;
            return st;
        }
        b->sq[k] = add_scaled(b->delta, v, w->weights[k], n);
    }
    b->delta_sq = sum_sq_diff(b->delta, NULL, n);
    if (!w->stats->update_cosines) {
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
static enum status mean_moments(struct work *w, struct bench *b, const struct block *at,
                                int *corrupt, struct err *e)
{
    static const enum layout_part MOMENTS[] = {LAYOUT_M, LAYOUT_V};
    const struct aggregate_job *j = w->job;
    int64_t n = at->n;
    for (int i = 0; i < 2 && has_moments(j); i++) {
        memset(b->x, 0, (size_t)n * sizeof(*b->x));
        for (int k = 0; k < j->input_count; k++) {
            enum status st = read_input(w, b, k, MOMENTS[i], at, b->raw, e);
            if (st) {
                *corrupt = k;
                return st;
            }
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
        TRY(read_block(j->state_fd, array_offset(j, j->state_offset, a) + skip, b->raw, n, e));
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
        TRY(write_block(j->out_state_fd, array_offset(j, j->out_state_offset, a) + skip,
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
static enum status step_block(struct work *w, struct bench *b, const struct block *at,
                              struct err *e)
{
    const struct aggregate_job *j = w->job;
    int64_t n = at->n;
    int64_t skip = at->at * (int64_t)sizeof(float);
    TRY(read_block(j->base_fd, j->base_offset + skip, b->raw, n, e));
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

static void drop_written(int fd, int64_t offset, int64_t size)
{
    (void)sync_file_range(fd, offset, size,
                          SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                              SYNC_FILE_RANGE_WAIT_AFTER);
    (void)posix_fadvise(fd, offset, size, POSIX_FADV_DONTNEED);
}

/* Whoever reads gigabytes once should not push everything else out of the page cache. */
static void drop_pages(const struct aggregate_job *j, int64_t first, int64_t n)
{
    int64_t skip = first * (int64_t)sizeof(float);
    int64_t size = n * (int64_t)sizeof(float);
    (void)posix_fadvise(j->base_fd, j->base_offset + skip, size, POSIX_FADV_DONTNEED);
    for (int k = 0; k < j->input_count; k++) {
        if (!j->inputs[k].coded || j->inputs[k].coded->codec == CODEC_F32) { // else it is small
            (void)posix_fadvise(j->inputs[k].fd, j->inputs[k].data_offset + skip, size,
                                POSIX_FADV_DONTNEED);
        }
    }
    drop_written(j->out_fd, j->out_offset + skip, size);
    for (int a = 0; a < outer_arrays(j->spec->outer.name) && j->out_state_fd >= 0; a++) {
        drop_written(j->out_state_fd, array_offset(j, j->out_state_offset, a) + skip, size);
    }
}

/* Called in block order, by one thread at a time. */
static void fold_block(struct work *w, const struct bench *b, int64_t block)
{
    const struct aggregate_job *j = w->job;
    int64_t n = w->list[block].n;
    size_t size = (size_t)n * sizeof(float);
    for (int k = 0; k < j->input_count; k++) {
        w->sq[k] += b->sq[k];
        w->dot[k] += b->dot[k];
    }
    if (w->measuring) {
        w->bytes_read += (int64_t)size * j->input_count;
        return;
    }
    w->delta_sq += b->delta_sq;
    w->step_sq += b->step_sq;
    w->finite = w->finite && b->finite;
    if (j->out_hash && !has_moments(j)) {
        sha256_add(j->out_hash, b->out_x, size);
    }
    if (j->out_data_hash) {
        sha256_add(j->out_data_hash, b->out_x, size);
    }
    int arrays = outer_arrays(j->spec->outer.name);
    if (arrays > 0 && j->out_state_fd >= 0 && j->out_state_hash) {
        sha256_add(j->out_state_hash, b->out_arrays[0], size);
    }
    int streams = 1 + j->input_count + (j->state_fd >= 0 ? arrays : 0);
    w->bytes_read += (int64_t)size * streams;

    // One window behind, so that the disk works while we do.
    if (block % WINDOW_BLOCKS == WINDOW_BLOCKS - 1 && block >= WINDOW_BLOCKS) {
        const struct block *next = &w->list[block + 1 - WINDOW_BLOCKS];
        int64_t first = next[-WINDOW_BLOCKS].at;
        drop_pages(j, first, next->at - first);
    }
}

/* ---- threads ---- */

static void bench_init(struct bench *b, const struct aggregate_job *j)
{
    int inputs = j->input_count;
    int kept = inputs < KEPT_INPUTS ? inputs : KEPT_INPUTS;
    size_t block = AGGREGATE_BLOCK;
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

static void bench_release(struct bench *b)
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

/* The next block, or -1. */
static int64_t take_block(struct work *w)
{
    (void)pthread_mutex_lock(&w->lock);
    int64_t block = !w->stop && w->next < w->blocks ? w->next++ : -1;
    (void)pthread_mutex_unlock(&w->lock);
    return block;
}

/* False when an earlier block failed: nothing after it counts. */
static bool wait_turn(struct work *w, int64_t block)
{
    (void)pthread_mutex_lock(&w->lock);
    while (w->turn != block && !w->stop) {
        (void)pthread_cond_wait(&w->turned, &w->lock);
    }
    bool mine = !w->stop;
    (void)pthread_mutex_unlock(&w->lock);
    return mine;
}

static void end_turn(struct work *w, enum status st, const struct err *e, int corrupt)
{
    (void)pthread_mutex_lock(&w->lock);
    if (st) {
        w->stop = true;
        w->st = st;
        w->err = *e;
        w->corrupt_input = corrupt;
    }
    w->turn++;
    (void)pthread_cond_broadcast(&w->turned);
    (void)pthread_mutex_unlock(&w->lock);
}

static void *worker(void *arg)
{
    struct work *w = arg;
    struct bench b = {0};
    bench_init(&b, w->job);
    for (;;) {
        int64_t block = take_block(w);
        if (block < 0) {
            break;
        }
        const struct block *at = &w->list[block];
        struct err e = {0};
        int corrupt = -1;
        enum status st = w->measuring ? measure_block(w, &b, at, &corrupt, &e)
                                      : sum_block(w, &b, at, &corrupt, &e);
        if (!st && !w->measuring) {
            st = mean_moments(w, &b, at, &corrupt, &e);
        }
        if (!st && !w->measuring) {
            st = step_block(w, &b, at, &e);
        }
        if (!wait_turn(w, block)) {
            break;
        }
        if (!st) {
            fold_block(w, &b, block);
        }
        end_turn(w, st, &e, corrupt);
    }
    bench_release(&b);
    return NULL;
}

/* This thread works too, so that a machine that refuses threads still aggregates. */
static void work_run(struct work *w, int threads)
{
    pthread_t ids[THREADS_MAX];
    int started = 0;
    while (started < threads - 1 && pthread_create(&ids[started], NULL, worker, w) == 0) {
        started++;
    }
    (void)worker(w);
    for (int i = 0; i < started; i++) {
        (void)pthread_join(ids[i], NULL);
    }
}

static enum status share_weights(double *out, const struct aggregate_job *j, struct err *e)
{
    double sum = 0.0;
    for (int k = 0; k < j->input_count; k++) {
        if (!isfinite(j->inputs[k].weight) || j->inputs[k].weight < 0.0) {
            return err_set(e, ST_INVALID, "update %d has a weight that is negative or not finite",
                           k);
        }
        sum += j->inputs[k].weight;
    }
    if (!(sum > 0.0) || !isfinite(sum)) {
        return err_set(e, ST_INVALID, "the weights of %d updates do not add up to more than zero",
                       j->input_count);
    }
    for (int k = 0; k < j->input_count; k++) {
        out[k] = j->inputs[k].weight / sum;
    }
    return ST_OK;
}

/* Into a digest what is in a file already, elements [at, end) behind offset. */
static enum status hash_written(struct sha256 *hash, int fd, int64_t offset, int64_t at,
                                int64_t end, struct err *e)
{
    float *block = mem_alloc(AGGREGATE_BLOCK * sizeof(*block));
    enum status st = ST_OK;
    for (; at < end && !st; at += AGGREGATE_BLOCK) {
        int64_t n = end - at < AGGREGATE_BLOCK ? end - at : AGGREGATE_BLOCK;
        st = read_block(fd, offset + at * (int64_t)sizeof(float), block, n, e);
        if (!st) {
            sha256_add(hash, block, (size_t)n * sizeof(float));
        }
    }
    mem_free(block);
    return st;
}

/* Arrays of one file are made side by side, block by block, but lie one behind the other: what the
 * digest could not take as it was made is taken from the file. */
static enum status hash_rest(const struct aggregate_job *j, struct err *e)
{
    int64_t total = j->table->total;
    int arrays = outer_arrays(j->spec->outer.name);
    if (arrays > 1 && j->out_state_fd >= 0 && j->out_state_hash) {
        TRY(hash_written(j->out_state_hash, j->out_state_fd, j->out_state_offset, total,
                         arrays * total, e));
    }
    if (has_moments(j) && j->out_hash) {
        TRY(hash_written(j->out_hash, j->out_fd, j->out_moments[LAYOUT_M], 0, LAYOUT_PARTS * total,
                         e));
    }
    return ST_OK;
}

static void report(struct work *w, double seconds)
{
    struct aggregate_stats *s = w->stats;
    s->delta_norm = sqrt(w->delta_sq);
    s->outer_step_norm = sqrt(w->step_sq);
    s->finite = w->finite;
    s->seconds = seconds;
    s->bytes_read = w->bytes_read;
    for (int k = 0; k < w->job->input_count; k++) {
        double norm = sqrt(w->sq[k]);
        if (s->update_factors) {
            s->update_factors[k] = w->factors[k];
        }
        if (s->update_norms) {
            s->update_norms[k] = norm;
        }
        if (s->update_cosines) {
            double both = norm * s->delta_norm;
            s->update_cosines[k] = both > 0.0 ? w->dot[k] / both : 0.0;
        }
    }
}

static void clear_sums(struct work *w)
{
    w->next = w->turn = 0;
    for (int k = 0; k < w->job->input_count; k++) {
        w->sq[k] = w->dot[k] = 0.0;
    }
}

/* All blocks once: the sums of a pass start from nothing. */
static enum status run_pass(struct work *w, bool measuring, struct err *e)
{
    int threads = w->job->threads < THREADS_MAX ? w->job->threads : THREADS_MAX;
    w->measuring = measuring;
    clear_sums(w);
    work_run(w, threads < w->blocks ? threads : (int)w->blocks);
    if (w->st && e) {
        *e = w->err;
    }
    return w->st;
}

/* A clipped update keeps its share of the tokens: what it lost goes to nobody else. */
static enum status clip_weights(struct work *w, struct err *e)
{
    int n = w->job->input_count;
    bool bounded = w->job->spec->outer.clip_median > 0.0;
    if (bounded) {
        TRY(run_pass(w, true, e));
    }
    for (int k = 0; k < n && bounded; k++) {
        w->sq[k] = sqrt(w->sq[k]);
    }
    outer_clip(w->job->spec->outer.clip_median, w->sq, n, w->factors);
    for (int k = 0; k < n; k++) {
        w->weights[k] = w->shares[k] * w->factors[k];
    }
    return ST_OK;
}

static enum status run_all(struct work *w, struct err *e)
{
    TRY(share_weights(w->shares, w->job, e));
    TRY(clip_weights(w, e));
    TRY(run_pass(w, false, e));
    return hash_rest(w->job, e);
}

enum status aggregate_run(const struct aggregate_job *job, struct aggregate_stats *stats,
                          int *corrupt_input, struct err *e)
{
    assert(job->threads >= 1 && job->round >= 1 && job->out_fd >= 0 && job->base_fd >= 0);
    double began = clock_mono_s();
    struct work w = {.job = job, .stats = stats, .corrupt_input = -1, .finite = true};
    w.list = make_blocks(job->table, &w.blocks);
    size_t inputs = job->input_count > 0 ? (size_t)job->input_count : 1;
    w.shares = mem_alloc(inputs * sizeof(double));
    w.weights = mem_alloc(inputs * sizeof(double));
    w.factors = mem_alloc(inputs * sizeof(double));
    w.sq = mem_alloc(inputs * sizeof(double));
    w.dot = mem_alloc(inputs * sizeof(double));
    (void)pthread_mutex_init(&w.lock, NULL);
    (void)pthread_cond_init(&w.turned, NULL);

    enum status st = run_all(&w, e);
    *corrupt_input = w.corrupt_input;
    if (!st) {
        report(&w, clock_mono_s() - began);
    }
    (void)pthread_cond_destroy(&w.turned);
    (void)pthread_mutex_destroy(&w.lock);
    mem_free(w.list);
    mem_free(w.shares);
    mem_free(w.weights);
    mem_free(w.factors);
    mem_free(w.sq);
    mem_free(w.dot);
    return st;
}
