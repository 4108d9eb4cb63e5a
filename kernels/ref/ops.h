/*
 * ops.h - the reference: plain C, one thread, sums in double, the judge of every other backend.
 *
 * Each op is written as its definition reads and computes in double, whatever the dtype: values are
 * widened as they are loaded and rounded once as they are stored, where kernels/backend.h says R.
 * With DTYPE_F64 nothing is rounded at all, which makes the model's gradients an oracle.
 */
#ifndef KERNELS_REF_OPS_H
#define KERNELS_REF_OPS_H

#include <string.h>

#include "kernels/backend.h"

/* Always there; the caller ends it through its table's close(). ST_NOMEM only. */
enum status ref_open(struct backend **out, struct err *e) MUST_CHECK;

/* Host memory serves every backend that computes on the host. 256-byte aligned, zeroed. */
void *ref_alloc(struct backend *be, size_t size);
void ref_release(struct backend *be, void *p);
void ref_copy(struct backend *be, void *dst, const void *src, size_t size);
void ref_zero(struct backend *be, void *p, size_t size);
/* Half of what this machine, or this container, has. */
int64_t ref_memory(void);

/* Type G: what gradients, statistics and losses are when activations are t. */
static inline enum dtype ref_g(enum dtype t)
{
    return t == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
}

/* One rounding to bf16, to nearest even, as its upper 16 bits of an fp32 pattern. */
static inline uint16_t ref_bf16(double v)
{
    // Going by way of float would round twice. Rounding to odd first makes the second one right:
    // the last bit then says "something was lost" (Boldo and Melquiond 2008).
    float f = (float)v;
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    if (v != v) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    if ((double)f != v && f - f == 0.0F) {
        double magnitude = v < 0.0 ? -v : v;
        double rounded = (double)(f < 0.0F ? -f : f);
        bits -= rounded > magnitude;
        bits |= 1U;
    }
    return (uint16_t)((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

static inline double ref_load(const void *p, enum dtype t, int64_t i)
{
    if (t == DTYPE_F32) {
        return (double)((const float *)p)[i];
    }
    if (t == DTYPE_F64) {
        return ((const double *)p)[i];
    }
    uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float f;
    memcpy(&f, &bits, sizeof(f));
    return (double)f;
}

static inline void ref_store(void *p, enum dtype t, int64_t i, double v)
{
    if (t == DTYPE_F32) {
        ((float *)p)[i] = (float)v;
    } else if (t == DTYPE_F64) {
        ((double *)p)[i] = v;
    } else {
        ((uint16_t *)p)[i] = ref_bf16(v);
    }
}

/* R(v): what a store and a load make of it. */
static inline double ref_round(enum dtype t, double v)
{
    double stored;
    ref_store(&stored, t, 0, v);
    return ref_load(&stored, t, 0);
}

static inline void ref_add(void *p, enum dtype t, int64_t i, double v)
{
    ref_store(p, t, i, ref_load(p, t, i) + v);
}

/* ---- the ops; kernels/backend.h is their manual ---- */

void ref_embed_fwd(struct backend *be, enum dtype at, void *x, const int32_t *tokens,
                   const void *wte, const void *wpe, int64_t B, int64_t T, int64_t C);
void ref_embed_bwd(struct backend *be, enum dtype at, void *dwte, void *dwpe, const int32_t *tokens,
                   const void *dx, int64_t B, int64_t T, int64_t C);
void ref_norm_fwd(struct backend *be, enum dtype at, void *xs, void *out, void *mean, void *rstd,
                  const void *x, const void *y, const void *g, const void *b, int64_t N, int64_t C);
void ref_norm_bwd(struct backend *be, enum dtype at, void *dx, void *dg, void *db, const void *dout,
                  const void *xs, const void *mean, const void *rstd, const void *g, int64_t N,
                  int64_t C);
void ref_gemm(struct backend *be, const struct gemm *g, void *out, const void *a, const void *b,
              const void *bias);
void ref_bias_bwd(struct backend *be, enum dtype at, void *db, const void *dy, int64_t M,
                  int64_t N);
void ref_gelu_fwd(struct backend *be, enum dtype at, void *a, const void *h, int64_t n);
void ref_gelu_bwd(struct backend *be, enum dtype at, void *dh, const void *h, const void *da,
                  int64_t n);
void ref_attn_fwd(struct backend *be, enum dtype at, void *o, void *lse, const void *qkv,
                  const float *slopes, int64_t B, int64_t T, int64_t H, int64_t D);
void ref_attn_bwd(struct backend *be, enum dtype at, void *dqkv, const void *qkv, const void *o,
                  const void *dout, const void *lse, const float *slopes, int64_t B, int64_t T,
                  int64_t H, int64_t D);
void ref_xent(struct backend *be, enum dtype at, void *logits, void *loss, const int32_t *targets,
              double inv_n, bool train, int64_t rows, int64_t V);
void ref_sqnorm(struct backend *be, enum dtype gt, double *partials, const void *g, int64_t n);
void ref_clip(struct backend *be, struct clip_state *out, const double *partials, int64_t count,
              double max_norm);
void ref_optim(struct backend *be, enum dtype gt, const struct optim_step *steps,
               const struct clip_state *clip, void *w, void *rest, void *m, void *v, const void *g,
               int64_t n);
void ref_delta(struct backend *be, float *u, struct codec_result *results, const void *w,
               const void *rest, const float *base, const float *residual, float beta, int64_t n);
void ref_encode(struct backend *be, const struct codec_rule *rule, const struct codec_parts *out,
                struct codec_result *results, float *left, const float *u, int64_t n);

#endif
