/*
 * step.h - kernels of the optimizer step: norm of the gradient, AdamW and ADOPT, compute weights.
 *
 * Included by lanes_*.c. Every element goes through the operations of struct optim_step in the
 * written order, each rounded to fp32 by itself (no fused multiply-add), so that all instruction
 * sets and all backends agree to the bit. These loops are bound by memory: one pass over
 * w, m, v, g.
 */
#ifndef KERNELS_CPU_STEP_H
#define KERNELS_CPU_STEP_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* Sixteen lanes of double, whatever the vectors: the same bits on every instruction set. */
KERNEL double sqnorm(const float *g, int64_t n)
{
    double s[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++) {
            double t = (double)g[i + j];
            s[j] += t * t;
        }
    }
    for (; i < n; i++) {
        s[i % 16] += (double)g[i] * (double)g[i];
    }
    double sum = 0;
    for (int j = 0; j < 16; j++) {
        sum += s[j];
    }
    return sum;
}

/* Half away from zero on the bit pattern, see backend.h. */
INL void put_weight(uint16_t *copy, vf w)
{
    vh h = v_narrow(((vu)w + 0x8000) >> 16);
    memcpy(copy, &h, sizeof(h));
}

struct step_consts {
    float factor, decay, beta1, beta2, rest1, rest2, eps, lr, bias1, bias2, clamp;
};

INL vf adamw(const struct step_consts *k, vf w, vf g, vf *m, vf *v)
{
    w = w * k->decay;
    *m = k->beta1 * *m + k->rest1 * g;
    *v = k->beta2 * *v + k->rest2 * (g * g);
    vf root = v_sqrt(*v / k->bias2) + k->eps;
    return w - k->lr * (*m / k->bias1) / root;
}

INL vf adopt(const struct step_consts *k, vf w, vf g, vf *m, vf *v)
{
    w = w * k->decay;
    vf n = g / v_max(v_set(k->eps), v_sqrt(*v));
    n = v_max(v_set(-k->clamp), v_min(v_set(k->clamp), n));
    *m = *m + k->rest1 * (n - *m);
    *v = k->beta2 * *v + k->rest2 * (g * g);
    return w - k->lr * *m;
}

INL vf adopt_first(const struct step_consts *k, vf w, vf g, vf *m, vf *v)
{
    (void)k;
    (void)m;
    *v = g * g;
    return w;
}

typedef vf (*step_fn)(const struct step_consts *k, vf w, vf g, vf *m, vf *v);

INL void step_loop(const struct step_consts *k, const step_fn fn, float *w, uint16_t *copy,
                   float *m, float *v, const float *g, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf vm = v_load(m + i);
        vf vv = v_load(v + i);
        vf vw = fn(k, v_load(w + i), v_load(g + i) * k->factor, &vm, &vv);
        v_store(w + i, vw);
        v_store(m + i, vm);
        v_store(v + i, vv);
        if (copy) {
            put_weight(copy + i, vw);
        }
    }
    if (i < n) {
        int64_t left = n - i;
        vf vm = v_get_n(DTYPE_F32, m, i, left);
        vf vv = v_get_n(DTYPE_F32, v, i, left);
        vf vg = v_get_n(DTYPE_F32, g, i, left) * k->factor;
        vf vw = fn(k, v_get_n(DTYPE_F32, w, i, left), vg, &vm, &vv);
        v_put_n(DTYPE_F32, w, i, left, vw);
        v_put_n(DTYPE_F32, m, i, left, vm);
        v_put_n(DTYPE_F32, v, i, left, vv);
        if (copy) {
            uint16_t t[VL];
            put_weight(t, vw);
            memcpy(copy + i, t, (size_t)left * sizeof(t[0]));
        }
    }
}

KERNEL void optim(const struct optim_step *s, double factor, float *w, uint16_t *copy, float *m,
                  float *v, const float *g, int64_t n)
{
    struct step_consts k = {
        .factor = (float)factor,
        .decay = (float)(1.0 - s->decay),
        .beta1 = (float)s->beta1,
        .beta2 = (float)s->beta2,
        .rest1 = (float)(1.0 - s->beta1),
        .rest2 = (float)(1.0 - s->beta2),
        .eps = (float)s->eps,
        .lr = (float)s->lr,
        .bias1 = (float)s->bias1,
        .bias2 = (float)s->bias2,
        .clamp = (float)s->clamp,
    };
    if (s->kind == OPTIM_ADAMW) {
        step_loop(&k, adamw, w, copy, m, v, g, n);
    } else if (s->t > 1) {
        step_loop(&k, adopt, w, copy, m, v, g, n);
    } else {
        step_loop(&k, adopt_first, w, copy, m, v, g, n);
    }
}

KERNEL void round_weights(uint16_t *copy, const float *w, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        put_weight(copy + i, v_load(w + i));
    }
    if (i < n) {
        uint16_t t[VL];
        put_weight(t, v_get_n(DTYPE_F32, w, i, n - i));
        memcpy(copy + i, t, (size_t)(n - i) * sizeof(t[0]));
    }
}

#endif
