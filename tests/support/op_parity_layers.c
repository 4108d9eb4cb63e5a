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

// ---- products -----------------------------------------------------------------------------------

static void check_gemm(gemm_fn *fn, const char *who, struct gemm g)
{
    enum dtype t = g.a_type;
    int64_t na = g.use == GEMM_FWD ? g.M * g.K : g.M * g.N;
    int64_t nb = g.use == GEMM_WGRAD ? g.M * g.K : g.N * g.K;
    int64_t no = g.use == GEMM_FWD ? g.M * g.N : g.use == GEMM_DGRAD ? g.M * g.K : g.N * g.K;
    int64_t k = g.use == GEMM_FWD ? g.K : g.use == GEMM_DGRAD ? g.N : g.M;
    bool f32_out = g.use == GEMM_WGRAD || g.out_f32 || t == DTYPE_F32;

    struct pair a = draw(t, na, 0, 1, 1);
    struct pair b = draw(t, nb, 0, 1, 2);
    struct pair bias = draw(t, g.N, 0, 1, 3);
    struct pair start = draw(DTYPE_F32, no, 0, 1, 4);
    struct result r = expect(f32_out ? DTYPE_F32 : t, no, g.accumulate ? &start : NULL);
    struct gemm g64 = g;
    g64.a_type = DTYPE_F64;

    CHECK(op_be->ops->plan_gemm(op_be, &g) == NULL);
    fn(op_be, &g, r.dev, a.dev, b.dev, g.bias ? bias.dev : NULL);
    op_ref->ops->gemm(op_ref, &g, r.ref, a.a, b.a, g.bias ? bias.a : NULL);
    op_ref->ops->gemm(op_ref, &g64, r.truth, a.d, b.d, g.bias ? bias.d : NULL);

    char what[128];
    (void)snprintf(what, sizeof(what), "%s %d %s bias %d acc %d f32 %d M %d N %d K %d", who,
                   (int)g.use, name_of(t), g.bias, g.accumulate, g.out_f32, (int)g.M, (int)g.N,
                   (int)g.K);
    judge(&r, what, k, f32_out ? 0 : 4e-3);
    drop(&a);
    drop(&b);
    drop(&bias);
    drop(&start);
}

/* Products larger than this are tried once in each use: the reference takes seconds for one. */
static const int64_t ALL_WAYS_MAX = 100000000;

void op_parity_gemms(gemm_fn *fn, const char *who, int64_t M, int64_t N, int64_t K)
{
    for (int i = 0; i < OP_DTYPES; i++) {
        enum dtype t = op_dtypes[i];
        check_gemm(fn, who, (struct gemm){GEMM_FWD, t, true, false, false, M, N, K});
        check_gemm(fn, who, (struct gemm){GEMM_DGRAD, t, false, false, false, M, N, K});
        check_gemm(fn, who, (struct gemm){GEMM_WGRAD, t, false, true, false, M, N, K});
        if (M * N * K > ALL_WAYS_MAX) {
            continue;
        }
        check_gemm(fn, who, (struct gemm){GEMM_FWD, t, false, false, false, M, N, K});
        check_gemm(fn, who, (struct gemm){GEMM_FWD, t, false, false, true, M, N, K});
        check_gemm(fn, who, (struct gemm){GEMM_FWD, t, true, false, true, M, N, K});
        check_gemm(fn, who, (struct gemm){GEMM_WGRAD, t, false, false, false, M, N, K});
    }
}

static void products_of_every_shape_are_right(void)
{
    static const int64_t shapes[][3] = {{1, 1, 1},      {7, 13, 29},    {129, 257, 65},
                                        {1, 257, 8},    {65, 24, 72},   {130, 129, 600},
                                        {2, 50368, 8},  {8, 2304, 768}, {8, 768, 768},
                                        {8, 3072, 768}, {8, 768, 3072}, {64, 6144, 2048}};
    static const int64_t most[] = {3000000, 30000000, INT64_MAX};
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        int64_t M = shapes[s][0];
        int64_t N = shapes[s][1];
        int64_t K = shapes[s][2];
        if (M * N * K <= most[op_scale]) {
            op_parity_gemms(op_be->ops->gemm, "gemm", M, N, K);
        }
    }
}

/* Rows of a chunk begin anywhere: operands that are aligned to their element alone. */
static void products_of_unaligned_operands_are_right(void)
{
    enum { M = 9, N = 24, K = 40 };
    for (int i = 0; i < OP_DTYPES; i++) {
        enum dtype t = op_dtypes[i];
        size_t e = dtype_size(t);
        struct pair a = draw(t, M * K + 1, 0, 1, 1);
        struct pair b = draw(t, N * K, 0, 1, 2);
        struct result r = expect(t, M * N + 1, NULL);
        struct gemm g = {GEMM_FWD, t, false, false, false, M, N, K};
        struct gemm g64 = g;
        g64.a_type = DTYPE_F64;
        op_be->ops->gemm(op_be, &g, (char *)r.dev + e, (char *)a.dev + e, b.dev, NULL);
        op_ref->ops->gemm(op_ref, &g, (char *)r.ref + e, (char *)a.a + e, b.a, NULL);
        op_ref->ops->gemm(op_ref, &g64, r.truth + 1, a.d + 1, b.d, NULL);
        judge(&r, "unaligned product", K, cap_of(t));
        drop(&a);
        drop(&b);
    }
}

// ---- norms, embedding, columns ------------------------------------------------------------------

static void check_norm_fwd(enum dtype t, int64_t N, int64_t C, bool with_y, bool with_b)
{
    enum dtype s = wide(t);
    struct pair x = draw(t, N * C, 0.3, 1, 1);
    struct pair y = draw(t, N * C, 0, 1, 2);
    struct pair g = draw(t, C, 1, 0.2, 3);
    struct pair b = draw(t, C, 0, 0.2, 4);
    struct result xs = expect(t, N * C, NULL);
    struct result out = expect(t, N * C, NULL);
    struct result mean = expect(s, N, NULL);
    struct result rstd = expect(s, N, NULL);
    op_be->ops->norm_fwd(op_be, t, xs.dev, out.dev, mean.dev, rstd.dev, x.dev,
                         with_y ? y.dev : NULL, g.dev, with_b ? b.dev : NULL, N, C);
    op_ref->ops->norm_fwd(op_ref, t, xs.ref, out.ref, mean.ref, rstd.ref, x.a, with_y ? y.a : NULL,
                          g.a, with_b ? b.a : NULL, N, C);
    op_ref->ops->norm_fwd(op_ref, DTYPE_F64, xs.truth, out.truth, mean.truth, rstd.truth, x.d,
                          with_y ? y.d : NULL, g.d, with_b ? b.d : NULL, N, C);
    char what[96];
    (void)snprintf(what, sizeof(what), "norm %s N %d C %d y %d b %d", name_of(t), (int)N, (int)C,
                   with_y, with_b);
    judge(&xs, what, 1, cap_of(t));
    judge(&mean, what, C, INFINITY); // of the rounded row, which may be near zero
    judge(&rstd, what, C, INFINITY);
    judge(&out, what, C, cap_of(t));
    struct pair *all[] = {&x, &y, &g, &b};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        drop(all[i]);
    }
}

static void check_norm_bwd(enum dtype t, int64_t N, int64_t C, bool with_b)
{
    enum dtype s = wide(t);
    struct pair x = draw(t, N * C, 0.3, 1, 1);
    struct pair g = draw(t, C, 1, 0.2, 3);
    struct pair dout = draw(t, N * C, 0, 1, 5);
    struct pair dx0 = draw(t, N * C, 0, 1, 6);
    struct pair dg0 = draw(s, C, 0, 1, 7);
    struct pair mean = draw(s, N, 0.3, 0.01, 8); // any statistics: the formula is judged
    struct pair rstd = draw(s, N, 1, 0.01, 9);
    struct result dx = expect(t, N * C, &dx0);
    struct result dg = expect(s, C, &dg0);
    struct result db = expect(s, C, &dg0);
    op_be->ops->norm_bwd(op_be, t, dx.dev, dg.dev, with_b ? db.dev : NULL, dout.dev, x.dev,
                         mean.dev, rstd.dev, g.dev, N, C);
    op_ref->ops->norm_bwd(op_ref, t, dx.ref, dg.ref, with_b ? db.ref : NULL, dout.a, x.a, mean.a,
                          rstd.a, g.a, N, C);
    op_ref->ops->norm_bwd(op_ref, DTYPE_F64, dx.truth, dg.truth, with_b ? db.truth : NULL, dout.d,
                          x.d, mean.d, rstd.d, g.d, N, C);
    char what[96];
    (void)snprintf(what, sizeof(what), "norm backward %s N %d C %d b %d", name_of(t), (int)N,
                   (int)C, with_b);
    judge(&dx, what, C, cap_of(t));
    judge(&dg, what, N, cap_of(t));
    judge(&db, what, N, cap_of(t));
    struct pair *all[] = {&x, &g, &dout, &dx0, &dg0, &mean, &rstd};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        drop(all[i]);
    }
}

static void norms_are_right_forward_and_backward(void)
{
    static const int64_t shapes[][2] = {{1, 8},    {3, 64},   {129, 13},  {77, 768}, {5, 2048},
                                        {3, 2560}, {3, 4096}, {1, 16384}, {9, 1023}, {2500, 8}};
    for (int i = 0; i < OP_DTYPES; i++) {
        for (size_t k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
            if (op_scale == OP_SMALL && shapes[k][0] * shapes[k][1] > 20000 && shapes[k][0] > 1) {
                continue;
            }
            check_norm_fwd(op_dtypes[i], shapes[k][0], shapes[k][1], false, false);
            check_norm_fwd(op_dtypes[i], shapes[k][0], shapes[k][1], true, true);
            check_norm_bwd(op_dtypes[i], shapes[k][0], shapes[k][1], false);
            check_norm_bwd(op_dtypes[i], shapes[k][0], shapes[k][1], true);
        }
    }
}

static void a_constant_row_is_normalised_to_finite_numbers(void)
{
    enum { N = 2, C = 20 };
    struct pair x = draw(DTYPE_F32, N * C, 3, 0, 1);
    struct pair g = draw(DTYPE_F32, C, 1, 0, 1);
    struct result out = expect(DTYPE_F32, N * C, NULL);
    struct result stats = expect(DTYPE_F32, 2 * N, NULL);
    // In place, as the model does when nothing is added.
    op_be->ops->norm_fwd(op_be, DTYPE_F32, x.dev, out.dev, stats.dev, (float *)stats.dev + N, x.dev,
                         NULL, g.dev, NULL, N, C);
    fetch(&out);
    for (int i = 0; i < N * C; i++) {
        CHECK_NEAR(((float *)out.got)[i], 0.0, 1e-3);
    }
    drop(&x);
    drop(&g);
    forget(&out);
    forget(&stats);
}

static void check_embed(enum dtype t, int64_t B, int64_t T, int64_t C, int64_t V, int64_t distinct)
{
    enum dtype s = wide(t);
    int32_t *tokens = mem_alloc((size_t)(B * T) * sizeof(*tokens));
    for (int64_t i = 0; i < B * T; i++) {
        tokens[i] = (int32_t)(rng_u64(5, (uint64_t)i) % (uint64_t)distinct);
    }
    int32_t *ids = to_device(tokens, (size_t)(B * T) * sizeof(*tokens));
    struct pair wte = draw(t, V * C, 0, 1, 1);
    struct pair wpe = draw(t, T * C, 0, 1, 2);
    struct pair dx = draw(t, B * T * C, 0, 1, 3);
    struct pair start = draw(s, V * C, 0, 1, 4);
    struct result x = expect(t, B * T * C, NULL);
    struct result plain = expect(t, B * T * C, NULL);
    struct result dwte = expect(s, V * C, &start);
    struct result dwpe = expect(s, T * C, NULL);
    op_be->ops->embed_fwd(op_be, t, x.dev, ids, wte.dev, wpe.dev, B, T, C);
    op_ref->ops->embed_fwd(op_ref, t, x.ref, tokens, wte.a, wpe.a, B, T, C);
    op_ref->ops->embed_fwd(op_ref, DTYPE_F64, x.truth, tokens, wte.d, wpe.d, B, T, C);
    op_be->ops->embed_fwd(op_be, t, plain.dev, ids, wte.dev, NULL, B, T, C);
    op_ref->ops->embed_fwd(op_ref, t, plain.ref, tokens, wte.a, NULL, B, T, C);
    op_ref->ops->embed_fwd(op_ref, DTYPE_F64, plain.truth, tokens, wte.d, NULL, B, T, C);
    op_be->ops->embed_bwd(op_be, t, dwte.dev, dwpe.dev, ids, dx.dev, B, T, C);
    op_ref->ops->embed_bwd(op_ref, t, dwte.ref, dwpe.ref, tokens, dx.a, B, T, C);
    op_ref->ops->embed_bwd(op_ref, DTYPE_F64, dwte.truth, dwpe.truth, tokens, dx.d, B, T, C);
    op_be->ops->embed_bwd(op_be, t, dwte.dev, NULL, ids, dx.dev, B, T, C);
    op_ref->ops->embed_bwd(op_ref, t, dwte.ref, NULL, tokens, dx.a, B, T, C);
    op_ref->ops->embed_bwd(op_ref, DTYPE_F64, dwte.truth, NULL, tokens, dx.d, B, T, C);
    judge(&x, "embed", 2, cap_of(t));
    judge(&plain, "embed without positions", 1, cap_of(t));
    judge(&dwte, "embed backward", B * T, 0);
    judge(&dwpe, "positions backward", B, 0);
    mem_free(tokens);
    release(ids);
    drop(&wte);
    drop(&wpe);
    drop(&dx);
    drop(&start);
}

static void embeddings_are_right_forward_and_backward(void)
{
    for (int i = 0; i < OP_DTYPES; i++) {
        check_embed(op_dtypes[i], 3, 65, 136, 100, 1);
        check_embed(op_dtypes[i], 2, 33, 13, 9, 3);
        check_embed(op_dtypes[i], 4, 128, 64, 1000, 1000);
    }
}

static void column_sums_are_right(void)
{
    static const int64_t shapes[][2] = {{1, 1}, {65, 7}, {1000, 129}, {64, 768}, {9000, 8}};
    for (int i = 0; i < OP_DTYPES; i++) {
        for (size_t k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
            enum dtype t = op_dtypes[i];
            int64_t M = shapes[k][0];
            int64_t N = shapes[k][1];
            struct pair dy = draw(t, M * N, 0, 1, 1);
            struct pair start = draw(wide(t), N, 0, 1, 2);
            struct result db = expect(wide(t), N, &start);
            op_be->ops->bias_bwd(op_be, t, db.dev, dy.dev, M, N);
            op_ref->ops->bias_bwd(op_ref, t, db.ref, dy.a, M, N);
            op_ref->ops->bias_bwd(op_ref, DTYPE_F64, db.truth, dy.d, M, N);
            judge(&db, "column sums", M, 0);
            drop(&dy);
            drop(&start);
        }
    }
}

// ---- GELU ---------------------------------------------------------------------------------------

static double gelu_erf(double h)
{
    return h * 0.5 * erfc(-h * sqrt(0.5));
}

static double gelu_tanh(double h)
{
    return 0.5 * h * (1 + tanh(sqrt(2 / acos(-1.0)) * (h + 0.044715 * h * h * h)));
}

static double gelu_slope_erf(double h)
{
    return 0.5 * erfc(-h * sqrt(0.5)) + h * exp(-h * h / 2) / sqrt(2 * acos(-1.0));
}

/* One unit in the last place of bf16 at this size. */
static double bf16_ulp(double x)
{
    int e;
    (void)frexp(x, &e);
    return ldexp(1.0, (e < -125 ? -125 : e) - 8);
}

enum { PATTERNS = 65536 };

/* How many of all finite bf16 inputs are further off than one ulp or 1e-6. */
static int off_by_more(const uint16_t *in, const uint16_t *got, double (*truth)(double))
{
    int bad = 0;
    for (int i = 0; i < PATTERNS; i++) {
        double h = ref_load(in, DTYPE_BF16, i);
        if (isfinite(h)) {
            double want = truth(h);
            double error = fabs(ref_load(got, DTYPE_BF16, i) - want);
            bad += !(error <= fmax(bf16_ulp(want), 1e-6));
        }
    }
    return bad;
}

static void gelu_of_every_bf16_number_is_the_erf_form_and_not_the_tanh_form(void)
{
    static uint16_t h[PATTERNS];
    static uint16_t a[PATTERNS];
    for (int i = 0; i < PATTERNS; i++) {
        h[i] = (uint16_t)i;
        a[i] = 0x3f80; // one
    }
    void *dev_h = to_device(h, sizeof(h));
    void *dev_da = to_device(a, sizeof(a));
    void *dev_a = to_device(a, sizeof(a));
    op_be->ops->gelu_fwd(op_be, DTYPE_BF16, dev_a, dev_h, PATTERNS);
    op_be->ops->get(op_be, a, dev_a, sizeof(a));
    CHECK_INT(off_by_more(h, a, gelu_erf), 0);
    CHECK(off_by_more(h, a, gelu_tanh) > 10);
    for (int i = 0; i < PATTERNS; i++) {
        if (!isfinite(ref_load(h, DTYPE_BF16, i)) && i != 0x7f80) {
            CHECK(!isfinite(ref_load(a, DTYPE_BF16, i)));
        }
    }
    CHECK_INT(a[0x7f80], 0x7f80);
    op_be->ops->gelu_bwd(op_be, DTYPE_BF16, dev_da, dev_h, dev_da, PATTERNS);
    op_be->ops->get(op_be, a, dev_da, sizeof(a));
    CHECK_INT(off_by_more(h, a, gelu_slope_erf), 0);
    release(dev_h);
    release(dev_da);
    release(dev_a);
}

static void gelu_in_fp32_is_exact_to_a_few_ulps(void)
{
    enum { N = 200003 };
    float *h = mem_alloc(N * sizeof(*h));
    float *a = mem_alloc(N * sizeof(*a));
    float *d = mem_alloc(N * sizeof(*d));
    for (int i = 0; i < N; i++) {
        h[i] = (float)(i - N / 2) * 1e-4f;
        d[i] = 1.0f;
    }
    void *dev_h = to_device(h, N * sizeof(*h));
    void *dev_a = to_device(a, N * sizeof(*a));
    void *dev_d = to_device(d, N * sizeof(*d));
    op_be->ops->gelu_fwd(op_be, DTYPE_F32, dev_a, dev_h, N);
    op_be->ops->gelu_bwd(op_be, DTYPE_F32, dev_d, dev_h, dev_d, N);
    op_be->ops->get(op_be, a, dev_a, N * sizeof(*a));
    op_be->ops->get(op_be, d, dev_d, N * sizeof(*d));
    double worst_a = 0;
    double worst_d = 0;
    for (int i = 0; i < N; i++) {
        double x = (double)h[i];
        worst_a = fmax(worst_a, fabs((double)a[i] - gelu_erf(x)) / fmax(fabs(x), 1.0));
        worst_d = fmax(worst_d, fabs((double)d[i] - gelu_slope_erf(x)));
    }
    mem_free(h);
    mem_free(a);
    mem_free(d);
    release(dev_h);
    release(dev_a);
    release(dev_d);
    CHECK_NEAR(worst_a, 0, 2.4e-7);
    CHECK_NEAR(worst_d, 0, 4e-7);
}

void op_parity_layers(void)
{
    RUN(products_of_every_shape_are_right);
    RUN(products_of_unaligned_operands_are_right);
    RUN(norms_are_right_forward_and_backward);
    RUN(a_constant_row_is_normalised_to_finite_numbers);
    RUN(embeddings_are_right_forward_and_backward);
    RUN(column_sums_are_right);
    RUN(gelu_of_every_bf16_number_is_the_erf_form_and_not_the_tanh_form);
    RUN(gelu_in_fp32_is_exact_to_a_few_ulps);
}
