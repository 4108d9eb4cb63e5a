/*
 * tile.h - the matrix product of a few rows by a few vectors, in registers.
 *
 * Operands come in units of 4 bytes: one float, or where pairs are multiplied two bf16 that are
 * neighbours along the inner dimension, as vdpbf16ps wants them. A unit of A is broadcast, a vector
 * of units of B is loaded:
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

/* A unit of operands in bf16; else they are widened to one float each. */
INL bool unit_is_pair(const bool bf16)
{
#if defined(ISA_BF16)
    return bf16;
#else
    (void)bf16;
    return false;
#endif
}

/* s + a . b for floats, or for pairs of bf16 with an fp32 sum */
INL vf v_dot(const bool pairs, vf s, vf a, vf b)
{
#if defined(ISA_BF16)
    if (pairs) {
        return _mm512_dpbf16_ps(s, (__m512bh)a, (__m512bh)b);
    }
#endif
    (void)pairs;
    return v_fma(a, b, s);
}

/* s[row][vector] += A B, nv vectors wide; pairs and nv are constants wherever this is inlined */
INL void tile_sums(const bool pairs, const int nv, vf s[MR][2], struct a_view a, const uint32_t *b,
                   int64_t ldb, int64_t units)
{
    for (int64_t k = 0; k < units; k++) {
        vf b0 = v_units(b + k * ldb);
        vf b1 = nv > 1 ? v_units(b + k * ldb + VL) : b0;
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++) {
            vf x = v_unit(a.p + r * a.ars + k * a.aks);
            s[r][0] = v_dot(pairs, s[r][0], x, b0);
            if (nv > 1) {
                s[r][1] = v_dot(pairs, s[r][1], x, b1);
            }
        }
    }
}

INL void tile_begin(const int nv, const bool add, vf s[MR][2], const float *c, int64_t ldc)
{
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            s[r][v] = add ? v_load(c + r * ldc + v * VL) : (vf){0};
        }
    }
}

INL void tile_end(const int nv, vf s[MR][2], float *c, int64_t ldc)
{
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            v_store(c + r * ldc + v * VL, s[r][v]);
        }
    }
}

INL void tile_regs(const bool pairs, const int nv, const bool add, float *c, int64_t ldc,
                   struct a_view a, const uint32_t *b, int64_t ldb, int64_t units)
{
    vf s[MR][2];
    tile_begin(nv, add, s, c, ldc);
    tile_sums(pairs, nv, s, a, b, ldb, units);
    tile_end(nv, s, c, ldc);
}

/* Rows that tile_rows() does at once. */
#if defined(ISA_AMX)
enum { TILE_ROWS = 2 * MR };
_Static_assert(TILE_ROWS == (int)AMX_SIDE, "the rows of a tile of AMX");
#else
enum { TILE_ROWS = MR };
#endif

/* MR rows by cols, a multiple of VL. */
INL void tile_mr(const bool pairs, const bool add, float *c, int64_t ldc, struct a_view a,
                 const uint32_t *b, int64_t ldb, int64_t cols, int64_t units)
{
    int64_t n = 0;
    for (; n + NR <= cols; n += NR) {
        tile_regs(pairs, 2, add, c + n, ldc, a, b + n, ldb, units);
    }
    if (n < cols) {
        tile_regs(pairs, 1, add, c + n, ldc, a, b + n, ldb, units);
    }
}

/* Around a kernel whose products are of pairs. */
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
INL void tile_rows(const bool pairs, const bool add, float *c, int64_t ldc, struct a_view a,
                   const uint32_t *b, int64_t ldb, int64_t cols, int64_t units)
{
#if defined(ISA_AMX)
    if (pairs) {
        amx_product(add, c, ldc, a.p, a.ars, a.aks, b, ldb, cols, units);
        return;
    }
#endif
    for (int64_t r = 0; r < TILE_ROWS; r += MR) {
        struct a_view rows = {a.p + r * a.ars, a.ars, a.aks};
        tile_mr(pairs, add, c + r * ldc, ldc, rows, b, ldb, cols, units);
    }
}

#endif
