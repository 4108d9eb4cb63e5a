/*
 * rows.h - kernels over rows and elements: embedding, LayerNorm, GELU, column sums, cross-entropy.
 *
 * Included by lanes_*.c, once per instruction set. Each kernel is written once over a dtype that is
 * a constant after inlining; the functions at the end of a group choose between the two copies.
 */
#ifndef KERNELS_CPU_ROWS_H
#define KERNELS_CPU_ROWS_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

// ---- embedding ------------------------------------------------------------------------------

INL void embed_fwd_at(const enum dtype at, void *x, const int32_t *tokens, const void *wte,
                      const void *wpe, int64_t T, int64_t C, int64_t row0, int64_t row1)
{
    for (int64_t r = row0; r < row1; r++) {
        int64_t from = tokens[r] * C;
        int64_t pos = r % T * C;
        int64_t c = 0;
        for (; c + VL <= C; c += VL) {
            vf s = v_get(at, wte, from + c);
            v_put(at, x, r * C + c, wpe ? s + v_get(at, wpe, pos + c) : s);
        }
        if (c < C) {
            vf s = v_get_n(at, wte, from + c, C - c);
            v_put_n(at, x, r * C + c, C - c, wpe ? s + v_get_n(at, wpe, pos + c, C - c) : s);
        }
    }
}

KERNEL void embed_fwd(enum dtype at, void *x, const int32_t *tokens, const void *wte,
                      const void *wpe, int64_t T, int64_t C, int64_t row0, int64_t row1)
{
    if (at == DTYPE_BF16) {
        embed_fwd_at(DTYPE_BF16, x, tokens, wte, wpe, T, C, row0, row1);
    } else {
        embed_fwd_at(DTYPE_F32, x, tokens, wte, wpe, T, C, row0, row1);
    }
}

/* row of sums += row of dx, columns [col0, col1) */
INL void add_row(const enum dtype at, float *sums, const void *dx, int64_t row, int64_t C,
                 int64_t col0, int64_t col1)
{
    int64_t c = col0;
    for (; c + VL <= col1; c += VL) {
        v_store(sums + c, v_load(sums + c) + v_get(at, dx, row * C + c));
    }
    for (; c < col1; c++) {
        sums[c] += s_get(at, dx, row * C + c);
    }
}

INL void embed_bwd_at(const enum dtype at, float *dwte, float *dwpe, const int32_t *tokens,
                      const void *dx, int64_t N, int64_t T, int64_t C, int64_t col0, int64_t col1)
{
    for (int64_t r = 0; r < N; r++) {
        add_row(at, dwte + tokens[r] * C, dx, r, C, col0, col1);
        if (dwpe) {
            add_row(at, dwpe + r % T * C, dx, r, C, col0, col1);
        }
    }
}

KERNEL void embed_bwd(enum dtype at, float *dwte, float *dwpe, const int32_t *tokens,
                      const void *dx, int64_t N, int64_t T, int64_t C, int64_t col0, int64_t col1)
{
    if (at == DTYPE_BF16) {
        embed_bwd_at(DTYPE_BF16, dwte, dwpe, tokens, dx, N, T, C, col0, col1);
    } else {
        embed_bwd_at(DTYPE_F32, dwte, dwpe, tokens, dx, N, T, C, col0, col1);
    }
}

// ---- LayerNorm --------------------------------------------------------------------------------

/*
 * xs = R(x + y), then the sum of the row as stored: four chains of adds hide their latency. xs may
 * be x; without y nothing is written then.
 */
INL float norm_residual(const enum dtype at, void *xs, const void *x, const void *y, int64_t at0,
                        int64_t C)
{
    vf s[4] = {{0}};
    int64_t c = 0;
    for (; c + 4 * VL <= C; c += 4 * VL) {
        for (int j = 0; j < 4; j++) {
            int64_t i = at0 + c + j * VL;
            vf t = v_get(at, x, i);
            if (y) {
                v_put(at, xs, i, t + v_get(at, y, i));
                t = v_get(at, xs, i);
            } else if (xs != x) {
                v_put(at, xs, i, t);
            }
            s[j] += t;
        }
    }
    for (; c < C; c += VL) {
        int64_t n = C - c < VL ? C - c : VL;
        vf t = v_get_n(at, x, at0 + c, n);
        if (y || xs != x) {
            t = y ? t + v_get_n(at, y, at0 + c, n) : t;
            v_put_n(at, xs, at0 + c, n, t);
            t = v_get_n(at, xs, at0 + c, n);
        }
        s[0] += t;
    }
    return v_sum((s[0] + s[1]) + (s[2] + s[3]));
}

/* sum of (xs - mean)^2 */
INL float norm_variance(const enum dtype at, const void *xs, float mean, int64_t at0, int64_t C)
{
    vf s[4] = {{0}};
    vf mu = v_set(mean);
    int64_t c = 0;
    for (; c + 4 * VL <= C; c += 4 * VL) {
        for (int j = 0; j < 4; j++) {
            vf t = v_get(at, xs, at0 + c + j * VL) - mu;
            s[j] = v_fma(t, t, s[j]);
        }
    }
    float rest = 0.0f;
    for (; c < C; c++) {
        float t = s_get(at, xs, at0 + c) - mean;
        rest += t * t;
    }
    return v_sum((s[0] + s[1]) + (s[2] + s[3])) + rest;
}

INL vf norm_out(vf x, vf mu, vf rs, vf g, vf b)
{
    return v_fma((x - mu) * rs, g, b);
}

INL void norm_fwd_at(const enum dtype at, void *xs, void *out, float *mean, float *rstd,
                     const void *x, const void *y, const void *g, const void *b, int64_t C,
                     int64_t row0, int64_t row1)
{
    for (int64_t r = row0; r < row1; r++) {
        int64_t at0 = r * C;
        float m = norm_residual(at, xs, x, y, at0, C) / (float)C;
        float var = norm_variance(at, xs, m, at0, C) / (float)C;
        float rs = 1.0f / sqrtf(var + 1e-5f);
        mean[r] = m;
        rstd[r] = rs;

        vf vm = v_set(m);
        vf vr = v_set(rs);
        vf zero = {0};
        int64_t c = 0;
        for (; c + VL <= C; c += VL) {
            vf t = norm_out(v_get(at, xs, at0 + c), vm, vr, v_get(at, g, c),
                            b ? v_get(at, b, c) : zero);
            v_put(at, out, at0 + c, t);
        }
        if (c < C) {
            int64_t n = C - c;
            vf t = norm_out(v_get_n(at, xs, at0 + c, n), vm, vr, v_get_n(at, g, c, n),
                            b ? v_get_n(at, b, c, n) : zero);
            v_put_n(at, out, at0 + c, n, t);
        }
    }
}

KERNEL void norm_fwd(enum dtype at, void *xs, void *out, float *mean, float *rstd, const void *x,
                     const void *y, const void *g, const void *b, int64_t C, int64_t row0,
                     int64_t row1)
{
    if (at == DTYPE_BF16) {
        norm_fwd_at(DTYPE_BF16, xs, out, mean, rstd, x, y, g, b, C, row0, row1);
    } else {
        norm_fwd_at(DTYPE_F32, xs, out, mean, rstd, x, y, g, b, C, row0, row1);
    }
}

/*
 * With n = (x - mean) rstd and e = dout g: dx += rstd (e - mean(e) - n mean(e n)),
 * dg += dout n, db += dout. The first loop takes the two means and adds to the parameters' partial
 * sums, the second writes dx.
 */
struct norm_means {
    float e, en;
};

INL struct norm_means norm_bwd_sums(const enum dtype at, float *dg, float *db, const void *dout,
                                    const void *xs, float mean, float rstd, const void *g,
                                    int64_t at0, int64_t C)
{
    vf se[2] = {{0}};
    vf sn[2] = {{0}};
    vf mu = v_set(mean);
    vf rs = v_set(rstd);
    int64_t c = 0;
    for (; c + 2 * VL <= C; c += 2 * VL) {
        for (int j = 0; j < 2; j++) {
            int64_t k = c + j * VL;
            vf d = v_get(at, dout, at0 + k);
            vf n = (v_get(at, xs, at0 + k) - mu) * rs;
            vf e = d * v_get(at, g, k);
            se[j] += e;
            sn[j] = v_fma(e, n, sn[j]);
            v_store(dg + k, v_fma(d, n, v_load(dg + k)));
            v_store(db + k, v_load(db + k) + d);
        }
    }
    struct norm_means s = {v_sum(se[0] + se[1]), v_sum(sn[0] + sn[1])};
    for (; c < C; c++) {
        float d = s_get(at, dout, at0 + c);
        float n = (s_get(at, xs, at0 + c) - mean) * rstd;
        float e = d * s_get(at, g, c);
        s.e += e;
        s.en += e * n;
        dg[c] += d * n;
        db[c] += d;
    }
    return s;
}

INL vf norm_bwd_dx(vf dx, vf d, vf x, vf g, vf mu, vf rs, vf me, vf men)
{
    vf n = (x - mu) * rs;
    vf e = v_fma(d, g, -me);
    return v_fma(v_fma(-n, men, e), rs, dx);
}

INL void norm_bwd_at(const enum dtype at, void *dx, float *dg, float *db, const void *dout,
                     const void *xs, const float *mean, const float *rstd, const void *g, int64_t C,
                     int64_t row0, int64_t row1)
{
    memset(dg, 0, (size_t)C * sizeof(float));
    memset(db, 0, (size_t)C * sizeof(float));
    for (int64_t r = row0; r < row1; r++) {
        int64_t at0 = r * C;
        struct norm_means s = norm_bwd_sums(at, dg, db, dout, xs, mean[r], rstd[r], g, at0, C);
        vf mu = v_set(mean[r]);
        vf rs = v_set(rstd[r]);
        vf me = v_set(s.e / (float)C);
        vf men = v_set(s.en / (float)C);
        int64_t c = 0;
        for (; c + VL <= C; c += VL) {
            int64_t i = at0 + c;
            v_put(at, dx, i,
                  norm_bwd_dx(v_get(at, dx, i), v_get(at, dout, i), v_get(at, xs, i),
                              v_get(at, g, c), mu, rs, me, men));
        }
        if (c < C) {
            int64_t i = at0 + c;
            int64_t n = C - c;
            v_put_n(at, dx, i, n,
                    norm_bwd_dx(v_get_n(at, dx, i, n), v_get_n(at, dout, i, n),
                                v_get_n(at, xs, i, n), v_get_n(at, g, c, n), mu, rs, me, men));
        }
    }
}

KERNEL void norm_bwd(enum dtype at, void *dx, float *dg_part, float *db_part, const void *dout,
                     const void *xs, const float *mean, const float *rstd, const void *g, int64_t C,
                     int64_t row0, int64_t row1)
{
    if (at == DTYPE_BF16) {
        norm_bwd_at(DTYPE_BF16, dx, dg_part, db_part, dout, xs, mean, rstd, g, C, row0, row1);
    } else {
        norm_bwd_at(DTYPE_F32, dx, dg_part, db_part, dout, xs, mean, rstd, g, C, row0, row1);
    }
}

// ---- column sums ------------------------------------------------------------------------------

KERNEL void add_parts(float *sum, const float *parts, int64_t count, int64_t stride, int64_t col0,
                      int64_t col1)
{
    int64_t c = col0;
    for (; c + VL <= col1; c += VL) {
        vf s = {0};
        for (int64_t p = 0; p < count; p++) {
            s += v_load(parts + p * stride + c);
        }
        v_store(sum + c, v_load(sum + c) + s);
    }
    for (; c < col1; c++) {
        float s = 0.0f;
        for (int64_t p = 0; p < count; p++) {
            s += parts[p * stride + c];
        }
        sum[c] += s;
    }
}

/* Row by row over at most COLUMN_BLOCK columns, whose sums stay in the first-level cache. */
INL void bias_bwd_at(const enum dtype at, float *db, const void *dy, int64_t M, int64_t N,
                     int64_t col0, int64_t col1)
{
    float all[COLUMN_BLOCK] = {0};
    int64_t wide = (col1 - col0) / VL * VL;
    for (int64_t r0 = 0; r0 < M; r0 += ROW_BLOCK) {
        int64_t r1 = r0 + ROW_BLOCK < M ? r0 + ROW_BLOCK : M;
        float part[COLUMN_BLOCK] = {0};
        for (int64_t r = r0; r < r1; r++) {
            int64_t row = r * N + col0;
            for (int64_t c = 0; c < wide; c += VL) {
                v_store(part + c, v_load(part + c) + v_get(at, dy, row + c));
            }
            for (int64_t c = wide; c < col1 - col0; c++) {
                part[c] += s_get(at, dy, row + c);
            }
        }
        for (int64_t c = 0; c < col1 - col0; c++) {
            all[c] += part[c];
        }
    }
    for (int64_t c = 0; c < col1 - col0; c++) {
        db[col0 + c] += all[c];
    }
}

KERNEL void bias_bwd(enum dtype at, float *db, const void *dy, int64_t M, int64_t N, int64_t col0,
                     int64_t col1)
{
    if (at == DTYPE_BF16) {
        bias_bwd_at(DTYPE_BF16, db, dy, M, N, col0, col1);
    } else {
        bias_bwd_at(DTYPE_F32, db, dy, M, N, col0, col1);
    }
}

// ---- GELU -------------------------------------------------------------------------------------

/* Phi(h), the standard normal distribution function */
INL vf normal_cdf(vf h)
{
    vf half = v_set(0.5f);
    return v_fma(v_erf(h * v_set(POLY_SQRT_HALF)), half, half);
}

/* Phi(-t), for results in bf16 */
INL vf tail_short(vf t)
{
    vf p = v_set(POLY_TAIL_T7);
    p = v_fma(p, t, v_set(POLY_TAIL_T6));
    p = v_fma(p, t, v_set(POLY_TAIL_T5));
    p = v_fma(p, t, v_set(POLY_TAIL_T4));
    p = v_fma(p, t, v_set(POLY_TAIL_T3));
    p = v_fma(p, t, v_set(POLY_TAIL_T2));
    p = v_fma(p, t, v_set(POLY_TAIL_T1));
    p = v_fma(p, t, v_set(POLY_TAIL_T0));
    return v_exp2_short(p);
}

INL vf tail_argument(vf h)
{
    return v_min(v_set(POLY_TAIL_FAR), (vf)((vi)h & ~(vi)v_set(-0.0f)));
}

/* left of zero x, right of it 1 - x */
INL vf mirrored(vf h, vf x)
{
    return v_select((vi)(h < v_set(0.0f)), x, v_set(1.0f) - x);
}

INL vf gelu(const enum dtype at, vf h)
{
    if (at == DTYPE_F32) {
        return h * normal_cdf(h);
    }
    return h * mirrored(h, tail_short(tail_argument(h)));
}

INL vf gelu_slope(const enum dtype at, vf h, vf da)
{
    if (at == DTYPE_F32) {
        vf density = v_exp(h * h * v_set(-0.5f)) * v_set(POLY_INV_SQRT_2PI);
        return da * v_fma(h, density, normal_cdf(h));
    }
    vf t = tail_argument(h);
    vf s = v_set(POLY_TAIL_S6);
    s = v_fma(s, t, v_set(POLY_TAIL_S5));
    s = v_fma(s, t, v_set(POLY_TAIL_S4));
    s = v_fma(s, t, v_set(POLY_TAIL_S3));
    s = v_fma(s, t, v_set(POLY_TAIL_S2));
    s = v_fma(s, t, v_set(POLY_TAIL_S1));
    s = v_fma(s, t, v_set(POLY_TAIL_S0));
    return da * mirrored(h, tail_short(t) * (v_set(POLY_TAIL_ZERO) - t) * s);
}

INL void gelu_fwd_at(const enum dtype at, void *a, const void *h, int64_t i0, int64_t i1)
{
    int64_t i = i0;
    for (; i + VL <= i1; i += VL) {
        v_put(at, a, i, gelu(at, v_get(at, h, i)));
    }
    if (i < i1) {
        v_put_n(at, a, i, i1 - i, gelu(at, v_get_n(at, h, i, i1 - i)));
    }
}

KERNEL void gelu_fwd(enum dtype at, void *a, const void *h, int64_t i0, int64_t i1)
{
    if (at == DTYPE_BF16) {
        gelu_fwd_at(DTYPE_BF16, a, h, i0, i1);
    } else {
        gelu_fwd_at(DTYPE_F32, a, h, i0, i1);
    }
}

INL void gelu_bwd_at(const enum dtype at, void *dh, const void *h, const void *da, int64_t i0,
                     int64_t i1)
{
    int64_t i = i0;
    for (; i + VL <= i1; i += VL) {
        v_put(at, dh, i, gelu_slope(at, v_get(at, h, i), v_get(at, da, i)));
    }
    if (i < i1) {
        int64_t n = i1 - i;
        v_put_n(at, dh, i, n, gelu_slope(at, v_get_n(at, h, i, n), v_get_n(at, da, i, n)));
    }
}

KERNEL void gelu_bwd(enum dtype at, void *dh, const void *h, const void *da, int64_t i0, int64_t i1)
{
    if (at == DTYPE_BF16) {
        gelu_bwd_at(DTYPE_BF16, dh, h, da, i0, i1);
    } else {
        gelu_bwd_at(DTYPE_F32, dh, h, da, i0, i1);
    }
}

// ---- cross-entropy ----------------------------------------------------------------------------

/* Columns looked at together: one maximum and one rescaling for each, and they stay in L1. */
enum { XENT_BLOCK = 1024 };

/*
 * Log-sum-exp of a row in one reading from memory: the running sum is rescaled when a block holds a
 * larger maximum. Every lane keeps its own sum.
 */
INL float row_lse(const enum dtype at, const void *x, int64_t at0, int64_t V)
{
    float top = -INFINITY;
    vf sum = {0};
    float rest = 0.0f;
    for (int64_t v0 = 0; v0 < V; v0 += XENT_BLOCK) {
        int64_t v1 = v0 + XENT_BLOCK < V ? v0 + XENT_BLOCK : V;
        vf m = v_set(-INFINITY);
        int64_t v = v0;
        for (; v + VL <= v1; v += VL) {
            m = v_max(m, v_get(at, x, at0 + v));
        }
        float m1 = v_maximum(m);
        for (; v < v1; v++) {
            float t = s_get(at, x, at0 + v);
            m1 = m1 > t ? m1 : t;
        }
        if (!(m1 <= top)) {
            float factor = top == -INFINITY ? 0.0f : expf(top - m1);
            sum *= v_set(factor);
            rest *= factor;
            top = m1;
        }
        vf shift = v_set(top);
        for (v = v0; v + VL <= v1; v += VL) {
            sum += v_exp(v_get(at, x, at0 + v) - shift);
        }
        for (; v < v1; v++) {
            rest += expf(s_get(at, x, at0 + v) - top);
        }
    }
    return top + logf(v_sum(sum) + rest);
}

INL void xent_at(const enum dtype at, void *logits, float *loss, const int32_t *targets,
                 float inv_n, bool train, int64_t V, int64_t row0, int64_t row1)
{
    for (int64_t r = row0; r < row1; r++) {
        int64_t at0 = r * V;
        int32_t target = targets[r];
        if (target < 0) {
            loss[r] = 0.0f;
            if (train) {
                memset((char *)logits + (size_t)at0 * dtype_size(at), 0,
                       (size_t)V * dtype_size(at));
            }
            continue;
        }
        float lse = row_lse(at, logits, at0, V);
        float hit = s_get(at, logits, at0 + target);
        loss[r] = lse - hit;
        if (!train) {
            continue;
        }
        vf shift = v_set(lse);
        vf scale = v_set(inv_n);
        int64_t v = 0;
        for (; v + VL <= V; v += VL) {
            v_put(at, logits, at0 + v, v_exp(v_get(at, logits, at0 + v) - shift) * scale);
        }
        if (v < V) {
            vf p = v_exp(v_get_n(at, logits, at0 + v, V - v) - shift);
            v_put_n(at, logits, at0 + v, V - v, p * scale);
        }
        vf one = (v_exp(v_set(hit) - shift) - v_set(1.0f)) * scale;
        v_put_n(at, logits, at0 + target, 1, one);
    }
}

KERNEL void xent(enum dtype at, void *logits, float *loss, const int32_t *targets, float inv_n,
                 bool train, int64_t V, int64_t row0, int64_t row1)
{
    if (at == DTYPE_BF16) {
        xent_at(DTYPE_BF16, logits, loss, targets, inv_n, train, V, row0, row1);
    } else {
        xent_at(DTYPE_F32, logits, loss, targets, inv_n, train, V, row0, row1);
    }
}

#endif
