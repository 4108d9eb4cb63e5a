/*
 * gemm.h - our own matrix product: packing of an operand, and a block of the output.
 *
 * Included by lanes_*.c. Operands are packed as units (tile.h): where those are floats, bf16 is
 * widened as it is packed. Rows of A are packed in groups of VL, columns of B in groups of NR; a
 * group has its units one after the other, [unit][row or column], zeros past the edges, so that
 * tile.h reads both from one place. Every element of the output is one chain of sums over the
 * whole inner dimension in ascending order, begun at zero, however the output is cut: bits do not
 * depend on it.
 */
#ifndef KERNELS_CPU_GEMM_H
#define KERNELS_CPU_GEMM_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/tile.h"

_Static_assert(VL % MR == 0 && GEMM_SIDE % NR == 0, "blocks are whole groups");

/* Units that are multiplied before the next rows: once in so many, sums go to memory and back. */
enum { GEMM_UNITS = 256 };

/* Rows that are fetched before they are packed as columns: each is in another place. */
enum { GEMM_AHEAD = 8 };

// ---- packing ----------------------------------------------------------------------------------

/* VL units from what `bytes` of them are in memory, zeros behind. */
INL vu v_units_from(const bool bf16, const void *p, int64_t bytes)
{
    if (bf16 && !unit_is_pair(bf16)) {
        vh h = {0};
        memcpy(&h, p, (size_t)bytes);
        return (vu)v_from_bf16(h);
    }
    vu x = {0};
    memcpy(&x, p, (size_t)bytes);
    return x;
}

/*
 * VL rows of a group by VL units are turned at a time, in registers; `count` of the rows are there.
 */
INL void pack_rows_of(const bool bf16, uint32_t *to, const struct gemm_task *t,
                      const struct gemm_operand *x, const struct gemm_part *part, int64_t first,
                      int64_t count)
{
    const int64_t size = bf16 ? 2 : 4;
    const int64_t unit = unit_is_pair(bf16) ? 4 : size; // bytes in memory
    const char *src = (const char *)x->p + first * x->ld * size;
    for (int64_t k0 = part->unit; k0 < part->end; k0 += VL) {
        vu u[VL];
        int64_t left = t->inner * size - k0 * unit;
        if (count >= VL && left >= VL * unit) {
            for (int64_t r = 0; r < VL; r++) {
                const char *from = src + r * x->ld * size + k0 * unit;
                __builtin_prefetch(from + VL * x->ld * size);
                u[r] = v_units_from(bf16, from, VL * unit);
            }
        } else {
            int64_t bytes = left < VL * unit ? left : VL * unit;
            for (int64_t r = 0; r < VL; r++) {
                const char *from = src + r * x->ld * size + k0 * unit;
                u[r] = r < count ? v_units_from(bf16, from, bytes) : (vu){0};
            }
        }
        v_turn(u);
        for (int64_t k = 0; k < VL && k0 + k < part->end; k++) {
            memcpy(to + (k0 - part->unit + k) * part->group, &u[k], sizeof(vu));
        }
    }
}

INL void pack_inner(const bool bf16, uint32_t *out, const struct gemm_task *t,
                    const struct gemm_operand *x, const struct gemm_part *part)
{
    for (int64_t r0 = 0; r0 < part->count; r0 += part->group) {
        for (int64_t r = r0; r < r0 + part->group; r += VL) {
            pack_rows_of(bf16, out + r0 * t->pitch + r - r0, t, x, part, part->first + r,
                         part->count - r);
        }
    }
}

INL vu v_halves(const uint16_t *p)
{
    vh x;
    memcpy(&x, p, sizeof(x));
    return v_widen(x);
}

INL vu v_halves_n(const uint16_t *p, int64_t n)
{
    vh x = {0};
    memcpy(&x, p, (size_t)n * 2);
    return v_widen(x);
}

/* VL columns, or n of them, of two rows as pairs; second is NULL past an odd inner dimension. */
INL vu v_pairs(const uint16_t *first, const uint16_t *second, int64_t n)
{
    if (n >= VL && second) {
        return v_halves(first) | v_halves(second) << 16;
    }
    n = n < VL ? n : VL;
    vu odd = second ? v_halves_n(second, n) : (vu){0};
    return v_halves_n(first, n) | odd << 16;
}

/* VL columns from c on of unit k, as many as there are before `end`. */
INL vu v_column_units(const bool bf16, const struct gemm_task *t, const struct gemm_operand *x,
                      int64_t k, int64_t c, int64_t end)
{
    if (c >= end) {
        return (vu){0};
    }
    if (unit_is_pair(bf16)) {
        const uint16_t *p = (const uint16_t *)x->p + 2 * k * x->ld + c;
        return v_pairs(p, 2 * k + 1 < t->inner ? p + x->ld : NULL, end - c);
    }
    const int64_t size = bf16 ? 2 : 4;
    const char *p = (const char *)x->p + (k * x->ld + c) * size;
    return end - c >= VL ? v_units_from(bf16, p, VL * size)
                         : v_units_from(bf16, p, (end - c) * size);
}

INL void pack_outer(const bool bf16, uint32_t *out, const struct gemm_task *t,
                    const struct gemm_operand *x, const struct gemm_part *part)
{
    const int64_t size = bf16 ? 2 : 4;
    const int64_t rows = unit_is_pair(bf16) ? 2 : 1;
    const int64_t end = part->first + part->count;
    for (int64_t k = part->unit; k < part->end; k++, out += part->group) {
        for (int64_t i = k * rows; i < (k + 1) * rows; i++) {
            const char *row = (const char *)x->p + (i + GEMM_AHEAD) * x->ld * size;
            for (int64_t c = part->first * size; c < end * size; c += 64) {
                __builtin_prefetch(row + c);
            }
        }
        for (int64_t c0 = 0; c0 < part->count; c0 += part->group) {
            for (int64_t c = 0; c < part->group; c += VL) {
                vu u = v_column_units(bf16, t, x, k, part->first + c0 + c, end);
                memcpy(out + c0 * t->pitch + c, &u, sizeof(u));
            }
        }
    }
}

KERNEL void gemm_pack(const struct gemm_task *t, const struct gemm_operand *x,
                      const struct gemm_part *part, uint32_t *out)
{
    if (x->inner_contiguous) {
        if (t->bf16) {
            pack_inner(true, out, t, x, part);
        } else {
            pack_inner(false, out, t, x, part);
        }
    } else if (t->bf16) {
        pack_outer(true, out, t, x, part);
    } else {
        pack_outer(false, out, t, x, part);
    }
}

// ---- multiplying ------------------------------------------------------------------------------

/* VL sums with what is added to them, to element i of the output, column col. */
INL void gemm_put(const struct gemm_task *t, int64_t i, int64_t col, vf x)
{
    if (t->bias) {
        x += t->bias_type == DTYPE_BF16 ? v_get(DTYPE_BF16, t->bias, col)
                                        : v_get(DTYPE_F32, t->bias, col);
    }
    if (t->accumulate) {
        x += v_get(DTYPE_F32, t->out, i);
    }
    if (t->out_type == DTYPE_BF16) {
        v_put(DTYPE_BF16, t->out, i, x);
    } else {
        v_put(DTYPE_F32, t->out, i, x);
    }
}

/* The same for n < VL of them. */
INL void gemm_put_n(const struct gemm_task *t, int64_t i, int64_t col, int64_t n, vf x)
{
    if (t->bias) {
        x += t->bias_type == DTYPE_BF16 ? v_get_n(DTYPE_BF16, t->bias, col, n)
                                        : v_get_n(DTYPE_F32, t->bias, col, n);
    }
    if (t->accumulate) {
        x += v_get_n(DTYPE_F32, t->out, i, n);
    }
    if (t->out_type == DTYPE_BF16) {
        v_put_n(DTYPE_BF16, t->out, i, n, x);
    } else {
        v_put_n(DTYPE_F32, t->out, i, n, x);
    }
}

/* MR rows of NR sums from row r and column c of the block on: those that are in the output. */
INL void gemm_finish(const struct gemm_task *t, const struct gemm_block *b, int64_t r0, int64_t c0,
                     vf s[MR][2])
{
    int64_t to = (b->row + r0) * t->n + b->col + c0;
    if (r0 + MR <= b->rows && c0 + NR <= b->cols) {
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++) {
            gemm_put(t, to + r * t->n, b->col + c0, s[r][0]);
            gemm_put(t, to + r * t->n + VL, b->col + c0 + VL, s[r][1]);
        }
        return;
    }
    float sums[MR * NR];
    tile_end(2, s, sums, NR);
    for (int64_t r = 0; r < MR && r0 + r < b->rows; r++) {
        for (int64_t c = 0; c < NR && c0 + c < b->cols; c += VL) {
            int64_t n = b->cols - c0 - c;
            vf x = v_load(sums + r * NR + c);
            if (n >= VL) {
                gemm_put(t, to + r * t->n + c, b->col + c0 + c, x);
            } else {
                gemm_put_n(t, to + r * t->n + c, b->col + c0 + c, n, x);
            }
        }
    }
}

INL void gemm_block_at(const bool pairs, const struct gemm_task *t, const struct gemm_block *b)
{
    for (int64_t k0 = b->unit; k0 < b->end; k0 += GEMM_UNITS) {
        int64_t units = b->end - k0 < GEMM_UNITS ? b->end - k0 : GEMM_UNITS;
        for (int64_t c = 0; c < b->cols; c += NR) {
            const uint32_t *cols = b->b + c * t->pitch + (k0 - b->unit) * NR;
            for (int64_t r = 0; r < b->rows; r += MR) {
                const uint32_t *rows = b->a + r / VL * VL * t->pitch + (k0 - b->unit) * VL;
                struct a_view a = {rows + r % VL, 1, VL};
                float *kept = b->sums + r * GEMM_SIDE + c;
                vf s[MR][2];
                if (k0) {
                    tile_begin(2, true, s, kept, GEMM_SIDE);
                } else {
                    tile_begin(2, false, s, kept, GEMM_SIDE);
                }
                tile_sums(pairs, 2, s, a, cols, NR, units);
                if (k0 + units < t->units) {
                    tile_end(2, s, kept, GEMM_SIDE);
                } else {
                    gemm_finish(t, b, r, c, s);
                }
            }
        }
    }
}

KERNEL void gemm_block(const struct gemm_task *t, const struct gemm_block *b)
{
    if (unit_is_pair(t->bf16)) {
        gemm_block_at(true, t, b);
    } else {
        gemm_block_at(false, t, b);
    }
}

#endif
