/*
 * device.cuh - the device's own instructions, each behind one name, and the types kernels move.
 *
 * Kernels are written over these names alone. That keeps inline assembly in one place, and lets
 * tests run the kernels on a host that emulates the names (tests/support/cuda_emul.hpp).
 */
#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

#include <math.h>
#include <stdint.h>

static const unsigned LANES = 32;
static const unsigned ALL_LANES = 0xffffffffu;

struct bf16 {
    uint16_t bits;
};

/* V elements that move in one access of up to 16 bytes. */
template <typename T, int V> struct alignas(sizeof(T) * V) pack {
    T v[V];
};

template <int V, typename T> static __device__ __forceinline__ pack<T, V> load(const T *p)
{
    return *reinterpret_cast<const pack<T, V> *>(p);
}

template <int V, typename T>
static __device__ __forceinline__ void store(T *p, const pack<T, V> &value)
{
    *reinterpret_cast<pack<T, V> *>(p) = value;
}

#ifndef CUDA_EMULATED

#define SHARED_DYNAMIC(name) extern __shared__ __align__(128) unsigned char name[]

/* Two fp32 to bf16, to nearest even; lo is the element at the lower address. */
static __device__ __forceinline__ uint32_t narrow2(float lo, float hi)
{
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

static __device__ __forceinline__ bf16 to_bf16(float v)
{
    uint16_t h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return bf16{h};
}

/* 2^x to 2 ulp; 0 for -infinity. */
static __device__ __forceinline__ float ex2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Where something lies in shared memory, in bytes: half the registers of a pointer. */
static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes from global to shared memory in the background, or zeros where `there` is false. */
static __device__ __forceinline__ void copy_async(uint32_t shared, const void *global, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared),
                 "l"(__cvta_generic_to_global(global)), "r"(there ? 16 : 0)
                 : "memory");
}

static __device__ __forceinline__ void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Wait until at most N of the committed groups are under way. */
template <int N> static __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* Four 8 x 8 matrices of bf16; lane l gives the address of row l % 8 of matrix l / 8. */
static __device__ __forceinline__ void load_matrices(uint32_t r[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

/* The same, each matrix transposed on the way. */
static __device__ __forceinline__ void load_transposed(uint32_t r[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

/* c (16 x 8, fp32) += a (16 x 16) b (16 x 8), one warp. attn_tile.h says who holds what. */
static __device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0,
                                           uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ float bits_float(uint32_t bits)
{
    return __uint_as_float(bits);
}

static __device__ __forceinline__ uint32_t float_bits(float f)
{
    return __float_as_uint(f);
}

#endif

static __device__ __forceinline__ float widen(float v)
{
    return v;
}

static __device__ __forceinline__ float widen(bf16 v)
{
    return bits_float((uint32_t)v.bits << 16);
}

/* R of backend.h. */
template <typename T> static __device__ __forceinline__ T narrow(float v);

template <> __device__ __forceinline__ float narrow<float>(float v)
{
    return v;
}

template <> __device__ __forceinline__ bf16 narrow<bf16>(float v)
{
    return to_bf16(v);
}

/* Butterflies: a + b = b + a, so every lane ends with the same bits. */
static __device__ __forceinline__ float warp_sum(float v)
{
    for (int d = LANES / 2; d > 0; d /= 2) {
        v += __shfl_xor_sync(ALL_LANES, v, d);
    }
    return v;
}

static __device__ __forceinline__ float warp_max(float v)
{
    for (int d = LANES / 2; d > 0; d /= 2) {
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, d));
    }
    return v;
}

/*
 * The sum over blockDim.x threads that share a row: one warp, or the whole block of a single row.
 * `shared` holds 32 floats.
 */
static __device__ __forceinline__ float row_sum(float v, float *shared)
{
    v = warp_sum(v);
    if (blockDim.x > LANES) {
        if (threadIdx.x % LANES == 0) {
            shared[threadIdx.x / LANES] = v;
        }
        __syncthreads();
        v = 0.0f;
        for (unsigned w = 0; w < blockDim.x / LANES; w++) {
            v += shared[w];
        }
        __syncthreads(); // the next call writes where this one still reads
    }
    return v;
}

static __device__ __forceinline__ float row_max(float v, float *shared)
{
    v = warp_max(v);
    if (blockDim.x > LANES) {
        if (threadIdx.x % LANES == 0) {
            shared[threadIdx.x / LANES] = v;
        }
        __syncthreads();
        v = shared[0];
        for (unsigned w = 1; w < blockDim.x / LANES; w++) {
            v = fmaxf(v, shared[w]);
        }
        __syncthreads();
    }
    return v;
}

/* May n elements from each of these addresses on be moved 16 bytes at a time? Host side. */
template <typename T, typename... P> static inline bool moves_wide(int64_t n, P... pointers)
{
    uintptr_t bits = (uintptr_t)n * sizeof(T);
    const uintptr_t all[] = {(uintptr_t)pointers...};
    for (uintptr_t p : all) {
        bits |= p;
    }
    return bits % 16 == 0;
}

#endif
