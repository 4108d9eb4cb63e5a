#include "client/model.h"

#include <assert.h>

#include "client/model_int.h"

/* What one pass is, handed down to its parts. */
struct pass {
    struct model *m;
    int64_t B, T, N, d;
    double inv_n;
    bool first; /* gradients are overwritten, not added to */
};

static struct pass pass_over(struct model *m, int32_t B)
{
    assert(B >= 1 && B <= m->plan.request.micro_batch);
    return (struct pass){.m = m,
                         .B = B,
                         .T = m->spec.seq_len,
                         .N = (int64_t)B * m->spec.seq_len,
                         .d = m->spec.d_model};
}

/* An activation in backend memory. */
static void *act(const struct model *m, enum act id, int64_t layer)
{
    const struct plan_tensor *t = &m->plan.act[id];
    return m->activations + t->offset + layer * t->stride;
}

/* ---- products and norms ---- */

static void linear_fwd(const struct pass *p, const struct linear *l, void *y, const void *x)
{
    struct model *m = p->m;
    struct gemm g = {
        .use = GEMM_FWD, .a_type = m->at, .bias = l->b.w != NULL, .M = p->N, .N = l->N, .K = l->K};
    m->ops->gemm(m->be, &g, y, x, l->w.w, l->b.w);
}

/* dx = dy w, and the gradients of weight and bias. */
static void linear_bwd(const struct pass *p, const struct linear *l, void *dx, const void *dy,
                       const void *x)
{
    struct model *m = p->m;
    struct gemm g = {.use = GEMM_WGRAD,
                     .a_type = m->at,
                     .accumulate = !p->first,
                     .M = p->N,
                     .N = l->N,
                     .K = l->K};
    m->ops->gemm(m->be, &g, l->w.dw, dy, x, NULL);
    if (l->b.dw) {
        m->ops->bias_bwd(m->be, m->at, l->b.dw, dy, p->N, l->N);
    }
    g.use = GEMM_DGRAD;
    g.accumulate = false;
    m->ops->gemm(m->be, &g, dx, dy, l->w.w, NULL);
}

/* The four tensors of one norm: xs = x + y, out, and the statistics. */
struct norm_acts {
    enum act xs, out, mean, rstd;
};

static const struct norm_acts NORM_1 = {ACT_X, ACT_LN1, ACT_MEAN1, ACT_RSTD1};
static const struct norm_acts NORM_2 = {ACT_MID, ACT_LN2, ACT_MEAN2, ACT_RSTD2};
static const struct norm_acts NORM_F = {ACT_END, ACT_F, ACT_MEANF, ACT_RSTDF};

static void norm_fwd(const struct pass *p, const struct norm *n, const struct norm_acts *a,
                     int64_t layer, const void *x, const void *y)
{
    struct model *m = p->m;
    m->ops->norm_fwd(m->be, m->at, act(m, a->xs, layer), act(m, a->out, layer),
                     act(m, a->mean, layer), act(m, a->rstd, layer), x, y, n->g.w, n->b.w, p->N,
                     p->d);
}

static void norm_bwd(const struct pass *p, const struct norm *n, const struct norm_acts *a,
                     int64_t layer, const void *dout)
{
    struct model *m = p->m;
    m->ops->norm_bwd(m->be, m->at, act(m, ACT_DX, 0), n->g.dw, n->b.dw, dout, act(m, a->xs, layer),
                     act(m, a->mean, layer), act(m, a->rstd, layer), n->g.w, p->N, p->d);
}

/* ---- a block ---- */

/* From the block's input, the residual stream x with y to be added, to what down_proj reads. */
static void block_fwd(const struct pass *p, int64_t layer, const void *x, const void *y)
{
    struct model *m = p->m;
    const struct block *k = &m->blocks[layer];
    void *sub = act(m, ACT_Y, 0);
    norm_fwd(p, &k->norm_1, &NORM_1, layer, x, y);
    linear_fwd(p, &k->qkv, act(m, ACT_QKV, layer), act(m, ACT_LN1, layer));
    m->ops->attn_fwd(m->be, m->at, act(m, ACT_O, layer), act(m, ACT_LSE, layer),
                     act(m, ACT_QKV, layer), m->slopes, p->B, p->T, m->spec.n_heads,
                     p->d / m->spec.n_heads);
    linear_fwd(p, &k->out, sub, act(m, ACT_O, layer));
    norm_fwd(p, &k->norm_2, &NORM_2, layer, act(m, ACT_X, layer), sub);
    linear_fwd(p, &k->up, act(m, ACT_H, layer), act(m, ACT_LN2, layer));
    m->ops->gelu_fwd(m->be, m->at, act(m, ACT_A, layer), act(m, ACT_H, layer), 4 * p->N * p->d);
}

/* Bring back what the plan did not keep. The same ops on the same inputs give the same bits. */
static void block_again(const struct pass *p, int64_t layer)
{
    struct model *m = p->m;
    const struct block *k = &m->blocks[layer];
    enum recompute level = m->plan.request.recompute;
    if (level == RECOMPUTE_BLOCK) {
        block_fwd(p, layer, act(m, ACT_X, layer), NULL);
        return;
    }
    if (level >= RECOMPUTE_NORMS) {
        norm_fwd(p, &k->norm_1, &NORM_1, layer, act(m, ACT_X, layer), NULL);
        norm_fwd(p, &k->norm_2, &NORM_2, layer, act(m, ACT_MID, layer), NULL);
    }
    if (level >= RECOMPUTE_GELU) {
        m->ops->gelu_fwd(m->be, m->at, act(m, ACT_A, layer), act(m, ACT_H, layer), 4 * p->N * p->d);
    }
}

/*
 * ACT_DX holds the gradient of the block's output and is left with that of its input. Since a sum
 * hands its gradient to both sides, it is also the gradient of each sublayer's output.
 */
static void block_bwd(const struct pass *p, int64_t layer)
{
    struct model *m = p->m;
    const struct block *k = &m->blocks[layer];
    void *dx = act(m, ACT_DX, 0);
    void *dy = act(m, ACT_DY, 0);
    void *big = act(m, ACT_BIG, 0);
    block_again(p, layer);

    linear_bwd(p, &k->down, big, dx, act(m, ACT_A, layer));
    m->ops->gelu_bwd(m->be, m->at, big, act(m, ACT_H, layer), big, 4 * p->N * p->d);
    linear_bwd(p, &k->up, dy, big, act(m, ACT_LN2, layer));
    norm_bwd(p, &k->norm_2, &NORM_2, layer, dy);

    linear_bwd(p, &k->out, dy, dx, act(m, ACT_O, layer));
    m->ops->attn_bwd(m->be, m->at, big, act(m, ACT_QKV, layer), act(m, ACT_O, layer), dy,
                     act(m, ACT_LSE, layer), m->slopes, p->B, p->T, m->spec.n_heads,
                     p->d / m->spec.n_heads);
    linear_bwd(p, &k->qkv, dy, big, act(m, ACT_LN1, layer));
    norm_bwd(p, &k->norm_1, &NORM_1, layer, dy);
}

/* ---- the whole ---- */

static void forward(const struct pass *p, const int32_t *tokens)
{
    struct model *m = p->m;
    void *x = act(m, ACT_X, 0);
    void *y = NULL; // what is still to be added to x: the next norm does it in passing
    m->ops->embed_fwd(m->be, m->at, x, tokens, m->wte.w, m->wpe.w, p->B, p->T, p->d);
    for (int64_t layer = 0; layer < m->spec.n_layers; layer++) {
        block_fwd(p, layer, x, y);
        x = act(m, ACT_MID, layer);
        y = act(m, ACT_Y, 0);
        linear_fwd(p, &m->blocks[layer].down, y, act(m, ACT_A, layer));
    }
    norm_fwd(p, &m->norm_f, &NORM_F, 0, x, y);
}

/* The products of one chunk of rows with the embedding, which is the output head too. */
static struct gemm head(const struct model *m, enum gemm_use use, int64_t rows)
{
    return (struct gemm){
        .use = use, .a_type = m->at, .M = rows, .N = m->spec.vocab_size, .K = m->spec.d_model};
}

static void *row(void *base, int64_t index, int64_t width, enum dtype t)
{
    return (char *)base + (size_t)(index * width) * dtype_size(t);
}

/* Losses, and in ACT_DY the gradient of norm_f's output. One chunk of logits is ever live. */
static void head_train(const struct pass *p, void *losses, const int32_t *targets)
{
    struct model *m = p->m;
    void *logits = act(m, ACT_BIG, 0);
    int64_t V = m->spec.vocab_size;
    for (int64_t at = 0; at < p->N; at += m->plan.chunk_rows) {
        int64_t rows = p->N - at < m->plan.chunk_rows ? p->N - at : m->plan.chunk_rows;
        const void *f = row(act(m, ACT_F, 0), at, p->d, m->at);
        struct gemm g = head(m, GEMM_FWD, rows);
        m->ops->gemm(m->be, &g, logits, f, m->wte.w, NULL);
        m->ops->xent(m->be, m->at, logits, row(losses, at, 1, m->gt), targets + at, p->inv_n, true,
                     rows, V);
        g = head(m, GEMM_WGRAD, rows);
        g.accumulate = !p->first || at > 0;
        m->ops->gemm(m->be, &g, m->wte.dw, logits, f, NULL);
        g = head(m, GEMM_DGRAD, rows);
        m->ops->gemm(m->be, &g, row(act(m, ACT_DY, 0), at, p->d, m->at), logits, m->wte.w, NULL);
    }
}

static void head_eval(const struct pass *p, void *losses, const int32_t *targets)
{
    struct model *m = p->m;
    void *logits = act(m, ACT_BIG, 0);
    int64_t chunk = m->plan.chunk_rows_eval;
    for (int64_t at = 0; at < p->N; at += chunk) {
        int64_t rows = p->N - at < chunk ? p->N - at : chunk;
        struct gemm g = head(m, GEMM_FWD, rows);
        g.out_f32 = true;
        m->ops->gemm(m->be, &g, logits, row(act(m, ACT_F, 0), at, p->d, m->at), m->wte.w, NULL);
        m->ops->xent(m->be, m->gt, logits, row(losses, at, 1, m->gt), targets + at, 0.0, false,
                     rows, m->spec.vocab_size);
    }
}

/* Gradients that ops only add to begin at zero. The others are overwritten by their product. */
static void zero_small_grads(const struct model *m)
{
    size_t size = dtype_size(m->gt);
    for (int32_t i = 0; i < m->params.count; i++) {
        const struct param *t = &m->params.items[i];
        void *dw = (char *)m->grads + (size_t)m->offsets[i] * size;
        if (t->rank == 1 || dw == m->wpe.dw) {
            m->ops->zero(m->be, dw, (size_t)t->count * size);
        }
    }
}

/* The gradients of this layer are done with, as far as this pass goes. */
static void tell(struct model *m, int64_t layer)
{
    if (m->watch) {
        m->watch(m->watch_ctx, layer);
    }
}

void model_train_pass(struct model *m, void *losses, const int32_t *tokens, const int32_t *targets,
                      int32_t B, double inv_n, bool first)
{
    struct pass p = pass_over(m, B);
    p.inv_n = inv_n;
    p.first = first;
    if (first) {
        zero_small_grads(m);
    }
    forward(&p, tokens);
    head_train(&p, losses, targets);

    void *dx = act(m, ACT_DX, 0);
    m->ops->zero(m->be, dx, (size_t)(p.N * p.d) * dtype_size(m->at));
    norm_bwd(&p, &m->norm_f, &NORM_F, 0, act(m, ACT_DY, 0));
    tell(m, m->spec.n_layers);
    for (int64_t layer = m->spec.n_layers - 1; layer >= 0; layer--) {
        block_bwd(&p, layer);
        tell(m, layer);
    }
    m->ops->embed_bwd(m->be, m->at, m->wte.dw, m->wpe.dw, tokens, dx, p.B, p.T, p.d);
    tell(m, -1);
}

void model_eval_pass(struct model *m, void *losses, const int32_t *tokens, const int32_t *targets,
                     int32_t B)
{
    struct pass p = pass_over(m, B);
    forward(&p, tokens);
    head_eval(&p, losses, targets);
}

/* ---- getting ready ---- */

static enum status ready(const struct model *m, const struct gemm *g, struct err *e)
{
    const char *text = m->ops->plan_gemm(m->be, g);
    return text ? err_set(e, ST_DEVICE, "%s: %s", m->ops->name, text) : ST_OK;
}

/* Forward, backward, and the weight's gradient both ways. */
static enum status ready_uses(const struct model *m, struct gemm g, struct err *e)
{
    TRY(ready(m, &g, e));
    g.bias = false;
    g.use = GEMM_DGRAD;
    TRY(ready(m, &g, e));
    g.use = GEMM_WGRAD;
    TRY(ready(m, &g, e));
    g.accumulate = true;
    return ready(m, &g, e);
}

/* The head's products over `total` rows in chunks: whole ones, and one that is left. */
static enum status ready_head(const struct model *m, int64_t total, int64_t chunk, bool eval,
                              struct err *e)
{
    const int64_t rows[] = {total < chunk ? total : chunk, total < chunk ? 0 : total % chunk};
    for (int i = 0; i < 2; i++) {
        struct gemm g = head(m, GEMM_FWD, rows[i]);
        g.out_f32 = eval;
        if (rows[i] > 0 && eval) {
            TRY(ready(m, &g, e));
        } else if (rows[i] > 0) {
            TRY(ready_uses(m, g, e));
        }
    }
    return ST_OK;
}

enum status model_plan_products(struct model *m, int32_t B, struct err *e)
{
    struct pass p = pass_over(m, B);
    const struct block *k = &m->blocks[0]; // all blocks have the same shapes
    const struct linear *const layers[] = {&k->qkv, &k->out, &k->up, &k->down};
    for (size_t i = 0; i < sizeof(layers) / sizeof(layers[0]); i++) {
        struct gemm g = {.use = GEMM_FWD,
                         .a_type = m->at,
                         .bias = layers[i]->b.w != NULL,
                         .M = p.N,
                         .N = layers[i]->N,
                         .K = layers[i]->K};
        TRY(ready_uses(m, g, e));
    }
    TRY(ready_head(m, p.N, m->plan.chunk_rows, false, e));
    return ready_head(m, p.N, m->plan.chunk_rows_eval, true, e);
}
