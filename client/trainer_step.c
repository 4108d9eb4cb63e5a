/*
 * Steps: rows to the device, passes, the optimizer, reports.
 *
 * Of a step the device gets one block, with what the host knows of it (two settings of the
 * optimizer, tokens, targets), and gives one back (the norm, the losses). There are two of each, so
 * that a step can be begun before the one ahead of it is reported. Whether that one was a step at
 * all, its gradient finite, only the device knows by then: hence two settings, of which it takes
 * the right one.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "client/trainer.h"
#include "client/trainer_int.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"

/* Both blocks begin with structs; tokens and targets, or losses, follow. */
enum { HEAD = 256 };
_Static_assert(STEPS_BEGUN * sizeof(struct optim_step) <= HEAD, "room for the settings");
_Static_assert(sizeof(struct clip_state) <= HEAD, "room for the norm");
_Static_assert((int)SHARD_UNIT == (int)NORM_CHUNK, "a rank sums whole chunks");

static int64_t round_up(int64_t size)
{
    return (size + HEAD - 1) / HEAD * HEAD;
}

/* Bytes of a step's tokens, targets or losses. */
static int64_t ids_size(const struct rank *r, int64_t seq_len)
{
    return round_up(r->batch * seq_len * (int64_t)sizeof(int32_t));
}

static int32_t *tokens_of(char *in)
{
    return (int32_t *)(void *)(in + HEAD);
}

static int32_t *targets_of(const struct rank *r, int64_t seq_len, char *in)
{
    return (int32_t *)(void *)(in + HEAD + ids_size(r, seq_len));
}

static int64_t in_size(const struct rank *r, int64_t seq_len)
{
    return HEAD + 2 * ids_size(r, seq_len);
}

static const struct clip_state *seen(const struct rank *r, int slot)
{
    return (const struct clip_state *)(const void *)r->out_host[slot];
}

static const float *losses_of(const struct rank *r, int slot)
{
    return (const float *)(const void *)(r->out_host[slot] + HEAD);
}

enum status step_memory(struct rank *r, int64_t seq_len, struct err *e)
{
    size_t in = (size_t)in_size(r, seq_len);
    size_t losses = (size_t)ids_size(r, seq_len);
    struct backend_caps caps;
    r->ops->caps(r->be, &caps);
    r->records = caps.records;
    r->losses = r->ops->alloc(r->be, losses);
    bool there = r->losses != NULL;
    for (int i = 0; i < STEPS_BEGUN; i++) {
        r->in[i] = r->ops->alloc(r->be, in);
        r->in_host[i] = r->ops->pin(r->be, in);
        r->out_host[i] = r->ops->pin(r->be, HEAD + losses);
        there = there && r->in[i] && r->in_host[i] && r->out_host[i];
    }
    return there ? ST_OK
                 : err_set(e, ST_NOMEM, "%s: no memory for the tokens of a step", r->ops->name);
}

void step_release(struct rank *r)
{
    for (int i = 0; i < STEPS_BEGUN; i++) {
        r->ops->unrecord(r->be, r->recording[i]);
        if (r->in[i]) {
            r->ops->release(r->be, r->in[i]);
        }
        char *const pinned[] = {r->in_host[i], r->out_host[i]};
        for (int k = 0; k < 2; k++) {
            if (pinned[k]) {
                r->ops->unpin(r->be, pinned[k]);
            }
        }
    }
    if (r->losses) {
        r->ops->release(r->be, r->losses);
    }
}

void rank_count(struct rank *r, int64_t steps)
{
    const struct clip_state clip = {.taken = steps};
    r->t = steps;
    r->ops->put(r->be, r->clip, &clip, sizeof(clip));
}

/* ---- rows ---- */

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

/* Rows of seq_len + 1 tokens become inputs and, one to the left, targets; then they are sent, and
 * ops from here on find them. */
static void send_rows(struct rank *r, int slot, const int32_t *from, int32_t rows, int64_t T)
{
    size_t size = (size_t)T * sizeof(int32_t);
    int32_t *tokens = tokens_of(r->in_host[slot]);
    int32_t *targets = targets_of(r, T, r->in_host[slot]);
    for (int64_t i = 0; i < rows; i++) {
        memcpy(tokens + i * T, from + i * (T + 1), size);
        memcpy(targets + i * T, from + i * (T + 1) + 1, size);
    }
    r->ops->send(r->be, QUEUE_COPY, r->in[slot], r->in_host[slot], (size_t)in_size(r, T));
    r->ops->mark(r->be, QUEUE_COPY, MARK_STEP_IN + slot);
    r->ops->follow(r->be, QUEUE_OPS, MARK_STEP_IN + slot);
}

/* ---- what a step is ---- */

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

static int rank_of(const struct trainer *t, const struct rank *r)
{
    return (int)(r - t->ranks);
}

/* A step of elements [at, end), but for frozen ones; what is kept of them begins at `kept`. */
static void optim_run(const struct trainer *t, struct rank *r, int slot, int64_t at, int64_t end,
                      int64_t kept)
{
    struct model_flat flat = model_flat(r->model);
    const struct optim_step *steps = (const struct optim_step *)(const void *)r->in[slot];
    size_t gt = dtype_size(flat.type);
    size_t wt = flat.rest ? sizeof(uint16_t) : gt;
    for (int32_t i = 0; i < t->moved_count; i++) {
        const struct stretch *s = &t->moved[i];
        int64_t from = s->at > at ? s->at : at;
        int64_t to = s->at + s->count < end ? s->at + s->count : end;
        if (from >= to) {
            continue;
        }
        size_t own = (size_t)(kept + from - at);
        r->ops->optim(r->be, flat.type, steps, r->clip, (char *)flat.weights + (size_t)from * wt,
                      flat.rest ? (char *)flat.rest + own * sizeof(uint16_t) : NULL,
                      (char *)r->m + own * gt, (char *)r->v + own * gt,
                      (const char *)flat.grads + (size_t)from * gt, to - from);
    }
}

/* Norm and factor. Each rank sums the chunks of what it keeps; of the others it has zeros, so that
 * adding up the ranks' sums changes no bit. */
static void clip(const struct trainer *t, struct rank *r)
{
    const struct shards *shards = &model_plan(r->model)->shards;
    struct model_flat flat = model_flat(r->model);
    double max_norm = t->config.inner.clip_norm > 0.0 ? t->config.inner.clip_norm : HUGE_VAL;
    size_t gt = dtype_size(flat.type);
    int64_t chunks = (flat.count + NORM_CHUNK - 1) / NORM_CHUNK;
    for (int32_t i = 0; i < t->frozen_count; i++) { // what does not move is no part of the norm
        const struct stretch *f = &t->frozen[i];
        r->ops->zero(r->be, (char *)flat.grads + (size_t)f->at * gt, (size_t)f->count * gt);
    }
    if (shares_state(t)) {
        r->ops->zero(r->be, r->partials, (size_t)chunks * sizeof(double));
    }
    for (int64_t at = 0; at < flat.count;) {
        struct shard_run run = shards_run(shards, at, flat.count);
        if (run.rank == (shares_state(t) ? rank_of(t, r) : 0)) {
            r->ops->sqnorm(r->be, flat.type, r->partials + at / NORM_CHUNK,
                           (const char *)flat.grads + (size_t)at * gt, run.count);
        }
        at += run.count;
    }
    if (shares_state(t)) {
        r->ops->all_reduce(r->be, DTYPE_F64, r->partials, chunks);
    }
    r->ops->clip(r->be, r->clip, r->partials, chunks, max_norm);
}

static void update(const struct trainer *t, struct rank *r, int slot)
{
    clip(t, r);
    if (!shares_state(t)) {
        optim_run(t, r, slot, 0, model_flat(r->model).count, 0);
        return;
    }
    struct model_flat flat = model_flat(r->model);
    const struct shards *shards = &model_plan(r->model)->shards;
    int64_t wt = flat.rest ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float);
    for (int64_t i = 0; i < t->bucket_count; i++) {
        const struct bucket *b = &t->buckets[i];
        int64_t at = b->at + rank_of(t, r) * shards->piece;
        if (at < b->at + b->count) { // else nothing is left for this rank
            struct shard_run run = shards_run(shards, at, b->at + b->count - at);
            optim_run(t, r, slot, at, at + run.count, run.at);
        }
        r->ops->mark(r->be, QUEUE_OPS, MARK_STEPPED);
        r->ops->follow(r->be, QUEUE_RANKS, MARK_STEPPED);
        r->ops->all_gather(r->be, (char *)flat.weights + b->at * wt, b->count * wt,
                           shards->piece * wt);
    }
    r->ops->mark(r->be, QUEUE_RANKS, MARK_SHARED);
    r->ops->follow(r->be, QUEUE_OPS, MARK_SHARED);
}

/* ---- sums of gradients, while the backward pass goes on ---- */

struct summing {
    const struct trainer *t;
    struct rank *r;
};

static void sum_layer(void *ctx, int64_t layer)
{
    const struct summing *s = ctx;
    struct rank *r = s->r;
    float *grads = model_flat(r->model).grads;
    bool marked = false;
    for (int64_t i = 0; i < s->t->bucket_count; i++) {
        const struct bucket *b = &s->t->buckets[i];
        if (b->layer != layer) {
            continue;
        }
        if (!marked) {
            r->ops->mark(r->be, QUEUE_OPS, MARK_GRADS);
            r->ops->follow(r->be, QUEUE_RANKS, MARK_GRADS);
            marked = true;
        }
        r->ops->reduce_scatter(r->be, grads + b->at, b->count, model_plan(r->model)->shards.piece);
    }
}

/* Forward and backward over the rank's batch, pass by pass; inv_n is one over the tokens that the
 * gradient is a mean of, which in data parallel are those of all ranks. */
static void gradients(const struct trainer *t, struct rank *r, int slot, int64_t T, double inv_n)
{
    int32_t micro = model_plan(r->model)->request.micro_batch;
    const int32_t *tokens = tokens_of(r->in[slot]);
    const int32_t *targets = targets_of(r, T, r->in[slot]);
    struct summing summing = {t, r};
    for (int32_t b = 0; b < r->batch; b += micro) {
        int32_t B = r->batch - b < micro ? r->batch - b : micro;
        bool last = b + micro >= r->batch;
        model_watch(r->model, last && shares_state(t) ? sum_layer : NULL, &summing);
        model_train_pass(r->model, r->losses + b * T, tokens + b * T, targets + b * T, B, inv_n,
                         b == 0);
    }
    model_watch(r->model, NULL, NULL);
}

static void enqueue(const struct trainer *t, struct rank *r, int slot)
{
    int64_t T = t->config.model.seq_len;
    bool apart = trains_apart(t);
    gradients(t, r, slot, T, 1.0 / (double)((apart ? r->batch : step_rows(t)) * T));
    if (shares_state(t)) {
        r->ops->mark(r->be, QUEUE_RANKS, MARK_SUMMED);
        r->ops->follow(r->be, QUEUE_OPS, MARK_SUMMED);
    } else if (!apart) {
        r->ops->all_reduce(r->be, DTYPE_F32, model_flat(r->model).grads,
                           model_flat(r->model).count);
    }
    update(t, r, slot);
    r->ops->fetch(r->be, QUEUE_OPS, r->out_host[slot], r->clip, sizeof(*r->clip));
    r->ops->fetch(r->be, QUEUE_OPS, r->out_host[slot] + HEAD, r->losses,
                  (size_t)(r->batch * T) * sizeof(float));
}

/*
 * All of it, in one call where that is kept from an earlier step. What changes from step to step is
 * in the blocks, so that the calls are the same. Ranks that sum their gradients talk to each other
 * in between, which is not kept.
 */
static void run(const struct trainer *t, struct rank *r, int slot)
{
    void **kept = &r->recording[slot];
    if (*kept && r->ops->replay(r->be, *kept)) {
        return;
    }
    r->ops->unrecord(r->be, *kept);
    *kept = NULL;
    bool alone = t->count == 1 || trains_apart(t);
    if (alone && r->records && r->ran) {
        r->ops->record(r->be);
        enqueue(t, r, slot);
        *kept = r->ops->recorded(r->be);
        if (*kept && r->ops->replay(r->be, *kept)) {
            return;
        }
        r->records = *kept != NULL;
        if (!r->records) {
            log_warn("steps cannot be recorded on this device: op by op they go on");
        }
    }
    enqueue(t, r, slot);
    r->ran = true;
}

// ---- beginning and ending -----------------------------------------------------------------------

static enum status begin_rank(struct trainer *t, int rank, void *ctx, struct err *e)
{
    (void)e;
    const double *lr = ctx;
    struct rank *r = &t->ranks[rank];
    int slot = (int)(t->begun % STEPS_BEGUN);
    int64_t T = t->config.model.seq_len;
    struct optim_step *steps = (struct optim_step *)(void *)r->in_host[slot];
    for (int i = 0; i < STEPS_BEGUN; i++) { // if the one ahead is a step, and if not
        steps[i] = optim_settings(&t->config.inner, r->t + 1 + i, *lr);
    }
    send_rows(r, slot, t->rows + rank * r->batch * (T + 1), r->batch, T);
    run(t, r, slot);
    r->ops->mark(r->be, QUEUE_OPS, MARK_STEP_OUT + slot);
    return ST_OK;
}

static enum status begin(struct trainer *t, int64_t step, struct err *e)
{
    int slot = (int)(t->begun % STEPS_BEGUN);
    int32_t rows = step_rows(t);
    t->begun_s[slot] = clock_mono_s();
    t->step_of[slot] = step;
    TRY(t->config.rows.train(t->config.rows.ctx, step, rows, t->config.model.seq_len, t->rows, e));
    TRY(check_rows(t, rows, e));
    double lr = inner_lr(&t->config.inner, step);
    TRY(ranks_run(t, begin_rank, &lr, e));
    t->begun++;
    return ST_OK;
}

/* Sum of the losses of all ranks, in the order of their rows. */
static double sum_losses(const struct trainer *t, int slot)
{
    double sum = 0.0;
    for (int i = 0; i < t->count; i++) {
        const struct rank *r = &t->ranks[i];
        const float *losses = losses_of(r, slot);
        for (int64_t k = 0; k < (int64_t)r->batch * t->config.model.seq_len; k++) {
            sum += (double)losses[k];
        }
    }
    return sum;
}

/* Wait for every rank, whatever one of them says. */
static enum status reach(struct trainer *t, int slot, struct err *e)
{
    enum status st = ST_OK;
    for (int i = 0; i < t->count; i++) {
        struct rank *r = &t->ranks[i];
        r->ops->bind(r->be);
        const char *why = r->ops->reach(r->be, MARK_STEP_OUT + slot);
        if (why && !st) {
            st = err_set(e, ST_DEVICE, "%s: %s", r->ops->name, why);
        }
    }
    lead(t)->ops->bind(lead(t)->be);
    return st;
}

static enum status end(struct trainer *t, struct step_report *out, struct err *e)
{
    int slot = (int)(t->ended++ % STEPS_BEGUN);
    int64_t step = t->step_of[slot];
    int64_t tokens = (int64_t)step_rows(t) * t->config.model.seq_len;
    TRY(reach(t, slot, e));
    bool finite = true;
    for (int i = 0; i < t->count; i++) {
        t->ranks[i].t = seen(&t->ranks[i], slot)->taken;
        finite = finite && seen(&t->ranks[i], slot)->finite;
    }
    if (trains_apart(t)) {
        t->apart = true;
        if ((step + 1) % t->config.sync_every == 0) {
            TRY(ranks_average(t, e));
        }
    }
    double since = t->begun_s[slot] > t->ended_s ? t->begun_s[slot] : t->ended_s;
    t->ended_s = clock_mono_s();
    *out = (struct step_report){.step = step,
                                .loss = sum_losses(t, slot) / (double)tokens,
                                .grad_norm = seen(lead(t), slot)->norm,
                                .lr = inner_lr(&t->config.inner, step),
                                .tokens = tokens,
                                .seconds = t->ended_s - since,
                                .finite = finite};
    return ST_OK;
}

void trainer_settle(struct trainer *t)
{
    while (trainer_begun(t)) {
        struct step_report unused;
        enum status st = end(t, &unused, NULL);
        (void)st; // a device that failed says so again
    }
}

void trainer_run_until(struct trainer *t, int64_t step)
{
    assert(t);
    t->until = step;
}

bool trainer_begun(const struct trainer *t)
{
    return t->begun > t->ended;
}

enum status trainer_step(struct trainer *t, int64_t step, struct step_report *out, struct err *e)
{
    if (!trainer_begun(t)) {
        TRY(begin(t, step, e));
    }
    assert(t->step_of[t->ended % STEPS_BEGUN] == step);
    bool averaged = trains_apart(t) && (step + 1) % t->config.sync_every == 0;
    if (t->ahead && step + 1 < t->until && !averaged) {
        // What goes wrong with the next step is for those who ask for it.
        struct err later;
        enum status st = begin(t, step + 1, &later);
        (void)st;
    }
    return end(t, out, e);
}

/* ---- evaluation ---- */

enum status eval_windows(struct trainer *t, int32_t micro, int64_t n, double *sum, struct err *e)
{
    struct rank *r = lead(t);
    int64_t T = t->config.model.seq_len;
    TRY(check_rows(t, micro, e));
    send_rows(r, 0, t->rows, micro, T);
    model_eval_pass(r->model, r->losses, tokens_of(r->in[0]), targets_of(r, T, r->in[0]), micro);
    r->ops->fetch(r->be, QUEUE_OPS, r->out_host[0] + HEAD, r->losses,
                  (size_t)(n * T) * sizeof(float));
    TRY(backend_sync(r->be, e));
    *sum = 0.0;
    for (int64_t i = 0; i < n * T; i++) {
        *sum += (double)losses_of(r, 0)[i];
    }
    return ST_OK;
}
