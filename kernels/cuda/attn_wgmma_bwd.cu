/*
 * The gradient of causal attention on Hopper: one kernel per 128 keys for dk and dv, one per 128
 * queries for dq, as attn.cu has them. The scores are computed twice, but every sum is taken by one
 * warpgroup in one order: the same bits every time, and no block waits for another.
 *
 * Nothing goes through shared memory that TMA did not bring: with keys as rows, P^T and dS^T leave
 * the accumulators as the A of the products with do and q; with queries as rows, dS as that with k.
 */
#include "kernels/cuda/attn_wgmma.cuh"
#include "kernels/cuda/tensor_map.cuh"

/* Queries of a tile. What the softmax needs of each is brought along with it: first its shift
 * (tile_row_shift), then its delta, as floats. */
enum { QUERIES = WARPGROUP_ROWS, TERMS = 2 * QUERIES, TERMS_BYTES = 4 * TERMS };

static __host__ __device__ __forceinline__ int64_t query_tiles(const struct attn &x)
{
    return (x.T + QUERIES - 1) / QUERIES;
}

size_t attn_terms_size(const struct attn &x, int64_t B)
{
    return (size_t)(B * x.H * query_tiles(x)) * TERMS_BYTES;
}

/* One warp per query. terms (B, H, tiles, 2, QUERIES); who lies beyond T gives every key nothing.
 */
template <int V> // of the elements of a row on a lane
static __global__ void query_terms(float *terms, const bf16 *o, const bf16 *dout, const float *lse,
                                   struct attn x)
{
    const struct block_of b = block_of(x);
    const int t = b.tile * (int)blockDim.y + (int)threadIdx.y;
    const int last = t / QUERIES * QUERIES + QUERIES - 1;
    const bool there = t < (int)x.T;
    float sum = 0.0f;
    if (there) {
        const int64_t at = block_row(x, b, t, (int)x.H, b.h);
        const pack<bf16, V> os = load<V>(o + at + V * (int)threadIdx.x);
        const pack<bf16, V> dos = load<V>(dout + at + V * (int)threadIdx.x);
#pragma unroll
        for (int d = 0; d < V; d++) {
            sum += widen(os.v[d]) * widen(dos.v[d]);
        }
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) {
        float *out = terms + (b.head * query_tiles(x) + t / QUERIES) * TERMS + t % QUERIES;
        out[0] = there ? tile_row_shift(lse[b.head * x.T + t], b.slope, t, last) : INFINITY;
        out[QUERIES] = sum;
    }
}

/* What a block keeps in shared memory: its own two tiles, and a ring of pairs of OTHER rows. */
template <int D, int OTHER, int STAGES_> struct bwd_shape {
    static const int ROWS = OTHER;
    static const uint32_t STAGES = STAGES_;
    static const uint32_t OWN = 2 * OWN_ROWS * D; // bytes of one tile
    static const uint32_t TILE = 2 * OTHER * D;
    static const uint32_t A = 2 * OWN;
    static const uint32_t B = A + STAGES * TILE;
    static const uint32_t TERM = B + STAGES * TILE;
    static const uint32_t WORDS = TERM + STAGES * TERMS_BYTES;
    static const uint32_t BARRIERS = WORDS + 16;
    static const uint32_t SIZE = BARRIERS + 8 * (1 + 2 * STAGES);
};

template <int D> using dkv_shape = bwd_shape<D, QUERIES, D == 64 ? 4 : 3>;
template <int D> using dq_shape = bwd_shape<D, D == 64 ? 128 : 64, D == 64 ? 3 : 4>;

template <typename S> static __device__ __forceinline__ struct ring bwd_ring(uint32_t base)
{
    const uint32_t at = base + S::BARRIERS + 8; // the first is of the block's own tiles
    return {at, at + 8 * S::STAGES, S::STAGES};
}

template <typename S> static __device__ __forceinline__ void bwd_init(uint32_t base)
{
    if (threadIdx.x == 0) {
        barrier_init(base + S::BARRIERS, 1);
        ring_init(bwd_ring<S>(base));
        barriers_ready();
    }
    __syncthreads();
}

template <typename S> static __device__ __forceinline__ int bwd_word(uint32_t base, uint32_t slot)
{
    return same_in_warp(shared_get(base + S::WORDS + 4 * slot));
}

/*
 * A consumer's turn n begins: its own two tiles times the pair in the ring, s whole, dp still under
 * way. `held` is what the former turn's last product reads, whose slot is given back. Returns the
 * slot of this turn, and its word.
 */
template <int D, typename S, int N, typename... Held>
static __device__ __forceinline__ uint32_t bwd_begin(float (&s)[N][4], float (&dp)[N][4], int &word,
                                                     uint32_t base, const struct ring &ring,
                                                     int who, uint32_t n, Held &...held)
{
    const uint32_t slot = ring_await(ring, n);
    word = bwd_word<S>(base, slot);
    multiply_rows<D>(s, base, who, base + S::A + slot * S::TILE);
    multiply_rows<D>(dp, base + S::OWN, who, base + S::B + slot * S::TILE);
    wgmma_wait<2>();
    if (n > 0) {
        (settle(held), ...);
        ring_release(ring, n - 1);
    }
    wgmma_wait<1>();
    settle(s);
    return slot;
}

// ---- dk and dv ----------------------------------------------------------------------------------

template <int D>
static __device__ __forceinline__ void
dkv_produce(const tensor_map &own, const tensor_map &q, const tensor_map &dout, const float *terms,
            uint32_t base, const struct attn &x, const struct block_of &b, int k0)
{
    using S = dkv_shape<D>;
    const struct ring ring = bwd_ring<S>(base);
    const int H = (int)x.H;
    const int end = (int)query_tiles(x);
    const auto after = [&](int tile) {
        do {
            tile++;
        } while (tile < end && ring_skips(x, b, tile * QUERIES, QUERIES, k0, OWN_ROWS));
        return tile;
    };
    barrier_expect(base + S::BARRIERS, 2 * S::OWN);
    fetch_box(base, own, base + S::BARRIERS, k0, b.h + H, b.batch);
    fetch_box(base + S::OWN, own, base + S::BARRIERS, k0, b.h + 2 * H, b.batch);
    uint32_t n = 0;
    for (int tile = k0 / QUERIES, next; tile < end; tile = next, n++) {
        next = after(tile);
        const uint32_t slot = ring_slot(n, S::STAGES);
        const uint32_t full = ring_claim(ring, n);
        shared_put(base + S::WORDS + 4 * slot, ring_word(tile, next >= end));
        barrier_expect(full, 2 * S::TILE + TERMS_BYTES);
        fetch_box(base + S::A + slot * S::TILE, q, full, tile * QUERIES, b.h, b.batch);
        fetch_box(base + S::B + slot * S::TILE, dout, full, tile * QUERIES, b.h, b.batch);
        fetch_bytes(base + S::TERM + slot * TERMS_BYTES,
                    terms + (b.head * query_tiles(x) + tile) * TERMS, TERMS_BYTES, full);
    }
}

/* Scores, keys as rows, to probabilities. i0 is the tile's first query, j0 the first key here. */
static __device__ __forceinline__ void keys_to_p(float (&s)[QUERIES / 8][4], uint32_t terms,
                                                 float scale2, float slope2, int i0, int j0,
                                                 bool mask, int lane)
{
    const int r = i0 + QUERIES - 1;
    const float bias[2] = {tile_bias(slope2, j0 + tile_row(lane, 0), r),
                           tile_bias(slope2, j0 + tile_row(lane, 2), r)};
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
        const int column = 8 * n + tile_col(lane, 0);
        float shift[2];
        shared_get2(shift, terms + 4 * (uint32_t)column);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float p = ex2(s[n][e] * scale2 + (bias[e / 2] - shift[e % 2]));
            if (mask && tile_hidden(i0 + column + e % 2, j0 + tile_row(lane, e))) {
                p = 0.0f;
            }
            s[n][e] = p;
        }
    }
}

template <int D>
static __device__ __forceinline__ void dkv_consume(bf16 *dqkv, uint32_t base, const struct attn &x,
                                                   const struct block_of &b, int k0)
{
    using S = dkv_shape<D>;
    const int N = QUERIES / 8;
    const struct ring ring = bwd_ring<S>(base);
    const struct consumer me = consumer_of();
    const int j0 = k0 + me.row0;
    const int j_last = k0 + (me.who + 1) * WARPGROUP_ROWS - 1; // of this consumer
    const float scale2 = x.scale * TILE_LOG2E;
    const float slope2 = b.slope * TILE_LOG2E;
    float dk[D / 8][4] = {};
    float dv[D / 8][4] = {};
    uint32_t p[N / 2][4];
    uint32_t ds[N / 2][4];

    barrier_wait(base + S::BARRIERS, 0);
    int word;
    uint32_t n = 0;
    do {
        float s[N][4];
        float dp[N][4];
        const uint32_t slot = bwd_begin<D, S>(s, dp, word, base, ring, me.who, n, p, ds);
        const uint32_t q = base + S::A + slot * S::TILE;
        const uint32_t dout = base + S::B + slot * S::TILE;
        const uint32_t terms = base + S::TERM + slot * TERMS_BYTES;
        const int i0 = ring_word_tile(word) * QUERIES;
        keys_to_p(s, terms, scale2, slope2, i0, j0, tile_needs_mask(i0, j_last), me.lane);
        round_to_a(p, s);
        multiply_add(dv, p, dout);
        wgmma_wait<1>();
        settle(dp);
#pragma unroll
        for (int c = 0; c < N; c++) {
            float delta[2];
            shared_get2(delta, terms + 4 * (uint32_t)(QUERIES + 8 * c + tile_col(me.lane, 0)));
#pragma unroll
            for (int e = 0; e < 4; e++) {
                dp[c][e] = s[c][e] * (dp[c][e] - delta[e % 2]) * x.scale;
            }
        }
        round_to_a(ds, dp);
        multiply_add(dk, ds, q);
        if (D == 128) { // p and ds would not fit beside the next s and dp
            wgmma_wait<0>();
            settle(p);
            settle(ds);
        }
        n++;
    } while (!ring_word_last(word));
    wgmma_wait<0>();
    settle(dk);
    settle(dv);
    settle(p);
    settle(ds);

    const float one[2] = {1.0f, 1.0f};
    bf16 *out_k[2];
    bf16 *out_v[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int j = j0 + tile_row(me.lane, 2 * h);
        const int H = (int)x.H;
        const bool there = j < (int)x.T;
        out_k[h] = there ? dqkv + block_row(x, b, j, 3 * H, b.h + H) : nullptr;
        out_v[h] = there ? dqkv + block_row(x, b, j, 3 * H, b.h + 2 * H) : nullptr;
    }
    put_rows(out_k, dk, one, me.lane);
    put_rows(out_v, dv, one, me.lane);
}

template <int D>
static __global__ void __launch_bounds__(RING_THREADS, 1)
    attn_dkv_wgmma(const __grid_constant__ tensor_map own, const __grid_constant__ tensor_map q,
                   const __grid_constant__ tensor_map dout, bf16 *dqkv, const float *terms,
                   struct attn x)
{
    SHARED_DYNAMIC(bytes);
    const uint32_t base = ring_align(shared_address(bytes));
    const struct block_of b = block_of(x);
    const int k0 = b.tile * OWN_ROWS; // the longest first
    bwd_init<dkv_shape<D>>(base);
    if (same_in_warp((int)threadIdx.x / WARPGROUP) == 0) {
        registers_fewer<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            dkv_produce<D>(own, q, dout, terms, base, x, b, k0);
        }
    } else {
        registers_more<CONSUMER_REGISTERS>();
        dkv_consume<D>(dqkv, base, x, b, k0);
    }
}

// ---- dq -----------------------------------------------------------------------------------------

template <int D>
static __device__ __forceinline__ void
dq_produce(const tensor_map &own, const tensor_map &dout, const tensor_map &kv, uint32_t base,
           const struct attn &x, const struct block_of &b, int q0)
{
    using S = dq_shape<D>;
    const int KEYS = S::ROWS;
    const struct ring ring = bwd_ring<S>(base);
    const int H = (int)x.H;
    const int end = tile_key_count(q0 + OWN_ROWS - 1, (int)x.T, KEYS);
    const auto after = [&](int tile) {
        do {
            tile++;
        } while (tile < end && ring_skips(x, b, q0, OWN_ROWS, tile * KEYS, KEYS));
        return tile;
    };
    barrier_expect(base + S::BARRIERS, 2 * S::OWN);
    fetch_box(base, own, base + S::BARRIERS, q0, b.h, b.batch);
    fetch_box(base + S::OWN, dout, base + S::BARRIERS, q0, b.h, b.batch);
    uint32_t n = 0;
    for (int tile = after(-1), next; tile < end; tile = next, n++) {
        next = after(tile);
        const uint32_t slot = ring_slot(n, S::STAGES);
        const uint32_t full = ring_claim(ring, n);
        shared_put(base + S::WORDS + 4 * slot, ring_word(tile, next >= end));
        barrier_expect(full, 2 * S::TILE);
        fetch_box(base + S::A + slot * S::TILE, kv, full, tile * KEYS, b.h + H, b.batch);
        fetch_box(base + S::B + slot * S::TILE, kv, full, tile * KEYS, b.h + 2 * H, b.batch);
    }
}

template <int D>
static __device__ __forceinline__ void dq_consume(bf16 *dqkv, const float *terms, uint32_t base,
                                                  const struct attn &x, const struct block_of &b,
                                                  int q0)
{
    using S = dq_shape<D>;
    const int KEYS = S::ROWS;
    const int N = KEYS / 8;
    const struct ring ring = bwd_ring<S>(base);
    const struct consumer me = consumer_of();
    const int i0 = q0 + me.row0;
    const int r = q0 + (me.who + 1) * WARPGROUP_ROWS - 1; // the last query of these terms
    const float scale2 = x.scale * TILE_LOG2E;
    const float slope2 = b.slope * TILE_LOG2E;
    float shift[2];
    float delta[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = i0 + tile_row(me.lane, 2 * h);
        const bool there = i < (int)x.T;
        const float *at = terms + (b.head * query_tiles(x) + i / QUERIES) * TERMS + i % QUERIES;
        shift[h] = there ? at[0] : INFINITY;
        delta[h] = there ? at[QUERIES] : 0.0f;
    }
    float dq[D / 8][4] = {};
    uint32_t ds[N / 2][4];

    barrier_wait(base + S::BARRIERS, 0);
    int word;
    uint32_t n = 0;
    do {
        float s[N][4];
        float dp[N][4];
        const uint32_t slot = bwd_begin<D, S>(s, dp, word, base, ring, me.who, n, ds);
        const uint32_t k = base + S::A + slot * S::TILE;
        const int j0 = ring_word_tile(word) * KEYS;
        const bool mask = tile_needs_mask(i0, j0 + KEYS - 1);
        const float from = (float)(j0 + tile_col(me.lane, 0) - r);
        uint32_t bits = 0; // of all p, none of which is negative
#pragma unroll
        for (int c = 0; c < N; c++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int j = j0 + 8 * c + tile_col(me.lane, e);
                const float bias = tile_bias_on(slope2, from, 8 * c + e % 2);
                float p = ex2(s[c][e] * scale2 + (bias - shift[e / 2]));
                if (mask && tile_hidden(i0 + tile_row(me.lane, e), j)) {
                    p = 0.0f;
                }
                s[c][e] = p;
                bits |= float_bits(p);
            }
        }
        compute_before_wait(bits, base + S::WORDS);
        wgmma_wait<0>();
        settle(dp);
#pragma unroll
        for (int c = 0; c < N; c++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                dp[c][e] = s[c][e] * (dp[c][e] - delta[e / 2]) * x.scale;
            }
        }
        round_to_a(ds, dp);
        multiply_add(dq, ds, k);
        n++;
    } while (!ring_word_last(word));
    wgmma_wait<0>();
    settle(dq);
    settle(ds);

    const float one[2] = {1.0f, 1.0f};
    bf16 *out[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = i0 + tile_row(me.lane, 2 * h);
        out[h] = i < (int)x.T ? dqkv + block_row(x, b, i, 3 * (int)x.H, b.h) : nullptr;
    }
    put_rows(out, dq, one, me.lane);
}

template <int D>
static __global__ void __launch_bounds__(RING_THREADS, 1)
    attn_dq_wgmma(const __grid_constant__ tensor_map own, const __grid_constant__ tensor_map dout,
                  const __grid_constant__ tensor_map kv, bf16 *dqkv, const float *terms,
                  struct attn x)
{
    SHARED_DYNAMIC(bytes);
    const uint32_t base = ring_align(shared_address(bytes));
    const struct block_of b = block_of(x);
    const int q0 = ((int)x.tiles - 1 - b.tile) * OWN_ROWS; // the longest first
    bwd_init<dq_shape<D>>(base);
    if (same_in_warp((int)threadIdx.x / WARPGROUP) == 0) {
        registers_fewer<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            dq_produce<D>(own, dout, kv, base, x, b, q0);
        }
    } else {
        registers_more<CONSUMER_REGISTERS>();
        dq_consume<D>(dqkv, terms, base, x, b, q0);
    }
}

// ---- the door -----------------------------------------------------------------------------------

template <int D>
static void bwd(struct cuda *c, bf16 *dqkv, const bf16 *qkv, const bf16 *dout, const float *terms,
                const struct attn &x, int64_t B)
{
    const int KEYS = dq_shape<D>::ROWS;
    const struct attn over = attn_over(x, cuda_blocks(x.T, OWN_ROWS));
    const unsigned grid = attn_grid(over, B);
    tensor_map own, q, kv, g, own_g; // of qkv in three sizes of tile, of do in two
    if (!tensor_map_heads(c, &own, qkv, B, x.T, 3 * x.H, D, OWN_ROWS) ||
        !tensor_map_heads(c, &q, qkv, B, x.T, 3 * x.H, D, QUERIES) ||
        !tensor_map_heads(c, &kv, qkv, B, x.T, 3 * x.H, D, KEYS) ||
        !tensor_map_heads(c, &g, dout, B, x.T, x.H, D, QUERIES) ||
        !tensor_map_heads(c, &own_g, dout, B, x.T, x.H, D, OWN_ROWS)) {
        return;
    }
    ring_launch(c, attn_dkv_wgmma<D>, grid, dkv_shape<D>::SIZE + RING_ALIGN, own, q, g, dqkv, terms,
                over);
    ring_launch(c, attn_dq_wgmma<D>, grid, dq_shape<D>::SIZE + RING_ALIGN, own, own_g, kv, dqkv,
                terms, over);
}

void attn_bwd_ring(struct cuda *c, void *dqkv, const void *qkv, const void *o, const void *dout,
                   const float *lse, float *terms, const struct attn &x, int64_t B)
{
    const unsigned ROWS = 8;
    const struct attn rows = attn_over(x, query_tiles(x) * QUERIES / ROWS);
    cuda_launch(c, x.D == 64 ? query_terms<2> : query_terms<4>, attn_grid(rows, B),
                dim3(LANES, ROWS), 0, terms, (const bf16 *)o, (const bf16 *)dout, lse, rows);
    if (x.D == 64) {
        bwd<64>(c, (bf16 *)dqkv, (const bf16 *)qkv, (const bf16 *)dout, terms, x, B);
    } else {
        bwd<128>(c, (bf16 *)dqkv, (const bf16 *)qkv, (const bf16 *)dout, terms, x, B);
    }
}
