/*
 * Matrix products: cuBLASLt where it has a way, and a plain tiled kernel where it has none (tiny or
 * oddly aligned operands). Both sum exact products in fp32 and round once.
 */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"

static const int TILE = 16;

/* A matrix read through strides, so that one kernel serves all three layouts. */
template <typename T> struct view {
    const T *p;
    int64_t row, col; /* elements from one row, one column, to the next */
};

/* out (rows, cols) [+]= a (rows, depth) b (depth, cols) [+ bias (cols)] */
template <typename T, typename OUT>
static __global__ void product(OUT *out, struct view<T> a, struct view<T> b, const T *bias,
                               bool accumulate, int64_t rows, int64_t cols, int64_t depth)
{
    __shared__ float ta[TILE][TILE + 1];
    __shared__ float tb[TILE][TILE + 1];
    int64_t across = (cols + TILE - 1) / TILE;
    int64_t i = blockIdx.x / across * TILE + threadIdx.y;
    int64_t j = blockIdx.x % across * TILE + threadIdx.x;
    float sum = 0.0f;
    for (int64_t k0 = 0; k0 < depth; k0 += TILE) {
        int64_t ka = k0 + threadIdx.x;
        int64_t kb = k0 + threadIdx.y;
        ta[threadIdx.y][threadIdx.x] =
            i < rows && ka < depth ? widen(a.p[i * a.row + ka * a.col]) : 0.0f;
        tb[threadIdx.y][threadIdx.x] =
            j < cols && kb < depth ? widen(b.p[kb * b.row + j * b.col]) : 0.0f;
        __syncthreads();
        for (int k = 0; k < TILE; k++) {
            sum += ta[threadIdx.y][k] * tb[k][threadIdx.x];
        }
        __syncthreads();
    }
    if (i < rows && j < cols) {
        OUT *to = out + i * cols + j;
        sum += bias ? widen(bias[j]) : 0.0f;
        *to = narrow<OUT>(accumulate ? widen(*to) + sum : sum);
    }
}

template <typename T>
static void plain(struct cuda *c, const struct gemm *g, void *out, const T *a, const T *b,
                  const T *bias)
{
    // fwd: Y = X W^T; dgrad: dX = dY W; wgrad: dW = dY^T X
    int64_t rows = g->use == GEMM_WGRAD ? g->N : g->M;
    int64_t cols = g->use == GEMM_FWD ? g->N : g->K;
    int64_t depth = g->use == GEMM_FWD ? g->K : g->use == GEMM_DGRAD ? g->N : g->M;
    struct view<T> va = {
        a, depth, 1
    };
    struct view<T> vb = {
        b, cols, 1
    };
    if (g->use == GEMM_WGRAD) {
        va = {a, 1, rows};
    }
    if (g->use == GEMM_FWD) {
        vb = {b, 1, depth};
    }
    unsigned grid = cuda_blocks(cols, TILE) * cuda_blocks(rows, TILE);
    dim3 block(TILE, TILE);
    if (g->use == GEMM_WGRAD || g->out_f32) {
        cuda_launch(c, product<T, float>, grid, block, 0, (float *)out, va, vb, bias, g->accumulate,
                    rows, cols, depth);
    } else {
        cuda_launch(c, product<T, T>, grid, block, 0, (T *)out, va, vb, bias, g->accumulate, rows,
                    cols, depth);
    }
}

void cuda_gemm(struct backend *be, const struct gemm *g, void *out, const void *a, const void *b,
               const void *bias)
{
    struct cuda *c = cuda_of(be);
    if (!g->bias) {
        bias = nullptr;
    }
    if (lt_gemm(c, g, out, a, b, bias)) {
        return;
    }
    if (g->a_type == DTYPE_BF16) {
        plain(c, g, out, (const bf16 *)a, (const bf16 *)b, (const bf16 *)bias);
    } else {
        plain(c, g, out, (const float *)a, (const float *)b, (const float *)bias);
    }
}

const char *cuda_plan_gemm(struct backend *be, const struct gemm *g)
{
    struct cuda *c = cuda_of(be);
    (void)lt_plan(c, g, 256); // where it has no way, the plain kernel needs no plan
    const char *why = c->failed;
    c->failed = nullptr;
    return why;
}
