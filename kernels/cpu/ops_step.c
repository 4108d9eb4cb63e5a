/* The optimizer step: norm of the gradient, clip factor, one fused pass over the state. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

static const struct lanes *lanes_of(struct backend *be)
{
    return ((const struct cpu *)be)->lanes;
}

void cpu_sqnorm(struct backend *be, enum dtype gt, double *partials, const void *g, int64_t n)
{
    const struct lanes *l = lanes_of(be);
    const float *p = g;
    int64_t chunks = (n + NORM_CHUNK - 1) / NORM_CHUNK;
    (void)gt; // F32: this backend has no F64
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < chunks; i++) {
        int64_t left = n - i * NORM_CHUNK;
        partials[i] = l->sqnorm(p + i * NORM_CHUNK, left < NORM_CHUNK ? left : NORM_CHUNK);
    }
}

void cpu_clip(struct backend *be, struct clip_state *out, const double *partials, int64_t count,
              double max_norm)
{
    (void)be;
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += partials[i];
    }
    out->norm = sqrt(sum);
    out->finite = isfinite(out->norm) ? 1 : 0;
    out->taken += out->finite;
    out->factor = fmin(1.0, max_norm / (out->norm + 1e-6));
}

void cpu_optim(struct backend *be, enum dtype gt, const struct optim_step *steps,
               const struct clip_state *clip, void *w, void *rest, void *m, void *v, const void *g,
               int64_t n)
{
    const struct lanes *l = lanes_of(be);
    (void)gt;
    if (!clip->finite) {
        return;
    }
    const struct optim_step *s = optim_pick(steps, clip);
    int64_t chunks = (n + NORM_CHUNK - 1) / NORM_CHUNK;
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < chunks; i++) {
        int64_t at = i * NORM_CHUNK;
        int64_t left = n - at;
        size_t size = rest ? sizeof(uint16_t) : sizeof(float);
        l->optim(s, clip->factor, (char *)w + (size_t)at * size,
                 rest ? (uint16_t *)rest + at : NULL, (float *)m + at, (float *)v + at,
                 (const float *)g + at, left < NORM_CHUNK ? left : NORM_CHUNK);
    }
}

void cpu_zero(struct backend *be, void *p, size_t size)
{
    enum { PIECE = 1 << 18 };
    (void)be; // without OpenMP nobody asks how many threads
    int64_t pieces = (int64_t)((size + PIECE - 1) / PIECE);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < pieces; i++) {
        size_t at = (size_t)i * PIECE;
        memset((char *)p + at, 0, size - at < PIECE ? size - at : PIECE);
    }
}
