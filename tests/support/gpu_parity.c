#include "tests/support/gpu_parity.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "kernels/backend.h"
#include "kernels/ref/ops.h"
#include "tests/support/check.h"

static struct backend *gpu;
static struct backend *ref;
static bool every_shape; /* also those that take an emulator long */

static const enum dtype DTYPES[] = {DTYPE_F32, DTYPE_BF16};
enum { DTYPES_LEN = sizeof(DTYPES) / sizeof(DTYPES[0]) };

// ---- drawing and judging ------------------------------------------------------------------------

/* The same numbers on the host as the dtype holds them, as doubles, and on the device. */
struct pair {
    void *a, *dev;
    double *d;
    int64_t n;
};

static enum dtype wide(enum dtype t)
{
    return t == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
}

static void *to_device(const void *p, size_t size)
{
    void *dev = gpu->ops->alloc(gpu, size);
    CHECK(dev != NULL);
    gpu->ops->put(gpu, dev, p, size);
    return dev;
}

static void release(void *dev)
{
    gpu->ops->release(gpu, dev);
}

/* Normal numbers out of a pool whose size is prime, so that no two rows of a matrix are alike. */
static double normal(uint64_t key, int64_t i)
{
    enum { POOL = 65521 };
    static double pool[POOL];
    if (pool[0] == 0.0) {
        for (uint64_t k = 0; k < POOL; k++) {
            pool[k] = rng_normal(2026, k);
        }
    }
    return pool[((uint64_t)i + key * 7919) % POOL];
}

static struct pair draw(enum dtype t, int64_t n, double mean, double sigma, uint64_t key)
{
    struct pair p = {.a = ref_alloc(ref, (size_t)n * dtype_size(t)),
                     .d = ref_alloc(ref, (size_t)n * sizeof(double)),
                     .n = n};
    for (int64_t i = 0; i < n; i++) {
        ref_store(p.a, t, i, mean + sigma * normal(key, i));
        p.d[i] = ref_load(p.a, t, i);
    }
    p.dev = to_device(p.a, (size_t)n * dtype_size(t));
    return p;
}

static void drop(struct pair *p)
{
    ref_release(ref, p->a);
    ref_release(ref, p->d);
    release(p->dev);
}

/* An output, three times: zeroed, or filled from the same start. */
struct result {
    enum dtype t;
    int64_t n;
    void *dev, *gpu, *ref;
    double *truth;
};

static struct result expect(enum dtype t, int64_t n, const struct pair *start)
{
    size_t size = (size_t)n * dtype_size(t);
    struct result r = {.t = t,
                       .n = n,
                       .gpu = ref_alloc(ref, size),
                       .ref = ref_alloc(ref, size),
                       .truth = ref_alloc(ref, (size_t)n * sizeof(double))};
    if (start) {
        memcpy(r.ref, start->a, size);
        memcpy(r.truth, start->d, (size_t)n * sizeof(double));
    }
    r.dev = to_device(r.ref, size);
    return r;
}

static void fetch(struct result *r)
{
    gpu->ops->get(gpu, r->gpu, r->dev, (size_t)r->n * dtype_size(r->t));
}

static void forget(struct result *r)
{
    ref_release(ref, r->gpu);
    ref_release(ref, r->ref);
    ref_release(ref, r->truth);
    release(r->dev);
}

static double distance(const void *got, enum dtype t, const double *truth, int64_t n)
{
    double diff = 0;
    double size = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = ref_load(got, t, i) - truth[i];
        diff += d * d;
        size += truth[i] * truth[i];
    }
    return sqrt(diff / (size > 1e-300 ? size : 1.0));
}

static double acc(int64_t k)
{
    return 1e-5 + (double)k * 0x1p-28;
}

/* Judge without forgetting. */
static bool good(struct result *r, const char *what, int64_t k, double cap)
{
    fetch(r);
    double ours = distance(r->gpu, r->t, r->truth, r->n);
    double theirs = distance(r->ref, r->t, r->truth, r->n);
    bool right = ours <= 2 * theirs + acc(k) && ours <= cap + acc(k);
    if (!right) {
        (void)fprintf(stderr, "%s (%lld): error %.3g, the reference's %.3g, cap %.3g\n", what,
                      (long long)r->n, ours, theirs, cap);
    }
    return right;
}

static void judge(struct result *r, const char *what, int64_t k, double cap)
{
    bool right = good(r, what, k, cap);
    const char *why = gpu->ops->sync(gpu);
    if (why) {
        (void)fprintf(stderr, "%s: %s\n", what, why);
    }
    forget(r);
    CHECK(right);
    CHECK(why == NULL);
}

static double cap_of(enum dtype t)
{
    return t == DTYPE_BF16 ? 4e-3 : 0.0; // fp32 has the sums' own allowance
}

static const char *name_of(enum dtype t)
{
    return t == DTYPE_BF16 ? "bf16" : "f32";
}

// ---- products -----------------------------------------------------------------------------------

static void check_gemm(struct gemm g)
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

    CHECK(gpu->ops->plan_gemm(gpu, &g) == NULL);
    gpu->ops->gemm(gpu, &g, r.dev, a.dev, b.dev, g.bias ? bias.dev : NULL);
    ref->ops->gemm(ref, &g, r.ref, a.a, b.a, g.bias ? bias.a : NULL);
    ref->ops->gemm(ref, &g64, r.truth, a.d, b.d, g.bias ? bias.d : NULL);

    char what[128];
    (void)snprintf(what, sizeof(what), "gemm %d %s bias %d acc %d f32 %d M %d N %d K %d",
                   (int)g.use, name_of(t), g.bias, g.accumulate, g.out_f32, (int)g.M, (int)g.N,
                   (int)g.K);
    judge(&r, what, k, f32_out ? 0 : 4e-3);
    drop(&a);
    drop(&b);
    drop(&bias);
    drop(&start);
}

static void products_of_every_shape_are_right(void)
{
    static const int64_t shapes[][3] = {{1, 1, 1},      {7, 13, 29},     {129, 257, 65},
                                        {1, 257, 8},    {65, 24, 72},    {2, 50368, 8},
                                        {8, 2304, 768}, {8, 768, 768},   {8, 3072, 768},
                                        {8, 768, 3072}, {64, 6144, 2048}};
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        int64_t M = shapes[s][0];
        int64_t N = shapes[s][1];
        int64_t K = shapes[s][2];
        if (!every_shape && N * K > 20000) {
            continue;
        }
        for (int i = 0; i < DTYPES_LEN; i++) {
            enum dtype t = DTYPES[i];
            check_gemm((struct gemm){GEMM_FWD, t, false, false, false, M, N, K});
            check_gemm((struct gemm){GEMM_FWD, t, true, false, false, M, N, K});
            check_gemm((struct gemm){GEMM_FWD, t, false, false, true, M, N, K});
            check_gemm((struct gemm){GEMM_FWD, t, true, false, true, M, N, K});
            check_gemm((struct gemm){GEMM_DGRAD, t, false, false, false, M, N, K});
            check_gemm((struct gemm){GEMM_WGRAD, t, false, false, false, M, N, K});
            check_gemm((struct gemm){GEMM_WGRAD, t, false, true, false, M, N, K});
        }
    }
}

/* Rows of a chunk begin anywhere: operands that are aligned to their element alone. */
static void products_of_unaligned_operands_are_right(void)
{
    enum { M = 9, N = 24, K = 40 };
    for (int i = 0; i < DTYPES_LEN; i++) {
        enum dtype t = DTYPES[i];
        size_t e = dtype_size(t);
        struct pair a = draw(t, M * K + 1, 0, 1, 1);
        struct pair b = draw(t, N * K, 0, 1, 2);
        struct result r = expect(t, M * N + 1, NULL);
        struct gemm g = {GEMM_FWD, t, false, false, false, M, N, K};
        struct gemm g64 = g;
        g64.a_type = DTYPE_F64;
        gpu->ops->gemm(gpu, &g, (char *)r.dev + e, (char *)a.dev + e, b.dev, NULL);
        ref->ops->gemm(ref, &g, (char *)r.ref + e, (char *)a.a + e, b.a, NULL);
        ref->ops->gemm(ref, &g64, r.truth + 1, a.d + 1, b.d, NULL);
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
    gpu->ops->norm_fwd(gpu, t, xs.dev, out.dev, mean.dev, rstd.dev, x.dev, with_y ? y.dev : NULL,
                       g.dev, with_b ? b.dev : NULL, N, C);
    ref->ops->norm_fwd(ref, t, xs.ref, out.ref, mean.ref, rstd.ref, x.a, with_y ? y.a : NULL, g.a,
                       with_b ? b.a : NULL, N, C);
    ref->ops->norm_fwd(ref, DTYPE_F64, xs.truth, out.truth, mean.truth, rstd.truth, x.d,
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
    gpu->ops->norm_bwd(gpu, t, dx.dev, dg.dev, with_b ? db.dev : NULL, dout.dev, x.dev, mean.dev,
                       rstd.dev, g.dev, N, C);
    ref->ops->norm_bwd(ref, t, dx.ref, dg.ref, with_b ? db.ref : NULL, dout.a, x.a, mean.a, rstd.a,
                       g.a, N, C);
    ref->ops->norm_bwd(ref, DTYPE_F64, dx.truth, dg.truth, with_b ? db.truth : NULL, dout.d, x.d,
                       mean.d, rstd.d, g.d, N, C);
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
    for (int i = 0; i < DTYPES_LEN; i++) {
        for (size_t k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
            if (!every_shape && shapes[k][0] * shapes[k][1] > 20000 && shapes[k][0] > 1) {
                continue;
            }
            check_norm_fwd(DTYPES[i], shapes[k][0], shapes[k][1], false, false);
            check_norm_fwd(DTYPES[i], shapes[k][0], shapes[k][1], true, true);
            check_norm_bwd(DTYPES[i], shapes[k][0], shapes[k][1], false);
            check_norm_bwd(DTYPES[i], shapes[k][0], shapes[k][1], true);
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
    gpu->ops->norm_fwd(gpu, DTYPE_F32, x.dev, out.dev, stats.dev, (float *)stats.dev + N, x.dev,
                       NULL, g.dev, NULL, N, C);
    fetch(&out);
    for (int i = 0; i < N * C; i++) {
        CHECK_NEAR(((float *)out.gpu)[i], 0.0, 1e-3);
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
    gpu->ops->embed_fwd(gpu, t, x.dev, ids, wte.dev, wpe.dev, B, T, C);
    ref->ops->embed_fwd(ref, t, x.ref, tokens, wte.a, wpe.a, B, T, C);
    ref->ops->embed_fwd(ref, DTYPE_F64, x.truth, tokens, wte.d, wpe.d, B, T, C);
    gpu->ops->embed_fwd(gpu, t, plain.dev, ids, wte.dev, NULL, B, T, C);
    ref->ops->embed_fwd(ref, t, plain.ref, tokens, wte.a, NULL, B, T, C);
    ref->ops->embed_fwd(ref, DTYPE_F64, plain.truth, tokens, wte.d, NULL, B, T, C);
    gpu->ops->embed_bwd(gpu, t, dwte.dev, dwpe.dev, ids, dx.dev, B, T, C);
    ref->ops->embed_bwd(ref, t, dwte.ref, dwpe.ref, tokens, dx.a, B, T, C);
    ref->ops->embed_bwd(ref, DTYPE_F64, dwte.truth, dwpe.truth, tokens, dx.d, B, T, C);
    gpu->ops->embed_bwd(gpu, t, dwte.dev, NULL, ids, dx.dev, B, T, C);
    ref->ops->embed_bwd(ref, t, dwte.ref, NULL, tokens, dx.a, B, T, C);
    ref->ops->embed_bwd(ref, DTYPE_F64, dwte.truth, NULL, tokens, dx.d, B, T, C);
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
    for (int i = 0; i < DTYPES_LEN; i++) {
        check_embed(DTYPES[i], 3, 65, 136, 100, 1);
        check_embed(DTYPES[i], 2, 33, 13, 9, 3);
        check_embed(DTYPES[i], 4, 128, 64, 1000, 1000);
    }
}

static void column_sums_are_right(void)
{
    static const int64_t shapes[][2] = {{1, 1}, {65, 7}, {1000, 129}, {64, 768}, {9000, 8}};
    for (int i = 0; i < DTYPES_LEN; i++) {
        for (size_t k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
            enum dtype t = DTYPES[i];
            int64_t M = shapes[k][0];
            int64_t N = shapes[k][1];
            struct pair dy = draw(t, M * N, 0, 1, 1);
            struct pair start = draw(wide(t), N, 0, 1, 2);
            struct result db = expect(wide(t), N, &start);
            gpu->ops->bias_bwd(gpu, t, db.dev, dy.dev, M, N);
            ref->ops->bias_bwd(ref, t, db.ref, dy.a, M, N);
            ref->ops->bias_bwd(ref, DTYPE_F64, db.truth, dy.d, M, N);
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
    gpu->ops->gelu_fwd(gpu, DTYPE_BF16, dev_a, dev_h, PATTERNS);
    gpu->ops->get(gpu, a, dev_a, sizeof(a));
    CHECK_INT(off_by_more(h, a, gelu_erf), 0);
    CHECK(off_by_more(h, a, gelu_tanh) > 10);
    for (int i = 0; i < PATTERNS; i++) {
        if (!isfinite(ref_load(h, DTYPE_BF16, i)) && i != 0x7f80) {
            CHECK(!isfinite(ref_load(a, DTYPE_BF16, i)));
        }
    }
    CHECK_INT(a[0x7f80], 0x7f80);
    gpu->ops->gelu_bwd(gpu, DTYPE_BF16, dev_da, dev_h, dev_da, PATTERNS);
    gpu->ops->get(gpu, a, dev_da, sizeof(a));
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
    gpu->ops->gelu_fwd(gpu, DTYPE_F32, dev_a, dev_h, N);
    gpu->ops->gelu_bwd(gpu, DTYPE_F32, dev_d, dev_h, dev_d, N);
    gpu->ops->get(gpu, a, dev_a, N * sizeof(*a));
    gpu->ops->get(gpu, d, dev_d, N * sizeof(*d));
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
    gpu->ops->attn_fwd(gpu, t, o.dev, lse.dev, qkv.dev, ds, k.B, k.T, k.H, k.D);
    ref->ops->attn_fwd(ref, t, o.ref, lse.ref, qkv.a, s, k.B, k.T, k.H, k.D);
    ref->ops->attn_fwd(ref, DTYPE_F64, o.truth, lse.truth, qkv.d, s, k.B, k.T, k.H, k.D);
    fetch(&lse);
    double worst = 0;
    for (int64_t i = 0; i < lse.n; i++) {
        worst = fmax(worst, fabs(ref_load(lse.gpu, lse.t, i) - lse.truth[i]));
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
    gpu->ops->attn_bwd(gpu, t, dqkv.dev, qkv.dev, dev_o, dout.dev, dev_lse, ds, k.B, k.T, k.H, k.D);
    ref->ops->attn_bwd(ref, t, dqkv.ref, qkv.a, o.ref, dout.a, lse.ref, s, k.B, k.T, k.H, k.D);
    ref->ops->attn_bwd(ref, DTYPE_F64, dqkv.truth, qkv.d, o.truth, dout.d, lse.truth, s, k.B, k.T,
                       k.H, k.D);
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

static void attention_is_right_forward_and_backward(void)
{
    static const int64_t cases[][4] = {
        {1, 1, 1, 8},    {2, 7, 3, 16},   {3, 65, 1, 32},  {1, 140, 2, 6},  {1, 70, 1, 256},
        {1, 1, 1, 64},   {2, 7, 3, 64},   {1, 64, 5, 64},  {1, 65, 3, 64},  {2, 129, 2, 64},
        {1, 257, 3, 64}, {1, 1, 2, 128},  {2, 33, 1, 128}, {1, 64, 1, 128}, {1, 130, 3, 128},
        {1, 600, 2, 64}, {1, 600, 1, 128}};
    for (int i = 0; i < DTYPES_LEN; i++) {
        for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
            struct attn_case c = {DTYPES[i],   cases[k][0], cases[k][1],
                                  cases[k][2], cases[k][3], false};
            if (!every_shape && (c.T > 300 || (c.t == DTYPE_F32 && c.T * c.D > 130 * 64))) {
                continue;
            }
            check_attn(c);
            c.alibi = true;
            check_attn(c);
        }
    }
}

static void a_later_token_changes_no_earlier_row(void)
{
    enum { T = 150, H = 2, D = 64, N = T * H * D, CHANGED = 97 };
    struct pair qkv = draw(DTYPE_BF16, 3 * N, 0, 1, 1);
    struct result before = expect(DTYPE_BF16, N, NULL);
    struct result after = expect(DTYPE_BF16, N, NULL);
    struct result lse = expect(DTYPE_F32, T * H, NULL);
    gpu->ops->attn_fwd(gpu, DTYPE_BF16, before.dev, lse.dev, qkv.dev, NULL, 1, T, H, D);
    for (int i = 0; i < 3 * H * D; i++) {
        ref_store(qkv.a, DTYPE_BF16, CHANGED * 3 * H * D + i, 50.0);
    }
    gpu->ops->put(gpu, qkv.dev, qkv.a, 3 * N * sizeof(uint16_t));
    gpu->ops->attn_fwd(gpu, DTYPE_BF16, after.dev, lse.dev, qkv.dev, NULL, 1, T, H, D);
    fetch(&before);
    fetch(&after);
    const uint16_t *a = before.gpu;
    const uint16_t *b = after.gpu;
    bool same = memcmp(a, b, (size_t)CHANGED * H * D * sizeof(*a)) == 0;
    bool moved = memcmp(a + CHANGED * H * D, b + CHANGED * H * D, H * D * sizeof(*a)) != 0;
    drop(&qkv);
    forget(&before);
    forget(&after);
    forget(&lse);
    CHECK(same);
    CHECK(moved);
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
    gpu->ops->xent(gpu, t, grad.dev, eval.dev, ids, inv_n, false, rows, V);
    ref->ops->xent(ref, t, grad.ref, eval.ref, targets, inv_n, false, rows, V);
    ref->ops->xent(ref, DTYPE_F64, grad.truth, eval.truth, targets, inv_n, false, rows, V);
    fetch(&grad);
    bool untouched = memcmp(grad.gpu, logits.a, (size_t)grad.n * dtype_size(t)) == 0;
    gpu->ops->xent(gpu, t, grad.dev, loss.dev, ids, inv_n, true, rows, V);
    ref->ops->xent(ref, t, grad.ref, loss.ref, targets, inv_n, true, rows, V);
    ref->ops->xent(ref, DTYPE_F64, grad.truth, loss.truth, targets, inv_n, true, rows, V);
    fetch(&grad);
    double worst = 0;
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t v = 0; v < V; v++) {
            sum += ref_load(grad.gpu, t, r * V + v);
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
    for (int i = 0; i < DTYPES_LEN; i++) {
        check_xent(DTYPES[i], 1, 257, 1);
        check_xent(DTYPES[i], 77, 257, 25); // logits to +-80 and beyond
        check_xent(DTYPES[i], 77, 264, 25); // moved 16 bytes at a time
        check_xent(DTYPES[i], 77, 1, 1);
        check_xent(DTYPES[i], 3, 50368, 2);
        check_xent(DTYPES[i], 1, 120000, 2); // too long for shared memory
    }
}

// ---- the step -----------------------------------------------------------------------------------

/* w, m, v, g, each n fp32, and copy, n bf16: on the host, and on the device. */
struct step_state {
    float *w, *m, *v, *g;
    uint16_t *copy;
};

static void state_fill(struct step_state *s, int64_t n)
{
    float **const all[] = {&s->w, &s->m, &s->v, &s->g};
    for (int i = 0; i < 4; i++) {
        *all[i] = mem_alloc((size_t)n * sizeof(float));
    }
    s->copy = mem_alloc((size_t)n * sizeof(uint16_t));
    for (int64_t i = 0; i < n; i++) {
        s->w[i] = (float)normal(1, i);
        s->m[i] = (float)normal(2, i) * 0.01f;
        s->v[i] = (float)fabs(normal(3, i)) * 1e-4f * (float)(i % 3); // zeros among them
        s->g[i] = (float)normal(4, i) * 0.1f;
    }
}

static void state_free(struct step_state *s)
{
    mem_free(s->w);
    mem_free(s->m);
    mem_free(s->v);
    mem_free(s->g);
    mem_free(s->copy);
}

static bool equals_device(const void *host, const void *dev, size_t size)
{
    void *got = mem_alloc(size);
    gpu->ops->get(gpu, got, dev, size);
    bool same = memcmp(host, got, size) == 0;
    mem_free(got);
    return same;
}

static bool steps_agree(enum optim_kind kind, int64_t t, int64_t n)
{
    struct step_state s;
    state_fill(&s, n);
    size_t size = (size_t)n * sizeof(float);
    struct step_state d = {to_device(s.w, size), to_device(s.m, size), to_device(s.v, size),
                           to_device(s.g, size), to_device(s.copy, size / 2)};
    struct optim_step step = {.kind = kind,
                              .t = t,
                              .lr = 6e-4,
                              .decay = 1e-4,
                              .beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .bias1 = 1 - pow(0.9, (double)t),
                              .bias2 = 1 - pow(0.95, (double)t),
                              .clamp = pow((double)(t - 1), 0.25)};
    struct clip_state clip = {.norm = 3, .factor = 1.0 / 3, .finite = 1};
    struct clip_state *dev_clip = to_device(&clip, sizeof(clip));
    gpu->ops->optim(gpu, DTYPE_F32, &step, dev_clip, d.w, d.copy, d.m, d.v, d.g, n);
    ref->ops->optim(ref, DTYPE_F32, &step, &clip, s.w, s.copy, s.m, s.v, s.g, n);
    clip.finite = 0; // and a step that must leave everything be
    gpu->ops->put(gpu, dev_clip, &clip, sizeof(clip));
    gpu->ops->optim(gpu, DTYPE_F32, &step, dev_clip, d.w, d.copy, d.m, d.v, d.g, n);
    bool same = equals_device(s.w, d.w, size) && equals_device(s.m, d.m, size) &&
                equals_device(s.v, d.v, size) && equals_device(s.copy, d.copy, size / 2);
    void *const all[] = {d.w, d.m, d.v, d.g, d.copy, dev_clip};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        release(all[i]);
    }
    state_free(&s);
    return same;
}

static void an_optimizer_step_has_the_bits_of_the_reference(void)
{
    static const int64_t sizes[] = {1, 7, 4096, (1 << 18) + 3};
    static const int64_t times[] = {1, 2, 1000};
    for (int kind = 0; kind < OPTIM_COUNT; kind++) {
        for (int i = 0; i < 4; i++) {
            for (int k = 0; k < 3; k++) {
                CHECK(steps_agree((enum optim_kind)kind, times[k], sizes[i]));
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
    struct clip_state a;
    struct clip_state b;
    struct clip_state *dev_clip = to_device(&a, sizeof(a));
    gpu->ops->sqnorm(gpu, DTYPE_F32, dev_parts, dev_g, N);
    gpu->ops->get(gpu, ours, dev_parts, sizeof(ours));
    ref->ops->sqnorm(ref, DTYPE_F32, theirs, g, N);
    for (int i = 0; i < 4; i++) {
        CHECK_NEAR(ours[i], theirs[i], 1e-12);
    }
    gpu->ops->put(gpu, dev_parts, theirs, sizeof(theirs));
    const double limits[] = {1.0, 1e9, HUGE_VAL};
    for (int i = 0; i < 3; i++) {
        gpu->ops->clip(gpu, dev_clip, dev_parts, 4, limits[i]);
        gpu->ops->get(gpu, &a, dev_clip, sizeof(a));
        ref->ops->clip(ref, &b, theirs, 4, limits[i]);
        CHECK_MEM(&a, &b, sizeof(a));
    }
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        gpu->ops->put(gpu, dev_g + NORM_CHUNK + 5, &bad[i], sizeof(bad[i]));
        gpu->ops->sqnorm(gpu, DTYPE_F32, dev_parts, dev_g, N);
        gpu->ops->clip(gpu, dev_clip, dev_parts, 4, 1.0);
        gpu->ops->get(gpu, &a, dev_clip, sizeof(a));
        CHECK_INT(a.finite, 0);
    }
    mem_free(g);
    release(dev_g);
    release(dev_parts);
    release(dev_clip);
}

static void weights_are_rounded_as_the_reference_does(void)
{
    enum { N = 100003 };
    float *w = mem_alloc(N * sizeof(*w));
    uint16_t *b = mem_alloc(N * sizeof(*b));
    for (int i = 0; i < N; i++) {
        uint32_t bits = (uint32_t)rng_u64(6, (uint64_t)i);
        memcpy(&w[i], &bits, sizeof(bits));
    }
    float *dev_w = to_device(w, N * sizeof(*w));
    void *dev_copy = to_device(b, N * sizeof(*b));
    gpu->ops->round_weights(gpu, dev_copy, dev_w, N);
    ref->ops->round_weights(ref, b, w, N);
    bool same = equals_device(b, dev_copy, N * sizeof(*b));
    gpu->ops->round_weights(gpu, dev_copy, dev_w, N - 3); // moved wide
    same = same && equals_device(b, dev_copy, N * sizeof(*b));
    mem_free(w);
    mem_free(b);
    release(dev_w);
    release(dev_copy);
    CHECK(same);
}

// ---- memory -------------------------------------------------------------------------------------

static void memory_is_zeroed_aligned_and_refused_when_it_is_not_there(void)
{
    enum { SIZE = 5000 };
    unsigned char bytes[SIZE];
    unsigned char ones[SIZE];
    memset(ones, 1, sizeof(ones));
    void *p = gpu->ops->alloc(gpu, SIZE);
    CHECK(p != NULL);
    CHECK_INT((uintptr_t)p % 256, 0);
    gpu->ops->get(gpu, bytes, p, SIZE);
    for (int i = 0; i < SIZE; i++) {
        CHECK_INT(bytes[i], 0);
    }
    gpu->ops->put(gpu, p, ones, SIZE);
    gpu->ops->zero(gpu, (char *)p + 100, SIZE - 200);
    gpu->ops->get(gpu, bytes, p, SIZE);
    CHECK(bytes[99] == 1 && bytes[100] == 0 && bytes[SIZE - 101] == 0 && bytes[SIZE - 100] == 1);
    release(p);
    CHECK(gpu->ops->alloc(gpu, SIZE_MAX / 4) == NULL);
    CHECK(gpu->ops->sync(gpu) == NULL); // a refusal is no failure that sticks
    p = gpu->ops->alloc(gpu, 0);
    CHECK(p != NULL);
    release(p);
    CHECK(gpu->ops->supports(gpu, DTYPE_F32) && gpu->ops->supports(gpu, DTYPE_BF16));
    CHECK(!gpu->ops->supports(gpu, DTYPE_F64));
}

/* Atomics, tuning and order of arrival must not show. */
static void the_same_ops_give_the_same_bits_again(void)
{
    enum { B = 2, H = 2, D = 64, C = H * D, T_MAX = 700, V = 50 };
    int64_t T = every_shape ? T_MAX : 65;
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
        gpu->ops->attn_fwd(gpu, DTYPE_BF16, o.dev, lse.dev, qkv.dev, NULL, B, T, H, D);
        gpu->ops->attn_bwd(gpu, DTYPE_BF16, dqkv[i].dev, qkv.dev, o.dev, x.dev, lse.dev, NULL, B, T,
                           H, D);
        gpu->ops->embed_bwd(gpu, DTYPE_BF16, dwte[i].dev, NULL, ids, x.dev, B, T, C);
        gpu->ops->gemm(gpu, &g, dw[i].dev, qkv.dev, x.dev, NULL);
        fetch(&dqkv[i]);
        fetch(&dwte[i]);
        fetch(&dw[i]);
        forget(&o);
        forget(&lse);
    }
    bool same = memcmp(dqkv[0].gpu, dqkv[1].gpu, (size_t)dqkv[0].n * 2) == 0 &&
                memcmp(dwte[0].gpu, dwte[1].gpu, (size_t)dwte[0].n * 4) == 0 &&
                memcmp(dw[0].gpu, dw[1].gpu, (size_t)dw[0].n * 4) == 0;
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

void gpu_parity(struct backend *be, bool thorough)
{
    CHECK(backend_open(&ref, "ref", 1, NULL) == ST_OK);
    gpu = be;
    every_shape = thorough;
    RUN(memory_is_zeroed_aligned_and_refused_when_it_is_not_there);
    RUN(products_of_every_shape_are_right);
    RUN(products_of_unaligned_operands_are_right);
    RUN(norms_are_right_forward_and_backward);
    RUN(a_constant_row_is_normalised_to_finite_numbers);
    RUN(embeddings_are_right_forward_and_backward);
    RUN(column_sums_are_right);
    RUN(gelu_of_every_bf16_number_is_the_erf_form_and_not_the_tanh_form);
    RUN(gelu_in_fp32_is_exact_to_a_few_ulps);
    RUN(attention_is_right_forward_and_backward);
    RUN(a_later_token_changes_no_earlier_row);
    RUN(losses_and_their_gradients_are_right);
    RUN(an_optimizer_step_has_the_bits_of_the_reference);
    RUN(the_norm_is_summed_by_chunks_and_clips);
    RUN(weights_are_rounded_as_the_reference_does);
    RUN(the_same_ops_give_the_same_bits_again);
    backend_close(ref);
}
