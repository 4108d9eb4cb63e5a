#include <math.h>

#include "kernels/ref/ops.h"

void ref_sqnorm(struct backend *be, enum dtype gt, double *partials, const void *g, int64_t n)
{
    (void)be;
    for (int64_t start = 0; start < n; start += NORM_CHUNK) {
        int64_t end = start + NORM_CHUNK < n ? start + NORM_CHUNK : n;
        double sum = 0.0;
        for (int64_t i = start; i < end; i++) {
            double v = ref_load(g, gt, i);
            sum += v * v;
        }
        partials[start / NORM_CHUNK] = sum;
    }
}

void ref_clip(struct backend *be, struct clip_state *out, const double *partials, int64_t count,
              double max_norm)
{
    (void)be;
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        sum += partials[i];
    }
    double norm = sqrt(sum);
    out->norm = norm;
    out->factor = fmin(1.0, max_norm / (norm + 1e-6));
    out->finite = isfinite(norm) ? 1 : 0;
    out->taken += out->finite;
}

/*
 * The optimizers are not judged by tolerance: every backend must give these very bits. So this op
 * is written in the type it stores, one IEEE operation at a time, and once for each type.
 */
#define DEFINE_OPTIM(NAME, REAL, SQRT)                                                             \
    static void NAME(const struct optim_step *s, double factor, REAL *w, REAL *m, REAL *v,         \
                     const REAL *g, int64_t n)                                                     \
    {                                                                                              \
        const REAL clip = (REAL)factor;                                                            \
        const REAL lr = (REAL)s->lr;                                                               \
        const REAL keep = (REAL)(1.0 - s->decay);                                                  \
        const REAL b1 = (REAL)s->beta1;                                                            \
        const REAL b2 = (REAL)s->beta2;                                                            \
        const REAL c1 = (REAL)(1.0 - s->beta1);                                                    \
        const REAL c2 = (REAL)(1.0 - s->beta2);                                                    \
        const REAL eps = (REAL)s->eps;                                                             \
        const REAL bias1 = (REAL)s->bias1;                                                         \
        const REAL bias2 = (REAL)s->bias2;                                                         \
        const REAL bound = (REAL)s->clamp;                                                         \
        for (int64_t i = 0; i < n; i++) {                                                          \
            REAL gi = g[i] * clip;                                                                 \
            if (s->kind == OPTIM_ADAMW) {                                                          \
                w[i] = w[i] * keep;                                                                \
                m[i] = b1 * m[i] + c1 * gi;                                                        \
                v[i] = b2 * v[i] + c2 * (gi * gi);                                                 \
                w[i] = w[i] - (lr * (m[i] / bias1)) / (SQRT(v[i] / bias2) + eps);                  \
            } else if (s->t == 1) {                                                                \
                v[i] = gi * gi;                                                                    \
            } else {                                                                               \
                w[i] = w[i] * keep;                                                                \
                REAL root = SQRT(v[i]);                                                            \
                REAL step = gi / (root > eps ? root : eps);                                        \
                step = step > bound ? bound : step < -bound ? -bound : step;                       \
                m[i] = m[i] + c1 * (step - m[i]);                                                  \
                w[i] = w[i] - lr * m[i];                                                           \
                v[i] = b2 * v[i] + c2 * (gi * gi);                                                 \
            }                                                                                      \
        }                                                                                          \
    }

DEFINE_OPTIM(optim_f32, float, sqrtf)
DEFINE_OPTIM(optim_f64, double, sqrt)

static void optim_split(const struct optim_step *s, double factor, uint16_t *high, uint16_t *rest,
                        float *m, float *v, const float *g, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float w = master_join(high[i], rest[i]);
        optim_f32(s, factor, &w, &m[i], &v[i], &g[i], 1);
        master_split(w, &high[i], &rest[i]);
    }
}

void ref_optim(struct backend *be, enum dtype gt, const struct optim_step *steps,
               const struct clip_state *clip, void *w, void *rest, void *m, void *v, const void *g,
               int64_t n)
{
    (void)be;
    if (!clip->finite) {
        return;
    }
    const struct optim_step *s = optim_pick(steps, clip);
    if (gt == DTYPE_F64) {
        optim_f64(s, clip->factor, w, m, v, g, n);
    } else if (!rest) {
        optim_f32(s, clip->factor, w, m, v, g, n);
    } else {
        optim_split(s, clip->factor, w, rest, m, v, g, n);
    }
}
