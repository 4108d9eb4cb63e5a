/*
 * LayerNorm, GELU and column sums: kernels bound by memory, 16 bytes per access.
 *
 * A row is held in registers by a warp, or by a block of its own where a warp's registers do not
 * suffice. Gradients of parameters are sums over rows. They are taken in two stages: each group of
 * rows leaves its own sums, and a second kernel adds those in a fixed order.
 */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/math_poly.h"

static const float EPS = 1e-5f;

enum { WARPS = 4, GROUPS_MAX = 2048, ADD_SLICES = 32, COLUMN_ROWS = 8, COLUMN_PARTS_MAX = 128 };

/*
 * Blocks of either size are kernels of their own: a thread of a large one gets fewer registers.
 */
enum { SMALL = 128, LARGE = 1024 };

/* Threads for a row of C elements, held by each as K packs of V. */
static unsigned row_threads(int64_t C, int V, int K)
{
    static const unsigned sizes[] = {32, 128, 512, 1024};
    for (unsigned n : sizes) {
        if ((int64_t)n * V * K >= C) {
            return n;
        }
    }
    return 1024; // not reached: LIMIT_D_MODEL is 16384
}

// ---- adding up the parts ------------------------------------------------------------------------

/* out[c] += sum of parts[p][c], p < count; block (32 columns, ADD_SLICES). */
static __global__ void __launch_bounds__(32 * ADD_SLICES)
    add_parts(float *out, const float *parts, int64_t count, int64_t C)
{
    __shared__ float sums[ADD_SLICES][32];
    int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (c < C) {
        for (int64_t p = threadIdx.y; p < count; p += ADD_SLICES) {
            sum += parts[p * C + c];
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < C) {
        sum = 0.0f;
        for (int i = 0; i < ADD_SLICES; i++) {
            sum += sums[i][threadIdx.x];
        }
        out[c] += sum;
    }
}

static void launch_add_parts(struct cuda *c, void *out, const float *parts, int64_t count,
                             int64_t C)
{
    cuda_launch(c, add_parts, cuda_blocks(C, 32), dim3(32, ADD_SLICES), 0, (float *)out, parts,
                count, C);
}

// ---- LayerNorm
// ------------------------------------------------------------------------------------

/* xs = R(x + y), or x; its values are left in held. Returns this thread's share of their sum. */
template <typename T, int V, int K>
static __device__ __forceinline__ float take_row(float held[K][V], T *xs, const T *x, const T *y,
                                                 int C)
{
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < K; k++) {
        int c = (k * (int)blockDim.x + (int)threadIdx.x) * V;
        if (c < C) {
            pack<T, V> t = load<V>(x + c);
            if (y) {
                pack<T, V> u = load<V>(y + c);
#pragma unroll
                for (int v = 0; v < V; v++) {
                    t.v[v] = narrow<T>(widen(t.v[v]) + widen(u.v[v]));
                }
            }
            if (xs != x || y) {
                store<V>(xs + c, t);
            }
#pragma unroll
            for (int v = 0; v < V; v++) {
                held[k][v] = widen(t.v[v]);
                sum += held[k][v];
            }
        }
    }
    return sum;
}

template <typename T, int V, int K, int THREADS>
static __global__ void __launch_bounds__(THREADS)
    norm_fwd(T *xs, T *out, float *mean, float *rstd, const T *x, const T *y, const T *g,
             const T *b, int64_t N, int C)
{
    __shared__ float shared[32];
    int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= N) {
        return; // a whole warp of its own: blocks of a single row are never cut
    }
    float held[K][V];
    const T *y_row = y ? y + row * C : nullptr;
    float mu =
        row_sum(take_row<T, V, K>(held, xs + row * C, x + row * C, y_row, C), shared) / (float)C;

    // The second pass subtracts the mean first: E[x^2] - mu^2 would cancel.
    float var = 0.0f;
#pragma unroll
    for (int k = 0; k < K; k++) {
        if ((k * (int)blockDim.x + (int)threadIdx.x) * V < C) {
#pragma unroll
            for (int v = 0; v < V; v++) {
                float d = held[k][v] - mu;
                var += d * d;
            }
        }
    }
    float r = 1.0f / sqrtf(row_sum(var, shared) / (float)C + EPS);

#pragma unroll
    for (int k = 0; k < K; k++) {
        int c = (k * (int)blockDim.x + (int)threadIdx.x) * V;
        if (c < C) {
            pack<T, V> pg = load<V>(g + c);
            pack<T, V> pb = {};
            if (b) {
                pb = load<V>(b + c);
            }
            pack<T, V> t;
#pragma unroll
            for (int v = 0; v < V; v++) {
                t.v[v] = narrow<T>((held[k][v] - mu) * r * widen(pg.v[v]) + widen(pb.v[v]));
            }
            store<V>(out + row * C + c, t);
        }
    }
    if (threadIdx.x == 0) {
        mean[row] = mu;
        rstd[row] = r;
    }
}

template <typename T>
static void norm_fwd_as(struct cuda *c, void *xs, void *out, void *mean, void *rstd, const void *x,
                        const void *y, const void *g, const void *b, int64_t N, int64_t C)
{
    const int W = 16 / sizeof(T);
    bool wide = moves_wide<T>(C, xs, out, x, y, g, b);
    unsigned threads = wide ? row_threads(C, W, 4) : row_threads(C, 1, 16);
    unsigned rows = threads == LANES ? WARPS : 1;
    auto kernel = wide ? norm_fwd<T, W, 4, SMALL> : norm_fwd<T, 1, 16, SMALL>;
    if (threads > SMALL) {
        kernel = wide ? norm_fwd<T, W, 4, LARGE> : norm_fwd<T, 1, 16, LARGE>;
    }
    cuda_launch(c, kernel, cuda_blocks(N, rows), dim3(threads, rows), 0, (T *)xs, (T *)out,
                (float *)mean, (float *)rstd, (const T *)x, (const T *)y, (const T *)g,
                (const T *)b, N, (int)C);
}

void cuda_norm_fwd(struct backend *be, enum dtype at, void *xs, void *out, void *mean, void *rstd,
                   const void *x, const void *y, const void *g, const void *b, int64_t N, int64_t C)
{
    if (at == DTYPE_BF16) {
        norm_fwd_as<bf16>(cuda_of(be), xs, out, mean, rstd, x, y, g, b, N, C);
    } else {
        norm_fwd_as<float>(cuda_of(be), xs, out, mean, rstd, x, y, g, b, N, C);
    }
}

/*
 * With n = (x - mean) rstd and e = dout g: dx += rstd (e - mean(e) - n mean(e n)), and over the
 * rows of this group the sums of dout n and of dout, which go to parts (2, groups, C).
 */
template <typename T, int V, int K, int THREADS>
static __global__ void __launch_bounds__(THREADS)
    norm_bwd(T *dx, float *parts, const T *dout, const T *xs, const float *mean, const float *rstd,
             const T *g, int64_t N, int C, int64_t groups, int64_t group_rows)
{
    __shared__ float shared[32];
    int64_t group = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (group >= groups) {
        return; // a whole warp, as above
    }
    float dg[K][V] = {};
    float db[K][V] = {};
    int64_t end = (group + 1) * group_rows < N ? (group + 1) * group_rows : N;
    for (int64_t row = group * group_rows; row < end; row++) {
        float mu = mean[row];
        float r = rstd[row];
        pack<T, V> px[K];
        pack<T, V> pd[K];
        float sum_e = 0.0f;
        float sum_en = 0.0f;
#pragma unroll
        for (int k = 0; k < K; k++) {
            int c = (k * (int)blockDim.x + (int)threadIdx.x) * V;
            if (c < C) {
                px[k] = load<V>(xs + row * C + c);
                pd[k] = load<V>(dout + row * C + c);
                pack<T, V> pg = load<V>(g + c);
#pragma unroll
                for (int v = 0; v < V; v++) {
                    float d = widen(pd[k].v[v]);
                    float n = (widen(px[k].v[v]) - mu) * r;
                    float e = d * widen(pg.v[v]);
                    sum_e += e;
                    sum_en += e * n;
                    dg[k][v] += d * n;
                    db[k][v] += d;
                }
            }
        }
        float mean_e = row_sum(sum_e, shared) / (float)C;
        float mean_en = row_sum(sum_en, shared) / (float)C;
#pragma unroll
        for (int k = 0; k < K; k++) {
            int c = (k * (int)blockDim.x + (int)threadIdx.x) * V;
            if (c < C) {
                pack<T, V> pg = load<V>(g + c);
                pack<T, V> t = load<V>(dx + row * C + c);
#pragma unroll
                for (int v = 0; v < V; v++) {
                    float n = (widen(px[k].v[v]) - mu) * r;
                    float e = widen(pd[k].v[v]) * widen(pg.v[v]);
                    t.v[v] = narrow<T>(widen(t.v[v]) + r * (e - mean_e - n * mean_en));
                }
                store<V>(dx + row * C + c, t);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < K; k++) {
        int c = (k * (int)blockDim.x + (int)threadIdx.x) * V;
        if (c < C) {
#pragma unroll
            for (int v = 0; v < V; v++) {
                parts[group * C + c + v] = dg[k][v];
                parts[(groups + group) * C + c + v] = db[k][v];
            }
        }
    }
}

template <typename T>
static void norm_bwd_as(struct cuda *c, void *dx, void *dg, void *db, const void *dout,
                        const void *xs, const void *mean, const void *rstd, const void *g,
                        int64_t N, int64_t C)
{
    const int W = 16 / sizeof(T);
    bool wide = moves_wide<T>(C, dx, dout, xs, g);
    unsigned threads = wide ? row_threads(C, W, 4) : row_threads(C, 1, 16);
    unsigned rows = threads == LANES ? WARPS : 1;
    int64_t group_rows = (N + GROUPS_MAX - 1) / GROUPS_MAX;
    int64_t groups = (N + group_rows - 1) / group_rows;
    float *parts = (float *)cuda_scratch(c, (size_t)(2 * groups * C) * sizeof(float));
    if (!parts) {
        return;
    }
    auto kernel = wide ? norm_bwd<T, W, 4, SMALL> : norm_bwd<T, 1, 16, SMALL>;
    if (threads > SMALL) {
        kernel = wide ? norm_bwd<T, W, 4, LARGE> : norm_bwd<T, 1, 16, LARGE>;
    }
    cuda_launch(c, kernel, cuda_blocks(groups, rows), dim3(threads, rows), 0, (T *)dx, parts,
                (const T *)dout, (const T *)xs, (const float *)mean, (const float *)rstd,
                (const T *)g, N, (int)C, groups, group_rows);
    launch_add_parts(c, dg, parts, groups, C);
    if (db) {
        launch_add_parts(c, db, parts + groups * C, groups, C);
    }
}

void cuda_norm_bwd(struct backend *be, enum dtype at, void *dx, void *dg, void *db,
                   const void *dout, const void *xs, const void *mean, const void *rstd,
                   const void *g, int64_t N, int64_t C)
{
    if (at == DTYPE_BF16) {
        norm_bwd_as<bf16>(cuda_of(be), dx, dg, db, dout, xs, mean, rstd, g, N, C);
    } else {
        norm_bwd_as<float>(cuda_of(be), dx, dg, db, dout, xs, mean, rstd, g, N, C);
    }
}

// ---- column sums ------------------------------------------------------------------------------

/* parts[blockIdx.y][c] = the sum over this block's rows; block (32 packs
 * of columns, COLUMN_ROWS). */
template <typename T, int V>
static __global__ void column_parts(float *parts, const T *dy, int64_t M, int64_t N,
                                    int64_t part_rows)
{
    __shared__ float sums[COLUMN_ROWS][32 * V];
    int64_t c = ((int64_t)blockIdx.x * 32 + threadIdx.x) * V;
    int64_t start = (int64_t)blockIdx.y * part_rows;
    int64_t end = start + part_rows < M ? start + part_rows : M;
    float sum[V] = {};
    if (c < N) {
        for (int64_t r = start + threadIdx.y; r < end; r += COLUMN_ROWS) {
            pack<T, V> t = load<V>(dy + r * N + c);
#pragma unroll
            for (int v = 0; v < V; v++) {
                sum[v] += widen(t.v[v]);
            }
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        sums[threadIdx.y][v * 32 + threadIdx.x] = sum[v];
    }
    __syncthreads();
    if (threadIdx.y == 0 && c < N) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            float total = 0.0f;
            for (int i = 0; i < COLUMN_ROWS; i++) {
                total += sums[i][v * 32 + threadIdx.x];
            }
            parts[(int64_t)blockIdx.y * N + c + v] = total;
        }
    }
}

template <typename T>
static void bias_bwd_as(struct cuda *c, void *db, const T *dy, int64_t M, int64_t N)
{
    const int W = 16 / sizeof(T);
    int64_t part_rows = (M + COLUMN_PARTS_MAX - 1) / COLUMN_PARTS_MAX;
    part_rows = part_rows < 64 ? 64 : part_rows;
    int64_t count = (M + part_rows - 1) / part_rows;
    float *parts = (float *)cuda_scratch(c, (size_t)(count * N) * sizeof(float));
    if (!parts) {
        return;
    }
    bool wide = moves_wide<T>(N, dy);
    dim3 grid(cuda_blocks(N, 32 * (wide ? W : 1)), (unsigned)count);
    cuda_launch(c, wide ? column_parts<T, W> : column_parts<T, 1>, grid, dim3(32, COLUMN_ROWS), 0,
                parts, dy, M, N, part_rows);
    launch_add_parts(c, db, parts, count, N);
}

void cuda_bias_bwd(struct backend *be, enum dtype at, void *db, const void *dy, int64_t M,
                   int64_t N)
{
    if (at == DTYPE_BF16) {
        bias_bwd_as(cuda_of(be), db, (const bf16 *)dy, M, N);
    } else {
        bias_bwd_as(cuda_of(be), db, (const float *)dy, M, N);
    }
}

// ---- GELU
// -----------------------------------------------------------------------------------------

/* The normal distribution. Left of -1 by erfc, where 1 + erf would cancel. */
static __device__ __forceinline__ float cumulative(float h)
{
    const float ROOT_HALF = 0.70710678118654752f;
    return h < -1.0f ? 0.5f * erfcf(-h * ROOT_HALF) : 0.5f + 0.5f * erff(h * ROOT_HALF);
}

static __device__ __forceinline__ float density(float h)
{
    return 0.39894228040143268f * expf(-0.5f * h * h);
}

/* For results in bf16: with erfc the arithmetic takes longer than the memory. Formula: math_poly.h.
 */
static __device__ __forceinline__ float tail(float t)
{
    float p = fmaf(POLY_TAIL_T7, t, POLY_TAIL_T6);
    p = fmaf(p, t, POLY_TAIL_T5);
    p = fmaf(p, t, POLY_TAIL_T4);
    p = fmaf(p, t, POLY_TAIL_T3);
    p = fmaf(p, t, POLY_TAIL_T2);
    p = fmaf(p, t, POLY_TAIL_T1);
    return ex2(fmaf(p, t, POLY_TAIL_T0));
}

static __device__ __forceinline__ float tail_slope(float t)
{
    float s = fmaf(POLY_TAIL_S6, t, POLY_TAIL_S5);
    s = fmaf(s, t, POLY_TAIL_S4);
    s = fmaf(s, t, POLY_TAIL_S3);
    s = fmaf(s, t, POLY_TAIL_S2);
    s = fmaf(s, t, POLY_TAIL_S1);
    return tail(t) * (POLY_TAIL_ZERO - t) * fmaf(s, t, POLY_TAIL_S0);
}

static __device__ __forceinline__ float tail_argument(float h)
{
    float t = fabsf(h);
    return t > POLY_TAIL_FAR ? POLY_TAIL_FAR : t; // a NaN stays, which fminf would drop
}

/* left of zero x, right of it 1 - x */
static __device__ __forceinline__ float mirrored(float h, float x)
{
    return h < 0.0f ? x : 1.0f - x;
}

template <typename T> struct gelu_value {
    static __device__ __forceinline__ float of(float h, float)
    {
        return h * (sizeof(T) == 2 ? mirrored(h, tail(tail_argument(h))) : cumulative(h));
    }
};

template <typename T> struct gelu_slope {
    static __device__ __forceinline__ float of(float h, float da)
    {
        return da * (sizeof(T) == 2 ? mirrored(h, tail_slope(tail_argument(h)))
                                    : cumulative(h) + h * density(h));
    }
};

/* out may be da: an element is read before it is written, by the same thread. */
template <typename F, typename T, int V>
static __global__ void gelu(T *out, const T *h, const T *da, int64_t n)
{
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= n) {
        return;
    }
    pack<T, V> ph = load<V>(h + i);
    pack<T, V> pd = load<V>(da + i);
#pragma unroll
    for (int v = 0; v < V; v++) {
        ph.v[v] = narrow<T>(F::of(widen(ph.v[v]), widen(pd.v[v])));
    }
    store<V>(out + i, ph);
}

template <typename F, typename T>
static void gelu_as(struct cuda *c, void *out, const void *h, const void *da, int64_t n)
{
    const int W = 16 / sizeof(T);
    const int THREADS = 256;
    if (n <= 0) {
        return;
    }
    bool wide = moves_wide<T>(n, out, h, da);
    cuda_launch(c, wide ? gelu<F, T, W> : gelu<F, T, 1>, cuda_blocks(n, THREADS * (wide ? W : 1)),
                THREADS, 0, (T *)out, (const T *)h, (const T *)da, n);
}

void cuda_gelu_fwd(struct backend *be, enum dtype at, void *a, const void *h, int64_t n)
{
    // The second operand is not used: the compiler drops its load.
    if (at == DTYPE_BF16) {
        gelu_as<gelu_value<bf16>, bf16>(cuda_of(be), a, h, h, n);
    } else {
        gelu_as<gelu_value<float>, float>(cuda_of(be), a, h, h, n);
    }
}

void cuda_gelu_bwd(struct backend *be, enum dtype at, void *dh, const void *h, const void *da,
                   int64_t n)
{
    if (at == DTYPE_BF16) {
        gelu_as<gelu_slope<bf16>, bf16>(cuda_of(be), dh, h, da, n);
    } else {
        gelu_as<gelu_slope<float>, float>(cuda_of(be), dh, h, da, n);
    }
}
