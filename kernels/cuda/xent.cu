/*
 * Softmax cross-entropy of a chunk of logits, one block per row.
 *
 * A bf16 row of 50368 logits is 100.7 KB: it is read once into shared memory, where the maximum
 * and the sum are taken, and its gradient is written over it: one read, one write. Rows that do
 * not fit, or whose length is odd, are read again through the cache instead.
 */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"

enum { XENT_THREADS = 512 };

/* e^x for x <= 0. What becomes bf16 needs less than fp32 does. */
template <typename T> static __device__ __forceinline__ float exp_of(float x)
{
    return sizeof(T) == 2 ? ex2(x * 1.4426950408889634f) : expf(x);
}

template <typename T, int V, bool HELD>
static __global__ void __launch_bounds__(XENT_THREADS)
    xent(T *logits, float *loss, const int32_t *targets, float inv_n, bool train, int64_t width)
{
    SHARED_DYNAMIC(held_bytes);
    __shared__ float shared[32];
    T *held = reinterpret_cast<T *>(held_bytes);
    T *row = logits + (int64_t)blockIdx.x * width;
    const T *from = HELD ? held : row;
    int32_t target = targets[blockIdx.x];
    const int64_t step = (int64_t)XENT_THREADS * V;

    float max = -INFINITY;
    for (int64_t i = (int64_t)threadIdx.x * V; i < width; i += step) {
        pack<T, V> x = load<V>(row + i);
        for (int j = 0; j < V; j++) {
            max = fmaxf(max, widen(x.v[j]));
        }
        if (HELD) {
            store<V>(held + i, x); // each thread reads back only what it wrote
        }
    }
    max = row_max(max, shared);

    float sum = 0.0f;
    for (int64_t i = (int64_t)threadIdx.x * V; i < width; i += step) {
        pack<T, V> x = load<V>(from + i);
        for (int j = 0; j < V; j++) {
            sum += exp_of<T>(widen(x.v[j]) - max);
        }
    }
    sum = row_sum(sum, shared); // its barrier also keeps what follows from overwriting the target
    if (threadIdx.x == 0) {
        loss[blockIdx.x] = target < 0 ? 0.0f : logf(sum) + (max - widen(row[target]));
    }
    if (!train) {
        return;
    }
    __syncthreads();

    float scale = target < 0 ? 0.0f : inv_n;
    float inv_sum = 1.0f / sum;
    for (int64_t i = (int64_t)threadIdx.x * V; i < width; i += step) {
        pack<T, V> x = load<V>(from + i);
        for (int j = 0; j < V; j++) {
            float p = exp_of<T>(widen(x.v[j]) - max) * inv_sum;
            x.v[j] = narrow<T>((p - (i + j == target ? 1.0f : 0.0f)) * scale);
        }
        store<V>(row + i, x);
    }
}

template <typename T>
static void xent_as(struct cuda *c, T *logits, float *loss, const int32_t *targets, float inv_n,
                    bool train, int64_t rows, int64_t V)
{
    const int W = 16 / sizeof(T);
    size_t row = (size_t)V * sizeof(T);
    // The static array beside it needs some of the limit as well.
    if (moves_wide<T>(V, logits) && row + 1024 <= (size_t)c->shared_max) {
        cuda_launch(c, xent<T, W, true>, (unsigned)rows, XENT_THREADS, row, logits, loss, targets,
                    inv_n, train, V);
    } else if (moves_wide<T>(V, logits)) {
        cuda_launch(c, xent<T, W, false>, (unsigned)rows, XENT_THREADS, 0, logits, loss, targets,
                    inv_n, train, V);
    } else {
        cuda_launch(c, xent<T, 1, false>, (unsigned)rows, XENT_THREADS, 0, logits, loss, targets,
                    inv_n, train, V);
    }
}

void cuda_xent(struct backend *be, enum dtype at, void *logits, void *loss, const int32_t *targets,
               double inv_n, bool train, int64_t rows, int64_t V)
{
    if (at == DTYPE_BF16) {
        xent_as(cuda_of(be), (bf16 *)logits, (float *)loss, targets, (float)inv_n, train, rows, V);
    } else {
        xent_as(cuda_of(be), (float *)logits, (float *)loss, targets, (float)inv_n, train, rows, V);
    }
}
