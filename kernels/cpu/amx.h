/*
 * amx.h - the product of sixteen rows by columns of bf16 pairs in the tiles of AMX.
 *
 * The operands are those of tile.h: what it calls B, units of two neighbours along the inner
 * dimension, sixteen columns beside each other, is how TDPBF16PS wants its second operand, and a
 * row of A in one piece its first. An A that is read by columns is turned first; what does not fill
 * a tile along the inner dimension is copied and padded with zeros.
 *
 * Tiles are the thread's own, and others use them too: amx_begin() and amx_end() stand around a
 * kernel. The instructions are written out, as gcc 12's intrinsics do not say that they touch
 * memory. (Intel, Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TDPBF16PS.)
 */
#ifndef KERNELS_CPU_AMX_H
#define KERNELS_CPU_AMX_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/simd.h"

/* Rows, columns and units of a tile: 16 rows of 64 bytes. */
enum { AMX_SIDE = 16, AMX_BYTES = 64 };

#define AMX_LOAD(tile, p, stride)                                                                  \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(p), "r"(stride) : "memory")
#define AMX_STORE(tile, p, stride)                                                                 \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(p), "r"(stride) : "memory")
#define AMX_ZERO(tile)     __asm__ volatile("tilezero %%tmm" #tile ::)
#define AMX_DOT(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)

/* All eight tiles whole. */
INL void amx_begin(void)
{
    struct {
        uint8_t palette, start_row, none[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = AMX_BYTES;
        config.rows[i] = AMX_SIDE;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

INL void amx_end(void)
{
    __asm__ volatile("tilerelease" ::: "memory");
}

/* to[row][unit] = from[unit * stride + row], units from `units` on zero. */
INL void amx_turn(uint32_t *to, const uint32_t *from, int64_t stride, int64_t units)
{
    for (int64_t r = 0; r < AMX_SIDE; r++) {
        for (int64_t u = 0; u < AMX_SIDE; u++) {
            to[r * AMX_SIDE + u] = u < units ? from[u * stride + r] : 0;
        }
    }
}

/* `rows` rows of `units` units, `stride` apart, and zeros in what is left of sixteen by sixteen */
INL void amx_pad(uint32_t *to, const uint32_t *from, int64_t stride, int64_t rows, int64_t units)
{
    memset(to, 0, AMX_SIDE * AMX_BYTES);
    for (int64_t r = 0; r < rows; r++) {
        memcpy(to + r * AMX_SIDE, from + r * stride, (size_t)units * 4);
    }
}

/* sum += A B of one chunk of units, for `tiles` tiles of columns; A is in tile 4. */
#define AMX_COLUMN(v)                                                                              \
    if (tiles > (v)) {                                                                             \
        const uint32_t *from = b + (v)*AMX_SIDE;                                                   \
        int64_t stride = ldb * 4;                                                                  \
        if (units < AMX_SIDE) {                                                                    \
            amx_pad(part, from, ldb, units, AMX_SIDE);                                             \
            from = part;                                                                           \
            stride = AMX_BYTES;                                                                    \
        }                                                                                          \
        AMX_LOAD(5, from, stride);                                                                 \
        AMX_DOT(v, 4, 5);                                                                          \
    }

INL void amx_chunk(const uint32_t *b, int64_t ldb, int64_t units, int64_t tiles)
{
    uint32_t part[AMX_SIDE * AMX_SIDE] __attribute__((aligned(64)));
    AMX_COLUMN(0)
    AMX_COLUMN(1)
    AMX_COLUMN(2)
    AMX_COLUMN(3)
}
#undef AMX_COLUMN

/* Where a chunk of A lies in rows: in place, or copied into part. */
struct amx_rows {
    const uint32_t *p;
    int64_t stride; /* bytes */
};

INL struct amx_rows amx_rows_of(uint32_t *part, const uint32_t *a, int64_t ars, int64_t aks,
                                int64_t units)
{
    if (aks == 1 && units == AMX_SIDE) {
        return (struct amx_rows){a, ars * 4};
    }
    if (aks == 1) {
        amx_pad(part, a, ars, AMX_SIDE, units);
    } else {
        amx_turn(part, a, aks, units); // its rows are neighbours
    }
    return (struct amx_rows){part, AMX_BYTES};
}

/* Tiles 0 to 3 and the columns of C beside each other, as many as there are. */
#define AMX_EACH(move)                                                                             \
    move(0, to, stride);                                                                           \
    if (tiles > 1) {                                                                               \
        move(1, to + AMX_SIDE, stride);                                                            \
    }                                                                                              \
    if (tiles > 2) {                                                                               \
        move(2, to + 2 * AMX_SIDE, stride);                                                        \
    }                                                                                              \
    if (tiles > 3) {                                                                               \
        move(3, to + 3 * AMX_SIDE, stride);                                                        \
    }

/* C (16, cols) [+]= A B, cols a multiple of sixteen; tile.h says the rest. */
INL void amx_product(bool add, float *c, int64_t ldc, const uint32_t *a, int64_t ars, int64_t aks,
                     const uint32_t *b, int64_t ldb, int64_t cols, int64_t units)
{
    uint32_t part[AMX_SIDE * AMX_SIDE] __attribute__((aligned(64)));
    const int64_t stride = ldc * 4;
    for (int64_t n = 0; n < cols; n += 4 * AMX_SIDE) {
        int64_t tiles = (cols - n) / AMX_SIDE;
        float *to = c + n;
        if (add) {
            AMX_EACH(AMX_LOAD)
        } else {
            AMX_ZERO(0);
            AMX_ZERO(1);
            AMX_ZERO(2);
            AMX_ZERO(3);
        }
        for (int64_t k = 0; k < units; k += AMX_SIDE) {
            int64_t some = units - k < AMX_SIDE ? units - k : AMX_SIDE;
            struct amx_rows rows = amx_rows_of(part, a + k * aks, ars, aks, some);
            AMX_LOAD(4, rows.p, rows.stride);
            amx_chunk(b + k * ldb + n, ldb, some, tiles);
        }
        AMX_EACH(AMX_STORE)
    }
}
#undef AMX_EACH

#endif
