#include "client/trainer.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "client/trainer_int.h"
#include "common/clock.h"
#include "common/mem.h"

static const char *const DTYPE_NAMES[DTYPE_COUNT] = {"f32", "bf16", "f64"};

/* ---- opening ---- */

static enum status choose_dtype(struct trainer *t, struct err *e)
{
    struct rank *r = lead(t);
    bool bf16 = r->ops->supports(r->be, DTYPE_BF16);
    if (strcmp(t->config.dtype, "f32") == 0) {
        t->dtype = DTYPE_F32;
    } else if (strcmp(t->config.dtype, "auto") == 0) {
        t->dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
    } else if (!bf16) {
        return err_set(e, ST_INVALID, "%s does not compute in bf16 here; try auto or f32",
                       r->ops->name);
    } else {
        t->dtype = DTYPE_BF16;
    }
    return ST_OK;
}

/* Does each rank train alone between averages? */
static bool trains_apart(const struct trainer *t)
{
    return t->count > 1 && t->config.sync_every > 0;
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

/* Rows of text that a step takes. */
static int32_t step_rows(const struct trainer *t)
{
    return t->count * t->ranks[0].batch;
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
    int64_t size = model_flat(r->model).count * (int64_t)sizeof(float);
    int64_t tokens = r->batch * seq_len;
    int64_t ids = tokens * (int64_t)sizeof(int32_t);
    int64_t losses = tokens * (int64_t)sizeof(float);
    void *p = NULL;
    TRY(take(r, &r->m, size, e));
    TRY(take(r, &r->v, size, e));
    TRY(take(r, &p, chunk_count(r) * (int64_t)sizeof(double), e));
    r->partials = p;
    TRY(take(r, &p, (int64_t)sizeof(struct clip_state), e));
    r->clip = p;
    TRY(take(r, &p, ids, e));
    r->tokens = p;
    TRY(take(r, &p, ids, e));
    r->targets = p;
    TRY(take(r, &p, losses, e));
    r->losses = p;

    TRY(take_host(&p, ids, e));
    r->split_tokens = p;
    TRY(take_host(&p, ids, e));
    r->split_targets = p;
    TRY(take_host(&p, losses, e));
    r->host_losses = p;
    return ST_OK;
}

static enum status build_rank(struct trainer *t, int rank, void *ctx, struct err *e)
{
    (void)ctx;
    struct rank *r = &t->ranks[rank];
    const struct inner_spec *in = &t->config.inner;
    struct model_config c = {.spec = t->config.model,
                             .dtype = t->dtype,
                             .batch = r->batch,
                             .micro_batch = in->micro_batch < r->batch ? in->micro_batch : r->batch,
                             .recompute = -1};
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

static enum status build(struct trainer *t, struct err *e)
{
    TRY(ranks_open(t, e));
    TRY(choose_dtype(t, e));
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
    t->config.dtype = DTYPE_NAMES[t->dtype];
    *out = t;
    return ST_OK;
}

static void close_rank(struct rank *r)
{
    void *const owned[] = {r->m, r->v, r->partials, r->clip, r->tokens, r->targets, r->losses};
    r->ops->bind(r->be);
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++) {
        if (owned[i]) {
            r->ops->release(r->be, owned[i]);
        }
    }
    model_close(r->model);
    backend_close(r->be);
    mem_free(r->split_tokens);
    mem_free(r->split_targets);
    mem_free(r->host_losses);
}

void trainer_close(struct trainer *t)
{
    if (!t) {
        return;
    }
    for (int i = 0; i < t->count; i++) {
        close_rank(&t->ranks[i]);
    }
    mem_free(t->rows);
    mem_free(t->stage);
    mem_free(t->sums);
    mem_free(t->moved);
    mem_free(t->frozen);
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
                   r->be->threads == 1 ? "" : "s", DTYPE_NAMES[t->dtype]);
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
    TRY(ranks_average(t, e)); // of the elements that are not in these spans
    return load_spans(t, LAYOUT_WEIGHTS, fd, offset, spans, count, e);
}

enum status trainer_load_weights(struct trainer *t, int fd, int64_t offset, struct err *e)
{
    const struct layout_span all = {0, 0, trainer_params(t)->total};
    t->apart = false; // none of the old ones is left
    return load_spans(t, LAYOUT_WEIGHTS, fd, offset, &all, 1, e);
}

enum status trainer_load_moments(struct trainer *t, enum layout_part part, int fd, int64_t offset,
                                 const struct layout_span *spans, int32_t count, struct err *e)
{
    assert(part != LAYOUT_WEIGHTS);
    return load_spans(t, part, fd, offset, spans, count, e);
}

void trainer_set_steps(struct trainer *t, int64_t steps)
{
    for (int i = 0; i < t->count; i++) {
        t->ranks[i].t = steps;
    }
}

enum status trainer_moments(struct trainer *t, enum layout_part part, int64_t start, int64_t count,
                            float *out, struct err *e)
{
    assert(part != LAYOUT_WEIGHTS);
    for (int64_t at = 0; trains_apart(t) && at < count; at += RANKS_PIECE) {
        int64_t n = count - at < RANKS_PIECE ? count - at : RANKS_PIECE;
        TRY(ranks_mean(t, part, start + at, n, out + at, e));
    }
    if (!trains_apart(t)) {
        model_get(lead(t)->model, out, rank_array(lead(t), part), start, count);
    }
    return backend_sync(lead(t)->be, e);
}

enum status trainer_weights(struct trainer *t, int64_t start, int64_t count, float *out,
                            struct err *e)
{
    TRY(ranks_average(t, e));
    model_get(lead(t)->model, out, model_flat(lead(t)->model).weights, start, count);
    return backend_sync(lead(t)->be, e);
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

/* ---- a step ---- */

/* Every token within the vocabulary? Asked before any rank begins, so that none waits in vain. */
static enum status check_rows(const struct trainer *t, int32_t rows, struct err *e)
{
    int64_t count = rows * ((int64_t)t->config.model.seq_len + 1);
    int32_t vocab = t->config.model.vocab_size;
    for (int64_t i = 0; i < count; i++) {
        if (t->rows[i] < 0 || t->rows[i] >= vocab) {
            return err_set(e, ST_INVALID,
                           "token %d is outside the vocabulary of %d; try data prepared with the "
                           "run's tokenizer",
                           t->rows[i], vocab);
        }
    }
    return ST_OK;
}

/* Rows of seq_len + 1 tokens become inputs and, one to the left, targets; put
 * where ops read them. */
static void put_rows(struct rank *r, const int32_t *from, int32_t rows, int64_t T)
{
    size_t size = (size_t)T * sizeof(int32_t);
    for (int64_t i = 0; i < rows; i++) {
        memcpy(r->split_tokens + i * T, from + i * (T + 1), size);
        memcpy(r->split_targets + i * T, from + i * (T + 1) + 1, size);
    }
    r->ops->put(r->be, r->tokens, r->split_tokens, (size_t)rows * size);
    r->ops->put(r->be, r->targets, r->split_targets, (size_t)rows * size);
}

static struct optim_step optim_settings(const struct inner_spec *in, int64_t now, double lr)
{
    return (struct optim_step){
        .kind = in->optimizer == INNER_ADOPT ? OPTIM_ADOPT : OPTIM_ADAMW,
        .t = now,
        .lr = lr,
        .decay = in->lr > 0.0 ? lr / in->lr * in->weight_decay : 0.0,
        .beta1 = in->beta1,
        .beta2 = in->beta2,
        .eps = in->eps,
        .bias1 = 1.0 - pow(in->beta1, (double)now),
        .bias2 = 1.0 - pow(in->beta2, (double)now),
        .clamp = pow((double)(now - 1), 0.25),
    };
}

/* Forward and backward over the rank's batch, pass by pass; inv_n is one over the tokens that the
 * gradient is a mean of, which in data parallel are those of all ranks. */
static void gradients(struct rank *r, int64_t T, double inv_n)
{
    int32_t micro = model_plan(r->model)->request.micro_batch;
    for (int32_t b = 0; b < r->batch; b += micro) {
        int32_t B = r->batch - b < micro ? r->batch - b : micro;
        model_train_pass(r->model, r->losses + b * T, r->tokens + b * T, r->targets + b * T, B,
                         inv_n, b == 0);
    }
}

static void update(const struct trainer *t, struct rank *r, double lr)
{
    const struct inner_spec *in = &t->config.inner;
    struct model_flat flat = model_flat(r->model);
    struct optim_step s = optim_settings(in, r->t + 1, lr);
    double max_norm = in->clip_norm > 0.0 ? in->clip_norm : HUGE_VAL;
    size_t gt = dtype_size(flat.type);
    size_t wt = flat.rest ? sizeof(uint16_t) : gt;
    for (int32_t i = 0; i < t->frozen_count; i++) { // what does not move is no part of the norm
        const struct stretch *f = &t->frozen[i];
        r->ops->zero(r->be, (char *)flat.grads + (size_t)f->at * gt, (size_t)f->count * gt);
    }
    r->ops->sqnorm(r->be, flat.type, r->partials, flat.grads, flat.count);
    r->ops->clip(r->be, r->clip, r->partials, chunk_count(r), max_norm);
    for (int32_t i = 0; i < t->moved_count; i++) {
        size_t at = (size_t)t->moved[i].at;
        r->ops->optim(r->be, flat.type, &s, r->clip, (char *)flat.weights + at * wt,
                      flat.rest ? (char *)flat.rest + at * sizeof(uint16_t) : NULL,
                      (char *)r->m + at * gt, (char *)r->v + at * gt,
                      (const char *)flat.grads + at * gt, t->moved[i].count);
    }
}

static void get_losses(struct rank *r, int64_t n)
{
    r->ops->get(r->be, r->host_losses, r->losses, (size_t)n * sizeof(float));
}

static enum status step_rank(struct trainer *t, int rank, void *ctx, struct err *e)
{
    const double *lr = ctx;
    struct rank *r = &t->ranks[rank];
    int64_t T = t->config.model.seq_len;
    bool apart = trains_apart(t);
    put_rows(r, t->rows + rank * r->batch * (T + 1), r->batch, T);
    gradients(r, T, 1.0 / (double)((apart ? r->batch : step_rows(t)) * T));
    if (!apart) {
        r->ops->all_reduce(r->be, model_flat(r->model).grads, model_flat(r->model).count);
    }
    update(t, r, *lr);
    r->ops->get(r->be, &r->seen, r->clip, sizeof(r->seen));
    get_losses(r, r->batch * T);
    return backend_sync(r->be, e);
}

/* Sum of the losses of all ranks, in the order of their rows. */
static double sum_losses(const struct trainer *t)
{
    double sum = 0.0;
    for (int i = 0; i < t->count; i++) {
        const struct rank *r = &t->ranks[i];
        for (int64_t k = 0; k < (int64_t)r->batch * t->config.model.seq_len; k++) {
            sum += (double)r->host_losses[k];
        }
    }
    return sum;
}

enum status trainer_step(struct trainer *t, int64_t step, struct step_report *out, struct err *e)
{
    double begin = clock_mono_s();
    const struct inner_spec *in = &t->config.inner;
    int32_t T = t->config.model.seq_len;
    int32_t rows = step_rows(t);
    int64_t tokens = (int64_t)rows * T;
    TRY(t->config.rows.train(t->config.rows.ctx, step, rows, T, t->rows, e));
    TRY(check_rows(t, rows, e));
    double lr = inner_lr(in, step);
    TRY(ranks_run(t, step_rank, &lr, e));

    // The moments have seen a step only if the optimizer took it.
    bool finite = true;
    for (int i = 0; i < t->count; i++) {
        t->ranks[i].t += t->ranks[i].seen.finite ? 1 : 0;
        finite = finite && t->ranks[i].seen.finite;
    }
    if (trains_apart(t)) {
        t->apart = true;
        if ((step + 1) % t->config.sync_every == 0) {
            TRY(ranks_average(t, e));
        }
    }
    *out = (struct step_report){.step = step,
                                .loss = sum_losses(t) / (double)tokens,
                                .grad_norm = lead(t)->seen.norm,
                                .lr = lr,
                                .tokens = tokens,
                                .seconds = clock_mono_s() - begin,
                                .finite = finite};
    return ST_OK;
}

void trainer_reset_state(struct trainer *t)
{
    for (int i = 0; i < t->count; i++) {
        struct rank *r = &t->ranks[i];
        size_t size = (size_t)model_flat(r->model).count * sizeof(float);
        r->ops->bind(r->be);
        r->ops->zero(r->be, r->m, size);
        r->ops->zero(r->be, r->v, size);
        r->t = 0;
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
    struct rank *r0 = lead(t);
    int32_t T = t->config.model.seq_len;
    int32_t micro = model_plan(r0->model)->request.micro_batch;
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
        TRY(check_rows(t, micro, e));
        put_rows(r0, t->rows, micro, T);
        model_eval_pass(r0->model, r0->losses, r0->tokens, r0->targets, micro);
        get_losses(r0, n * T);
        TRY(backend_sync(r0->be, e));
        double sum = 0.0; // of a pass by itself, as passes have always been added
        for (int64_t i = 0; i < n * T; i++) {
            sum += (double)r0->host_losses[i];
        }
        r.nll += sum;
        r.tokens += n * T;
    }
    r.seconds = clock_mono_s() - begin;
    *out = r;
    return ST_OK;
}
