/*
 * step.h - kernels of the optimizer step: norm of the gradient, AdamW and ADOPT.
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

/* VL weights from i on: fp32, or a split master (backend.h) where there is a rest. */
INL vf get_weights(const void *w, const uint16_t *rest, int64_t i)
{
    if (!rest) {
        return v_load((const float *)w + i);
    }
    vh high;
    vh low;
    memcpy(&high, (const uint16_t *)w + i, sizeof(high));
    memcpy(&low, rest + i, sizeof(low));
    vu bits = v_widen(low);
    return (vf)((v_widen(high) << 16) + (bits - ((bits & 0x8000) << 1)));
}

INL void put_weights(void *w, uint16_t *rest, int64_t i, vf x)
{
    if (!rest) {
        v_store((float *)w + i, x);
        return;
    }
    vh high = v_narrow(((vu)x + 0x8000) >> 16);
    vh low = v_narrow((vu)x);
    memcpy((uint16_t *)w + i, &high, sizeof(high));
    memcpy(rest + i, &low, sizeof(low));
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

INL void step_loop(const struct step_consts *k, const step_fn fn, void *w, uint16_t *rest, float *m,
                   float *v, const float *g, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf vm = v_load(m + i);
        vf vv = v_load(v + i);
        put_weights(w, rest, i,
                    fn(k, get_weights(w, rest, i), v_load(g + i) * k->factor, &vm, &vv));
        v_store(m + i, vm);
        v_store(v + i, vv);
    }
    if (i < n) { // what is left, through vectors of its own
        size_t left = (size_t)(n - i);
        size_t size = rest ? sizeof(uint16_t) : sizeof(float);
        float tw[VL] = {0};
        uint16_t tr[VL] = {0};
        memcpy(tw, (const char *)w + (size_t)i * size, left * size);
        if (rest) {
            memcpy(tr, rest + i, left * sizeof(tr[0]));
        }
        uint16_t *tail = rest ? tr : NULL;
        vf vm = v_get_n(DTYPE_F32, m, i, n - i);
        vf vv = v_get_n(DTYPE_F32, v, i, n - i);
        vf vg = v_get_n(DTYPE_F32, g, i, n - i) * k->factor;
        put_weights(tw, tail, 0, fn(k, get_weights(tw, tail, 0), vg, &vm, &vv));
        v_put_n(DTYPE_F32, m, i, n - i, vm);
        v_put_n(DTYPE_F32, v, i, n - i, vv);
        memcpy((char *)w + (size_t)i * size, tw, left * size);
        if (rest) {
            memcpy(rest + i, tr, left * sizeof(tr[0]));
        }
    }
}

KERNEL void optim(const struct optim_step *s, double factor, void *w, uint16_t *rest, float *m,
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
        step_loop(&k, adamw, w, rest, m, v, g, n);
    } else if (s->t > 1) {
        step_loop(&k, adopt, w, rest, m, v, g, n);
    } else {
        step_loop(&k, adopt_first, w, rest, m, v, g, n);
    }
}

#endif
