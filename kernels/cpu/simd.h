/*
 * simd.h - vectors of VL floats, whatever the instruction set of the file that includes this.
 *
 * A file that wants more than the baseline defines ISA_AVX2, ISA_AVX512 or ISA_BF16 and switches
 * the compiler's target first (see lanes_bf16.c). The arithmetic is GCC's vector extension, so the
 * same source also compiles where there are no intrinsics. Everything here is
 * inlined; nothing has state.
 */
#ifndef KERNELS_CPU_SIMD_H
#define KERNELS_CPU_SIMD_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/math_poly.h"

#if defined(ISA_BF16) && !defined(ISA_AVX512)
#define ISA_AVX512 1
#endif
#if defined(ISA_AVX512) || defined(ISA_AVX2)
#include <immintrin.h>
#endif

#if defined(ISA_AVX512)
#define VL 16
#elif defined(ISA_AVX2)
#define VL 8
#else
#define VL 4
#endif

#define INL static inline __attribute__((always_inline))
/* A kernel of the table: no caller in the file that only checks the header. */
#define KERNEL static __attribute__((unused))

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));

INL vf v_set(float x)
{
    return x - (vf){0}; // a sum would make +0 of -0
}

INL vf v_load(const float *p)
{
    vf r;
    memcpy(&r, p, sizeof(r));
    return r;
}

INL void v_store(float *p, vf x)
{
    memcpy(p, &x, sizeof(x));
}

/* mask lanes are all ones or all zeros */
INL vf v_select(vi mask, vf yes, vf no)
{
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

/* a * b + c, fused where the hardware fuses */
INL vf v_fma(vf a, vf b, vf c)
{
#if defined(ISA_AVX512)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(ISA_AVX2)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

/* The second operand when either is a NaN: keep data second and limits first. */
INL vf v_max(vf a, vf b)
{
#if defined(ISA_AVX512)
    return _mm512_max_ps(a, b);
#elif defined(ISA_AVX2)
    return _mm256_max_ps(a, b);
#else
    return v_select((vi)(a > b), a, b);
#endif
}

INL vf v_min(vf a, vf b)
{
#if defined(ISA_AVX512)
    return _mm512_min_ps(a, b);
#elif defined(ISA_AVX2)
    return _mm256_min_ps(a, b);
#else
    return v_select((vi)(a < b), a, b);
#endif
}

INL vf v_sqrt(vf x)
{
#if defined(ISA_AVX512)
    return _mm512_sqrt_ps(x);
#elif defined(ISA_AVX2)
    return _mm256_sqrt_ps(x);
#else
    vf r = {0};
    for (int i = 0; i < VL; i++) {
        r[i] = sqrtf(x[i]);
    }
    return r;
#endif
}

/* Lane sums and maxima in one fixed tree. */
INL float v_sum(vf x)
{
#if defined(ISA_AVX512)
    return _mm512_reduce_add_ps(x);
#else
    float t[VL];
    memcpy(t, &x, sizeof(x));
    for (int half = VL / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            t[i] += t[i + half];
        }
    }
    return t[0];
#endif
}

INL float v_maximum(vf x)
{
#if defined(ISA_AVX512)
    return _mm512_reduce_max_ps(x);
#else
    float t[VL];
    memcpy(t, &x, sizeof(x));
    for (int half = VL / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            t[i] = t[i] > t[i + half] ? t[i] : t[i + half];
        }
    }
    return t[0];
#endif
}

/* 0, 1, 2, ... */
INL vf v_lanes(void)
{
    vf r = {0};
    for (int i = 0; i < VL; i++) {
        r[i] = (float)i;
    }
    return r;
}

// ---- storage types ---------------------------------------------------------------------

/* Lane by lane between 16 and 32 bits; the compiler alone goes through halves. */
INL vu v_widen(vh h)
{
#if defined(ISA_AVX512)
    __m256i half;
    memcpy(&half, &h, sizeof(half));
    return (vu)_mm512_cvtepu16_epi32(half);
#else
    return __builtin_convertvector(h, vu);
#endif
}

INL vh v_narrow(vu u)
{
#if defined(ISA_AVX512)
    __m256i half = _mm512_cvtepi32_epi16((__m512i)u);
    vh r;
    memcpy(&r, &half, sizeof(r));
    return r;
#else
    return __builtin_convertvector(u, vh);
#endif
}

INL vf v_from_bf16(vh h)
{
    return (vf)(v_widen(h) << 16);
}

/* To nearest even; a NaN stays one. */
INL vh v_to_bf16(vf x)
{
#if defined(ISA_BF16)
    __m256bh h = _mm512_cvtneps_pbh(x);
    vh r;
    memcpy(&r, &h, sizeof(r));
    return r;
#else
    vu u = (vu)x;
    vu rounded = u + 0x7fff + ((u >> 16) & 1);
    vi nan = (vi)(x != x);
    vu quiet = u | 0x400000;
    return v_narrow(((rounded & ~(vu)nan) | (quiet & (vu)nan)) >> 16);
#endif
}

#if defined(ISA_BF16)
/* Two rows rounded to bf16, each by itself and as pairs: even[i] in the low half of pairs[i]. */
struct v_rounded {
    vh even, odd;
    vu pairs;
};

INL struct v_rounded v_round_rows(vf even, vf odd)
{
    struct v_rounded r;
    static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    __m256i low = _mm512_castsi512_si256(both);
    __m256i high = _mm512_extracti64x4_epi64(both, 1);
    memcpy(&r.even, &low, sizeof(low));
    memcpy(&r.odd, &high, sizeof(high));
    r.pairs = (vu)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both);
    return r;
}
#endif

/* VL elements of dtype at, from element i on. at is a constant wherever this is inlined. */
INL vf v_get(const enum dtype at, const void *p, int64_t i)
{
    if (at == DTYPE_F32) {
        return v_load((const float *)p + i);
    }
    vh h;
    memcpy(&h, (const uint16_t *)p + i, sizeof(h));
    return v_from_bf16(h);
}

INL void v_put(const enum dtype at, void *p, int64_t i, vf x)
{
    if (at == DTYPE_F32) {
        v_store((float *)p + i, x);
        return;
    }
    vh h = v_to_bf16(x);
    memcpy((uint16_t *)p + i, &h, sizeof(h));
}

/* The first n < VL elements; the other lanes read as zero and are not written. */
INL vf v_get_n(const enum dtype at, const void *p, int64_t i, int64_t n)
{
    if (at == DTYPE_F32) {
        float t[VL] = {0};
        memcpy(t, (const float *)p + i, (size_t)n * 4);
        return v_load(t);
    }
    vh h = {0};
    memcpy(&h, (const uint16_t *)p + i, (size_t)n * 2);
    return v_from_bf16(h);
}

INL void v_put_n(const enum dtype at, void *p, int64_t i, int64_t n, vf x)
{
    if (at == DTYPE_F32) {
        memcpy((float *)p + i, &x, (size_t)n * 4);
        return;
    }
    vh h = v_to_bf16(x);
    memcpy((uint16_t *)p + i, &h, (size_t)n * 2);
}

/* One element. */
INL float s_get(const enum dtype at, const void *p, int64_t i)
{
    if (at == DTYPE_F32) {
        return ((const float *)p)[i];
    }
    uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

// ---- a square of units ------------------------------------------------------------------------

/* a[0] b[0] a[1] b[1] ... of the first halves, and of the second ones */
#if VL == 16
#define V_ZIP_LOW(a, b)                                                                            \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define V_ZIP_HIGH(a, b)                                                                           \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif VL == 8
#define V_ZIP_LOW(a, b)  __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define V_ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define V_ZIP_LOW(a, b)  __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define V_ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif

/* Rows become columns. A row zipped with the one half a square further, log2 VL times. */
INL void v_turn(vu x[VL])
{
#pragma GCC unroll 4
    for (int step = 1; step < VL; step *= 2) {
        vu y[VL];
#pragma GCC unroll 8
        for (int i = 0; i < VL / 2; i++) {
            y[2 * i] = V_ZIP_LOW(x[i], x[i + VL / 2]);
            y[2 * i + 1] = V_ZIP_HIGH(x[i], x[i + VL / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) {
            x[i] = y[i];
        }
    }
}

// ---- exp2, exp, erf -------------------------------------------------------------------------

INL vf v_nearest(vf x)
{
#if defined(ISA_AVX512)
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(ISA_AVX2)
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    vf magic = v_set(12582912.0f); // 1.5 * 2^23: adding it leaves no bit below one
    return (x + magic) - magic;
#endif
}

/* p * 2^n for whole n within +-160 */
INL vf v_scale(vf p, vf n)
{
#if defined(ISA_AVX512)
    return _mm512_scalef_ps(p, n);
#else
    vi e = __builtin_convertvector(v_max(v_set(-127.0f), v_min(v_set(128.0f), n)), vi);
    return p * (vf)((e + 127) << 23);
#endif
}

INL vf v_exp2(vf x)
{
    x = v_max(v_set(POLY_EXP2_SMALLEST), v_min(v_set(POLY_EXP2_LARGEST), x));
    vf n = v_nearest(x);
    vf f = x - n;
    vf p = v_set(POLY_EXP2_6);
    p = v_fma(p, f, v_set(POLY_EXP2_5));
    p = v_fma(p, f, v_set(POLY_EXP2_4));
    p = v_fma(p, f, v_set(POLY_EXP2_3));
    p = v_fma(p, f, v_set(POLY_EXP2_2));
    p = v_fma(p, f, v_set(POLY_EXP2_1));
    p = v_fma(p, f, v_set(1.0f));
    return v_scale(p, n);
}

/* 2^x within 3e-6, for results in bf16; x finite and at most 127 */
INL vf v_exp2_short(vf x)
{
    vf n = v_nearest(x);
    vf f = x - n;
    vf p = v_set(POLY_EXP2_SHORT_4);
    p = v_fma(p, f, v_set(POLY_EXP2_SHORT_3));
    p = v_fma(p, f, v_set(POLY_EXP2_SHORT_2));
    p = v_fma(p, f, v_set(POLY_EXP2_SHORT_1));
    p = v_fma(p, f, v_set(POLY_EXP2_SHORT_0));
    return v_scale(p, n);
}

INL vf v_exp(vf x)
{
    x = v_max(v_set(-110.0f), v_min(v_set(110.0f), x));
    vf n = v_nearest(x * v_set(POLY_LOG2E));
    vf f = v_fma(n, v_set(-POLY_LN2_HI), x);
    f = v_fma(n, v_set(-POLY_LN2_LO), f);
    vf p = v_set(POLY_EXP_6);
    p = v_fma(p, f, v_set(POLY_EXP_5));
    p = v_fma(p, f, v_set(POLY_EXP_4));
    p = v_fma(p, f, v_set(POLY_EXP_3));
    p = v_fma(p, f, v_set(POLY_EXP_2));
    p = v_fma(p, f, v_set(1.0f));
    p = v_fma(p, f, v_set(1.0f));
    return v_scale(p, n);
}

INL vf v_erf(vf x)
{
    vf s = x * x;
    vi sign = (vi)x & (vi)v_set(-0.0f);
    vf t = (vf)((vi)x & ~(vi)v_set(-0.0f));

    vf q = v_fma(v_set(POLY_ERF_Q7), t, v_set(POLY_ERF_Q6));
    vf u = v_fma(v_set(POLY_ERF_Q5), t, v_set(POLY_ERF_Q4));
    q = v_fma(q, s, u);
    q = v_fma(q, t, v_set(POLY_ERF_Q3));
    q = v_fma(q, t, v_set(POLY_ERF_Q2));
    q = v_fma(q, t, v_set(POLY_ERF_Q1));
    q = v_fma(q, t, -t);
    vf large = v_set(1.0f) - v_exp(q);
    large = (vf)((vi)large | sign);

    vf p = v_set(POLY_ERF_P5);
    p = v_fma(p, s, v_set(POLY_ERF_P4));
    p = v_fma(p, s, v_set(POLY_ERF_P3));
    p = v_fma(p, s, v_set(POLY_ERF_P2));
    p = v_fma(p, s, v_set(POLY_ERF_P1));
    p = v_fma(p, s, v_set(POLY_ERF_P0));
    p = v_fma(p, x, x);
    return v_select((vi)(t > v_set(POLY_ERF_BORDER)), large, p);
}

#endif
