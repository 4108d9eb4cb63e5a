/*
 * test_ref.c - the reference against textbooks: known values, identities and central differences.
 *
 * What judges the other backends must not be judged by them. Everything here runs in F64, where an
 * op has no rounding of its own, save the tests of rounding itself.
 */
#include "kernels/ref/ops.h"

#include <math.h>

#include "common/mem.h"
#include "common/rng.h"
#include "tests/support/check.h"

static const struct backend_ops *op;
static struct backend *be;

static void fill(double *x, int64_t n, uint64_t key)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] = rng_normal(key, (uint64_t)i);
    }
}

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

/* Each element of g is the slope of f along that element of x. */
static void check_slopes(double (*f)(void), double *x, const double *g, int64_t n)
{
    const double STEP = 1e-5;
    for (int64_t i = 0; i < n; i++) {
        double at = x[i];
        x[i] = at + STEP;
        double up = f();
        x[i] = at - STEP;
        double down = f();
        x[i] = at;
        CHECK_NEAR(g[i], (up - down) / (2.0 * STEP), 1e-8);
    }
}

/* ---- products ---- */

static void a_product_is_rows_times_rows(void)
{
    static const double x[] = {1, 2, 3, 4, 5, 6};
    static const double w[] = {7, 9, 11, 8, 10, 12};
    static const double bias[] = {0.5, -0.5};
    static const double want[] = {58.5, 63.5, 139.5, 153.5};
    double y[4];
    struct gemm g = {.use = GEMM_FWD, .a_type = DTYPE_F64, .bias = true, .M = 2, .N = 2, .K = 3};
    op->gemm(be, &g, y, x, w, bias);
    CHECK_MEM(y, want, sizeof(want));
}

static void both_gradients_of_a_product_are_its_adjoints(void)
{
    enum { M = 5, N = 7, K = 3 };
    double x[M * K], w[N * K], dy[M * N], y[M * N], dx[M * K], dw[N * K];
    fill(x, M * K, 1);
    fill(w, N * K, 2);
    fill(dy, M * N, 3);
    struct gemm g = {.use = GEMM_FWD, .a_type = DTYPE_F64, .M = M, .N = N, .K = K};
    op->gemm(be, &g, y, x, w, NULL);
    g.use = GEMM_DGRAD;
    op->gemm(be, &g, dx, dy, w, NULL);
    g.use = GEMM_WGRAD;
    op->gemm(be, &g, dw, dy, x, NULL);
    double want = dot(dy, y, (int64_t)M * N); // <dy, x w'> = <dy w, x> = <dy' x, w>
    CHECK_NEAR(dot(dx, x, (int64_t)M * K), want, 1e-13);
    CHECK_NEAR(dot(dw, w, (int64_t)N * K), want, 1e-13);

    g.accumulate = true;
    op->gemm(be, &g, dw, dy, x, NULL);
    CHECK_NEAR(dot(dw, w, (int64_t)N * K), 2.0 * want, 1e-13);

    double db[N] = {0};
    op->bias_bwd(be, DTYPE_F64, db, dy, M, N);
    op->bias_bwd(be, DTYPE_F64, db, dy, M, N);
    double column = 0.0;
    for (int m = 0; m < M; m++) {
        column += dy[m * N + 2];
    }
    CHECK_NEAR(db[2], 2.0 * column, 1e-14);
}

/* ---- norm ---- */

enum { NN = 3, NC = 9 };

static struct {
    double x[NN * NC], y[NN * NC], g[NC], b[NC], dout[NN * NC];
    double xs[NN * NC], out[NN * NC], mean[NN], rstd[NN];
} norm;

static double norm_loss(void)
{
    op->norm_fwd(be, DTYPE_F64, norm.xs, norm.out, norm.mean, norm.rstd, norm.x, norm.y, norm.g,
                 norm.b, NN, NC);
    return dot(norm.out, norm.dout, (int64_t)NN * NC);
}

static void a_norms_gradients_are_its_slopes(void)
{
    double dx[NN * NC] = {0}, dg[NC] = {0}, db[NC] = {0};
    fill(norm.x, (int64_t)NN * NC, 1);
    fill(norm.y, (int64_t)NN * NC, 2);
    fill(norm.g, NC, 3);
    fill(norm.b, NC, 4);
    fill(norm.dout, (int64_t)NN * NC, 5);
    (void)norm_loss();
    op->norm_bwd(be, DTYPE_F64, dx, dg, db, norm.dout, norm.xs, norm.mean, norm.rstd, norm.g, NN,
                 NC);
    check_slopes(norm_loss, norm.x, dx, (int64_t)NN * NC);
    check_slopes(norm_loss, norm.y, dx, (int64_t)NN * NC);
    check_slopes(norm_loss, norm.g, dg, NC);
    check_slopes(norm_loss, norm.b, db, NC);

    // It adds, to the residual's gradient as to the parameters'.
    double twice[NN * NC];
    memcpy(twice, dx, sizeof(dx));
    op->norm_bwd(be, DTYPE_F64, twice, dg, NULL, norm.dout, norm.xs, norm.mean, norm.rstd, norm.g,
                 NN, NC);
    CHECK_NEAR(twice[4], 2.0 * dx[4], 1e-14);
}

static void normed_rows_have_mean_zero_and_variance_one(void)
{
    fill(norm.x, (int64_t)NN * NC, 1);
    for (int c = 0; c < NC; c++) {
        norm.g[c] = 1.0;
        norm.x[c] = 1000.0 + norm.x[c]; // a mean that would cancel in one pass
        norm.x[NC + c] = 3.0;           // a row without variance
    }
    op->norm_fwd(be, DTYPE_F64, norm.x, norm.out, norm.mean, norm.rstd, norm.x, NULL, norm.g, NULL,
                 NN, NC);
    CHECK_NEAR(dot(norm.out, norm.g, NC), 0.0, 1e-9);
    CHECK_NEAR(dot(norm.out, norm.out, NC) / NC, 1.0, 1e-4);
    CHECK_NEAR(norm.rstd[1], 1.0 / sqrt(1e-5), 1e-12);
    CHECK(norm.out[NC] == 0.0);
}

/* ---- gelu ---- */

static double gelu_x[5] = {-30.0, -1.0, 0.0, 0.3, 4.0};

static double gelu_sum(void)
{
    double a[5];
    op->gelu_fwd(be, DTYPE_F64, a, gelu_x, 5);
    return a[0] + a[1] + a[2] + a[3] + a[4];
}

static void gelu_is_the_erf_form_and_not_the_tanh_form(void)
{
    double x[] = {1.0, -1.0, 2.5};
    double a[3];
    op->gelu_fwd(be, DTYPE_F64, a, x, 3);
    CHECK_NEAR(a[0], 0.84134474606854294, 1e-15); // the normal distribution's own tables
    CHECK_NEAR(a[1], -0.15865525393145707, 1e-15);
    CHECK_NEAR(a[2], 2.5 * 0.99379033467422384, 1e-15);
    double tanh_form = 0.5 * 2.5 * (1.0 + tanh(0.7978845608 * (2.5 + 0.044715 * 15.625)));
    CHECK(fabs(tanh_form - a[2]) > 1e-4);

    double da[5] = {1, 1, 1, 1, 1};
    op->gelu_bwd(be, DTYPE_F64, da, gelu_x, da, 5); // in place
    check_slopes(gelu_sum, gelu_x, da, 5);
}

/* ---- attention ---- */

enum { AB = 2, AT = 5, AH = 2, AD = 4, AROW = AH * AD };

static struct {
    double qkv[AB * AT * 3 * AROW], o[AB * AT * AROW], dout[AB * AT * AROW], lse[AB * AH * AT];
    const float *slopes;
} attn;

static double attn_loss(void)
{
    op->attn_fwd(be, DTYPE_F64, attn.o, attn.lse, attn.qkv, attn.slopes, AB, AT, AH, AD);
    return dot(attn.o, attn.dout, (int64_t)AB * AT * AROW);
}

static void attentions_gradients_are_its_slopes(void)
{
    static const float slopes[AH] = {0.5F, 0.0625F};
    for (int alibi = 0; alibi < 2; alibi++) {
        double dqkv[AB * AT * 3 * AROW];
        fill(attn.qkv, (int64_t)AB * AT * 3 * AROW, 1);
        fill(attn.dout, (int64_t)AB * AT * AROW, 2);
        attn.slopes = alibi ? slopes : NULL;
        (void)attn_loss();
        op->attn_bwd(be, DTYPE_F64, dqkv, attn.qkv, attn.o, attn.dout, attn.lse, attn.slopes, AB,
                     AT, AH, AD);
        check_slopes(attn_loss, attn.qkv, dqkv, (int64_t)AB * AT * 3 * AROW);
    }
}

static void without_scores_attention_is_the_mean_of_the_past(void)
{
    memset(attn.qkv, 0, sizeof(attn.qkv));
    for (int t = 0; t < AT; t++) {
        attn.qkv[(t * 3 + 2) * AROW] = t; // v of the first sequence, head and channel
    }
    attn.slopes = NULL;
    (void)attn_loss();
    for (int t = 0; t < AT; t++) {
        CHECK_NEAR(attn.o[t * AROW], t / 2.0, 1e-14);
        CHECK_NEAR(attn.lse[t], log(t + 1), 1e-14);
    }

    static const float slopes[AH] = {0.5F, 0.25F};
    attn.slopes = slopes; // now the past fades by exp(-1/2) per step
    (void)attn_loss();
    double fade = exp(-0.5);
    CHECK_NEAR(attn.o[AROW], 1.0 / (1.0 + fade), 1e-14);
    CHECK_NEAR(attn.lse[2], log(1.0 + fade + fade * fade), 1e-14);
}

/* ---- cross-entropy ---- */

enum { XR = 4, XV = 6 };

static double xent_logits[XR * XV];
static const int32_t xent_targets[XR] = {0, 5, -1, 2};

static double xent_loss(void)
{
    double copy[XR * XV], loss[XR];
    memcpy(copy, xent_logits, sizeof(copy));
    op->xent(be, DTYPE_F64, copy, loss, xent_targets, 0.0, false, XR, XV);
    CHECK_MEM(copy, xent_logits, sizeof(copy)); // evaluation leaves the logits alone
    CHECK(loss[2] == 0.0);
    return loss[0] + loss[1] + loss[3];
}

static void cross_entropys_gradient_is_its_slope(void)
{
    double d[XR * XV], loss[XR];
    fill(xent_logits, (int64_t)XR * XV, 1);
    memcpy(d, xent_logits, sizeof(d));
    op->xent(be, DTYPE_F64, d, loss, xent_targets, 1.0, true, XR, XV);
    check_slopes(xent_loss, xent_logits, d, (int64_t)XR * XV);

    double half[XR * XV];
    memcpy(half, xent_logits, sizeof(half));
    op->xent(be, DTYPE_F64, half, loss, xent_targets, 0.5, true, XR, XV);
    CHECK_NEAR(half[3], 0.5 * d[3], 1e-15);
}

static void cross_entropy_has_its_known_values(void)
{
    for (int i = 0; i < XR * XV; i++) {
        xent_logits[i] = 80.0;
    }
    CHECK_NEAR(xent_loss(), 3.0 * log(XV), 1e-14); // uniform, however large
    xent_logits[0] = 900.0;                        // certain, where exp() alone would overflow
    CHECK_NEAR(xent_loss(), 2.0 * log(XV), 1e-14);
    xent_logits[0] = -900.0;
    CHECK_NEAR(xent_loss(), 980.0 + log(5.0) + 2.0 * log(XV), 1e-14);
}

/* ---- embedding ---- */

static void an_embedding_adds_position_to_token_and_gathers_both_back(void)
{
    enum { B = 2, T = 2, C = 3 };
    static const double wte[] = {1, 2, 3, 10, 20, 30};
    static const double wpe[] = {.1, .2, .3, .4, .5, .6};
    static const int32_t tokens[B * T] = {1, 0, 1, 1};
    double x[B * T * C];
    op->embed_fwd(be, DTYPE_F64, x, tokens, wte, wpe, B, T, C);
    CHECK_NEAR(x[0], 10.1, 1e-15);
    CHECK_NEAR(x[1 * C + 2], 3.6, 1e-15);
    CHECK_NEAR(x[3 * C + 1], 20.5, 1e-15);
    op->embed_fwd(be, DTYPE_F64, x, tokens, wte, NULL, B, T, C);
    CHECK(x[3 * C + 1] == 20.0);

    double dwte[2 * C] = {1, 1, 1, 1, 1, 1}, dwpe[T * C] = {0};
    op->embed_bwd(be, DTYPE_F64, dwte, dwpe, tokens, x, B, T, C);
    CHECK(dwte[0] == 1.0 + 1.0);
    CHECK(dwte[C] == 1.0 + 3.0 * 10.0);
    CHECK(dwpe[0] == 20.0 && dwpe[C] == 11.0);
    op->embed_bwd(be, DTYPE_F64, dwte, NULL, tokens, x, B, T, C);
    CHECK(dwte[0] == 3.0);
}

/* ---- rounding ---- */

static void bf16_rounds_to_nearest_even_and_once(void)
{
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        uint16_t narrow = (uint16_t)bits;
        double wide = ref_load(&narrow, DTYPE_BF16, 0);
        if (wide == wide) {
            CHECK_INT(ref_bf16(wide), narrow);
        } else {
            CHECK(ref_round(DTYPE_BF16, wide) != ref_round(DTYPE_BF16, wide));
        }
    }
    // Between 1 and 1 + 2^-7 the middle goes to the even one, anything beyond it does not; 2^-40 is
    // less than a float next to 1 can hold, so that rounding by way of float would lose it.
    CHECK_INT(ref_bf16(1.0 + 0x1p-8), 0x3f80);
    CHECK_INT(ref_bf16(1.0 + 0x1p-8 + 0x1p-40), 0x3f81);
    CHECK_INT(ref_bf16(-1.0 - 0x1p-8 - 0x1p-40), 0xbf81);
    CHECK_INT(ref_bf16(1.0 + 0x3p-8), 0x3f82);
    CHECK_INT(ref_bf16(1.0 + 0x3p-8 - 0x1p-40), 0x3f81);
    CHECK_INT(ref_bf16(1e39), 0x7f80);
    CHECK_INT(ref_bf16(-0.0), 0x8000);
}

/* All 2^32 patterns take a quarter of a minute; every 251st of them hits each 16 of either half. */
static void a_split_master_is_exact(void)
{
    for (uint64_t i = 0; i < 1ULL << 32; i += 251) {
        uint32_t bits = (uint32_t)i;
        float w;
        memcpy(&w, &bits, sizeof(w));
        uint16_t high;
        uint16_t rest;
        master_split(w, &high, &rest);
        w = master_join(high, rest);
        CHECK_MEM(&w, &bits, sizeof(w));
    }
}

/* ---- clip ---- */

static struct clip_state clip(const float *g, int64_t n, double max_norm)
{
    double partials[4];
    struct clip_state c;
    op->sqnorm(be, DTYPE_F32, partials, g, n);
    op->clip(be, &c, partials, (n + NORM_CHUNK - 1) / NORM_CHUNK, max_norm);
    return c;
}

static void the_clip_factor_brings_the_norm_to_its_bound(void)
{
    float *g = mem_alloc((2 * NORM_CHUNK + 5) * sizeof(float));
    struct clip_state c = clip(g, 2 * NORM_CHUNK + 5, 1.0);
    CHECK(c.norm == 0.0 && c.factor == 1.0 && c.finite);
    g[0] = 3.0F;
    g[2 * NORM_CHUNK + 4] = 4.0F; // in the last chunk
    c = clip(g, 2 * NORM_CHUNK + 5, 1.0);
    CHECK_NEAR(c.norm, 5.0, 1e-15);
    CHECK_NEAR(c.factor, 0.2, 1e-6);
    c = clip(g, 2 * NORM_CHUNK + 5, 6.0);
    CHECK(c.factor == 1.0);
    g[7] = 1e30F; // squares beyond fp32
    c = clip(g, 2 * NORM_CHUNK + 5, 1.0);
    CHECK(c.finite);
    CHECK_NEAR(c.norm / 1e30, 1.0, 1e-7);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        g[7] = bad[i];
        CHECK(!clip(g, 2 * NORM_CHUNK + 5, 1.0).finite);
    }
    mem_free(g);
}

/* ---- the door ---- */

static void memory_is_aligned_zeroed_and_refused_when_it_is_not_there(void)
{
    unsigned char *p[5];
    for (size_t i = 0; i < 5; i++) {
        p[i] = op->alloc(be, 1000 * i);
        CHECK(p[i] != NULL);
        CHECK_INT((uintptr_t)p[i] % 256, 0);
        for (size_t k = 0; k < 1000 * i; k++) {
            CHECK_INT(p[i][k], 0);
        }
        memset(p[i], 1, 1000 * i);
    }
    for (int i = 0; i < 5; i++) {
        op->release(be, p[i]);
    }
    op->release(be, NULL);
    mem_fail_after(0);
    CHECK(op->alloc(be, 8) == NULL);
    CHECK(op->alloc(be, SIZE_MAX) == NULL);
}

static void auto_always_finds_one_and_a_stranger_is_invalid(void)
{
    struct backend *found = NULL;
    struct err e = {0};
    CHECK_INT(backend_open(&found, "auto", 0, &e), ST_OK);
    CHECK(found->ops->abi == BACKEND_ABI && found->threads >= 1);
    CHECK_INT(backend_sync(found, &e), ST_OK);
    struct backend_caps a, b;
    found->ops->caps(found, &a);
    found->ops->caps(found, &b);
    CHECK(a.memory > 0 && a.memory == b.memory && a.pass_tokens == b.pass_tokens);
    backend_close(found);
    backend_close(NULL);
    CHECK_INT(backend_open(&found, "abacus", 0, &e), ST_INVALID);
    CHECK(strstr(e.msg, "abacus") != NULL);
    CHECK_INT(backend_open(&found, "ref", -1, &e), ST_INVALID);
}

int main(void)
{
    CHECK(backend_open(&be, "ref", 1, NULL) == ST_OK);
    op = be->ops;
    RUN(a_product_is_rows_times_rows);
    RUN(both_gradients_of_a_product_are_its_adjoints);
    RUN(a_norms_gradients_are_its_slopes);
    RUN(normed_rows_have_mean_zero_and_variance_one);
    RUN(gelu_is_the_erf_form_and_not_the_tanh_form);
    RUN(attentions_gradients_are_its_slopes);
    RUN(without_scores_attention_is_the_mean_of_the_past);
    RUN(cross_entropys_gradient_is_its_slope);
    RUN(cross_entropy_has_its_known_values);
    RUN(an_embedding_adds_position_to_token_and_gathers_both_back);
    RUN(bf16_rounds_to_nearest_even_and_once);
    RUN(a_split_master_is_exact);
    RUN(the_clip_factor_brings_the_norm_to_its_bound);
    RUN(memory_is_aligned_zeroed_and_refused_when_it_is_not_there);
    RUN(auto_always_finds_one_and_a_stranger_is_invalid);
    backend_close(be);
    return check_end();
}
