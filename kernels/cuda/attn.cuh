/*
 * attn.cuh - what the attention kernels share: where things lie, and how a tile is fetched.
 */
#ifndef KERNELS_CUDA_ATTN_CUH
#define KERNELS_CUDA_ATTN_CUH

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

/* delta (B, H, T): the sum over d of do o, which is what the softmax takes off every gradient. */
void attn_delta(struct cuda *c, enum dtype at, float *delta, const void *o, const void *dout,
                const struct attn &x, int64_t B);

/* bf16 with D = 64 or 128, by tensor cores: attn.cu */
void attn_fwd_tiled(struct cuda *c, void *o, float *lse, const void *qkv, const struct attn &x,
                    int64_t B);
void attn_bwd_tiled(struct cuda *c, void *dqkv, const void *qkv, const void *dout, const float *lse,
                    const float *delta, const struct attn &x, int64_t B);

#endif
