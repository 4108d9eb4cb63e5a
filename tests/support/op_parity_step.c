#include "tests/support/op_parity.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "kernels/backend.h"
#include "kernels/ref/ops.h"
#include "tests/support/check.h"
#include "tests/support/op_kit.h"

// ---- attention ----------------------------------------------------------------------------------

struct attn_case {
    enum dtype t;
    int64_t B, T, H, D;
    bool alibi;
};

static float *draw_slopes(float slopes[64], int64_t H)
{
    for (int64_t h = 0; h < H; h++) {
        slopes[h] = exp2f(-0.7f * (float)(h + 1));
    }
    return to_device(slopes, (size_t)H * sizeof(float));
}

static void check_attn(struct attn_case k)
{
    enum dtype t = k.t;
    int64_t n = k.B * k.T * k.H * k.D;
    float slopes[64];
    float *dev_slopes = draw_slopes(slopes, k.H);
    const float *s = k.alibi ? slopes : NULL;
    const float *ds = k.alibi ? dev_slopes : NULL;
    struct pair qkv = draw(t, 3 * n, 0, 1, 1);
    struct pair dout = draw(t, n, 0, 1, 2);
    struct result o = expect(t, n, NULL);
    struct result lse = expect(wide(t), k.B * k.H * k.T, NULL);
    op_be->ops->attn_fwd(op_be, t, o.dev, lse.dev, qkv.dev, ds, k.B, k.T, k.H, k.D);
    op_ref->ops->attn_fwd(op_ref, t, o.ref, lse.ref, qkv.a, s, k.B, k.T, k.H, k.D);
    op_ref->ops->attn_fwd(op_ref, DTYPE_F64, o.truth, lse.truth, qkv.d, s, k.B, k.T, k.H, k.D);
    fetch(&lse);
    double worst = 0;
    for (int64_t i = 0; i < lse.n; i++) {
        worst = fmax(worst, fabs(ref_load(lse.got, lse.t, i) - lse.truth[i]));
    }
    char what[96];
    (void)snprintf(what, sizeof(what), "attention %s B %d T %d H %d D %d alibi %d", name_of(t),
                   (int)k.B, (int)k.T, (int)k.H, (int)k.D, k.alibi);
    bool bf16 = t == DTYPE_BF16;
    bool forward = good(&o, what, k.T, bf16 ? 5e-3 : 2e-5);

    // Backward is judged on its own, from the forward results of the reference.
    struct result dqkv = expect(t, 3 * n, NULL);
    void *dev_o = to_device(o.ref, (size_t)n * dtype_size(t));
    void *dev_lse = to_device(lse.ref, (size_t)lse.n * dtype_size(lse.t));
    op_be->ops->attn_bwd(op_be, t, dqkv.dev, qkv.dev, dev_o, dout.dev, dev_lse, ds, k.B, k.T, k.H,
                         k.D);
    op_ref->ops->attn_bwd(op_ref, t, dqkv.ref, qkv.a, o.ref, dout.a, lse.ref, s, k.B, k.T, k.H,
                          k.D);
    op_ref->ops->attn_bwd(op_ref, DTYPE_F64, dqkv.truth, qkv.d, o.truth, dout.d, lse.truth, s, k.B,
                          k.T, k.H, k.D);
    if (worst > 2e-5) {
        (void)fprintf(stderr, "%s: lse is off by %.3g\n", what, worst);
    }
    judge(&dqkv, what, k.T, bf16 ? 1e-2 : 2e-5);
    CHECK(forward);
    CHECK(worst <= 2e-5);
    drop(&qkv);
    drop(&dout);
    forget(&o);
    forget(&lse);
    release(dev_o);
    release(dev_lse);
    release(dev_slopes);
}

static bool all_shapes; // of attention, or those of Hopper's kernels

static void attention_is_right_forward_and_backward(void)
{
    static const int64_t cases[][4] = {
        {1, 1, 1, 8},     {2, 7, 3, 16},    {3, 65, 1, 32},   {1, 140, 2, 6},  {1, 70, 2, 5},
        {1, 70, 1, 256},  {1, 1, 1, 64},    {2, 7, 3, 64},    {1, 64, 5, 64},  {1, 65, 3, 64},
        {2, 129, 2, 64},  {1, 257, 3, 64},  {1, 1, 2, 128},   {2, 33, 1, 128}, {1, 64, 1, 128},
        {1, 130, 3, 128}, {1, 600, 2, 64},  {1, 600, 1, 128}, {1, 65, 12, 64}, {1, 65, 20, 128},
        {1, 2048, 1, 64}, {1, 2048, 1, 128}};
    for (int i = 0; i < OP_DTYPES; i++) {
        for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
            struct attn_case c = {op_dtypes[i], cases[k][0], cases[k][1],
                                  cases[k][2],  cases[k][3], false};
            if (!all_shapes && (c.t != DTYPE_BF16 || (c.D != 64 && c.D != 128))) {
                continue;
            }
            if (op_scale != OP_LARGE && (c.T > 600 || c.H > 5)) {
                continue;
            }
            if (op_scale == OP_SMALL &&
                ((c.T > 300 && c.t == DTYPE_F32) || (c.t == DTYPE_F32 && c.T * c.D > 130 * 64))) {
                continue;
            }
            check_attn(c);
            c.alibi = true;
            check_attn(c);
        }
    }
}

static void check_causality(enum dtype t)
{
    enum { T = 150, H = 2, D = 64, N = T * H * D, CHANGED = 97, ROW = H * D };
    size_t e = dtype_size(t);
    struct pair qkv = draw(t, 3 * N, 0, 1, 1);
    struct result before = expect(t, N, NULL);
    struct result after = expect(t, N, NULL);
    struct result lse = expect(DTYPE_F32, T * H, NULL);
    op_be->ops->attn_fwd(op_be, t, before.dev, lse.dev, qkv.dev, NULL, 1, T, H, D);
    for (int i = 0; i < 3 * ROW; i++) {
        ref_store(qkv.a, t, CHANGED * 3 * ROW + i, 50.0);
    }
    op_be->ops->put(op_be, qkv.dev, qkv.a, 3 * N * e);
    op_be->ops->attn_fwd(op_be, t, after.dev, lse.dev, qkv.dev, NULL, 1, T, H, D);
    fetch(&before);
    fetch(&after);
    const char *a = before.got;
    const char *b = after.got;
    bool same = memcmp(a, b, CHANGED * ROW * e) == 0;
    bool moved = memcmp(a + CHANGED * ROW * e, b + CHANGED * ROW * e, ROW * e) != 0;
    drop(&qkv);
    forget(&before);
    forget(&after);
    forget(&lse);
    CHECK(same);
    CHECK(moved);
}

static void a_later_token_changes_no_earlier_row(void)
{
    for (int i = 0; i < OP_DTYPES; i++) {
        check_causality(op_dtypes[i]);
    }
}

// ---- cross-entropy ------------------------------------------------------------------------------

static void check_xent(enum dtype t, int64_t rows, int64_t V, double sigma)
{
    struct pair logits = draw(t, rows * V, 0, sigma, 1);
    int32_t *targets = mem_alloc((size_t)rows * sizeof(*targets));
    for (int64_t r = 0; r < rows; r++) {
        targets[r] = r % 5 == 3 ? -1 : (int32_t)(rng_u64(3, (uint64_t)r) % (uint64_t)V);
    }
    int32_t *ids = to_device(targets, (size_t)rows * sizeof(*targets));
    struct result grad = expect(t, rows * V, &logits);
    struct result loss = expect(wide(t), rows, NULL);
    struct result eval = expect(wide(t), rows, NULL);
    double inv_n = 1.0 / 64;
    op_be->ops->xent(op_be, t, grad.dev, eval.dev, ids, inv_n, false, rows, V);
    op_ref->ops->xent(op_ref, t, grad.ref, eval.ref, targets, inv_n, false, rows, V);
    op_ref->ops->xent(op_ref, DTYPE_F64, grad.truth, eval.truth, targets, inv_n, false, rows, V);
    fetch(&grad);
    bool untouched = memcmp(grad.got, logits.a, (size_t)grad.n * dtype_size(t)) == 0;
    op_be->ops->xent(op_be, t, grad.dev, loss.dev, ids, inv_n, true, rows, V);
    op_ref->ops->xent(op_ref, t, grad.ref, loss.ref, targets, inv_n, true, rows, V);
    op_ref->ops->xent(op_ref, DTYPE_F64, grad.truth, loss.truth, targets, inv_n, true, rows, V);
    fetch(&grad);
    double worst = 0;
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t v = 0; v < V; v++) {
            sum += ref_load(grad.got, t, r * V + v);
        }
        worst = fmax(worst, fabs(sum) / inv_n);
    }
    judge(&loss, "loss", 1, 1e-5);
    judge(&eval, "loss of evaluation", 1, 1e-5);
    judge(&grad, "dlogits", 1, cap_of(t));
    drop(&logits);
    mem_free(targets);
    release(ids);
    CHECK(untouched);
    CHECK_NEAR(worst, 0, t == DTYPE_BF16 ? 4e-3 : 1e-5);
}

static void losses_and_their_gradients_are_right(void)
{
    for (int i = 0; i < OP_DTYPES; i++) {
        check_xent(op_dtypes[i], 1, 257, 1);
        check_xent(op_dtypes[i], 77, 257, 25); // logits to +-80 and beyond
        check_xent(op_dtypes[i], 77, 264, 25); // moved 16 bytes at a time
        check_xent(op_dtypes[i], 77, 1, 1);
        check_xent(op_dtypes[i], 3, 50368, 2);
        check_xent(op_dtypes[i], 1, 120000, 2); // too long for shared memory
    }
}

// ---- the step -----------------------------------------------------------------------------------

/* m, v, g and w, each n fp32, and w again as a split master: on the host, or on the device. */
struct step_state {
    float *m, *v, *g, *w;
    uint16_t *high, *rest;
};

static void state_fill(struct step_state *s, int64_t n)
{
    float **const all[] = {&s->m, &s->v, &s->g, &s->w};
    for (int i = 0; i < 4; i++) {
        *all[i] = mem_alloc((size_t)n * sizeof(float));
    }
    s->high = mem_alloc((size_t)n * sizeof(uint16_t));
    s->rest = mem_alloc((size_t)n * sizeof(uint16_t));
    for (int64_t i = 0; i < n; i++) {
        s->m[i] = (float)normal(2, i) * 0.01f;
        s->v[i] = (float)fabs(normal(3, i)) * 1e-4f * (float)(i % 3); // zeros among them
        s->g[i] = (float)normal(4, i) * 0.1f;
        s->w[i] = (float)normal(1, i);
        master_split(s->w[i], &s->high[i], &s->rest[i]);
    }
}

static void state_free(struct step_state *s)
{
    void *const all[] = {s->m, s->v, s->g, s->w, s->high, s->rest};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        mem_free(all[i]);
    }
}

static bool equals_device(const void *host, const void *dev, size_t size)
{
    void *got = mem_alloc(size);
    op_be->ops->get(op_be, got, dev, size);
    bool same = memcmp(host, got, size) == 0;
    mem_free(got);
    return same;
}

/* One step of a master that is whole or split, the first of two or the second, and one that must
 * leave everything be. */
static bool step_agrees(const struct optim_step step[2], bool split, int64_t taken, int64_t n)
{
    struct step_state s;
    state_fill(&s, n);
    size_t size = (size_t)n * sizeof(float);
    struct clip_state clip = {.norm = 3, .factor = 1.0 / 3, .finite = 1, .taken = taken};
    struct clip_state *dev_clip = to_device(&clip, sizeof(clip));
    void *w = split ? (void *)s.high : (void *)s.w;
    size_t w_size = split ? size / 2 : size;
    float *dm = to_device(s.m, size);
    float *dv = to_device(s.v, size);
    float *dg = to_device(s.g, size);
    void *dw = to_device(w, w_size);
    uint16_t *drest = to_device(s.rest, size / 2);
    struct optim_step *dev_step = to_device(step, 2 * sizeof(*step));
    op_be->ops->optim(op_be, DTYPE_F32, dev_step, dev_clip, dw, split ? drest : NULL, dm, dv, dg,
                      n);
    op_ref->ops->optim(op_ref, DTYPE_F32, step, &clip, w, split ? s.rest : NULL, s.m, s.v, s.g, n);
    clip.finite = 0;
    op_be->ops->put(op_be, dev_clip, &clip, sizeof(clip));
    op_be->ops->optim(op_be, DTYPE_F32, dev_step, dev_clip, dw, split ? drest : NULL, dm, dv, dg,
                      n);
    bool same = equals_device(w, dw, w_size) && equals_device(s.m, dm, size) &&
                equals_device(s.v, dv, size) && equals_device(s.rest, drest, size / 2);
    void *const all[] = {dm, dv, dg, dw, drest, dev_clip, dev_step};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        release(all[i]);
    }
    state_free(&s);
    return same;
}

static struct optim_step step_at(enum optim_kind kind, int64_t t, double lr)
{
    return (struct optim_step){.kind = kind,
                               .t = t,
                               .lr = lr,
                               .decay = 1e-4,
                               .beta1 = 0.9,
                               .beta2 = 0.95,
                               .eps = 1e-8,
                               .bias1 = 1 - pow(0.9, (double)t),
                               .bias2 = 1 - pow(0.95, (double)t),
                               .clamp = pow((double)(t - 1), 0.25)};
}

bool op_parity_optim(enum optim_kind kind, int64_t t, int64_t n)
{
    const struct optim_step steps[2] = {step_at(kind, t, 6e-4), step_at(kind, t + 1, 3e-4)};
    return step_agrees(steps, false, 0, n) && step_agrees(steps, true, t, n) &&
           step_agrees(steps, false, t + 1, n) && step_agrees(steps, true, t + 1, n);
}

static void an_optimizer_step_has_the_bits_of_the_reference(void)
{
    static const int64_t sizes[] = {1, 7, 4096, (1 << 18) + 3};
    static const int64_t times[] = {1, 2, 1000};
    for (int kind = 0; kind < OPTIM_COUNT; kind++) {
        for (int i = 0; i < 4; i++) {
            for (int k = 0; k < 3; k++) {
                CHECK(op_parity_optim((enum optim_kind)kind, times[k], sizes[i]));
            }
        }
    }
}

static void the_norm_is_summed_by_chunks_and_clips(void)
{
    enum { N = 3 * NORM_CHUNK + 17 };
    float *g = mem_alloc(N * sizeof(*g));
    for (int i = 0; i < N; i++) {
        g[i] = (float)normal(8, i);
    }
    double ours[4];
    double theirs[4];
    float *dev_g = to_device(g, N * sizeof(*g));
    double *dev_parts = to_device(theirs, sizeof(theirs));
    struct clip_state a = {.taken = 5};
    struct clip_state b = a;
    struct clip_state *dev_clip = to_device(&a, sizeof(a));
    op_be->ops->sqnorm(op_be, DTYPE_F32, dev_parts, dev_g, N);
    op_be->ops->get(op_be, ours, dev_parts, sizeof(ours));
    op_ref->ops->sqnorm(op_ref, DTYPE_F32, theirs, g, N);
    for (int i = 0; i < 4; i++) {
        CHECK_NEAR(ours[i], theirs[i], 1e-12);
    }
    op_be->ops->put(op_be, dev_parts, theirs, sizeof(theirs));
    const double limits[] = {1.0, 1e9, HUGE_VAL};
    for (int i = 0; i < 3; i++) {
        op_be->ops->clip(op_be, dev_clip, dev_parts, 4, limits[i]);
        op_be->ops->get(op_be, &a, dev_clip, sizeof(a));
        op_ref->ops->clip(op_ref, &b, theirs, 4, limits[i]);
        CHECK_MEM(&a, &b, sizeof(a));
    }
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        op_be->ops->put(op_be, dev_g + NORM_CHUNK + 5, &bad[i], sizeof(bad[i]));
        op_be->ops->sqnorm(op_be, DTYPE_F32, dev_parts, dev_g, N);
        op_be->ops->clip(op_be, dev_clip, dev_parts, 4, 1.0);
        op_be->ops->get(op_be, &a, dev_clip, sizeof(a));
        CHECK_INT(a.finite, 0);
    }
    mem_free(g);
    release(dev_g);
    release(dev_parts);
    release(dev_clip);
}

// ---- memory -------------------------------------------------------------------------------------

static void memory_is_zeroed_aligned_and_refused_when_it_is_not_there(void)
{
    enum { SIZE = 5000 };
    unsigned char bytes[SIZE];
    unsigned char ones[SIZE];
    memset(ones, 1, sizeof(ones));
    void *p = op_be->ops->alloc(op_be, SIZE);
    CHECK(p != NULL);
    CHECK_INT((uintptr_t)p % 256, 0);
    op_be->ops->get(op_be, bytes, p, SIZE);
    for (int i = 0; i < SIZE; i++) {
        CHECK_INT(bytes[i], 0);
    }
    op_be->ops->put(op_be, p, ones, SIZE);
    op_be->ops->zero(op_be, (char *)p + 100, SIZE - 200);
    op_be->ops->get(op_be, bytes, p, SIZE);
    CHECK(bytes[99] == 1 && bytes[100] == 0 && bytes[SIZE - 101] == 0 && bytes[SIZE - 100] == 1);
    release(p);
    CHECK(op_be->ops->alloc(op_be, SIZE_MAX / 4) == NULL);
    CHECK(op_be->ops->sync(op_be) == NULL); // a refusal is no failure that sticks
    p = op_be->ops->alloc(op_be, 0);
    CHECK(p != NULL);
    release(p);
    CHECK(op_be->ops->supports(op_be, DTYPE_F32));
    CHECK(!op_be->ops->supports(op_be, DTYPE_F64));
}

static bool attention_repeats(const struct attn_case *k)
{
    int64_t n = k->B * k->T * k->H * k->D;
    float slopes[64];
    float *dev_slopes = draw_slopes(slopes, k->H);
    struct pair qkv = draw(k->t, 3 * n, 0, 1, 1);
    struct pair dout = draw(k->t, n, 0, 1, 2);
    struct result all[2][3];
    bool same = true;
    for (int i = 0; i < 2; i++) {
        struct result *o = &all[i][0];
        struct result *lse = &all[i][1];
        struct result *dqkv = &all[i][2];
        *o = expect(k->t, n, NULL);
        *lse = expect(wide(k->t), k->B * k->H * k->T, NULL);
        *dqkv = expect(k->t, 3 * n, NULL);
        op_be->ops->attn_fwd(op_be, k->t, o->dev, lse->dev, qkv.dev, dev_slopes, k->B, k->T, k->H,
                             k->D);
        op_be->ops->attn_bwd(op_be, k->t, dqkv->dev, qkv.dev, o->dev, dout.dev, lse->dev,
                             dev_slopes, k->B, k->T, k->H, k->D);
        for (int r = 0; r < 3; r++) {
            fetch(&all[i][r]);
        }
    }
    for (int r = 0; r < 3; r++) {
        struct result *a = &all[0][r];
        struct result *b = &all[1][r];
        same = same && memcmp(a->got, b->got, (size_t)a->n * dtype_size(a->t)) == 0;
        forget(a);
        forget(b);
    }
    drop(&qkv);
    drop(&dout);
    release(dev_slopes);
    return same;
}

/* Several tiles of each kind, two heads side by side; whoever arrives first must not show. */
static void attention_gives_the_same_bits_again(void)
{
    int64_t T = op_scale > OP_SMALL ? 1500 : 150;
    for (int64_t D = 64; D <= 128; D += 64) {
        struct attn_case k = {DTYPE_BF16, 1, T, 2, D, true};
        CHECK(attention_repeats(&k));
    }
}

/* Atomics, tuning and order of arrival must not show. */
static void the_same_ops_give_the_same_bits_again(void)
{
    enum { B = 2, H = 2, D = 64, C = H * D, T_MAX = 700, V = 50 };
    int64_t T = op_scale > OP_SMALL ? T_MAX : 65;
    int64_t N = B * T;
    struct pair qkv = draw(DTYPE_BF16, N * 3 * C, 0, 1, 1);
    struct pair x = draw(DTYPE_BF16, N * C, 0, 1, 2);
    static int32_t tokens[B * T_MAX];
    for (int64_t i = 0; i < N; i++) {
        tokens[i] = (int32_t)(rng_u64(4, (uint64_t)i) % 20);
    }
    int32_t *ids = to_device(tokens, sizeof(tokens));
    struct result dqkv[2];
    struct result dwte[2];
    struct result dw[2];
    for (int i = 0; i < 2; i++) {
        struct result o = expect(DTYPE_BF16, N * C, NULL);
        struct result lse = expect(DTYPE_F32, N * H, NULL);
        dqkv[i] = expect(DTYPE_BF16, N * 3 * C, NULL);
        dwte[i] = expect(DTYPE_F32, (int64_t)V * C, NULL);
        dw[i] = expect(DTYPE_F32, (int64_t)3 * C * C, NULL);
        struct gemm g = {GEMM_WGRAD, DTYPE_BF16, false, false, false, N, 3 * C, C};
        op_be->ops->attn_fwd(op_be, DTYPE_BF16, o.dev, lse.dev, qkv.dev, NULL, B, T, H, D);
        op_be->ops->attn_bwd(op_be, DTYPE_BF16, dqkv[i].dev, qkv.dev, o.dev, x.dev, lse.dev, NULL,
                             B, T, H, D);
        op_be->ops->embed_bwd(op_be, DTYPE_BF16, dwte[i].dev, NULL, ids, x.dev, B, T, C);
        op_be->ops->gemm(op_be, &g, dw[i].dev, qkv.dev, x.dev, NULL);
        fetch(&dqkv[i]);
        fetch(&dwte[i]);
        fetch(&dw[i]);
        forget(&o);
        forget(&lse);
    }
    bool same = memcmp(dqkv[0].got, dqkv[1].got, (size_t)dqkv[0].n * 2) == 0 &&
                memcmp(dwte[0].got, dwte[1].got, (size_t)dwte[0].n * 4) == 0 &&
                memcmp(dw[0].got, dw[1].got, (size_t)dw[0].n * 4) == 0;
    for (int i = 0; i < 2; i++) {
        forget(&dqkv[i]);
        forget(&dwte[i]);
        forget(&dw[i]);
    }
    drop(&qkv);
    drop(&x);
    release(ids);
    CHECK(same);
}

/* What is kept is done again on what memory holds by then, and not done while it is kept. */
static void what_is_recorded_is_done_again(void)
{
    struct backend_caps caps;
    op_be->ops->caps(op_be, &caps);
    if (!caps.records) {
        SKIP("this backend keeps nothing (PHOTON_CUDA_GRAPHS=1 where it could)");
    }
    enum { N = 5000, ROUNDS = 3 };
    struct pair h = draw(DTYPE_F32, N, 0, 1, 1);
    struct pair da = draw(DTYPE_F32, N, 0, 1, 2);
    struct result a = expect(DTYPE_F32, N, NULL);
    struct result db = expect(DTYPE_F32, 50, NULL);
    float *host = op_be->ops->pin(op_be, N * sizeof(float));
    CHECK(host != NULL);
    op_be->ops->bias_bwd(op_be, DTYPE_F32, db.dev, da.dev, 100, 50);
    op_ref->ops->bias_bwd(op_ref, DTYPE_F32, db.ref, da.a, 100, 50);
    // Once before: a kernel may be loaded at its first use, which no recording takes.
    op_be->ops->gelu_fwd(op_be, DTYPE_F32, a.dev, h.dev, N);
    op_be->ops->zero(op_be, a.dev, N * sizeof(float));
    op_be->ops->record(op_be);
    op_be->ops->gelu_fwd(op_be, DTYPE_F32, a.dev, h.dev, N);
    op_be->ops->bias_bwd(op_be, DTYPE_F32, db.dev, a.dev, 100, 50);
    op_be->ops->fetch(op_be, QUEUE_OPS, host, a.dev, N * sizeof(float));
    void *kept = op_be->ops->recorded(op_be);
    CHECK(kept != NULL);
    fetch(&a);
    CHECK(((float *)a.got)[0] == 0.0F && ((float *)a.got)[N - 1] == 0.0F);
    for (int i = 0; i < ROUNDS; i++) {
        op_be->ops->put(op_be, h.dev, i % 2 ? h.a : da.a, N * sizeof(float));
        CHECK(op_be->ops->replay(op_be, kept));
        CHECK(op_be->ops->sync(op_be) == NULL);
        op_ref->ops->gelu_fwd(op_ref, DTYPE_F32, a.ref, i % 2 ? h.a : da.a, N);
        op_ref->ops->bias_bwd(op_ref, DTYPE_F32, db.ref, a.ref, 100, 50);
        fetch(&a);
        CHECK_MEM(host, a.got, N * sizeof(float));
        for (int k = 0; k < N; k++) {
            CHECK_NEAR(host[k], ((float *)a.ref)[k], 1e-6);
        }
    }
    fetch(&db);
    for (int k = 0; k < 50; k++) {
        CHECK_NEAR(((float *)db.got)[k], ((float *)db.ref)[k], 1e-4);
    }
    op_be->ops->unrecord(op_be, kept);
    op_be->ops->unrecord(op_be, NULL);
    op_be->ops->unpin(op_be, host);
    drop(&h);
    drop(&da);
    forget(&a);
    forget(&db);
}

void op_parity_attention(bool all)
{
    all_shapes = all;
    RUN(attention_is_right_forward_and_backward);
    RUN(a_later_token_changes_no_earlier_row);
    RUN(attention_gives_the_same_bits_again);
}

void op_parity_step(void)
{
    op_parity_attention(true);
    RUN(losses_and_their_gradients_are_right);
    RUN(an_optimizer_step_has_the_bits_of_the_reference);
    RUN(the_norm_is_summed_by_chunks_and_clips);
    RUN(memory_is_zeroed_aligned_and_refused_when_it_is_not_there);
    RUN(the_same_ops_give_the_same_bits_again);
    RUN(what_is_recorded_is_done_again);
}
