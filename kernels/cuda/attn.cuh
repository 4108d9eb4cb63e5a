/*
 * attn.cuh - what the attention kernels share: where things lie, and how a tile is fetched.
 */
#ifndef KERNELS_CUDA_ATTN_CUH
#define KERNELS_CUDA_ATTN_CUH

#include "kernels/attn_skip.h"
#include "kernels/cuda/attn_tile.h"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"

/*
 * One call, as kernels see it. Blocks are numbered by tile within a head, then by head, b H + h,
 * all in blockIdx.x: the other dimensions end at 65535.
 */
struct attn {
    int64_t T, H, D;
    int64_t tiles;       /* or rows: blocks of one head */
    const float *slopes; /* or NULL */
    const float *norms;  /* attn_norms(), or NULL where nothing is skipped */
    float scale;         /* 1 / sqrt(D) */
};

static __device__ __forceinline__ int64_t attn_head(const struct attn &x)
{
    return blockIdx.x / x.tiles;
}

static __device__ __forceinline__ int attn_tile(const struct attn &x)
{
    return (int)(blockIdx.x % x.tiles);
}

/* The same call, over this many blocks of each head. */
static inline struct attn attn_over(struct attn x, int64_t tiles)
{
    x.tiles = tiles;
    return x;
}

static inline unsigned attn_grid(const struct attn &x, int64_t B)
{
    return (unsigned)(x.tiles * B * x.H);
}

enum { PART_Q = 0, PART_K, PART_V };

/* Element 0 of q, k or v at position t of one head: qkv is (B, T, 3, H, D). */
static __device__ __forceinline__ int64_t attn_qkv(const struct attn &x, int64_t head, int64_t t,
                                                   int part)
{
    return (((head / x.H * x.T + t) * 3 + part) * x.H + head % x.H) * x.D;
}

/* The same of o and do, (B, T, H, D). */
static __device__ __forceinline__ int64_t attn_o(const struct attn &x, int64_t head, int64_t t)
{
    return ((head / x.H * x.T + t) * x.H + head % x.H) * x.D;
}

static __device__ __forceinline__ float attn_slope(const struct attn &x, int64_t head)
{
    return x.slopes ? x.slopes[head % x.H] : 0.0f;
}

/* Rows that share a norm: skipping goes by tiles of 64 queries and 64 keys, forward and backward.
 */
enum { NORM_ROWS = 64 };

static __host__ __device__ __forceinline__ int64_t attn_norm_tiles(const struct attn &x)
{
    return (x.T + NORM_ROWS - 1) / NORM_ROWS;
}

/* May keys [j0, ...) be left out for the queries [i0, ...) of one norm tile? See attn_skip.h. */
static __device__ __forceinline__ bool attn_skips(const struct attn &x, int64_t head, int i0,
                                                  int j0, float slope)
{
    int i = i0 / NORM_ROWS;
    int j = j0 / NORM_ROWS;
    if (!x.norms || i <= j) {
        return false;
    }
    const float *q = x.norms + head * 2 * attn_norm_tiles(x);
    const float *k = q + attn_norm_tiles(x);
    return attn_can_skip(q[i], k[j], k[i], x.scale, slope, (float)((i - j - 1) * NORM_ROWS + 1));
}

/* Two neighbouring elements of a row, rounded. */
static __device__ __forceinline__ void put2(bf16 *p, float lo, float hi)
{
    *reinterpret_cast<uint32_t *>(p) = narrow2(lo, hi);
}

/* Over the four lanes of a row. */
static __device__ __forceinline__ float quad_sum(float v)
{
    v += __shfl_xor_sync(ALL_LANES, v, 1);
    return v + __shfl_xor_sync(ALL_LANES, v, 2);
}

static __device__ __forceinline__ float quad_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 1));
    return fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 2));
}

/* norms (B, H, 2, tiles): the largest norm of each tile's rows of q, then of k. */
void attn_norms(struct cuda *c, float *norms, const void *qkv, const struct attn &x, int64_t B);

/* delta (B, H, T): the sum over d of do o, which is what the softmax takes off every gradient. */
void attn_delta(struct cuda *c, enum dtype at, float *delta, const void *o, const void *dout,
                const struct attn &x, int64_t B);

/* Any dtype and D: attn_any.cu */
void attn_fwd_plain(struct cuda *c, enum dtype at, void *o, void *lse, const void *qkv,
                    const struct attn &x, int64_t B);
void attn_bwd_plain(struct cuda *c, enum dtype at, void *dqkv, const void *qkv, const void *dout,
                    const void *lse, const float *delta, const struct attn &x, int64_t B);

/* bf16 with D = 64 or 128, by tensor cores: attn.cu */
void attn_fwd_tiled(struct cuda *c, void *o, float *lse, const void *qkv, const struct attn &x,
                    int64_t B);
void attn_bwd_tiled(struct cuda *c, void *dqkv, const void *qkv, const void *dout, const float *lse,
                    const float *delta, const struct attn &x, int64_t B);

/* The same on Hopper: attn_wgmma.cu, attn_wgmma_bwd.cu */
void attn_fwd_ring(struct cuda *c, void *o, float *lse, const void *qkv, const struct attn &x,
                   int64_t B);
void attn_bwd_ring(struct cuda *c, void *dqkv, const void *qkv, const void *o, const void *dout,
                   const float *lse, float *terms, const struct attn &x, int64_t B);
/* Bytes of `terms`, working space on a multiple of 16. */
size_t attn_terms_size(const struct attn &x, int64_t B);

#endif
