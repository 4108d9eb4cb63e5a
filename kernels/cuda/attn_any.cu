/*
 * Attention for any dtype and head size, plainly: a block per row, keys or queries a chunk at a
 * time, one thread each.
 */
#include "kernels/cuda/attn.cuh"

static const int CHUNK = 128;

/* q_i k_j / sqrt(D) + slope (j - i) */
template <typename T>
static __device__ __forceinline__ float score(const struct attn &x, const T *q, const T *k,
                                              float slope, int64_t i, int64_t j)
{
    float dot = 0.0f;
    for (int64_t d = 0; d < x.D; d++) {
        dot += widen(q[d]) * widen(k[d]);
    }
    return dot * x.scale + slope * (float)(j - i);
}

template <typename T>
static __device__ __forceinline__ float dot_of(const T *a, const T *b, int64_t D)
{
    float dot = 0.0f;
    for (int64_t d = 0; d < D; d++) {
        dot += widen(a[d]) * widen(b[d]);
    }
    return dot;
}

template <typename T>
static __global__ void __launch_bounds__(CHUNK)
    attn_fwd_any(T *o, float *lse, const T *qkv, struct attn x)
{
    SHARED_DYNAMIC(bytes);
    float *acc = reinterpret_cast<float *>(bytes); // D
    __shared__ float p[CHUNK];
    __shared__ float shared[32];
    int64_t i = attn_tile(x);
    int64_t head = attn_head(x);
    float slope = attn_slope(x, head);
    const T *q = qkv + attn_qkv(x, head, i, PART_Q);
    float max = -INFINITY;
    float sum = 0.0f;
    for (int64_t d = threadIdx.x; d < x.D; d += CHUNK) {
        acc[d] = 0.0f;
    }
    for (int64_t j0 = 0; j0 <= i; j0 += CHUNK) {
        int64_t j = j0 + threadIdx.x;
        float s = j <= i ? score(x, q, qkv + attn_qkv(x, head, j, PART_K), slope, i, j) : -INFINITY;
        float new_max = fmaxf(max, row_max(s, shared)); // j0 <= i, so it is finite
        float shrink = expf(max - new_max);
        float e = expf(s - new_max);
        max = new_max;
        sum = sum * shrink + row_sum(e, shared);
        p[threadIdx.x] = widen(narrow<T>(e));
        __syncthreads();
        int count = (int)(i - j0 < CHUNK - 1 ? i - j0 + 1 : CHUNK);
        for (int64_t d = threadIdx.x; d < x.D; d += CHUNK) {
            float a = acc[d] * shrink;
            for (int k = 0; k < count; k++) {
                a += p[k] * widen(qkv[attn_qkv(x, head, j0 + k, PART_V) + d]);
            }
            acc[d] = a;
        }
        __syncthreads();
    }
    for (int64_t d = threadIdx.x; d < x.D; d += CHUNK) {
        o[attn_o(x, head, i) + d] = narrow<T>(acc[d] / sum);
    }
    if (threadIdx.x == 0) {
        lse[head * x.T + i] = max + logf(sum);
    }
}

/* dq of one query, over keys in ascending order. */
template <typename T>
static __global__ void __launch_bounds__(CHUNK)
    attn_dq_any(T *dqkv, const T *qkv, const T *dout, const float *lse, const float *delta,
                struct attn x)
{
    SHARED_DYNAMIC(bytes);
    float *acc = reinterpret_cast<float *>(bytes); // D
    __shared__ float ds[CHUNK];
    int64_t i = attn_tile(x);
    int64_t head = attn_head(x);
    float slope = attn_slope(x, head);
    const T *q = qkv + attn_qkv(x, head, i, PART_Q);
    const T *g = dout + attn_o(x, head, i);
    float row_lse = lse[head * x.T + i];
    float row_delta = delta[head * x.T + i];
    for (int64_t d = threadIdx.x; d < x.D; d += CHUNK) {
        acc[d] = 0.0f;
    }
    for (int64_t j0 = 0; j0 <= i; j0 += CHUNK) {
        int64_t j = j0 + threadIdx.x;
        if (j <= i) {
            float s = score(x, q, qkv + attn_qkv(x, head, j, PART_K), slope, i, j);
            float dp = dot_of(g, qkv + attn_qkv(x, head, j, PART_V), x.D);
            ds[threadIdx.x] = widen(narrow<T>(expf(s - row_lse) * (dp - row_delta) * x.scale));
        }
        __syncthreads();
        int count = (int)(i - j0 < CHUNK - 1 ? i - j0 + 1 : CHUNK);
        for (int64_t d = threadIdx.x; d < x.D; d += CHUNK) {
            float a = acc[d];
            for (int k = 0; k < count; k++) {
                a += ds[k] * widen(qkv[attn_qkv(x, head, j0 + k, PART_K) + d]);
            }
            acc[d] = a;
        }
        __syncthreads();
    }
    for (int64_t d = threadIdx.x; d < x.D; d += CHUNK) {
        dqkv[attn_qkv(x, head, i, PART_Q) + d] = narrow<T>(acc[d]);
    }
}

/* dk and dv of one key, over queries in ascending order. */
template <typename T>
static __global__ void __launch_bounds__(CHUNK)
    attn_dkv_any(T *dqkv, const T *qkv, const T *dout, const float *lse, const float *delta,
                 struct attn x)
{
    SHARED_DYNAMIC(bytes);
    float *acc_k = reinterpret_cast<float *>(bytes); // D
    float *acc_v = acc_k + x.D;                      // D
    __shared__ float p[CHUNK];
    __shared__ float ds[CHUNK];
    int64_t j = attn_tile(x);
    int64_t head = attn_head(x);
    float slope = attn_slope(x, head);
    const T *k = qkv + attn_qkv(x, head, j, PART_K);
    const T *v = qkv + attn_qkv(x, head, j, PART_V);
    for (int64_t d = threadIdx.x; d < x.D; d += CHUNK) {
        acc_k[d] = 0.0f;
        acc_v[d] = 0.0f;
    }
    for (int64_t i0 = j; i0 < x.T; i0 += CHUNK) {
        int64_t i = i0 + threadIdx.x;
        if (i < x.T) {
            float s = score(x, qkv + attn_qkv(x, head, i, PART_Q), k, slope, i, j);
            float e = expf(s - lse[head * x.T + i]);
            float dp = dot_of(dout + attn_o(x, head, i), v, x.D);
            p[threadIdx.x] = widen(narrow<T>(e));
            ds[threadIdx.x] = widen(narrow<T>(e * (dp - delta[head * x.T + i]) * x.scale));
        }
        __syncthreads();
        int count = (int)(x.T - i0 < CHUNK ? x.T - i0 : CHUNK);
        for (int64_t d = threadIdx.x; d < x.D; d += CHUNK) {
            float dk = acc_k[d];
            float dv = acc_v[d];
            for (int n = 0; n < count; n++) {
                dk += ds[n] * widen(qkv[attn_qkv(x, head, i0 + n, PART_Q) + d]);
                dv += p[n] * widen(dout[attn_o(x, head, i0 + n) + d]);
            }
            acc_k[d] = dk;
            acc_v[d] = dv;
        }
        __syncthreads();
    }
    for (int64_t d = threadIdx.x; d < x.D; d += CHUNK) {
        dqkv[attn_qkv(x, head, j, PART_K) + d] = narrow<T>(acc_k[d]);
        dqkv[attn_qkv(x, head, j, PART_V) + d] = narrow<T>(acc_v[d]);
    }
}

/* One warp per (position, head). */
template <typename T>
static __global__ void delta_rows(float *delta, const T *o, const T *dout, struct attn x)
{
    int64_t t = (int64_t)attn_tile(x) * blockDim.y + threadIdx.y;
    int64_t head = attn_head(x);
    if (t >= x.T) {
        return; // a whole warp
    }
    int64_t at = attn_o(x, head, t);
    float sum = 0.0f;
    for (int64_t d = threadIdx.x; d < x.D; d += LANES) {
        sum += widen(o[at + d]) * widen(dout[at + d]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) {
        delta[head * x.T + t] = sum;
    }
}

void attn_delta(struct cuda *c, enum dtype at, float *delta, const void *o, const void *dout,
                const struct attn &x, int64_t B)
{
    const unsigned ROWS = 8;
    struct attn rows = attn_over(x, cuda_blocks(x.T, ROWS));
    unsigned grid = attn_grid(rows, B);
    dim3 block(LANES, ROWS);
    if (at == DTYPE_BF16) {
        cuda_launch(c, delta_rows<bf16>, grid, block, 0, delta, (const bf16 *)o, (const bf16 *)dout,
                    rows);
    } else {
        cuda_launch(c, delta_rows<float>, grid, block, 0, delta, (const float *)o,
                    (const float *)dout, rows);
    }
}

/*
 * One block per (tile of rows, head). A lane reads 16 bytes of a row, so D / 8 lanes share one and
 * a warp takes four or two of them at once; D is 64 or 128.
 */
static __global__ void norm_tiles(float *norms, const bf16 *qkv, struct attn x)
{
    const int WIDE = 8;
    __shared__ float tops[2][LANES];
    const int64_t head = attn_head(x);
    const int lanes = (int)x.D / WIDE;
    const int rows = (int)LANES / lanes;
    const int column = WIDE * ((int)threadIdx.x % lanes);
    float top[2] = {0.0f, 0.0f};
    for (int n = (int)threadIdx.y * rows; n < NORM_ROWS; n += (int)blockDim.y * rows) {
        const int64_t t = (int64_t)attn_tile(x) * NORM_ROWS + n + (int)threadIdx.x / lanes;
        for (int part = PART_Q; part <= PART_K; part++) {
            float sum = 0.0f;
            if (t < x.T) {
                const pack<bf16, WIDE> in = load<WIDE>(qkv + attn_qkv(x, head, t, part) + column);
#pragma unroll
                for (int d = 0; d < WIDE; d++) {
                    sum += widen(in.v[d]) * widen(in.v[d]);
                }
            }
            for (int d = lanes / 2; d > 0; d /= 2) {
                sum += __shfl_xor_sync(ALL_LANES, sum, d);
            }
            top[part] = fmaxf(top[part], sum);
        }
    }
    for (int part = PART_Q; part <= PART_K; part++) {
        const float most = warp_max(top[part]);
        if (threadIdx.x == 0) {
            tops[part][threadIdx.y] = most;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y < 2) {
        float most = 0.0f;
        for (unsigned w = 0; w < blockDim.y; w++) {
            most = fmaxf(most, tops[threadIdx.y][w]);
        }
        norms[(head * 2 + threadIdx.y) * x.tiles + attn_tile(x)] = ATTN_NORM_SLACK * sqrtf(most);
    }
}

void attn_norms(struct cuda *c, float *norms, const void *qkv, const struct attn &x, int64_t B)
{
    const struct attn tiles = attn_over(x, attn_norm_tiles(x));
    cuda_launch(c, norm_tiles, attn_grid(tiles, B), dim3(LANES, 8), 0, norms, (const bf16 *)qkv,
                tiles);
}

template <typename T>
static void fwd_any(struct cuda *c, void *o, void *lse, const void *qkv, const struct attn &x,
                    int64_t B)
{
    cuda_launch(c, attn_fwd_any<T>, attn_grid(x, B), CHUNK, (size_t)x.D * sizeof(float), (T *)o,
                (float *)lse, (const T *)qkv, x);
}

template <typename T>
static void bwd_any(struct cuda *c, void *dqkv, const void *qkv, const void *dout, const void *lse,
                    const float *delta, const struct attn &x, int64_t B)
{
    unsigned grid = attn_grid(x, B);
    size_t row = (size_t)x.D * sizeof(float);
    cuda_launch(c, attn_dq_any<T>, grid, CHUNK, row, (T *)dqkv, (const T *)qkv, (const T *)dout,
                (const float *)lse, delta, x);
    cuda_launch(c, attn_dkv_any<T>, grid, CHUNK, 2 * row, (T *)dqkv, (const T *)qkv,
                (const T *)dout, (const float *)lse, delta, x);
}

void attn_fwd_plain(struct cuda *c, enum dtype at, void *o, void *lse, const void *qkv,
                    const struct attn &x, int64_t B)
{
    if (at == DTYPE_BF16) {
        fwd_any<bf16>(c, o, lse, qkv, x, B);
    } else {
        fwd_any<float>(c, o, lse, qkv, x, B);
    }
}

void attn_bwd_plain(struct cuda *c, enum dtype at, void *dqkv, const void *qkv, const void *dout,
                    const void *lse, const float *delta, const struct attn &x, int64_t B)
{
    if (at == DTYPE_BF16) {
        bwd_any<bf16>(c, dqkv, qkv, dout, lse, delta, x, B);
    } else {
        bwd_any<float>(c, dqkv, qkv, dout, lse, delta, x, B);
    }
}
