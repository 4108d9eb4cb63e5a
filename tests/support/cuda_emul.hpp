/*
 * cuda_emul.hpp - CUDA on a host, as far as kernels/cuda needs it, to test its kernels without a
 * GPU.
 *
 * The very files of kernels/cuda are compiled as C++ with this header included first. Each thread
 * of a block is a fiber; blocks run one after another. Collectives (barriers, shuffles, ldmatrix,
 * mma) wait until every lane is there, and stop the program when lanes disagree about which one it
 * is or when nobody can go on. The layouts of ldmatrix and mma are written here from the PTX
 * manual. cp.async delivers as late as the waits allow, fresh shared memory is filled with NaN, and
 * device memory ends at a page that may not be touched, so that forgotten waits, uninitialised
 * reads and overruns show.
 *
 * What it cannot show: races inside a block that barriers should prevent, and how the device
 * rounds inside mma (here the sum of a 16-term product is exact).
 */
#ifndef TESTS_SUPPORT_CUDA_EMUL_HPP
#define TESTS_SUPPORT_CUDA_EMUL_HPP

#define CUDA_EMULATED 1

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__      static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED_DYNAMIC(name) unsigned char *name = emul_shared()

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

/* ---- the runtime ---- */

typedef int cudaError_t;
typedef void *cudaStream_t;
typedef void *cudaEvent_t;

enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorNotReady = 600 };
enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaStreamNonBlocking };
enum { cudaEventDisableTiming, cudaStreamCaptureModeThreadLocal };

typedef struct emul_graph *cudaGraph_t;
typedef struct emul_graph *cudaGraphExec_t;
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum {
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor,
    cudaDevAttrMaxSharedMemoryPerBlockOptin
};

struct cudaDeviceProp {
    char name[256];
};

struct cudaFuncAttributes {
    int numRegs;
};

cudaError_t cudaMalloc(void **p, size_t size);
cudaError_t cudaFree(void *p);
cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t s);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t size, int kind, cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, int flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventQuery(cudaEvent_t e);
cudaError_t cudaStreamQuery(cudaStream_t s);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, int mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t g, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t g);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaMallocHost(void **p, size_t size);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaDeviceGetAttribute(int *value, int attr, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaMemGetInfo(size_t *free_now, size_t *total);
cudaError_t cudaFuncSetAttribute(const void *kernel, int attr, int value);
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *kernel);
const char *cudaGetErrorString(cudaError_t err);

/* ---- kernels ---- */

void emulate_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &kernel);
unsigned char *emul_shared();

void __syncthreads();
float __shfl_xor_sync(unsigned mask, float v, int lane_mask);
int __shfl_xor_sync(unsigned mask, int v, int lane_mask);

static inline int atomicAdd(int *p, int v)
{
    int old = *p;
    *p += v;
    return old;
}

static inline unsigned atomicOr(unsigned *p, unsigned v)
{
    unsigned old = *p;
    *p |= v;
    return old;
}

/* ---- kernels/cuda/device.cuh's names ---- */

struct bf16;
bf16 to_bf16(float v);
uint32_t narrow2(float lo, float hi);
uint32_t shared_address(const void *p);
void copy_async(uint32_t shared, const void *global, bool there);
void copy_commit();
void emul_copy_wait(int left);
void load_matrices(uint32_t r[4], uint32_t row);
void load_transposed(uint32_t r[4], uint32_t row);
void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);

template <int N> static inline void copy_wait()
{
    emul_copy_wait(N);
}

static inline float ex2(float x)
{
    return exp2f(x);
}

static inline float bits_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static inline uint32_t float_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

#include "tests/support/cuda_emul_nccl.hpp"
#include "tests/support/cuda_emul_wgmma.hpp"

#endif
