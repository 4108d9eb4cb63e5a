/*
 * Causal attention in bf16 on tensor cores, for heads of 64 and 128 (Dao 2023): mma.sync, compute
 * capability 8.0 and later. No T x T array exists, forward or backward.
 *
 * A block of four warps owns a tile of queries (or keys) and walks over tiles of keys (or queries),
 * which cp.async fetches one ahead into the other of two stages. Each warp owns M tiles of 16 rows,
 * and everything about a row stays inside four lanes. attn_tile.h has the layouts.
 *
 * Backward is two kernels, one per key tile for dk and dv and one per query tile for dq. The scores
 * are computed twice, but every sum is taken by one warp in one order. Tiles that ALiBi puts too
 * far away to matter are neither fetched nor computed (attn_skip.h).
 */
#include "kernels/cuda/attn.cuh"

enum { WARPS = 4, TILED_THREADS = 128, ROWS = 16 };

/* Rows [t0, t0 + R) of one part of one head into shared memory; rows beyond T are zero. */
template <int R, int D>
static __device__ __forceinline__ void fetch(uint32_t tile, const bf16 *first, int64_t stride,
                                             int t0, int T)
{
    const int CHUNKS = D / 8;
#pragma unroll 1 // unrolled, its addresses would be kept in registers that the products need
    for (int i = 0; i < R * CHUNKS / TILED_THREADS; i++) {
        int n = i * TILED_THREADS + (int)threadIdx.x;
        int row = n / CHUNKS;
        int chunk = n % CHUNKS;
        bool there = t0 + row < T;
        // An address that is not read must still be one of ours.
        copy_async(tile + tile_at(row, chunk, D),
                   first + (int64_t)(there ? t0 + row : 0) * stride + chunk * 8, there);
    }
}

/* The A operand at rows row0 .. row0 + 15, columns 16 k .. of a tile. */
template <int D>
static __device__ __forceinline__ void load_a(uint32_t a[4], uint32_t tile, int row0, int k,
                                              int lane)
{
    load_matrices(a, tile + tile_at(row0 + tile_a_row(lane), 2 * k + tile_a_chunk(lane), D));
}

/* Two B operands whose columns are the tile's rows row0 .. row0 + 15, depth 16 k .. */
template <int D>
static __device__ __forceinline__ void load_b(uint32_t b[4], uint32_t tile, int row0, int k,
                                              int lane)
{
    load_matrices(b, tile + tile_at(row0 + tile_b_row(lane), 2 * k + tile_b_chunk(lane), D));
}

/* Two B operands whose depth is the tile's rows row0 .. row0 + 15, columns 16 n .. */
template <int D>
static __device__ __forceinline__ void load_t(uint32_t b[4], uint32_t tile, int row0, int n,
                                              int lane)
{
    load_transposed(b, tile + tile_at(row0 + tile_t_row(lane), 2 * n + tile_t_chunk(lane), D));
}

/* s (16 x 8 N) = a's rows times the rows of b, both in shared memory with D columns. */
template <int N, int D>
static __device__ __forceinline__ void rows_by_rows(float s[N][4], uint32_t a, int row0, uint32_t b,
                                                    int lane)
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[n][e] = 0.0f;
        }
    }
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t fa[4];
        load_a<D>(fa, a, row0, k, lane);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t fb[4];
            load_b<D>(fb, b, n * 8, k, lane);
            mma(s[n], fa, fb[0], fb[1]);
            mma(s[n + 1], fa, fb[2], fb[3]);
        }
    }
}

/* acc (16 x D) += p (16 x 8 N, rounded here) times the rows of v. */
template <int N, int D>
static __device__ __forceinline__ void add_product(float acc[D / 8][4], const float p[N][4],
                                                   uint32_t v, int lane)
{
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        const uint32_t fa[4] = {
            narrow2(p[2 * k][0], p[2 * k][1]), narrow2(p[2 * k][2], p[2 * k][3]),
            narrow2(p[2 * k + 1][0], p[2 * k + 1][1]), narrow2(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t fb[4];
            load_t<D>(fb, v, k * 16, n, lane);
            mma(acc[2 * n], fa, fb[0], fb[1]);
            mma(acc[2 * n + 1], fa, fb[2], fb[3]);
        }
    }
}

// ---- forward ----------------------------------------------------------------------------------

/*
 * Scores of one warp's 16 rows become probabilities relative to the running maximum. max2 and sum
 * are of rows lane / 4 and lane / 4 + 8; sum is this lane's share. shrink is what the rows' earlier
 * results are worth from now on.
 */
template <int N>
static __device__ __forceinline__ void softmax(float s[N][4], float max2[2], float sum[2],
                                               float shrink[2])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = max2[h];
#pragma unroll
        for (int n = 0; n < N; n++) {
            top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        }
        top = quad_max(top);
        float base = tile_safe_max(top);
        shrink[h] = ex2(max2[h] - base);
        max2[h] = top;
        sum[h] *= shrink[h];
#pragma unroll
        for (int n = 0; n < N; n++) {
            s[n][2 * h] = ex2(s[n][2 * h] - base);
            s[n][2 * h + 1] = ex2(s[n][2 * h + 1] - base);
            sum[h] += s[n][2 * h] + s[n][2 * h + 1];
        }
    }
}

/* Products to scores in units of log 2: scaled, with the column's bias, hidden where j > i. */
template <int N>
static __device__ __forceinline__ void scores(float s[N][4], float scale2, float slope2, int i0,
                                              int j0, int r, int lane)
{
    const bool mask = tile_needs_mask(i0, j0 + 8 * N - 1);
    const float from = (float)(j0 + tile_col(lane, 0) - r);
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int j = j0 + 8 * n + tile_col(lane, e);
            float t = s[n][e] * scale2 + tile_bias_on(slope2, from, 8 * n + e % 2);
            s[n][e] = mask && tile_hidden(i0 + tile_row(lane, e), j) ? -INFINITY : t;
        }
    }
}

/* A block's queries: WARPS * M * 16. Keys per tile: 64. */
template <int D, int M>
static __global__ void __launch_bounds__(TILED_THREADS)
    attn_fwd_mma(bf16 *o, float *lse, const bf16 *qkv, struct attn x)
{
    const int QUERIES = WARPS * M * ROWS;
    const int KEYS = 64;
    const int N = KEYS / 8;
    const uint32_t STAGE = 2 * KEYS * D; // bytes
    SHARED_DYNAMIC(bytes);
    const uint32_t tile_q = shared_address(bytes);
    const uint32_t tile_k = tile_q + 2 * QUERIES * D; // two stages
    const uint32_t tile_v = tile_k + 4 * KEYS * D;    // two stages
    const int lane = (int)(threadIdx.x % LANES);
    const int row0 = (int)(threadIdx.x / LANES) * M * ROWS;
    const int64_t head = attn_head(x);
    const int T = (int)x.T;
    const int q0 = ((int)x.tiles - 1 - attn_tile(x)) * QUERIES; // the longest first
    const int r = q0 + QUERIES - 1;
    const int64_t stride = 3 * x.H * D;
    const bf16 *k = qkv + attn_qkv(x, head, 0, PART_K);
    const bf16 *v = qkv + attn_qkv(x, head, 0, PART_V);
    const float slope = attn_slope(x, head);
    const float scale2 = x.scale * TILE_LOG2E;
    const float slope2 = slope * TILE_LOG2E;

    float acc[M][D / 8][4] = {};
    float max2[M][2];
    float sum[M][2] = {};
#pragma unroll
    for (int m = 0; m < M; m++) {
        max2[m][0] = max2[m][1] = -INFINITY;
    }

    // From the diagonal outward, so that the maximum is near its final value from the start.
    const int tiles = tile_key_count(r, T, KEYS);
    const auto after = [&](int n) {
        bool skipped = true;
        while (skipped && ++n < tiles) {
            for (int i0 = q0; i0 < q0 + QUERIES && i0 < T && skipped; i0 += NORM_ROWS) {
                skipped = attn_skips(x, head, i0, (tiles - 1 - n) * KEYS, slope);
            }
        }
        return n;
    };
    fetch<QUERIES, D>(tile_q, qkv + attn_qkv(x, head, 0, PART_Q), stride, q0, T);
    fetch<KEYS, D>(tile_k, k, stride, (tiles - 1) * KEYS, T);
    fetch<KEYS, D>(tile_v, v, stride, (tiles - 1) * KEYS, T);
    copy_commit();
    uint32_t stage = 0;
    for (int n = 0, next; n < tiles; n = next, stage = STAGE - stage) {
        const int j0 = (tiles - 1 - n) * KEYS;
        next = after(n);
        if (next < tiles) {
            fetch<KEYS, D>(tile_k + STAGE - stage, k, stride, (tiles - 1 - next) * KEYS, T);
            fetch<KEYS, D>(tile_v + STAGE - stage, v, stride, (tiles - 1 - next) * KEYS, T);
        }
        copy_commit(); // empty at the end, so that the count below is always right
        copy_wait<1>();
        __syncthreads();
#pragma unroll
        for (int m = 0; m < M; m++) {
            float s[N][4];
            float shrink[2];
            rows_by_rows<N, D>(s, tile_q, row0 + m * ROWS, tile_k + stage, lane);
            scores<N>(s, scale2, slope2, q0 + row0 + m * ROWS, j0, r, lane);
            softmax<N>(s, max2[m], sum[m], shrink);
#pragma unroll
            for (int d = 0; d < D / 8; d++) {
                acc[m][d][0] *= shrink[0];
                acc[m][d][1] *= shrink[0];
                acc[m][d][2] *= shrink[1];
                acc[m][d][3] *= shrink[1];
            }
            add_product<N, D>(acc[m], s, tile_v + stage, lane);
        }
        __syncthreads(); // the stage is free for the tile after next
    }

#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int i = q0 + row0 + m * ROWS + tile_row(lane, 2 * h);
            float total = quad_sum(sum[m][h]);
            if (i >= T) {
                continue;
            }
            float inverse = 1.0f / total;
            bf16 *out = o + attn_o(x, head, i);
#pragma unroll
            for (int d = 0; d < D / 8; d++) {
                put2(out + 8 * d + tile_col(lane, 0), acc[m][d][2 * h] * inverse,
                     acc[m][d][2 * h + 1] * inverse);
            }
            if (lane % 4 == 0) {
                lse[head * x.T + i] = tile_lse(max2[m][h], log2f(total), slope, i, r);
            }
        }
    }
}

template <int D, int M>
static void fwd(struct cuda *c, bf16 *o, float *lse, const bf16 *qkv, const struct attn &x,
                int64_t B)
{
    const int QUERIES = WARPS * M * ROWS;
    size_t shared = (size_t)(QUERIES + 4 * 64) * D * sizeof(bf16);
    const struct attn over = attn_over(x, cuda_blocks(x.T, QUERIES));
    cuda_launch(c, attn_fwd_mma<D, M>, attn_grid(over, B), TILED_THREADS, shared, o, lse, qkv,
                over);
}

void attn_fwd_tiled(struct cuda *c, void *o, float *lse, const void *qkv, const struct attn &x,
                    int64_t B)
{
    if (x.D == 64) {
        fwd<64, 2>(c, (bf16 *)o, lse, (const bf16 *)qkv, x, B);
    } else {
        fwd<128, 1>(c, (bf16 *)o, lse, (const bf16 *)qkv, x, B);
    }
}

// ---- backward ---------------------------------------------------------------------------------

/*
 * dk and dv of 64 keys, 16 per warp, over tiles of QUERIES queries in ascending order. Everything
 * is transposed: rows are keys, columns queries, so that P^T and dS^T are the A operands.
 */
template <int D, int QUERIES>
static __global__ void __launch_bounds__(TILED_THREADS)
    attn_dkv_mma(bf16 *dqkv, const bf16 *qkv, const bf16 *dout, const float *lse,
                 const float *delta, struct attn x)
{
    const int KEYS = WARPS * ROWS;
    const int N = QUERIES / 8;
    const uint32_t STAGE = 2 * QUERIES * D; // bytes
    SHARED_DYNAMIC(bytes);
    const uint32_t tile_k = shared_address(bytes);
    const uint32_t tile_v = tile_k + 2 * KEYS * D;
    const uint32_t tile_q = tile_v + 2 * KEYS * D;     // two stages
    const uint32_t tile_do = tile_q + 4 * QUERIES * D; // two stages
    __shared__ float shift[QUERIES];
    __shared__ float row_delta[QUERIES];
    const int lane = (int)(threadIdx.x % LANES);
    const int row0 = (int)(threadIdx.x / LANES) * ROWS;
    const int64_t head = attn_head(x);
    const int T = (int)x.T;
    const int k0 = attn_tile(x) * KEYS; // the longest first
    const int64_t stride = 3 * x.H * D;
    const bf16 *q = qkv + attn_qkv(x, head, 0, PART_Q);
    const bf16 *g = dout + attn_o(x, head, 0);
    const float slope = attn_slope(x, head);
    const float scale2 = x.scale * TILE_LOG2E;
    const float slope2 = slope * TILE_LOG2E;

    float dk[D / 8][4] = {};
    float dv[D / 8][4] = {};
    const int first = k0 / QUERIES; // the tile of queries on the diagonal
    const int end = (T + QUERIES - 1) / QUERIES;
    const auto after = [&](int tile) {
        do {
            tile++;
        } while (tile < end && attn_skips(x, head, tile * QUERIES, k0, slope));
        return tile;
    };
    fetch<KEYS, D>(tile_k, qkv + attn_qkv(x, head, 0, PART_K), stride, k0, T);
    fetch<KEYS, D>(tile_v, qkv + attn_qkv(x, head, 0, PART_V), stride, k0, T);
    fetch<QUERIES, D>(tile_q, q, stride, first * QUERIES, T);
    fetch<QUERIES, D>(tile_do, g, x.H * D, first * QUERIES, T);
    copy_commit();
    uint32_t stage = 0;
    for (int tile = first, next; tile < end; tile = next, stage = STAGE - stage) {
        const int q0 = tile * QUERIES;
        const int r = q0 + QUERIES - 1;
        next = after(tile);
        if (next < end) {
            fetch<QUERIES, D>(tile_q + STAGE - stage, q, stride, next * QUERIES, T);
            fetch<QUERIES, D>(tile_do + STAGE - stage, g, x.H * D, next * QUERIES, T);
        }
        copy_commit();
        for (int n = (int)threadIdx.x; n < QUERIES; n += TILED_THREADS) {
            int i = q0 + n;
            bool there = i < T;
            // A query that is not there gives every key the probability zero.
            shift[n] = there ? tile_row_shift(lse[head * x.T + i], slope, i, r) : INFINITY;
            row_delta[n] = there ? delta[head * x.T + i] : 0.0f;
        }
        copy_wait<1>();
        __syncthreads();

        float p[N][4];
        float ds[N][4];
        rows_by_rows<N, D>(p, tile_k, row0, tile_q + stage, lane);
        rows_by_rows<N, D>(ds, tile_v, row0, tile_do + stage, lane);
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int j = k0 + row0 + tile_row(lane, e);
                int column = 8 * n + tile_col(lane, e);
                float t = p[n][e] * scale2 + tile_bias(slope2, j, r);
                p[n][e] = tile_hidden(q0 + column, j) ? 0.0f : ex2(t - shift[column]);
                ds[n][e] = p[n][e] * (ds[n][e] - row_delta[column]) * x.scale;
            }
        }
        add_product<N, D>(dv, p, tile_do + stage, lane);
        add_product<N, D>(dk, ds, tile_q + stage, lane);
        __syncthreads();
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        int j = k0 + row0 + tile_row(lane, 2 * h);
        if (j >= T) {
            continue;
        }
        bf16 *out_k = dqkv + attn_qkv(x, head, j, PART_K);
        bf16 *out_v = dqkv + attn_qkv(x, head, j, PART_V);
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
            put2(out_k + 8 * d + tile_col(lane, 0), dk[d][2 * h], dk[d][2 * h + 1]);
            put2(out_v + 8 * d + tile_col(lane, 0), dv[d][2 * h], dv[d][2 * h + 1]);
        }
    }
}

/* dq of 64 queries, 16 per warp, over tiles of KEYS keys in ascending order. */
template <int D, int KEYS>
static __global__ void __launch_bounds__(TILED_THREADS)
    attn_dq_mma(bf16 *dqkv, const bf16 *qkv, const bf16 *dout, const float *lse, const float *delta,
                struct attn x)
{
    const int QUERIES = WARPS * ROWS;
    const int N = KEYS / 8;
    const uint32_t STAGE = 2 * KEYS * D; // bytes
    SHARED_DYNAMIC(bytes);
    const uint32_t tile_q = shared_address(bytes);
    const uint32_t tile_do = tile_q + 2 * QUERIES * D;
    const uint32_t tile_k = tile_do + 2 * QUERIES * D; // two stages
    const uint32_t tile_v = tile_k + 4 * KEYS * D;     // two stages
    const int lane = (int)(threadIdx.x % LANES);
    const int row0 = (int)(threadIdx.x / LANES) * ROWS;
    const int64_t head = attn_head(x);
    const int T = (int)x.T;
    const int q0 = ((int)x.tiles - 1 - attn_tile(x)) * QUERIES; // the longest first
    const int r = q0 + QUERIES - 1;
    const int64_t stride = 3 * x.H * D;
    const bf16 *k = qkv + attn_qkv(x, head, 0, PART_K);
    const bf16 *v = qkv + attn_qkv(x, head, 0, PART_V);
    const float slope = attn_slope(x, head);
    const float scale2 = x.scale * TILE_LOG2E;
    const float slope2 = slope * TILE_LOG2E;

    float shift[2];
    float row_delta[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int i = q0 + row0 + tile_row(lane, 2 * h);
        bool there = i < T;
        shift[h] = there ? tile_row_shift(lse[head * x.T + i], slope, i, r) : INFINITY;
        row_delta[h] = there ? delta[head * x.T + i] : 0.0f;
    }
    float dq[D / 8][4] = {};
    const int tiles = tile_key_count(r, T, KEYS);
    const auto after = [&](int tile) {
        do {
            tile++;
        } while (tile < tiles && attn_skips(x, head, q0, tile * KEYS, slope));
        return tile;
    };
    const int first = after(-1); // the diagonal is never skipped, so there is one
    fetch<QUERIES, D>(tile_q, qkv + attn_qkv(x, head, 0, PART_Q), stride, q0, T);
    fetch<QUERIES, D>(tile_do, dout + attn_o(x, head, 0), x.H * D, q0, T);
    fetch<KEYS, D>(tile_k, k, stride, first * KEYS, T);
    fetch<KEYS, D>(tile_v, v, stride, first * KEYS, T);
    copy_commit();
    uint32_t stage = 0;
    for (int tile = first, next; tile < tiles; tile = next, stage = STAGE - stage) {
        const int j0 = tile * KEYS;
        next = after(tile);
        if (next < tiles) {
            fetch<KEYS, D>(tile_k + STAGE - stage, k, stride, next * KEYS, T);
            fetch<KEYS, D>(tile_v + STAGE - stage, v, stride, next * KEYS, T);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();

        float s[N][4];
        float ds[N][4];
        rows_by_rows<N, D>(s, tile_q, row0, tile_k + stage, lane);
        rows_by_rows<N, D>(ds, tile_do, row0, tile_v + stage, lane);
        scores<N>(s, scale2, slope2, q0 + row0, j0, r, lane);
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float p = ex2(s[n][e] - shift[e / 2]);
                ds[n][e] = p * (ds[n][e] - row_delta[e / 2]) * x.scale;
            }
        }
        add_product<N, D>(dq, ds, tile_k + stage, lane);
        __syncthreads();
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        int i = q0 + row0 + tile_row(lane, 2 * h);
        if (i >= T) {
            continue;
        }
        bf16 *out = dqkv + attn_qkv(x, head, i, PART_Q);
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
            put2(out + 8 * d + tile_col(lane, 0), dq[d][2 * h], dq[d][2 * h + 1]);
        }
    }
}

template <int D, int OTHER>
static void bwd(struct cuda *c, bf16 *dqkv, const bf16 *qkv, const bf16 *dout, const float *lse,
                const float *delta, const struct attn &x, int64_t B)
{
    const int OWN = WARPS * ROWS;
    const struct attn over = attn_over(x, cuda_blocks(x.T, OWN));
    unsigned grid = attn_grid(over, B);
    size_t shared = (size_t)(2 * OWN + 4 * OTHER) * D * sizeof(bf16);
    cuda_launch(c, attn_dkv_mma<D, OTHER>, grid, TILED_THREADS, shared, dqkv, qkv, dout, lse, delta,
                over);
    cuda_launch(c, attn_dq_mma<D, OTHER>, grid, TILED_THREADS, shared, dqkv, qkv, dout, lse, delta,
                over);
}

void attn_bwd_tiled(struct cuda *c, void *dqkv, const void *qkv, const void *dout, const float *lse,
                    const float *delta, const struct attn &x, int64_t B)
{
    if (x.D == 64) {
        bwd<64, 64>(c, (bf16 *)dqkv, (const bf16 *)qkv, (const bf16 *)dout, lse, delta, x, B);
    } else {
        bwd<128, 32>(c, (bf16 *)dqkv, (const bf16 *)qkv, (const bf16 *)dout, lse, delta, x, B);
    }
}
