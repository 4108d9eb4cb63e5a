/* Numbers to time or to try a kernel on. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"

/* Of both signs and of many sizes: zeros would draw less power, and so run faster. */
template <typename T> static __global__ void fill_random(T *p, int64_t n, float most)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        uint32_t x = (uint32_t)i * 2654435761u + 12345u;
        x ^= x >> 15;
        x *= 2246822519u;
        x ^= x >> 13;
        p[i] = narrow<T>((float)(int32_t)x * 4.656612873e-10f * most);
    }
}

void cuda_fill(struct cuda *c, void *p, enum dtype t, int64_t n, float most)
{
    const int THREADS = 256;
    if (t == DTYPE_BF16) {
        cuda_launch(c, fill_random<bf16>, cuda_blocks(n, THREADS), THREADS, 0, (bf16 *)p, n, most);
    } else {
        cuda_launch(c, fill_random<float>, cuda_blocks(n, THREADS), THREADS, 0, (float *)p, n,
                    most);
    }
}
