#include "kernels/ref/ops.h"

/* A matrix of dtype t read through strides, so that one loop serves all three layouts. */
struct view {
    const void *p;
    enum dtype t;
    int64_t row; /* elements from one row to the next */
    int64_t col;
};

/* With the dtype a constant at each call the loop has no branch, which is all
 * the speed sought here. */
static inline double dot_as(enum dtype t, struct view a, struct view b, int64_t i, int64_t j,
                            int64_t n)
{
    double sum = 0.0;
    for (int64_t k = 0; k < n; k++) {
        sum += ref_load(a.p, t, i * a.row + k * a.col) * ref_load(b.p, t, k * b.row + j * b.col);
    }
    return sum;
}

static double dot(struct view a, struct view b, int64_t i, int64_t j, int64_t n)
{
    if (a.t == DTYPE_F32) {
        return dot_as(DTYPE_F32, a, b, i, j, n);
    }
    if (a.t == DTYPE_F64) {
        return dot_as(DTYPE_F64, a, b, i, j, n);
    }
    return dot_as(DTYPE_BF16, a, b, i, j, n);
}

static void fwd(const struct gemm *g, void *y, const void *x, const void *w, const void *bias)
{
    struct view vx = {x, g->a_type, g->K, 1};
    struct view vw = {w, g->a_type, 1, g->K}; // transposed: W is (N, K)
    enum dtype out = g->out_f32 ? ref_g(g->a_type) : g->a_type;
    for (int64_t m = 0; m < g->M; m++) {
        for (int64_t n = 0; n < g->N; n++) {
            double sum = dot(vx, vw, m, n, g->K);
            ref_store(y, out, m * g->N + n, sum + (g->bias ? ref_load(bias, g->a_type, n) : 0.0));
        }
    }
}

static void dgrad(const struct gemm *g, void *dx, const void *dy, const void *w)
{
    struct view vdy = {dy, g->a_type, g->N, 1};
    struct view vw = {w, g->a_type, g->K, 1};
    for (int64_t m = 0; m < g->M; m++) {
        for (int64_t k = 0; k < g->K; k++) {
            ref_store(dx, g->a_type, m * g->K + k, dot(vdy, vw, m, k, g->N));
        }
    }
}

static void wgrad(const struct gemm *g, void *dw, const void *dy, const void *x)
{
    struct view vdy = {dy, g->a_type, 1, g->N}; // transposed: dY is (M, N)
    struct view vx = {x, g->a_type, g->K, 1};
    enum dtype gt = ref_g(g->a_type);
    for (int64_t n = 0; n < g->N; n++) {
        for (int64_t k = 0; k < g->K; k++) {
            int64_t at = n * g->K + k;
            double before = g->accumulate ? ref_load(dw, gt, at) : 0.0;
            ref_store(dw, gt, at, before + dot(vdy, vx, n, k, g->M));
        }
    }
}

void ref_gemm(struct backend *be, const struct gemm *g, void *out, const void *a, const void *b,
              const void *bias)
{
    (void)be;
    if (g->use == GEMM_FWD) {
        fwd(g, out, a, b, bias);
    } else if (g->use == GEMM_DGRAD) {
        dgrad(g, out, a, b);
    } else {
        wgrad(g, out, a, b);
    }
}

void ref_bias_bwd(struct backend *be, enum dtype at, void *db, const void *dy, int64_t M, int64_t N)
{
    (void)be;
    for (int64_t n = 0; n < N; n++) {
        double sum = 0.0;
        for (int64_t m = 0; m < M; m++) {
            sum += ref_load(dy, at, m * N + n);
        }
        ref_add(db, ref_g(at), n, sum);
    }
}
