#include <math.h>

#include "common/limits.h"
#include "kernels/ref/ops.h"

/* One head of one sequence inside the packed tensors. */
struct head {
    enum dtype at;
    const void *qkv;
    int64_t T, H, D;
    int64_t b, h;
    double slope;
};

enum { Q = 0, K, V };

/* Where element d of q, k or v at position t lies in qkv (B, T, 3, H, D). */
static int64_t at_qkv(const struct head *s, int64_t t, int which, int64_t d)
{
    return (((s->b * s->T + t) * 3 + which) * s->H + s->h) * s->D + d;
}

/* Where element d at position t lies in o (B, T, H, D). */
static int64_t at_o(const struct head *s, int64_t t, int64_t d)
{
    return ((s->b * s->T + t) * s->H + s->h) * s->D + d;
}

static double score(const struct head *s, int64_t i, int64_t j)
{
    double dot = 0.0;
    for (int64_t d = 0; d < s->D; d++) {
        dot += ref_load(s->qkv, s->at, at_qkv(s, i, Q, d)) *
               ref_load(s->qkv, s->at, at_qkv(s, j, K, d));
    }
    return dot / sqrt((double)s->D) + s->slope * (double)(j - i);
}

static void zero(double *x, int64_t n)
{
    memset(x, 0, (size_t)n * sizeof(x[0]));
}

static void head_fwd(const struct head *s, void *o, void *lse)
{
    for (int64_t i = 0; i < s->T; i++) {
        // The maximum first, so that no exponential overflows.
        double max = -INFINITY;
        for (int64_t j = 0; j <= i; j++) {
            max = fmax(max, score(s, i, j));
        }
        double sum = 0.0;
        double acc[LIMIT_D_MODEL];
        zero(acc, s->D);
        for (int64_t j = 0; j <= i; j++) {
            double p = exp(score(s, i, j) - max);
            sum += p;
            for (int64_t d = 0; d < s->D; d++) {
                acc[d] += ref_round(s->at, p) * ref_load(s->qkv, s->at, at_qkv(s, j, V, d));
            }
        }
        for (int64_t d = 0; d < s->D; d++) {
            ref_store(o, s->at, at_o(s, i, d), acc[d] / sum);
        }
        ref_store(lse, ref_g(s->at), (s->b * s->H + s->h) * s->T + i, max + log(sum));
    }
}

void ref_attn_fwd(struct backend *be, enum dtype at, void *o, void *lse, const void *qkv,
                  const float *slopes, int64_t B, int64_t T, int64_t H, int64_t D)
{
    (void)be;
    for (int64_t b = 0; b < B; b++) {
        for (int64_t h = 0; h < H; h++) {
            struct head s = {at, qkv, T, H, D, b, h, slopes ? (double)slopes[h] : 0.0};
            head_fwd(&s, o, lse);
        }
    }
}

/* What the backward pass knows of the pair (i, j). */
struct pair {
    double p;  /* the probability, not rounded */
    double ds; /* the gradient of the product q_i k_j, not rounded */
};

static struct pair pair_at(const struct head *s, const void *o, const void *dout, const void *lse,
                           int64_t i, int64_t j)
{
    double dp = 0.0;    // do_i . v_j, the gradient of p_ij before the softmax's own term
    double delta = 0.0; // do_i . o_i, which is sum_j p_ij dp_ij
    for (int64_t d = 0; d < s->D; d++) {
        double g = ref_load(dout, s->at, at_o(s, i, d));
        dp += g * ref_load(s->qkv, s->at, at_qkv(s, j, V, d));
        delta += g * ref_load(o, s->at, at_o(s, i, d));
    }
    double l = ref_load(lse, ref_g(s->at), (s->b * s->H + s->h) * s->T + i);
    double p = exp(score(s, i, j) - l);
    return (struct pair){p, p * (dp - delta) / sqrt((double)s->D)};
}

static void head_bwd(const struct head *s, void *dqkv, const void *o, const void *dout,
                     const void *lse)
{
    // Gradients of k and v at t gather over later queries, that of q over earlier keys.
    for (int64_t t = 0; t < s->T; t++) {
        double dq[LIMIT_D_MODEL];
        double dk[LIMIT_D_MODEL];
        double dv[LIMIT_D_MODEL];
        zero(dq, s->D);
        zero(dk, s->D);
        zero(dv, s->D);
        for (int64_t j = 0; j <= t; j++) {
            double ds = ref_round(s->at, pair_at(s, o, dout, lse, t, j).ds);
            for (int64_t d = 0; d < s->D; d++) {
                dq[d] += ds * ref_load(s->qkv, s->at, at_qkv(s, j, K, d));
            }
        }
        for (int64_t i = t; i < s->T; i++) {
            struct pair x = pair_at(s, o, dout, lse, i, t);
            for (int64_t d = 0; d < s->D; d++) {
                dk[d] += ref_round(s->at, x.ds) * ref_load(s->qkv, s->at, at_qkv(s, i, Q, d));
                dv[d] += ref_round(s->at, x.p) * ref_load(dout, s->at, at_o(s, i, d));
            }
        }
        for (int64_t d = 0; d < s->D; d++) {
            ref_store(dqkv, s->at, at_qkv(s, t, Q, d), dq[d]);
            ref_store(dqkv, s->at, at_qkv(s, t, K, d), dk[d]);
            ref_store(dqkv, s->at, at_qkv(s, t, V, d), dv[d]);
        }
    }
}

void ref_attn_bwd(struct backend *be, enum dtype at, void *dqkv, const void *qkv, const void *o,
                  const void *dout, const void *lse, const float *slopes, int64_t B, int64_t T,
                  int64_t H, int64_t D)
{
    (void)be;
    for (int64_t b = 0; b < B; b++) {
        for (int64_t h = 0; h < H; h++) {
            struct head s = {at, qkv, T, H, D, b, h, slopes ? (double)slopes[h] : 0.0};
            head_bwd(&s, dqkv, o, dout, lse);
        }
    }
}
