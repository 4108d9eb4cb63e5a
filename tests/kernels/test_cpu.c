/*
 * The CPU backend against the reference, op by op.
 *
 * Inputs are drawn, rounded to the dtype, and given to three computations: the CPU backend, the
 * reference in the same dtype (what the contract's rounding points cost) and the reference in
 * double (the truth). The CPU's distance from the truth may be at most twice the reference's, plus
 * what fp32 sums over K terms lose, and never more than the cap of its kind.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/ref/ops.h"
#include "tests/support/check.h"

static struct backend *cpu; /* two threads */
static struct backend *one; /* one thread  */
static struct backend *ref;

static const enum dtype DTYPES[] = {DTYPE_F32, DTYPE_BF16};
enum { DTYPES_LEN = sizeof(DTYPES) / sizeof(DTYPES[0]) };

// ---- drawing and judging ----------------------------------------------------------------------

/* The same numbers as the dtype holds them and as doubles. */
struct pair {
    void *a;
    double *d;
    int64_t n;
};

static enum dtype wide(enum dtype t)
{
    return t == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
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
    struct pair p = {ref_alloc(ref, (size_t)n * dtype_size(t)), ref_alloc(ref, (size_t)n * 8), n};
    for (int64_t i = 0; i < n; i++) {
        ref_store(p.a, t, i, mean + sigma * normal(key, i));
        p.d[i] = ref_load(p.a, t, i);
    }
    return p;
}

static void drop(struct pair *p)
{
    ref_release(ref, p->a);
    ref_release(ref, p->d);
}

/* An output, three times: zeroed, or filled from the same start. */
struct result {
    enum dtype t;
    int64_t n;
    void *cpu, *ref;
    double *truth;
};

static struct result expect(enum dtype t, int64_t n, const struct pair *start)
{
    struct result r = {t, n, ref_alloc(ref, (size_t)n * dtype_size(t)),
                       ref_alloc(ref, (size_t)n * dtype_size(t)), ref_alloc(ref, (size_t)n * 8)};
    if (start) {
        memcpy(r.cpu, start->a, (size_t)n * dtype_size(t));
        memcpy(r.ref, start->a, (size_t)n * dtype_size(t));
        memcpy(r.truth, start->d, (size_t)n * 8);
    }
    return r;
}

static void forget(struct result *r)
{
    ref_release(ref, r->cpu);
    ref_release(ref, r->ref);
    ref_release(ref, r->truth);
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

static void judge(struct result *r, const char *what, int64_t k, double cap)
{
    double ours = distance(r->cpu, r->t, r->truth, r->n);
    double theirs = distance(r->ref, r->t, r->truth, r->n);
    bool good = ours <= 2 * theirs + acc(k) && ours <= cap + acc(k);
    if (!good) {
        (void)fprintf(stderr, "%s (%d): error %.3g, the reference's %.3g, cap %.3g\n", what,
                      (int)r->n, ours, theirs, cap);
    }
    forget(r);
    CHECK(good);
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

typedef void gemm_fn(struct backend *be, const struct gemm *g, void *out, const void *a,
                     const void *b, const void *bias);

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

    fn(cpu, &g, r.cpu, a.a, b.a, g.bias ? bias.a : NULL);
    ref->ops->gemm(ref, &g, r.ref, a.a, b.a, g.bias ? bias.a : NULL);
    ref->ops->gemm(ref, &g64, r.truth, a.d, b.d, g.bias ? bias.d : NULL);
    drop(&a);
    drop(&b);
    drop(&bias);
    drop(&start);

    char what[128];
    (void)snprintf(what, sizeof(what), "%s gemm %d %s bias %d acc %d f32 %d M %d N %d K %d", who,
                   (int)g.use, name_of(t), g.bias, g.accumulate, g.out_f32, (int)g.M, (int)g.N,
                   (int)g.K);
    judge(&r, what, k, f32_out ? 0 : 4e-3);
}

static void all_gemms(gemm_fn *fn, const char *who, int64_t M, int64_t N, int64_t K)
{
    for (int i = 0; i < DTYPES_LEN; i++) {
        enum dtype t = DTYPES[i];
        if (!cpu->ops->supports(cpu, t)) {
            continue;
        }
        check_gemm(fn, who, (struct gemm){GEMM_FWD, t, false, false, false, M, N, K});
        check_gemm(fn, who, (struct gemm){GEMM_FWD, t, true, false, false, M, N, K});
        check_gemm(fn, who, (struct gemm){GEMM_FWD, t, false, false, true, M, N, K});
        check_gemm(fn, who, (struct gemm){GEMM_DGRAD, t, false, false, false, M, N, K});
        check_gemm(fn, who, (struct gemm){GEMM_WGRAD, t, false, false, false, M, N, K});
        check_gemm(fn, who, (struct gemm){GEMM_WGRAD, t, false, true, false, M, N, K});
    }
}

static const int64_t SHAPES[][3] = {
    {1, 1, 1},     {7, 13, 29},    {129, 257, 65}, {1, 257, 8},    {130, 129, 600},
    {2, 50368, 8}, {3, 2304, 768}, {3, 3072, 768}, {3, 768, 3072},
};

static void products_of_every_shape_are_right(void)
{
    for (size_t i = 0; i < sizeof(SHAPES) / sizeof(SHAPES[0]); i++) {
        all_gemms(cpu->ops->gemm, cpu_gemm_name, SHAPES[i][0], SHAPES[i][1], SHAPES[i][2]);
    }
    CHECK(cpu->ops->sync(cpu) == NULL);
}

static void our_own_product_is_right_too(void)
{
    for (size_t i = 0; i < sizeof(SHAPES) / sizeof(SHAPES[0]); i++) {
        all_gemms(cpu_gemm_blocked, "blocked", SHAPES[i][0], SHAPES[i][1], SHAPES[i][2]);
    }
}

static void every_instruction_set_gives_a_right_product(void)
{
#if defined(__x86_64__)
    const struct lanes *all[] = {&lanes_base, &lanes_avx2, &lanes_avx512};
    struct cpu *c = (struct cpu *)cpu;
    const struct lanes *best = c->lanes;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if ((i == 1 && !__builtin_cpu_supports("avx2")) ||
            (i == 2 && !__builtin_cpu_supports("avx512dq"))) {
            continue;
        }
        c->lanes = all[i];
        check_gemm(cpu_gemm_blocked, all[i]->name,
                   (struct gemm){GEMM_FWD, DTYPE_F32, true, false, false, 67, 45, 301});
        check_gemm(cpu_gemm_blocked, all[i]->name,
                   (struct gemm){GEMM_WGRAD, DTYPE_BF16, false, true, false, 67, 45, 301});
        c->lanes = best;
    }
#endif
}

// ---- norms, embedding, columns ----------------------------------------------------------------

static void check_norm(enum dtype t, int64_t N, int64_t C, bool with_y, bool with_b, double sigma)
{
    enum dtype s = wide(t);
    struct pair x = draw(t, N * C, 0.3, sigma, 1);
    struct pair y = draw(t, N * C, 0, sigma, 2);
    struct pair g = draw(t, C, 1, 0.2, 3);
    struct pair b = draw(t, C, 0, 0.2, 4);
    struct result xs = expect(t, N * C, NULL);
    struct result out = expect(t, N * C, NULL);
    struct result mean = expect(s, N, NULL);
    struct result rstd = expect(s, N, NULL);
    cpu->ops->norm_fwd(cpu, t, xs.cpu, out.cpu, mean.cpu, rstd.cpu, x.a, with_y ? y.a : NULL, g.a,
                       with_b ? b.a : NULL, N, C);
    ref->ops->norm_fwd(ref, t, xs.ref, out.ref, mean.ref, rstd.ref, x.a, with_y ? y.a : NULL, g.a,
                       with_b ? b.a : NULL, N, C);
    ref->ops->norm_fwd(ref, DTYPE_F64, xs.truth, out.truth, mean.truth, rstd.truth, x.d,
                       with_y ? y.d : NULL, g.d, with_b ? b.d : NULL, N, C);

    // Backward is judged on its own, from the statistics of the reference.
    struct pair dout = draw(t, N * C, 0, 1, 5);
    struct pair dx0 = draw(t, N * C, 0, 1, 6);
    struct pair dg0 = draw(s, C, 0, 1, 7);
    struct result dx = expect(t, N * C, &dx0);
    struct result dg = expect(s, C, &dg0);
    struct result db = expect(s, C, &dg0);
    struct pair mu = draw(s, N, 0, 1, 8);
    struct pair rs = draw(s, N, 0, 1, 9);
    ref->ops->norm_fwd(ref, DTYPE_F64, xs.truth, out.truth, mean.truth, rstd.truth, x.d, NULL, g.d,
                       NULL, N, C);
    for (int64_t i = 0; i < N; i++) {
        ref_store(mu.a, s, i, mean.truth[i]);
        ref_store(rs.a, s, i, rstd.truth[i]);
        mu.d[i] = ref_load(mu.a, s, i);
        rs.d[i] = ref_load(rs.a, s, i);
    }
    ref->ops->norm_fwd(ref, DTYPE_F64, xs.truth, out.truth, mean.truth, rstd.truth, x.d,
                       with_y ? y.d : NULL, g.d, with_b ? b.d : NULL, N, C);
    cpu->ops->norm_bwd(cpu, t, dx.cpu, dg.cpu, with_b ? db.cpu : NULL, dout.a, x.a, mu.a, rs.a, g.a,
                       N, C);
    ref->ops->norm_bwd(ref, t, dx.ref, dg.ref, with_b ? db.ref : NULL, dout.a, x.a, mu.a, rs.a, g.a,
                       N, C);
    ref->ops->norm_bwd(ref, DTYPE_F64, dx.truth, dg.truth, with_b ? db.truth : NULL, dout.d, x.d,
                       mu.d, rs.d, g.d, N, C);
    struct pair *all[] = {&x, &y, &g, &b, &dout, &dx0, &dg0, &mu, &rs};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        drop(all[i]);
    }

    char what[96];
    (void)snprintf(what, sizeof(what), "norm %s N %d C %d y %d b %d", name_of(t), (int)N, (int)C,
                   with_y, with_b);
    judge(&xs, what, 1, cap_of(t));
    judge(&mean, what, C, INFINITY); // of the rounded row, which may be near zero
    judge(&rstd, what, C, INFINITY);
    judge(&out, what, C, cap_of(t));
    judge(&dx, what, C, cap_of(t));
    judge(&dg, what, N, cap_of(t));
    judge(&db, what, N, cap_of(t));
}

static void norms_are_right_forward_and_backward(void)
{
    static const int64_t shapes[][2] = {{1, 8},    {3, 64},   {1000, 64}, {129, 13},
                                        {77, 768}, {5, 2048}, {3, 2560},  {3, 4096}};
    for (int i = 0; i < DTYPES_LEN; i++) {
        if (!cpu->ops->supports(cpu, DTYPES[i])) {
            continue;
        }
        for (size_t k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
            check_norm(DTYPES[i], shapes[k][0], shapes[k][1], false, false, 1);
            check_norm(DTYPES[i], shapes[k][0], shapes[k][1], true, true, 3);
        }
    }
}

static void a_constant_row_is_normalised_to_finite_numbers(void)
{
    float x[40];
    float out[40];
    float g[20];
    float mean[2];
    float rstd[2];
    for (int i = 0; i < 40; i++) {
        x[i] = i < 20 ? 3.0f : 0.0f;
        g[i % 20] = 1.0f;
    }
    cpu->ops->norm_fwd(cpu, DTYPE_F32, x, out, mean, rstd, x, NULL, g, NULL, 2, 20);
    for (int i = 0; i < 40; i++) {
        CHECK_NEAR(out[i], 0.0, 1e-3);
    }
}

static void check_embed(enum dtype t, int64_t B, int64_t T, int64_t C, int64_t V, int64_t distinct)
{
    enum dtype s = wide(t);
    int32_t *tokens = mem_alloc((size_t)(B * T) * sizeof(*tokens));
    for (int64_t i = 0; i < B * T; i++) {
        tokens[i] = (int32_t)(rng_u64(5, (uint64_t)i) % (uint64_t)distinct);
    }
    struct pair wte = draw(t, V * C, 0, 1, 1);
    struct pair wpe = draw(t, T * C, 0, 1, 2);
    struct pair dx = draw(t, B * T * C, 0, 1, 3);
    struct result x = expect(t, B * T * C, NULL);
    struct result plain = expect(t, B * T * C, NULL);
    struct result dwte = expect(s, V * C, NULL);
    struct result dwpe = expect(s, T * C, NULL);
    cpu->ops->embed_fwd(cpu, t, x.cpu, tokens, wte.a, wpe.a, B, T, C);
    ref->ops->embed_fwd(ref, t, x.ref, tokens, wte.a, wpe.a, B, T, C);
    ref->ops->embed_fwd(ref, DTYPE_F64, x.truth, tokens, wte.d, wpe.d, B, T, C);
    cpu->ops->embed_fwd(cpu, t, plain.cpu, tokens, wte.a, NULL, B, T, C);
    ref->ops->embed_fwd(ref, t, plain.ref, tokens, wte.a, NULL, B, T, C);
    ref->ops->embed_fwd(ref, DTYPE_F64, plain.truth, tokens, wte.d, NULL, B, T, C);
    cpu->ops->embed_bwd(cpu, t, dwte.cpu, dwpe.cpu, tokens, dx.a, B, T, C);
    ref->ops->embed_bwd(ref, t, dwte.ref, dwpe.ref, tokens, dx.a, B, T, C);
    ref->ops->embed_bwd(ref, DTYPE_F64, dwte.truth, dwpe.truth, tokens, dx.d, B, T, C);
    cpu->ops->embed_bwd(cpu, t, dwte.cpu, NULL, tokens, dx.a, B, T, C);
    ref->ops->embed_bwd(ref, t, dwte.ref, NULL, tokens, dx.a, B, T, C);
    ref->ops->embed_bwd(ref, DTYPE_F64, dwte.truth, NULL, tokens, dx.d, B, T, C);
    mem_free(tokens);
    drop(&wte);
    drop(&wpe);
    drop(&dx);
    judge(&x, "embed", 2, cap_of(t));
    judge(&plain, "embed without positions", 1, cap_of(t));
    judge(&dwte, "embed backward", B * T, 0);
    judge(&dwpe, "positions backward", B, 0);
}

static void embeddings_are_right_forward_and_backward(void)
{
    for (int i = 0; i < DTYPES_LEN; i++) {
        if (cpu->ops->supports(cpu, DTYPES[i])) {
            check_embed(DTYPES[i], 3, 65, 136, 100, 1);
            check_embed(DTYPES[i], 2, 33, 13, 9, 3);
            check_embed(DTYPES[i], 4, 128, 64, 1000, 1000);
        }
    }
}

static void column_sums_are_right(void)
{
    static const int64_t shapes[][2] = {{1, 1}, {65, 7}, {1000, 129}, {64, 768}};
    for (int i = 0; i < DTYPES_LEN; i++) {
        for (size_t k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
            enum dtype t = DTYPES[i];
            if (!cpu->ops->supports(cpu, t)) {
                continue;
            }
            int64_t M = shapes[k][0];
            int64_t N = shapes[k][1];
            struct pair dy = draw(t, M * N, 0, 1, 1);
            struct pair start = draw(wide(t), N, 0, 1, 2);
            struct result db = expect(wide(t), N, &start);
            cpu->ops->bias_bwd(cpu, t, db.cpu, dy.a, M, N);
            ref->ops->bias_bwd(ref, t, db.ref, dy.a, M, N);
            ref->ops->bias_bwd(ref, DTYPE_F64, db.truth, dy.d, M, N);
            drop(&dy);
            drop(&start);
            judge(&db, "column sums", M, 0);
        }
    }
}

// ---- GELU
// -----------------------------------------------------------------------------------------

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
    if (!cpu->ops->supports(cpu, DTYPE_BF16)) {
        SKIP("this machine has no bf16 products");
    }
    static uint16_t h[PATTERNS];
    static uint16_t a[PATTERNS];
    static uint16_t da[PATTERNS];
    for (int i = 0; i < PATTERNS; i++) {
        h[i] = (uint16_t)i;
        da[i] = 0x3f80; // one
    }
    cpu->ops->gelu_fwd(cpu, DTYPE_BF16, a, h, PATTERNS);
    CHECK_INT(off_by_more(h, a, gelu_erf), 0);
    CHECK(off_by_more(h, a, gelu_tanh) > 10);
    for (int i = 0; i < PATTERNS; i++) {
        if (!isfinite(ref_load(h, DTYPE_BF16, i)) && i != 0x7f80) {
            CHECK(!isfinite(ref_load(a, DTYPE_BF16, i)));
        }
    }
    CHECK_INT(a[0x7f80], 0x7f80);
    cpu->ops->gelu_bwd(cpu, DTYPE_BF16, da, h, da, PATTERNS);
    CHECK_INT(off_by_more(h, da, gelu_slope_erf), 0);
}

static void gelu_in_fp32_is_exact_to_a_few_ulps(void)
{
    enum { N = 200003 };
    float *h = mem_alloc(N * sizeof(*h));
    float *a = mem_alloc(N * sizeof(*a));
    float *d = mem_alloc(N * sizeof(*d));
    double worst_a = 0;
    double worst_d = 0;
    for (int i = 0; i < N; i++) {
        h[i] = (float)(i - N / 2) * 1e-4f;
        d[i] = 1.0f;
    }
    cpu->ops->gelu_fwd(cpu, DTYPE_F32, a, h, N);
    cpu->ops->gelu_bwd(cpu, DTYPE_F32, d, h, d, N);
    for (int i = 0; i < N; i++) {
        double x = (double)h[i];
        worst_a = fmax(worst_a, fabs((double)a[i] - gelu_erf(x)) / fmax(fabs(x), 1.0));
        worst_d = fmax(worst_d, fabs((double)d[i] - gelu_slope_erf(x)));
    }
    mem_free(h);
    mem_free(a);
    mem_free(d);
    CHECK_NEAR(worst_a, 0, 2.4e-7);
    CHECK_NEAR(worst_d, 0, 4e-7);
}

// ---- attention ----------------------------------------------------------------------------------

struct attn_case {
    enum dtype t;
    int64_t B, T, H, D;
    bool alibi;
};

static void check_attn(struct attn_case k)
{
    enum dtype t = k.t;
    int64_t n = k.B * k.T * k.H * k.D;
    float slopes[64];
    for (int64_t h = 0; h < k.H; h++) {
        slopes[h] = exp2f(-0.7f * (float)(h + 1));
    }
    const float *s = k.alibi ? slopes : NULL;
    struct pair qkv = draw(t, 3 * n, 0, 1, 1);
    struct pair dout = draw(t, n, 0, 1, 2);
    struct result o = expect(t, n, NULL);
    struct result lse = expect(wide(t), k.B * k.H * k.T, NULL);
    cpu->ops->attn_fwd(cpu, t, o.cpu, lse.cpu, qkv.a, s, k.B, k.T, k.H, k.D);
    ref->ops->attn_fwd(ref, t, o.ref, lse.ref, qkv.a, s, k.B, k.T, k.H, k.D);
    ref->ops->attn_fwd(ref, DTYPE_F64, o.truth, lse.truth, qkv.d, s, k.B, k.T, k.H, k.D);
    double worst = 0;
    for (int64_t i = 0; i < lse.n; i++) {
        worst = fmax(worst, fabs(ref_load(lse.cpu, lse.t, i) - lse.truth[i]));
    }

    struct result dqkv = expect(t, 3 * n, NULL);
    cpu->ops->attn_bwd(cpu, t, dqkv.cpu, qkv.a, o.ref, dout.a, lse.ref, s, k.B, k.T, k.H, k.D);
    ref->ops->attn_bwd(ref, t, dqkv.ref, qkv.a, o.ref, dout.a, lse.ref, s, k.B, k.T, k.H, k.D);
    ref->ops->attn_bwd(ref, DTYPE_F64, dqkv.truth, qkv.d, o.truth, dout.d, lse.truth, s, k.B, k.T,
                       k.H, k.D);
    drop(&qkv);
    drop(&dout);
    forget(&lse);

    char what[96];
    (void)snprintf(what, sizeof(what), "attention %s B %d T %d H %d D %d alibi %d", name_of(t),
                   (int)k.B, (int)k.T, (int)k.H, (int)k.D, k.alibi);
    if (worst > 2e-5) {
        (void)fprintf(stderr, "%s: lse is off by %.3g\n", what, worst);
    }
    bool bf16 = t == DTYPE_BF16;
    judge(&o, what, k.T, bf16 ? 5e-3 : 2e-5);
    judge(&dqkv, what, k.T, bf16 ? 1e-2 : 2e-5);
    CHECK(worst <= 2e-5);
}

static void attention_is_right_forward_and_backward(void)
{
    static const int64_t cases[][4] = {
        {1, 1, 1, 8},   {2, 7, 3, 16},  {1, 64, 5, 64},   {3, 65, 1, 32},  {1, 129, 3, 64},
        {1, 257, 2, 8}, {2, 100, 2, 6}, {1, 130, 2, 128}, {1, 70, 1, 256}, {1, 200, 12, 24},
    };
    for (int i = 0; i < DTYPES_LEN; i++) {
        for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
            if (cpu->ops->supports(cpu, DTYPES[i])) {
                struct attn_case c = {DTYPES[i],   cases[k][0], cases[k][1],
                                      cases[k][2], cases[k][3], false};
                check_attn(c);
                c.alibi = true;
                check_attn(c);
            }
        }
    }
}

static void a_later_token_changes_no_earlier_row(void)
{
    enum { T = 150, H = 2, D = 32, N = T * H * D, CHANGED = 97 };
    float *qkv = mem_alloc(3 * N * sizeof(float));
    float *before = mem_alloc(N * sizeof(float));
    float *after = mem_alloc(N * sizeof(float));
    float lse[T * H];
    for (int i = 0; i < 3 * N; i++) {
        qkv[i] = (float)rng_normal(9, (uint64_t)i);
    }
    cpu->ops->attn_fwd(cpu, DTYPE_F32, before, lse, qkv, NULL, 1, T, H, D);
    for (int i = 0; i < 3 * H * D; i++) {
        qkv[CHANGED * 3 * H * D + i] = 50.0f;
    }
    cpu->ops->attn_fwd(cpu, DTYPE_F32, after, lse, qkv, NULL, 1, T, H, D);
    bool same = memcmp(before, after, (size_t)CHANGED * H * D * sizeof(float)) == 0;
    bool moved = memcmp(before + CHANGED * H * D, after + CHANGED * H * D, H * D * sizeof(float));
    mem_free(qkv);
    mem_free(before);
    mem_free(after);
    CHECK(same);
    CHECK(moved);
}

// ---- cross-entropy
// --------------------------------------------------------------------------------

static void check_xent(enum dtype t, int64_t rows, int64_t V, double sigma)
{
    struct pair logits = draw(t, rows * V, 0, sigma, 1);
    int32_t *targets = mem_alloc((size_t)rows * sizeof(*targets));
    for (int64_t r = 0; r < rows; r++) {
        targets[r] = r % 5 == 3 ? -1 : (int32_t)(rng_u64(3, (uint64_t)r) % (uint64_t)V);
    }
    struct result grad = expect(t, rows * V, &logits);
    struct result loss = expect(wide(t), rows, NULL);
    struct result eval = expect(wide(t), rows, NULL);
    double inv_n = 1.0 / 64;
    cpu->ops->xent(cpu, t, grad.cpu, eval.cpu, targets, inv_n, false, rows, V);
    ref->ops->xent(ref, t, grad.ref, eval.ref, targets, inv_n, false, rows, V);
    ref->ops->xent(ref, DTYPE_F64, grad.truth, eval.truth, targets, inv_n, false, rows, V);
    bool untouched = memcmp(grad.cpu, logits.a, (size_t)grad.n * dtype_size(t)) == 0;
    cpu->ops->xent(cpu, t, grad.cpu, loss.cpu, targets, inv_n, true, rows, V);
    ref->ops->xent(ref, t, grad.ref, loss.ref, targets, inv_n, true, rows, V);
    ref->ops->xent(ref, DTYPE_F64, grad.truth, loss.truth, targets, inv_n, true, rows, V);
    double worst = 0;
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t v = 0; v < V; v++) {
            sum += ref_load(grad.cpu, t, r * V + v);
        }
        worst = fmax(worst, fabs(sum) / inv_n);
    }
    drop(&logits);
    mem_free(targets);
    judge(&loss, "loss", 1, 1e-5);
    judge(&eval, "loss of evaluation", 1, 1e-5);
    judge(&grad, "dlogits", 1, cap_of(t));
    CHECK(untouched);
    CHECK_NEAR(worst, 0, t == DTYPE_BF16 ? 4e-3 : 1e-5);
}

static void losses_and_their_gradients_are_right(void)
{
    for (int i = 0; i < DTYPES_LEN; i++) {
        if (cpu->ops->supports(cpu, DTYPES[i])) {
            check_xent(DTYPES[i], 1, 257, 1);
            check_xent(DTYPES[i], 77, 257, 25); // logits to +-80 and beyond
            check_xent(DTYPES[i], 77, 1, 1);
            check_xent(DTYPES[i], 7, 50368, 2);
        }
    }
}

// ---- the step
// -------------------------------------------------------------------------------------

struct state {
    float *w, *m, *v;
    uint16_t *copy;
};

static struct state state_new(int64_t n)
{
    struct state s = {mem_alloc((size_t)n * 4), mem_alloc((size_t)n * 4), mem_alloc((size_t)n * 4),
                      mem_alloc((size_t)n * 2)};
    for (int64_t i = 0; i < n; i++) {
        uint64_t u = (uint64_t)i;
        s.w[i] = (float)rng_normal(1, u);
        s.m[i] = (float)rng_normal(2, u) * 0.01f;
        s.v[i] = (float)rng_unit(3, u) * 1e-4f * (float)(i % 3); // zeros among them
    }
    return s;
}

static void state_free(struct state *s)
{
    mem_free(s->w);
    mem_free(s->m);
    mem_free(s->v);
    mem_free(s->copy);
}

static bool steps_agree(enum optim_kind kind, int64_t t, int64_t n)
{
    struct state a = state_new(n);
    struct state b = state_new(n);
    float *g = mem_alloc((size_t)n * sizeof(*g));
    for (int64_t i = 0; i < n; i++) {
        g[i] = (float)rng_normal(4, (uint64_t)i) * 0.1f;
    }
    struct optim_step s = {.kind = kind,
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
    cpu->ops->optim(cpu, DTYPE_F32, &s, &clip, a.w, a.copy, a.m, a.v, g, n);
    ref->ops->optim(ref, DTYPE_F32, &s, &clip, b.w, b.copy, b.m, b.v, g, n);
    size_t size = (size_t)n * 4;
    bool same = !memcmp(a.w, b.w, size) && !memcmp(a.m, b.m, size) && !memcmp(a.v, b.v, size) &&
                !memcmp(a.copy, b.copy, size / 2);
    clip.finite = 0;
    cpu->ops->optim(cpu, DTYPE_F32, &s, &clip, a.w, a.copy, a.m, a.v, g, n);
    same = same && !memcmp(a.w, b.w, size) && !memcmp(a.m, b.m, size);
    state_free(&a);
    state_free(&b);
    mem_free(g);
    return same;
}

static void an_optimizer_step_has_the_bits_of_the_reference(void)
{
    static const int64_t sizes[] = {1, 7, (1 << 20) + 3};
    static const int64_t times[] = {1, 2, 1000};
    for (int kind = 0; kind < OPTIM_COUNT; kind++) {
        for (int i = 0; i < 3; i++) {
            for (int k = 0; k < 3; k++) {
                CHECK(steps_agree((enum optim_kind)kind, times[k], sizes[i]));
            }
        }
    }
}

static void every_instruction_set_steps_to_the_same_bits(void)
{
#if defined(__x86_64__)
    struct cpu *c = (struct cpu *)cpu;
    const struct lanes *best = c->lanes;
    const struct lanes *all[] = {&lanes_base, __builtin_cpu_supports("avx2") ? &lanes_avx2 : best};
    for (int i = 0; i < 2; i++) {
        c->lanes = all[i];
        bool adamw = steps_agree(OPTIM_ADAMW, 5, 1003);
        bool adopt = steps_agree(OPTIM_ADOPT, 5, 1003);
        c->lanes = best;
        CHECK(adamw);
        CHECK(adopt);
    }
#endif
}

static void the_norm_is_summed_by_chunks_and_clips(void)
{
    enum { N = 3 * NORM_CHUNK + 17 };
    float *g = mem_alloc(N * sizeof(*g));
    double ours[4];
    double theirs[4];
    for (int i = 0; i < N; i++) {
        g[i] = (float)rng_normal(8, (uint64_t)i);
    }
    struct clip_state a;
    struct clip_state b;
    cpu->ops->sqnorm(cpu, DTYPE_F32, ours, g, N);
    ref->ops->sqnorm(ref, DTYPE_F32, theirs, g, N);
    for (int i = 0; i < 4; i++) {
        CHECK_NEAR(ours[i], theirs[i], 1e-12);
    }
    cpu->ops->clip(cpu, &a, theirs, 4, 1.0);
    ref->ops->clip(ref, &b, theirs, 4, 1.0);
    CHECK_MEM(&a, &b, sizeof(a));
    g[NORM_CHUNK + 5] = NAN;
    cpu->ops->sqnorm(cpu, DTYPE_F32, ours, g, N);
    cpu->ops->clip(cpu, &a, ours, 4, 1.0);
    CHECK_INT(a.finite, 0);
    g[NORM_CHUNK + 5] = INFINITY;
    cpu->ops->sqnorm(cpu, DTYPE_F32, ours, g, N);
    cpu->ops->clip(cpu, &a, ours, 4, 1.0);
    CHECK_INT(a.finite, 0);
    mem_free(g);
}

static void weights_are_rounded_as_the_reference_does(void)
{
    enum { N = 100003 };
    float *w = mem_alloc(N * sizeof(*w));
    uint16_t *a = mem_alloc(N * sizeof(*a));
    uint16_t *b = mem_alloc(N * sizeof(*b));
    for (int i = 0; i < N; i++) {
        uint32_t bits = (uint32_t)rng_u64(6, (uint64_t)i);
        memcpy(&w[i], &bits, sizeof(bits));
    }
    cpu->ops->round_weights(cpu, a, w, N);
    ref->ops->round_weights(ref, b, w, N);
    bool same = memcmp(a, b, N * sizeof(*a)) == 0;
    mem_free(w);
    mem_free(a);
    mem_free(b);
    CHECK(same);
}

// ---- threads
// --------------------------------------------------------------------------------------

enum { BT = 130, HEADS = 3, HD = 16, WIDTH = HEADS * HD, VOCAB = 300 };

/* Every threaded op once, its outputs in one row of bytes. */
static size_t run_all(struct backend *be, enum dtype t, char *out, size_t size)
{
    size_t e = dtype_size(t);
    int64_t n = (int64_t)BT * WIDTH;
    struct pair x = draw(t, 3 * n, 0, 1, 1);
    struct pair y = draw(t, 3 * n, 0, 1, 2);
    struct pair logits = draw(t, (int64_t)BT * VOCAB, 0, 2, 3);
    int32_t tokens[BT];
    for (int i = 0; i < BT; i++) {
        tokens[i] = (int32_t)(rng_u64(4, (uint64_t)i) % VOCAB);
    }
    char *p = out;
    memset(out, 0, size);
    float *mean = (float *)(void *)p;
    float *rstd = mean + BT;
    p += 2 * BT * sizeof(float);
    be->ops->norm_fwd(be, t, p, p + (size_t)n * e, mean, rstd, x.a, y.a, x.a, y.a, BT, WIDTH);
    float *dg = (float *)(void *)(p + 2 * (size_t)n * e);
    p = (char *)(dg + 2 * WIDTH);
    memcpy(p, y.a, (size_t)n * e);
    be->ops->norm_bwd(be, t, p, dg, dg + WIDTH, y.a, x.a, mean, rstd, x.a, BT, WIDTH);
    p += (size_t)n * e;
    float *lse = (float *)(void *)p;
    p += BT * HEADS * sizeof(float);
    be->ops->attn_fwd(be, t, p, lse, x.a, NULL, 1, BT, HEADS, HD);
    be->ops->attn_bwd(be, t, p + (size_t)n * e, x.a, p, y.a, lse, NULL, 1, BT, HEADS, HD);
    p += 4 * (size_t)n * e;
    float *sums = (float *)(void *)p;
    be->ops->embed_bwd(be, t, sums, NULL, tokens, x.a, 1, BT, WIDTH);
    be->ops->bias_bwd(be, t, sums + VOCAB * WIDTH, x.a, BT, WIDTH);
    p = (char *)(sums + VOCAB * WIDTH + WIDTH);
    be->ops->xent(be, t, logits.a, sums + VOCAB * WIDTH, tokens, 0.1, true, BT, VOCAB);
    memcpy(p, logits.a, (size_t)(BT * VOCAB) * e);
    p += (size_t)(BT * VOCAB) * e;
    struct gemm g = {GEMM_WGRAD, t, false, false, false, BT, 3 * WIDTH, WIDTH};
    cpu_gemm_blocked(be, &g, p, x.a, y.a, NULL);
    p += 3 * WIDTH * WIDTH * sizeof(float);
    drop(&x);
    drop(&y);
    drop(&logits);
    return (size_t)(p - out);
}

static void the_number_of_threads_does_not_change_a_bit(void)
{
    enum { SIZE = 4 << 20 };
    char *a = mem_alloc(SIZE);
    char *b = mem_alloc(SIZE);
    bool same = true;
    for (int i = 0; i < DTYPES_LEN; i++) {
        if (cpu->ops->supports(cpu, DTYPES[i])) {
            size_t used = run_all(cpu, DTYPES[i], a, SIZE);
            CHECK(used < SIZE);
            CHECK_INT(run_all(one, DTYPES[i], b, SIZE), used);
            same = same && memcmp(a, b, used) == 0;
        }
    }
    mem_free(a);
    mem_free(b);
    CHECK(same);
}

static void too_many_threads_are_refused(void)
{
    struct backend *be = NULL;
    struct err e;
    CHECK_INT(cpu_open(&be, -1, &e), ST_INVALID);
    CHECK_INT(cpu_open(&be, CPU_THREADS_MAX + 1, &e), ST_INVALID);
    CHECK(be == NULL);
}

int main(void)
{
    struct err e;
    if (cpu_open(&cpu, 2, &e) || cpu_open(&one, 1, &e) || ref_open(&ref, &e)) {
        (void)fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    RUN(products_of_every_shape_are_right);
    RUN(our_own_product_is_right_too);
    RUN(every_instruction_set_gives_a_right_product);
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
    RUN(every_instruction_set_steps_to_the_same_bits);
    RUN(the_norm_is_summed_by_chunks_and_clips);
    RUN(weights_are_rounded_as_the_reference_does);
    RUN(the_number_of_threads_does_not_change_a_bit);
    RUN(too_many_threads_are_refused);
    backend_close(cpu);
    backend_close(one);
    backend_close(ref);
    return check_end();
}
