/*
 * Causal attention forward on Hopper, heads of 64 and 128, after FlashAttention-3 (Shah et al.
 * 2024): a block owns 128 queries and walks over tiles of 128 keys from the diagonal outward.
 *
 * A consumer issues the scores of the next tile, then the product of this tile's probabilities with
 * v, and computes the next softmax while the latter runs. The two consumers issue in turns, so that
 * one's exponentials run beside the other's products.
 */
#include "kernels/cuda/attn_wgmma.cuh"
#include "kernels/cuda/tensor_map.cuh"

/* What a block keeps in shared memory, offsets from a multiple of RING_ALIGN. */
template <int D> struct fwd_shape {
    static const int KEYS = 128;
    static const uint32_t STAGES = D == 64 ? 3 : 2;
    static const uint32_t TILE = 2 * KEYS * D; // bytes; the queries are as many
    static const uint32_t K = TILE;
    static const uint32_t V = K + STAGES * TILE;
    static const uint32_t WORDS = V + STAGES * TILE; // which tile is in each slot of k
    static const uint32_t BARRIERS = WORDS + 16;     // of q; of k, full and empty; of v
    static const uint32_t SIZE = BARRIERS + 8 * (1 + 4 * STAGES);
};

/* k and v have a ring each, filled in the same order. */
struct fwd_rings {
    uint32_t q_full;
    struct ring k, v;
};

template <int D> static __device__ __forceinline__ struct fwd_rings fwd_rings_at(uint32_t base)
{
    using S = fwd_shape<D>;
    const uint32_t at = base + S::BARRIERS;
    const uint32_t row = 8 * S::STAGES;
    return {at, {at + 8, at + 8 + row, S::STAGES}, {at + 8 + 2 * row, at + 8 + 3 * row, S::STAGES}};
}

template <int D>
static __device__ __forceinline__ void fwd_produce(const tensor_map &qkv, uint32_t base,
                                                   const struct fwd_rings &r, const struct attn &x,
                                                   const struct block_of &b, int q0)
{
    using S = fwd_shape<D>;
    const int head_k = b.h + (int)x.H; // of 3 H: those of q, of k, of v
    const int head_v = head_k + (int)x.H;
    const auto before = [&](int tile) {
        do {
            tile--;
        } while (tile >= 0 && ring_skips(x, b, q0, OWN_ROWS, tile * S::KEYS, S::KEYS));
        return tile;
    };
    barrier_expect(r.q_full, S::TILE);
    fetch_box(base, qkv, r.q_full, q0, b.h, b.batch);
    int next;
    uint32_t n = 0;
    for (int tile = q0 / S::KEYS; tile >= 0; tile = next, n++) {
        next = before(tile);
        const uint32_t slot = ring_slot(n, S::STAGES);
        uint32_t full = ring_claim(r.k, n);
        shared_put(base + S::WORDS + 4 * slot, ring_word(tile, next < 0));
        barrier_expect(full, S::TILE);
        fetch_box(base + S::K + slot * S::TILE, qkv, full, tile * S::KEYS, head_k, b.batch);
        full = ring_claim(r.v, n);
        barrier_expect(full, S::TILE);
        fetch_box(base + S::V + slot * S::TILE, qkv, full, tile * S::KEYS, head_v, b.batch);
    }
}

/*
 * Scores to probabilities relative to the running maximum, in units of log 2. A score times `unit`
 * is in these units. max2 and sum are of a lane's two rows, sum its own share; shrink is what the
 * rows' earlier results are worth from now on.
 */
template <int N>
static __device__ __forceinline__ void softmax_rows(float (&s)[N][4], float unit, float max2[2],
                                                    float sum[2], float shrink[2])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = s[0][2 * h];
#pragma unroll
        for (int n = 0; n < N; n++) {
            top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        }
        top = fmaxf(max2[h], quad_max(top) * unit); // finite: the diagonal comes first
        shrink[h] = ex2(max2[h] - top);
        max2[h] = top;
        float share = 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++) {
            s[n][2 * h] = ex2(s[n][2 * h] * unit - top);
            s[n][2 * h + 1] = ex2(s[n][2 * h + 1] * unit - top);
            share += s[n][2 * h] + s[n][2 * h + 1];
        }
        sum[h] = sum[h] * shrink[h] + share;
    }
}

/* ALiBi's bias where there is one, in units of log 2; and what a row may not see. */
template <bool ALIBI, int N>
static __device__ __forceinline__ void bias_and_mask(float (&s)[N][4], float scale2, float slope2,
                                                     int i0, int j0, int r, int lane)
{
    if (ALIBI) {
        const float from = (float)(j0 + tile_col(lane, 0) - r);
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[n][e] = s[n][e] * scale2 + tile_bias_on(slope2, from, 8 * n + e % 2);
            }
        }
    }
    if (tile_needs_mask(i0, j0 + 8 * N - 1)) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (tile_hidden(i0 + tile_row(lane, e), j0 + 8 * n + tile_col(lane, e))) {
                    s[n][e] = -INFINITY;
                }
            }
        }
    }
}

template <int D, bool ALIBI>
static __device__ __forceinline__ void
fwd_consume(bf16 *o, float *lse, uint32_t base, const struct fwd_rings &rings, const struct attn &x,
            const struct block_of &b, int q0)
{
    using S = fwd_shape<D>;
    const int N = S::KEYS / 8;
    const struct consumer me = consumer_of();
    const int i0 = q0 + me.row0;
    const int r = q0 + OWN_ROWS - 1;
    const float slope = ALIBI ? b.slope : 0.0f;
    const float scale2 = x.scale * TILE_LOG2E;
    const float unit = ALIBI ? 1.0f : scale2;
    const uint32_t turn = 1 + (uint32_t)me.who;
    const uint32_t other = 1 + (uint32_t)(1 - me.who);

    float acc[D / 8][4] = {};
    float max2[2] = {-INFINITY, -INFINITY};
    float sum[2] = {};
    float shrink[2];
    uint32_t p[N / 2][4];

    const auto word_of = [&](uint32_t slot) {
        return same_in_warp(shared_get(base + S::WORDS + 4 * slot));
    };
    barrier_wait(rings.q_full, 0);
    uint32_t slot = ring_await(rings.k, 0);
    int word = word_of(slot);
    if (turn_waits(me.who, 0)) {
        turn_wait(turn, CONSUMERS * WARPGROUP);
    }
    {
        float s[N][4];
        multiply_rows<D>(s, base, me.who, base + S::K + slot * S::TILE);
        if (turn_gives(me.who, ring_word_last(word))) {
            turn_give(other, CONSUMERS * WARPGROUP);
        }
        wgmma_wait<0>();
        settle(s);
        ring_release(rings.k, 0);
        bias_and_mask<ALIBI>(s, scale2, slope * TILE_LOG2E, i0, ring_word_tile(word) * S::KEYS, r,
                             me.lane);
        softmax_rows(s, unit, max2, sum, shrink);
        round_to_a(p, s);
    }

    uint32_t n = 0; // the fill whose probabilities are in p
    while (!ring_word_last(word)) {
        slot = ring_await(rings.k, n + 1);
        word = word_of(slot);
        turn_wait(turn, CONSUMERS * WARPGROUP);
        float s[N][4];
        multiply_rows<D>(s, base, me.who, base + S::K + slot * S::TILE);
        multiply_add(acc, p, base + S::V + ring_await(rings.v, n) * S::TILE);
        if (turn_gives(me.who, ring_word_last(word))) {
            turn_give(other, CONSUMERS * WARPGROUP);
        }
        wgmma_wait<1>();
        settle(s);
        ring_release(rings.k, n + 1);
        bias_and_mask<ALIBI>(s, scale2, slope * TILE_LOG2E, i0, ring_word_tile(word) * S::KEYS, r,
                             me.lane);
        softmax_rows(s, unit, max2, sum, shrink); // beside the product
        compute_before_wait(float_bits(sum[0]) | float_bits(sum[1]), base + S::WORDS);
        wgmma_wait<0>();
        settle(acc);
        settle(p);
        ring_release(rings.v, n);
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                acc[d][e] *= shrink[e / 2];
            }
        }
        round_to_a(p, s);
        n++;
    }
    slot = ring_await(rings.v, n);
    multiply_add(acc, p, base + S::V + slot * S::TILE);
    wgmma_wait<0>();
    settle(acc);
    settle(p);

    bf16 *out[2];
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = i0 + tile_row(me.lane, 2 * h);
        const float total = quad_sum(sum[h]);
        inverse[h] = 1.0f / total;
        out[h] = i < (int)x.T ? o + block_row(x, b, i, (int)x.H, b.h) : nullptr;
        if (out[h] && me.lane % 4 == 0) {
            lse[b.head * x.T + i] = tile_lse(max2[h], log2f(total), slope, i, r);
        }
    }
    put_rows(out, acc, inverse, me.lane);
}

template <int D, bool ALIBI>
static __global__ void __launch_bounds__(RING_THREADS, 1)
    attn_fwd_wgmma(const __grid_constant__ tensor_map qkv, bf16 *o, float *lse, struct attn x)
{
    SHARED_DYNAMIC(bytes);
    const uint32_t base = ring_align(shared_address(bytes));
    const struct fwd_rings rings = fwd_rings_at<D>(base);
    const struct block_of b = block_of(x);
    const int q0 = ((int)x.tiles - 1 - b.tile) * OWN_ROWS; // the longest first
    if (threadIdx.x == 0) {
        barrier_init(rings.q_full, 1);
        ring_init(rings.k);
        ring_init(rings.v);
        barriers_ready();
    }
    __syncthreads();
    if (same_in_warp((int)threadIdx.x / WARPGROUP) == 0) {
        registers_fewer<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            fwd_produce<D>(qkv, base, rings, x, b, q0);
        }
    } else {
        registers_more<CONSUMER_REGISTERS>();
        fwd_consume<D, ALIBI>(o, lse, base, rings, x, b, q0);
    }
}

template <int D>
static void fwd(struct cuda *c, bf16 *o, float *lse, const bf16 *qkv, const struct attn &x,
                int64_t B)
{
    const size_t shared = fwd_shape<D>::SIZE + RING_ALIGN;
    const struct attn over = attn_over(x, cuda_blocks(x.T, OWN_ROWS));
    tensor_map map;
    if (!tensor_map_heads(c, &map, qkv, B, x.T, 3 * x.H, D, OWN_ROWS)) {
        return;
    }
    ring_launch(c, x.slopes ? attn_fwd_wgmma<D, true> : attn_fwd_wgmma<D, false>,
                attn_grid(over, B), shared, map, o, lse, over);
}

void attn_fwd_ring(struct cuda *c, void *o, float *lse, const void *qkv, const struct attn &x,
                   int64_t B)
{
    if (x.D == 64) {
        fwd<64>(c, (bf16 *)o, lse, (const bf16 *)qkv, x, B);
    } else {
        fwd<128>(c, (bf16 *)o, lse, (const bf16 *)qkv, x, B);
    }
}
