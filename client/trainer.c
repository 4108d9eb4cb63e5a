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
    bool bf16 = t->ops->supports(t->be, DTYPE_BF16);
    if (strcmp(t->config.dtype, "f32") == 0) {
        t->dtype = DTYPE_F32;
    } else if (strcmp(t->config.dtype, "auto") == 0) {
        t->dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
    } else if (strcmp(t->config.dtype, "bf16") != 0) {
        return err_set(e, ST_INVALID, "unknown dtype '%s'; try auto, f32 or bf16", t->config.dtype);
    } else if (!bf16) {
        return err_set(e, ST_INVALID, "%s does not compute in bf16 here; try auto or f32",
                       t->ops->name);
    } else {
        t->dtype = DTYPE_BF16;
    }
    return ST_OK;
}

static enum status take(struct trainer *t, void **out, int64_t size, struct err *e)
{
    *out = t->ops->alloc(t->be, (size_t)size);
    if (!*out) {
        return err_set(e, ST_NOMEM, "%s: no memory for a training, %lld MiB", t->ops->name,
                       (long long)(size >> 20));
    }
    return ST_OK;
}

static enum status take_host(void **out, int64_t size, struct err *e)
{
    return mem_alloc_large(out, (size_t)size, e);
}

static int64_t chunk_count(const struct trainer *t)
{
    return (model_flat(t->model).count + NORM_CHUNK - 1) / NORM_CHUNK;
}

static enum status take_memory(struct trainer *t, struct err *e)
{
    int64_t size = model_flat(t->model).count * (int64_t)sizeof(float);
    int64_t rows = t->config.inner.batch;
    int64_t tokens = rows * t->config.model.seq_len;
    int64_t ids = tokens * (int64_t)sizeof(int32_t);
    int64_t losses = tokens * (int64_t)sizeof(float);
    void *p = NULL;
    TRY(take(t, &t->m, size, e));
    TRY(take(t, &t->v, size, e));
    TRY(take(t, &p, chunk_count(t) * (int64_t)sizeof(double), e));
    t->partials = p;
    TRY(take(t, &p, (int64_t)sizeof(struct clip_state), e));
    t->clip = p;
    TRY(take(t, &p, ids, e));
    t->tokens = p;
    TRY(take(t, &p, ids, e));
    t->targets = p;
    TRY(take(t, &p, losses, e));
    t->losses = p;

    TRY(take_host(&p, ids + rows * (int64_t)sizeof(int32_t), e));
    t->rows = p;
    TRY(take_host(&p, ids, e));
    t->split_tokens = p;
    TRY(take_host(&p, ids, e));
    t->split_targets = p;
    TRY(take_host(&p, losses, e));
    t->host_losses = p;
    TRY(take_host(&p, STAGE_COUNT * (int64_t)sizeof(float), e));
    t->stage = p;
    return ST_OK;
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
    const struct param_table *p = model_params(t->model);
    size_t n = (size_t)p->count;
    t->moved = mem_alloc(n * sizeof(*t->moved));
    t->frozen = mem_alloc(n * sizeof(*t->frozen));
    if (t->config.freeze.count == 0) {
        t->moved[t->moved_count++] = (struct stretch){0, model_flat(t->model).count};
        return;
    }
    bool before = false;
    for (int32_t i = 0; i < p->count; i++) {
        bool frozen = patterns_match(&t->config.freeze, p->items[i].name);
        struct stretch s = {model_offset(t->model, i), p->items[i].count};
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
    TRY(backend_open(&t->be, t->config.device, t->config.threads, e));
    t->ops = t->be->ops;
    TRY(choose_dtype(t, e));
    struct model_config c = {.spec = t->config.model,
                             .dtype = t->dtype,
                             .batch = t->config.inner.batch,
                             .micro_batch = t->config.inner.micro_batch,
                             .recompute = -1};
    TRY(model_open(&t->model, t->be, &c, e));
    plan_stretches(t);
    return take_memory(t, e);
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
    t->config.device = t->ops->name;
    t->config.dtype = DTYPE_NAMES[t->dtype];
    *out = t;
    return ST_OK;
}

void trainer_close(struct trainer *t)
{
    if (!t) {
        return;
    }
    void *const owned[] = {t->m, t->v, t->partials, t->clip, t->tokens, t->targets, t->losses};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++) {
        if (owned[i]) {
            t->ops->release(t->be, owned[i]);
        }
    }
    model_close(t->model);
    backend_close(t->be);
    mem_free(t->moved);
    mem_free(t->frozen);
    mem_free(t->rows);
    mem_free(t->split_tokens);
    mem_free(t->split_targets);
    mem_free(t->host_losses);
    mem_free(t->stage);
    mem_free(t);
}

void trainer_describe(const struct trainer *t, char out[96])
{
    (void)snprintf(out, 96, "%s, %d thread%s, %s", t->ops->name, t->be->threads,
                   t->be->threads == 1 ? "" : "s", DTYPE_NAMES[t->dtype]);
}

const struct param_table *trainer_params(const struct trainer *t)
{
    return model_params(t->model);
}

struct model *trainer_model(struct trainer *t)
{
    return t->model;
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

static enum status load_spans(struct trainer *t, void *array, int fd, int64_t offset,
                              const struct layout_span *spans, int32_t count, struct err *e)
{
    for (int32_t i = 0; i < count; i++) {
        int64_t end = spans[i].model + spans[i].count;
        for (int64_t at = spans[i].model; at < end; at += STAGE_COUNT) {
            int64_t n = end - at < STAGE_COUNT ? end - at : STAGE_COUNT;
            TRY(read_at(fd, t->stage, (size_t)n * sizeof(float),
                        offset + at * (int64_t)sizeof(float), e));
            TRY(check_finite(t->stage, n, at, e));
            model_put(t->model, array, at, n, t->stage);
        }
    }
    return backend_sync(t->be, e);
}

enum status trainer_load_spans(struct trainer *t, int fd, int64_t offset,
                               const struct layout_span *spans, int32_t count, struct err *e)
{
    return load_spans(t, model_flat(t->model).weights, fd, offset, spans, count, e);
}

enum status trainer_load_weights(struct trainer *t, int fd, int64_t offset, struct err *e)
{
    const struct layout_span all = {0, 0, trainer_params(t)->total};
    return trainer_load_spans(t, fd, offset, &all, 1, e);
}

enum status trainer_load_moments(struct trainer *t, enum layout_part part, int fd, int64_t offset,
                                 const struct layout_span *spans, int32_t count, struct err *e)
{
    assert(part != LAYOUT_WEIGHTS);
    return load_spans(t, part == LAYOUT_M ? t->m : t->v, fd, offset, spans, count, e);
}

void trainer_set_steps(struct trainer *t, int64_t steps)
{
    t->t = steps;
}

enum status trainer_moments(struct trainer *t, enum layout_part part, int64_t start, int64_t count,
                            float *out, struct err *e)
{
    assert(part != LAYOUT_WEIGHTS);
    model_get(t->model, out, part == LAYOUT_M ? t->m : t->v, start, count);
    return backend_sync(t->be, e);
}

enum status trainer_weights(struct trainer *t, int64_t start, int64_t count, float *out,
                            struct err *e)
{
    model_get(t->model, out, model_flat(t->model).weights, start, count);
    return backend_sync(t->be, e);
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

/* Rows of seq_len + 1 tokens become inputs and, one to the left, targets; put
 * where ops read them. */
static enum status put_rows(struct trainer *t, int32_t rows, struct err *e)
{
    int64_t T = t->config.model.seq_len;
    int32_t vocab = t->config.model.vocab_size;
    for (int64_t i = 0; i < rows * (T + 1); i++) {
        if (t->rows[i] < 0 || t->rows[i] >= vocab) {
            return err_set(e, ST_INVALID,
                           "token %d is outside the vocabulary of %d; try data prepared with the "
                           "run's tokenizer",
                           t->rows[i], vocab);
        }
    }
    size_t size = (size_t)T * sizeof(int32_t);
    for (int64_t r = 0; r < rows; r++) {
        memcpy(t->split_tokens + r * T, t->rows + r * (T + 1), size);
        memcpy(t->split_targets + r * T, t->rows + r * (T + 1) + 1, size);
    }
    t->ops->put(t->be, t->tokens, t->split_tokens, (size_t)rows * size);
    t->ops->put(t->be, t->targets, t->split_targets, (size_t)rows * size);
    return ST_OK;
}

static struct optim_step optim_settings(const struct trainer *t, double lr)
{
    const struct inner_spec *in = &t->config.inner;
    int64_t now = t->t + 1;
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

/* Forward and backward over the whole batch, pass by pass. */
static void gradients(struct trainer *t)
{
    int64_t T = t->config.model.seq_len;
    int32_t batch = t->config.inner.batch;
    int32_t micro = model_plan(t->model)->request.micro_batch;
    double inv_n = 1.0 / (double)(batch * T);
    for (int32_t b = 0; b < batch; b += micro) {
        int32_t B = batch - b < micro ? batch - b : micro;
        model_train_pass(t->model, t->losses + b * T, t->tokens + b * T, t->targets + b * T, B,
                         inv_n, b == 0);
    }
}

static void update(struct trainer *t, double lr)
{
    struct model_flat flat = model_flat(t->model);
    struct optim_step s = optim_settings(t, lr);
    double max_norm = t->config.inner.clip_norm > 0.0 ? t->config.inner.clip_norm : HUGE_VAL;
    size_t gt = dtype_size(flat.type);
    size_t wt = flat.rest ? sizeof(uint16_t) : gt;
    for (int32_t i = 0; i < t->frozen_count; i++) { // what does not move is no part of the norm
        const struct stretch *f = &t->frozen[i];
        t->ops->zero(t->be, (char *)flat.grads + (size_t)f->at * gt, (size_t)f->count * gt);
    }
    t->ops->sqnorm(t->be, flat.type, t->partials, flat.grads, flat.count);
    t->ops->clip(t->be, t->clip, t->partials, chunk_count(t), max_norm);
    for (int32_t i = 0; i < t->moved_count; i++) {
        size_t at = (size_t)t->moved[i].at;
        t->ops->optim(t->be, flat.type, &s, t->clip, (char *)flat.weights + at * wt,
                      flat.rest ? (char *)flat.rest + at * sizeof(uint16_t) : NULL,
                      (char *)t->m + at * gt, (char *)t->v + at * gt,
                      (const char *)flat.grads + at * gt, t->moved[i].count);
    }
}

/* Sum of the first n losses, in their order. */
static double sum_losses(struct trainer *t, int64_t n)
{
    t->ops->get(t->be, t->host_losses, t->losses, (size_t)n * sizeof(float));
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)t->host_losses[i];
    }
    return sum;
}

enum status trainer_step(struct trainer *t, int64_t step, struct step_report *out, struct err *e)
{
    double begin = clock_mono_s();
    const struct inner_spec *in = &t->config.inner;
    int32_t T = t->config.model.seq_len;
    int64_t tokens = (int64_t)in->batch * T;
    TRY(t->config.rows.train(t->config.rows.ctx, step, in->batch, T, t->rows, e));
    TRY(put_rows(t, in->batch, e));

    double lr = inner_lr(in, step);
    gradients(t);
    update(t, lr);
    struct clip_state clip;
    t->ops->get(t->be, &clip, t->clip, sizeof(clip));
    double loss = sum_losses(t, tokens) / (double)tokens;
    TRY(backend_sync(t->be, e));

    // The moments have seen a step only if the optimizer took it.
    t->t += clip.finite ? 1 : 0;
    *out = (struct step_report){.step = step,
                                .loss = loss,
                                .grad_norm = clip.norm,
                                .lr = lr,
                                .tokens = tokens,
                                .seconds = clock_mono_s() - begin,
                                .finite = clip.finite != 0};
    return ST_OK;
}

void trainer_reset_state(struct trainer *t)
{
    size_t size = (size_t)model_flat(t->model).count * sizeof(float);
    t->ops->zero(t->be, t->m, size);
    t->ops->zero(t->be, t->v, size);
    t->t = 0;
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
    int32_t micro = model_plan(t->model)->request.micro_batch;
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
        TRY(put_rows(t, micro, e));
        model_eval_pass(t->model, t->losses, t->tokens, t->targets, micro);
        r.nll += sum_losses(t, n * T);
        TRY(backend_sync(t->be, e));
        r.tokens += n * T;
    }
    r.seconds = clock_mono_s() - begin;
    *out = r;
    return ST_OK;
}
