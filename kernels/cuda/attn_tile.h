/*
 * attn_tile.h - what tiled attention must get right and a host can check: who holds which element,
 * where an element lies, and which scores count.
 *
 * Device code and host tests share it, so it is plain C. Scores are kept in units of log 2. With r
 * the last row of the query tile, ALiBi's bias slope (j - i) is split into slope (j - r), added per
 * column, and slope (r - i), the same for a whole row, which cancels in the softmax and is added to
 * the log-sum-exp at the end. Inside a tile both parts are small, so nothing is lost.
 *
 * mma.m16n8k16 (PTX manual, "Matrix fragments for mma.m16n8k16"): lane l of a warp holds
 *
 *     accumulator (16 x 8)   c[e]   row l / 4 + 8 (e / 2)          column 2 (l % 4) + e % 2
 *     A (16 x 16), bf16      a[e]   row l / 4 + 8 (e % 2)          columns 2 (l % 4) + 8 (e / 2),
 * +1 B (16 x 8), bf16       b[e]   rows 2 (l % 4) + 8 e, +1       column l / 4
 *
 * so the accumulators of two neighbouring 16 x 8 tiles, rounded, are an A of the next product.
 */
#ifndef KERNELS_CUDA_ATTN_TILE_H
#define KERNELS_CUDA_ATTN_TILE_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC__
#define TILE_FN static __host__ __device__ __forceinline__
#else
#define TILE_FN static inline
#endif

#define TILE_LOG2E 1.4426950408889634f
#define TILE_LN2   0.6931471805599453f

/* ---- accumulator element e of lane l ---- */

TILE_FN int tile_row(int lane, int e)
{
    return lane / 4 + 8 * (e / 2);
}

TILE_FN int tile_col(int lane, int e)
{
    return 2 * (lane % 4) + e % 2;
}

/* ---- tiles in shared memory ---- */

/*
 * A row of a tile is D bf16 in chunks of 16 bytes. Chunk c of row r lies where chunk c ^ (r % 8)
 * would, so that eight rows read at the same column, which is what ldmatrix does, and eight chunks
 * of one row, which is what a copy does, both touch all banks once. The result is in bytes.
 */
TILE_FN int tile_at(int row, int chunk, int D)
{
    return 2 * row * D + (chunk ^ (row & 7)) * 16;
}

/*
 * What lane l addresses for one ldmatrix.x4 that loads an A (16 x 16) at (row0, chunk0): matrices
 * 0..3 are rows 0-7 and 8-15 of the left half, then of the right half.
 */
TILE_FN int tile_a_row(int lane)
{
    return lane % 16;
}

TILE_FN int tile_a_chunk(int lane)
{
    return lane / 16;
}

/*
 * The same for two neighbouring Bs (16 x 8 each) whose columns are rows of the tile: matrices 0, 1
 * are the halves of the first's depth, 2, 3 those of the second.
 */
TILE_FN int tile_b_row(int lane)
{
    return lane % 8 + lane / 16 * 8;
}

TILE_FN int tile_b_chunk(int lane)
{
    return lane / 8 % 2;
}

/* The same for two neighbouring Bs whose depth runs along the tile's rows, loaded transposed. */
TILE_FN int tile_t_row(int lane)
{
    return lane % 16;
}

TILE_FN int tile_t_chunk(int lane)
{
    return lane / 16;
}

/* ---- which scores count; positions are below LIMIT_SEQ_LEN, so an int holds them ---- */

/* Key tiles of `keys` columns that rows up to `last` of T look at: 0 .. result - 1. */
TILE_FN int tile_key_count(int last, int T, int keys)
{
    return (last < T - 1 ? last : T - 1) / keys + 1;
}

/* Does the tile of columns up to j_last reach beyond what row i_first may see? */
TILE_FN bool tile_needs_mask(int i_first, int j_last)
{
    return j_last > i_first;
}

TILE_FN bool tile_hidden(int i, int j)
{
    return j > i;
}

/* ALiBi's part of column j in units of log 2, r being the tile's last row. */
TILE_FN float tile_bias(float slope2, int j, int r)
{
    return slope2 * (float)(j - r);
}

/*
 * The same of a few columns on: `from` is (float)(j - r). Whole numbers below 2^24 are exact, so
 * these are its bits, and `more`, known when this is compiled, needs no conversion.
 */
TILE_FN float tile_bias_on(float slope2, float from, int more)
{
    return slope2 * (from + (float)more);
}

/*
 * What a row subtracts from a score that has its column's bias, to give the logarithm of its
 * probability, in units of log 2.
 */
TILE_FN float tile_row_shift(float lse, float slope, int i, int r)
{
    return TILE_LOG2E * (lse + slope * (float)(i - r));
}

/* The log-sum-exp of a row, from its maximum in units of log 2 and its sum relative to it. */
TILE_FN float tile_lse(float max2, float log2_sum, float slope, int i, int r)
{
    return TILE_LN2 * (max2 + log2_sum) + slope * (float)(r - i);
}

/* A row that has seen nothing yet has the maximum -infinity; zero stands in for it. */
TILE_FN float tile_safe_max(float max2)
{
    return max2 == -__builtin_inff() ? 0.0f : max2;
}

#endif
