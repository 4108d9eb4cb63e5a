#include "server/aggregate.h"

#include <assert.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "server/aggregate_block.h"

enum {
    THREADS_MAX = 64,
    // Output is pushed to the disk and dropped from the page cache in windows of this many blocks.
    WINDOW_BLOCKS = 128,
};

struct work {
    const struct aggregate_job *job;
    struct aggregate_stats *stats;
    double *shares;  // [input_count], add up to 1
    double *weights; // [input_count], shares after clipping
    double *factors; // [input_count], what the norm's bound leaves
    struct mix mix;  // of these, as blocks need it
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
        drop_written(j->out_state_fd, aggregate_array_at(j, j->out_state_offset, a) + skip, size);
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
    if (j->out_hash && !aggregate_moments(j)) {
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
        enum status st =
            w->measuring ? block_measure(&w->mix, &b, at, &e) : block_fold(&w->mix, &b, at, &e);
        if (!wait_turn(w, block)) {
            break;
        }
        if (!st) {
            fold_block(w, &b, block);
        }
        end_turn(w, st, &e, b.corrupt);
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
        st = block_read(fd, offset + at * (int64_t)sizeof(float), block, n, e);
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
    if (aggregate_moments(j) && j->out_hash) {
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
    w.list = blocks_make(job->table, &w.blocks);
    size_t inputs = job->input_count > 0 ? (size_t)job->input_count : 1;
    w.shares = mem_alloc(inputs * sizeof(double));
    w.weights = mem_alloc(inputs * sizeof(double));
    w.factors = mem_alloc(inputs * sizeof(double));
    w.mix = (struct mix){job, w.shares, w.weights, stats->update_cosines != NULL};
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
