#include "client/trainer.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/trainer_int.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"

/* ---- opening ---- */

void trainer_choices_in(const char *dir)
{
    char path[1024];
    (void)snprintf(path, sizeof(path), "%.900s/cuda-choices", dir);
    (void)setenv("PHOTON_CUDA_ALGOS", path, 0);
}

static enum status choose_batch(struct trainer *t, struct err *e)
{
    int32_t batch = t->config.inner.batch;
    if (t->config.sync_every < 0) {
        return err_set(e, ST_INVALID, "ranks cannot be averaged every %d steps",
                       t->config.sync_every);
    }
    if (batch % t->count) {
        return err_set(e, ST_INVALID, "a batch of %d does not divide over %d devices", batch,
                       t->count);
    }
    for (int i = 0; i < t->count; i++) {
        t->ranks[i].batch = batch / t->count;
    }
    return ST_OK;
}

static enum status take(struct rank *r, void **out, int64_t size, struct err *e)
{
    *out = r->ops->alloc(r->be, (size_t)size);
    if (!*out) {
        return err_set(e, ST_NOMEM, "%s: no memory for a training, %lld MiB", r->ops->name,
                       (long long)(size >> 20));
    }
    return ST_OK;
}

static enum status take_host(void **out, int64_t size, struct err *e)
{
    return mem_alloc_large(out, (size_t)size, e);
}

static int64_t chunk_count(const struct rank *r)
{
    return (model_flat(r->model).count + NORM_CHUNK - 1) / NORM_CHUNK;
}

static enum status take_memory(struct rank *r, int64_t seq_len, struct err *e)
{
    int64_t size = model_plan(r->model)->moments / 2;
    void *p = NULL;
    TRY(take(r, &r->m, size, e));
    TRY(take(r, &r->v, size, e));
    TRY(take(r, &p, chunk_count(r) * (int64_t)sizeof(double), e));
    r->partials = p;
    TRY(take(r, &p, (int64_t)sizeof(struct clip_state), e));
    r->clip = p;
    return step_memory(r, seq_len, e);
}

static enum status build_rank(struct trainer *t, int rank, void *ctx, struct err *e)
{
    (void)ctx;
    struct rank *r = &t->ranks[rank];
    const struct inner_spec *in = &t->config.inner;
    struct backend_caps caps;
    r->ops->caps(r->be, &caps);
    struct model_config c = {.spec = t->config.model,
                             .dtype = t->dtype,
                             .batch = r->batch,
                             .micro_batch = in->micro_batch < r->batch ? in->micro_batch : r->batch,
                             .recompute = -1,
                             .tell = rank == 0 && (caps.apart || t->count > 1),
                             .ranks = shares_state(t) ? t->count : 0,
                             .rank = shares_state(t) ? rank : 0};
    TRY(model_open(&r->model, r->be, &c, e));
    return take_memory(r, t->config.model.seq_len, e);
}

static void add_stretch(struct stretch *list, int32_t *count, struct stretch s, bool goes_on)
{
    if (goes_on) {
        list[*count - 1].count = s.at + s.count - list[*count - 1].at; // gaps are zeros
    } else {
        list[(*count)++] = s;
    }
}

/* One stretch, gaps and all, where nothing is frozen. */
static void plan_stretches(struct trainer *t)
{
    struct model *m = lead(t)->model;
    const struct param_table *p = model_params(m);
    size_t n = (size_t)p->count;
    t->moved = mem_alloc(n * sizeof(*t->moved));
    t->frozen = mem_alloc(n * sizeof(*t->frozen));
    if (t->config.freeze.count == 0) {
        t->moved[t->moved_count++] = (struct stretch){0, model_flat(m).count};
        return;
    }
    bool before = false;
    for (int32_t i = 0; i < p->count; i++) {
        bool frozen = patterns_match(&t->config.freeze, p->items[i].name);
        struct stretch s = {model_offset(m, i), p->items[i].count};
        bool goes_on = i > 0 && frozen == before;
        if (frozen) {
            add_stretch(t->frozen, &t->frozen_count, s, goes_on);
        } else {
            add_stretch(t->moved, &t->moved_count, s, goes_on);
        }
        before = frozen;
    }
}

/* The shards' buckets, and when in the backward pass each is complete: with its last tensor. */
static void plan_buckets(struct trainer *t)
{
    struct model *m = lead(t)->model;
    const struct memory_plan *plan = model_plan(m);
    const struct param_table *p = model_params(m);
    if (!shares_state(t)) {
        return;
    }
    int64_t size = plan->shards.ranks * plan->shards.piece;
    t->bucket_count = (plan->flat_count + size - 1) / size;
    t->buckets = mem_alloc((size_t)t->bucket_count * sizeof(*t->buckets));
    for (int64_t b = 0; b < t->bucket_count; b++) {
        int64_t left = plan->flat_count - b * size;
        t->buckets[b] =
            (struct bucket){b * size, left < size ? left : size, plan->request.model.n_layers};
    }
    for (int32_t i = 0; i < p->count; i++) {
        int64_t first = model_offset(m, i) / size;
        int64_t last = (model_offset(m, i) + p->items[i].count - 1) / size;
        for (int64_t b = first; b <= last; b++) {
            int64_t layer = model_layer(m, i);
            t->buckets[b].layer = layer < t->buckets[b].layer ? layer : t->buckets[b].layer;
        }
    }
}

static enum status build(struct trainer *t, struct err *e)
{
    TRY(ranks_open(t, e));
    t->dtype = backend_dtype(lead(t)->be, t->config.dtype);
    TRY(choose_batch(t, e));
    TRY(ranks_run(t, build_rank, NULL, e));
    void *p = NULL;
    TRY(take_host(
        &p, step_rows(t) * ((int64_t)t->config.model.seq_len + 1) * (int64_t)sizeof(int32_t), e));
    t->rows = p;
    TRY(take_host(&p, STAGE_COUNT * (int64_t)sizeof(float), e));
    t->stage = p;
    if (trains_apart(t)) {
        TRY(take_host(&p, RANKS_PIECE * (int64_t)sizeof(double), e));
        t->sums = p;
    }
    plan_stretches(t);
    plan_buckets(t);
    struct backend_caps caps;
    lead(t)->ops->caps(lead(t)->be, &caps);
    t->ahead = caps.apart || t->config.ahead;
    return ST_OK;
}

enum status trainer_open(struct trainer **out, const struct trainer_config *c, struct err *e)
{
    struct trainer *t = mem_alloc(sizeof(*t));
    t->config = *c;
    enum status st = build(t, e);
    if (st) {
        trainer_close(t);
        return st;
    }
    // The names are the caller's; from here on they are the backend's own.
    t->config.device = lead(t)->ops->name;
    t->config.dtype = dtype_name(t->dtype);
    *out = t;
    return ST_OK;
}

/* Of several, each in a thread of its own: what they share ends when all have left it. */
static enum status close_rank(struct trainer *t, int rank, void *ctx, struct err *e)
{
    struct rank *r = &t->ranks[rank];
    (void)ctx;
    (void)e;
    void *const owned[] = {r->m, r->v, r->partials, r->clip};
    r->ops->bind(r->be);
    step_release(r);
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++) {
        if (owned[i]) {
            r->ops->release(r->be, owned[i]);
        }
    }
    model_close(r->model);
    backend_close(r->be);
    return ST_OK;
}

void trainer_close(struct trainer *t)
{
    if (!t) {
        return;
    }
    (void)!ranks_run(t, close_rank, NULL, NULL);
    mem_free(t->rows);
    mem_free(t->stage);
    mem_free(t->sums);
    mem_free(t->moved);
    mem_free(t->frozen);
    mem_free(t->buckets);
    mem_free(t);
}

void trainer_describe(const struct trainer *t, char out[96])
{
    const struct rank *r = &t->ranks[0];
    char many[16] = "";
    if (t->count > 1) {
        (void)snprintf(many, sizeof(many), "%d x ", t->count);
    }
    (void)snprintf(out, 96, "%s%s, %d thread%s, %s", many, r->ops->name, r->be->threads,
                   r->be->threads == 1 ? "" : "s", dtype_name(t->dtype));
}

const struct param_table *trainer_params(const struct trainer *t)
{
    return model_params(t->ranks[0].model);
}

struct model *trainer_model(struct trainer *t)
{
    return lead(t)->model;
}

/* ---- weights ---- */

/* size bytes at offset, whatever pieces the system hands them out in. */
static enum status read_at(int fd, void *out, size_t size, int64_t offset, struct err *e)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, (char *)out + done, size - done, offset + (int64_t)done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_set(e, ST_IO, "cannot read weights: %s", strerror(errno));
        }
        if (n == 0) {
            return err_set(e, ST_CORRUPT, "the weights end early, at byte %lld of the file",
                           (long long)(offset + (int64_t)done));
        }
        done += (size_t)n;
    }
    return ST_OK;
}

static enum status check_finite(const float *x, int64_t count, int64_t start, struct err *e)
{
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) {
            return err_set(e, ST_CORRUPT, "weight %lld is not finite", (long long)(start + i));
        }
    }
    return ST_OK;
}

static enum status load_spans(struct trainer *t, enum layout_part part, int fd, int64_t offset,
                              const struct layout_span *spans, int32_t count, struct err *e)
{
    for (int32_t i = 0; i < count; i++) {
        int64_t end = spans[i].model + spans[i].count;
        for (int64_t at = spans[i].model; at < end; at += STAGE_COUNT) {
            int64_t n = end - at < STAGE_COUNT ? end - at : STAGE_COUNT;
            TRY(read_at(fd, t->stage, (size_t)n * sizeof(float),
                        offset + at * (int64_t)sizeof(float), e));
            TRY(check_finite(t->stage, n, at, e));
            ranks_put(t, part, at, n, t->stage);
        }
    }
    return ranks_sync(t, e);
}

enum status trainer_load_spans(struct trainer *t, int fd, int64_t offset,
                               const struct layout_span *spans, int32_t count, struct err *e)
{
    trainer_settle(t);
    TRY(ranks_average(t, e)); // of the elements that are not in these spans
    return load_spans(t, LAYOUT_WEIGHTS, fd, offset, spans, count, e);
}

enum status trainer_load_weights(struct trainer *t, int fd, int64_t offset, struct err *e)
{
    const struct layout_span all = {0, 0, trainer_params(t)->total};
    trainer_settle(t);
    t->apart = false; // none of the old ones is left
    return load_spans(t, LAYOUT_WEIGHTS, fd, offset, &all, 1, e);
}

enum status trainer_rebase(struct trainer *t, const struct trainer_rebase *r, struct err *e)
{
    enum { PIECE = STAGE_COUNT / 2 };
    float *base = t->stage;
    float *end = t->stage + PIECE;
    float *local = mem_alloc(PIECE * sizeof(*local));
    enum status st = ST_OK;
    for (int32_t i = 0; i < r->count && !st; i++) {
        int64_t stop = r->spans[i].model + r->spans[i].count;
        for (int64_t at = r->spans[i].model; at < stop && !st; at += PIECE) {
            int64_t n = stop - at < PIECE ? stop - at : PIECE;
            size_t size = (size_t)n * sizeof(float);
            int64_t skip = at * (int64_t)sizeof(float);
            st = trainer_weights(t, at, n, local, e); // first: it may want the stage for itself
            st = st ? st : read_at(r->base_fd, base, size, r->base_offset + skip, e);
            st = st ? st : read_at(r->end_fd, end, size, r->end_offset + skip, e);
            for (int64_t k = 0; k < n && !st; k++) {
                base[k] += local[k] - end[k];
            }
            st = st ? st : check_finite(base, n, at, e);
            if (!st) {
                ranks_put(t, LAYOUT_WEIGHTS, at, n, base);
                st = ranks_sync(t, e);
            }
        }
    }
    mem_free(local);
    return st;
}

enum status trainer_load_moments(struct trainer *t, enum layout_part part, int fd, int64_t offset,
                                 const struct layout_span *spans, int32_t count, struct err *e)
{
    assert(part != LAYOUT_WEIGHTS);
    trainer_settle(t);
    return load_spans(t, part, fd, offset, spans, count, e);
}

void trainer_set_steps(struct trainer *t, int64_t steps)
{
    trainer_settle(t);
    for (int i = 0; i < t->count; i++) {
        rank_count(&t->ranks[i], steps);
    }
    lead(t)->ops->bind(lead(t)->be);
}

enum status trainer_moments(struct trainer *t, enum layout_part part, int64_t start, int64_t count,
                            float *out, struct err *e)
{
    assert(part != LAYOUT_WEIGHTS);
    trainer_settle(t);
    for (int64_t at = 0; trains_apart(t) && at < count; at += RANKS_PIECE) {
        int64_t n = count - at < RANKS_PIECE ? count - at : RANKS_PIECE;
        TRY(ranks_mean(t, part, start + at, n, out + at, e));
    }
    return trains_apart(t) ? backend_sync(lead(t)->be, e)
                           : ranks_get(t, part, start, count, out, e);
}

enum status trainer_weights(struct trainer *t, int64_t start, int64_t count, float *out,
                            struct err *e)
{
    trainer_settle(t);
    TRY(ranks_average(t, e));
    return ranks_get(t, LAYOUT_WEIGHTS, start, count, out, e);
}

enum status trainer_delta(struct trainer *t, int64_t start, int64_t count, const float *base,
                          float *out, struct err *e)
{
    TRY(trainer_weights(t, start, count, out, e));
    for (int64_t i = 0; i < count; i++) {
        out[i] = base[i] - out[i];
    }
    return ST_OK;
}

void trainer_reset_state(struct trainer *t)
{
    trainer_settle(t);
    for (int i = 0; i < t->count; i++) {
        struct rank *r = &t->ranks[i];
        size_t size = (size_t)model_plan(r->model)->moments / 2;
        r->ops->bind(r->be);
        r->ops->zero(r->be, r->m, size);
        r->ops->zero(r->be, r->v, size);
        rank_count(r, 0);
    }
    lead(t)->ops->bind(lead(t)->be);
}

/* ---- evaluation ---- */

enum status trainer_eval(struct trainer *t, int64_t first, int64_t count, struct eval_result *out,
                         struct err *e)
{
    const struct row_source *rows = &t->config.rows;
    if (!rows->heldout) {
        return err_set(e, ST_NOT_FOUND, "there is no held-out text to evaluate on");
    }
    double begin = clock_mono_s();
    int32_t T = t->config.model.seq_len;
    int32_t micro = model_plan(lead(t)->model)->request.micro_batch;
    trainer_settle(t);
    TRY(ranks_average(t, e));
    struct eval_result r = {0};
    for (int64_t at = 0; at < count; at += micro) {
        // Every pass has the full shape that the backend is ready for; the last
        // repeats its last window.
        int64_t n = count - at < micro ? count - at : micro;
        for (int64_t i = 0; i < micro; i++) {
            int32_t *row = t->rows + i * (T + 1);
            if (i >= n) {
                memcpy(row, row - (T + 1), (size_t)(T + 1) * sizeof(row[0]));
                continue;
            }
            int64_t bytes = 0;
            TRY(rows->heldout(rows->ctx, first + at + i, T, row, &bytes, e));
            r.bytes += bytes;
        }
        double sum = 0.0; // of a pass by itself, as passes have always been added
        TRY(eval_windows(t, micro, n, &sum, e));
        r.nll += sum;
        r.tokens += n * T;
    }
    r.seconds = clock_mono_s() - begin;
    *out = r;
    return ST_OK;
}
