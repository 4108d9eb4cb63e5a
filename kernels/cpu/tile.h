/*
 * tile.h - the matrix product of a few rows by a few vectors, in registers, and what
 * is built on it.
 *
 * Operands come in units of 4 bytes: one float, or two bf16 that are neighbours along the inner
 * dimension, as vdpbf16ps wants them. A unit of A is broadcast, a vector of units of B is loaded:
 *
 *     C(r, lane) [+]= sum over units k of  A[r * ars + k * aks] . B[k * ldb + lane]
 *
 * Both strides of A are free, so a row-major matrix, its transpose and a packed one are all read in
 * place. MR rows by 2 vectors keep the fused multiply-add units busy from L1 and fit the registers.
 */
#ifndef KERNELS_CPU_TILE_H
#define KERNELS_CPU_TILE_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#if defined(ISA_AMX)
#include "kernels/cpu/amx.h"
#endif

#if defined(ISA_AVX512)
#define MR 8
#else
#define MR 4
#endif
#define NR (2 * VL)

/* Units of B kept in L1 while a product runs down the rows of A. */
enum { TILE_UNITS = 256, TILE_M = 128, TILE_N = 128 };

struct a_view {
    const uint32_t *p;
    int64_t ars, aks;
};

INL vf v_units(const uint32_t *p)
{
    vf r;
    memcpy(&r, p, sizeof(r));
    return r;
}

INL vf v_unit(const uint32_t *p)
{
    return (vf)((vu){0} + *p);
}

/* s + a . b for floats, or for pairs of bf16 with an fp32 sum */
INL vf v_dot(const bool bf16, vf s, vf a, vf b)
{
    if (!bf16) {
        return v_fma(a, b, s);
    }
#if defined(ISA_BF16)
    return _mm512_dpbf16_ps(s, (__m512bh)a, (__m512bh)b);
#else
    vf low = v_fma((vf)((vu)a << 16), (vf)((vu)b << 16), s);
    return v_fma((vf)((vu)a & 0xffff0000u), (vf)((vu)b & 0xffff0000u), low);
#endif
}

/* nv vectors wide; bf16, nv and add are constants wherever this is inlined */
INL void tile_regs(const bool bf16, const int nv, const bool add, float *c, int64_t ldc,
                   struct a_view a, const uint32_t *b, int64_t ldb, int64_t units)
{
    vf s[MR][2];
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            s[r][v] = add ? v_load(c + r * ldc + v * VL) : (vf){0};
        }
    }
    for (int64_t k = 0; k < units; k++) {
        vf b0 = v_units(b + k * ldb);
        vf b1 = nv > 1 ? v_units(b + k * ldb + VL) : b0;
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++) {
            vf x = v_unit(a.p + r * a.ars + k * a.aks);
            s[r][0] = v_dot(bf16, s[r][0], x, b0);
            if (nv > 1) {
                s[r][1] = v_dot(bf16, s[r][1], x, b1);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            v_store(c + r * ldc + v * VL, s[r][v]);
        }
    }
}

/* Rows that tile_rows() does at once. */
#if defined(ISA_AMX)
enum { TILE_ROWS = 2 * MR };
_Static_assert(TILE_ROWS == (int)AMX_SIDE, "the rows of a tile of AMX");
#else
enum { TILE_ROWS = MR };
#endif

/* MR rows by cols, a multiple of VL. */
INL void tile_mr(const bool bf16, const bool add, float *c, int64_t ldc, struct a_view a,
                 const uint32_t *b, int64_t ldb, int64_t cols, int64_t units)
{
    int64_t n = 0;
    for (; n + NR <= cols; n += NR) {
        tile_regs(bf16, 2, add, c + n, ldc, a, b + n, ldb, units);
    }
    if (n < cols) {
        tile_regs(bf16, 1, add, c + n, ldc, a, b + n, ldb, units);
    }
}

/* Around a kernel whose products are of bf16. */
INL void products_begin(void)
{
#if defined(ISA_AMX)
    amx_begin();
#endif
}

INL void products_end(void)
{
#if defined(ISA_AMX)
    amx_end();
#endif
}

/* TILE_ROWS rows by cols, a multiple of VL. */
INL void tile_rows(const bool bf16, const bool add, float *c, int64_t ldc, struct a_view a,
                   const uint32_t *b, int64_t ldb, int64_t cols, int64_t units)
{
#if defined(ISA_AMX)
    if (bf16) {
        amx_product(add, c, ldc, a.p, a.ars, a.aks, b, ldb, cols, units);
        return;
    }
#endif
    for (int64_t r = 0; r < TILE_ROWS; r += MR) {
        struct a_view rows = {a.p + r * a.ars, a.ars, a.aks};
        tile_mr(bf16, add, c + r * ldc, ldc, rows, b, ldb, cols, units);
    }
}

// ---- our own product over packed operands -----------------------------------------------------

/* A pair of bf16 from two places, the second absent past an odd inner dimension. */
INL uint32_t pair(const uint16_t *first, const uint16_t *second)
{
    return (uint32_t)*first | (second ? (uint32_t)*second << 16 : 0u);
}

KERNEL void pack_inner(bool bf16, uint32_t *out, int64_t group, const void *src, int64_t ld,
                       int64_t count, int64_t inner)
{
    int64_t units = bf16 ? (inner + 1) / 2 : inner;
    for (int64_t r = 0; r < group; r++) {
        if (r >= count) {
            for (int64_t k = 0; k < units; k++) {
                out[k * group + r] = 0;
            }
        } else if (bf16) {
            const uint16_t *p = (const uint16_t *)src + r * ld;
            for (int64_t k = 0; k < units; k++) {
                out[k * group + r] = pair(p + 2 * k, 2 * k + 1 < inner ? p + 2 * k + 1 : NULL);
            }
        } else {
            const uint32_t *p = (const uint32_t *)src + r * ld;
            for (int64_t k = 0; k < units; k++) {
                out[k * group + r] = p[k];
            }
        }
    }
}

KERNEL void pack_outer(bool bf16, uint32_t *out, int64_t group, const void *src, int64_t ld,
                       int64_t count, int64_t inner)
{
    int64_t units = bf16 ? (inner + 1) / 2 : inner;
    for (int64_t k = 0; k < units; k++) {
        uint32_t *to = out + k * group;
        if (bf16) {
            const uint16_t *p = (const uint16_t *)src + 2 * k * ld;
            if (2 * k + 1 < inner) {
                for (int64_t r = 0; r < count; r++) {
                    to[r] = (uint32_t)p[r] | (uint32_t)p[ld + r] << 16;
                }
            } else {
                for (int64_t r = 0; r < count; r++) {
                    to[r] = p[r];
                }
            }
        } else {
            memcpy(to, (const uint32_t *)src + k * ld, (size_t)count * 4);
        }
        for (int64_t r = count; r < group; r++) {
            to[r] = 0;
        }
    }
}

/* sums (TILE_M, TILE_N) -> out rows [row0, row0 + rows), columns [col0, col0 + cols) */
INL void tile_finish(const struct tile_task *t, int64_t row0, int64_t col0, int64_t rows,
                     int64_t cols, const float *sums)
{
    for (int64_t r = 0; r < rows; r++) {
        const float *from = sums + r * TILE_N;
        int64_t to = (row0 + r) * t->n + col0;
        for (int64_t c = 0; c < cols; c += VL) {
            int64_t n = cols - c < VL ? cols - c : VL;
            vf x = v_get_n(DTYPE_F32, from, c, n);
            if (t->bias) {
                x += t->bias_type == DTYPE_BF16 ? v_get_n(DTYPE_BF16, t->bias, col0 + c, n)
                                                : v_get_n(DTYPE_F32, t->bias, col0 + c, n);
            }
            if (t->accumulate) {
                x += v_get_n(DTYPE_F32, t->out, to + c, n);
            }
            if (t->out_type == DTYPE_BF16) {
                v_put_n(DTYPE_BF16, t->out, to + c, n, x);
            } else {
                v_put_n(DTYPE_F32, t->out, to + c, n, x);
            }
        }
    }
}

INL void tile_at(const bool bf16, const struct tile_task *t, int64_t row0, int64_t col0,
                 float *sums)
{
    int64_t rows = t->m - row0 < TILE_M ? t->m - row0 : TILE_M;
    int64_t cols = t->n - col0 < TILE_N ? t->n - col0 : TILE_N;
    for (int64_t k0 = 0; k0 < t->units; k0 += TILE_UNITS) {
        int64_t units = t->units - k0 < TILE_UNITS ? t->units - k0 : TILE_UNITS;
        for (int64_t c = 0; c < cols; c += NR) {
            const uint32_t *b = t->b + (col0 + c) * t->units + k0 * NR;
            for (int64_t r = 0; r < rows; r += MR) {
                struct a_view a = {t->a + (row0 + r) * t->units + k0 * MR, 1, MR};
                float *to = sums + r * TILE_N + c;
                if (k0) {
                    tile_regs(bf16, 2, true, to, TILE_N, a, b, NR, units);
                } else {
                    tile_regs(bf16, 2, false, to, TILE_N, a, b, NR, units);
                }
            }
        }
    }
    tile_finish(t, row0, col0, rows, cols, sums);
}

KERNEL void tile(const struct tile_task *t, int64_t row0, int64_t col0, float *sums)
{
    if (t->bf16) {
        tile_at(true, t, row0, col0, sums);
    } else {
        tile_at(false, t, row0, col0, sums);
    }
}

#endif
