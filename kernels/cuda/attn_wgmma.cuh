/*
 * attn_wgmma.cuh - attention on Hopper: what its kernels have in common.
 *
 * A block is three warpgroups. One thread of the first, the producer, walks the tiles that count
 * and has TMA bring them into a ring of slots; the other two, the consumers, own 64 rows each and
 * multiply what arrives. attn_ring.h has the layouts and the rules of waiting, wgmma.cuh the
 * instructions; who owns a row's four lanes is as for mma (attn_tile.h).
 */
#ifndef KERNELS_CUDA_ATTN_WGMMA_CUH
#define KERNELS_CUDA_ATTN_WGMMA_CUH

#include "kernels/cuda/attn.cuh"
#include "kernels/cuda/attn_ring.h"
#include "kernels/cuda/wgmma.cuh"

/* What a block works on. In 32 bits: dividing 64 is a call, which forgets who has how many registers.
 */
struct block_of {
    int batch, h, tile;
    int64_t head; /* batch H + h */
    float slope;
};

static __device__ __forceinline__ struct block_of block_of(const struct attn &x)
{
    const unsigned tiles = (unsigned)x.tiles;
    const unsigned H = (unsigned)x.H;
    const unsigned head = blockIdx.x / tiles;
    const int h = (int)(head % H);
    return {(int)(head / H), h, (int)(blockIdx.x % tiles), head, x.slopes ? x.slopes[h] : 0.0f};
}

/* Element 0 of o, do (B, T, H, D) or, with 3 H heads, of q, k, v at position t. */
static __device__ __forceinline__ int64_t block_row(const struct attn &x, const struct block_of &b,
                                                    int t, int heads, int h)
{
    return (((int64_t)b.batch * x.T + t) * heads + h) * x.D;
}

/* One ring in shared memory: a pair of barriers of 8 bytes per slot. */
struct ring {
    uint32_t full, empty; /* addresses of the first */
    uint32_t stages;
};

static __device__ __forceinline__ void ring_init(const struct ring &r)
{
    for (uint32_t s = 0; s < r.stages; s++) {
        barrier_init(r.full + 8 * s, 1);
        barrier_init(r.empty + 8 * s, RING_READERS);
    }
}

/* The producer, before fill n: the slot's "full", which is to expect the bytes. */
static __device__ __forceinline__ uint32_t ring_claim(const struct ring &r, uint32_t n)
{
    const uint32_t slot = ring_slot(n, r.stages);
    barrier_wait(r.empty + 8 * slot, ring_freed(n, r.stages));
    return r.full + 8 * slot;
}

/* A consumer: until fill n is there. Its slot. */
static __device__ __forceinline__ uint32_t ring_await(const struct ring &r, uint32_t n)
{
    const uint32_t slot = ring_slot(n, r.stages);
    barrier_wait(r.full + 8 * slot, ring_filled(n, r.stages));
    return slot;
}

/* A consumer's warp is done with fill n. */
static __device__ __forceinline__ void ring_release(const struct ring &r, uint32_t n)
{
    warp_meet();
    if (threadIdx.x % LANES == 0) {
        barrier_arrive(r.empty + 8 * ring_slot(n, r.stages));
    }
}

/* Which of the block's consumers this thread belongs to, and its place among their rows. */
struct consumer {
    int who, lane, row0; /* the warp's first row of the 128 the block owns */
};

static __device__ __forceinline__ struct consumer consumer_of()
{
    const int warp = same_in_warp((int)threadIdx.x / (int)LANES) - WARPGROUP / (int)LANES;
    return {warp / 4, (int)(threadIdx.x % LANES), warp * 16};
}

/* d = the block's rows of consumer `who` in tile a times the rows of tile b, each D long. */
template <int D, int N>
static __device__ __forceinline__ void multiply_rows(float (&d)[N][4], uint32_t a, int who,
                                                     uint32_t b)
{
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        wgmma_rows(d, ring_rows(a, OWN_ROWS, who * WARPGROUP_ROWS, k), ring_rows(b, 8 * N, 0, k),
                   k > 0);
    }
    wgmma_commit();
}

/* d (64 x D) += p (64 x 16 K, in registers) times tile b of 16 K rows. */
template <int K, int N>
static __device__ __forceinline__ void multiply_add(float (&d)[N][4], uint32_t (&p)[K][4],
                                                    uint32_t b)
{
    settle(d);
    settle(p);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < K; k++) {
        wgmma_add(d, p[k], ring_columns(b, 16 * K, k));
    }
    wgmma_commit();
}

/* Accumulators, rounded, as the A of the next product. */
template <int N>
static __device__ __forceinline__ void round_to_a(uint32_t (&a)[N / 2][4], const float (&p)[N][4])
{
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            a[k][2 * h] = narrow2(p[2 * k + h][0], p[2 * k + h][1]);
            a[k][2 * h + 1] = narrow2(p[2 * k + h][2], p[2 * k + h][3]);
        }
    }
}

/* May `keys` keys from j0 on be left out for `rows` queries from i0 on? */
static __device__ __forceinline__ bool ring_skips(const struct attn &x, const struct block_of &b,
                                                  int i0, int rows, int j0, int keys)
{
    const int T = (int)x.T;
    if (!x.norms) {
        return false;
    }
    for (int i = i0; i < i0 + rows && i < T; i += NORM_ROWS) {
        for (int j = j0; j < j0 + keys && j < T; j += NORM_ROWS) {
            if (!attn_skips(x, b.head, i, j, b.slope)) {
                return false;
            }
        }
    }
    return true;
}

/* Two neighbouring columns of an output row for each of a lane's two rows. */
template <int N>
static __device__ __forceinline__ void put_rows(bf16 *const out[2], const float (&d)[N][4],
                                                const float factor[2], int lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (!out[h]) {
            continue;
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            put2(out[h] + 8 * n + tile_col(lane, 0), d[n][2 * h] * factor[h],
                 d[n][2 * h + 1] * factor[h]);
        }
    }
}

/*
 * A consumer waits, for ever, until the block has as many registers as it asks for. That depends on
 * what the compiler had a block start with, so it is looked at before anybody waits.
 */
template <typename... P, typename... A>
static void ring_launch(struct cuda *c, void (*kernel)(P...), unsigned grid, size_t shared,
                        A... args)
{
    struct cudaFuncAttributes has;
    cudaError_t err = cudaFuncGetAttributes(&has, (const void *)kernel);
    if (err != cudaSuccess || has.numRegs != START_REGISTERS) {
        (void)cudaGetLastError();
        cuda_fail(c, "the wgmma attention was not built as it must be; try PHOTON_CUDA_ATTN=mma");
        return;
    }
    cuda_launch(c, kernel, grid, RING_THREADS, shared, args...);
}

#endif
