/*
 * cuda_emul_wgmma.hpp - the names of kernels/cuda/wgmma.cuh on a host, and the part of the driver
 * that makes tensor maps.
 *
 * Products are computed as late as the waits allow, from registers and shared memory as they are
 * then; copies arrive at once or when nobody can go on without them, by a fixed draw, and not in
 * order. So a wait that is missing, a slot that is given back too early and a wrong phase show as
 * wrong numbers, or as threads that wait for ever. Layouts are written from the PTX manual, apart
 * from those that the kernels use.
 */
#ifndef TESTS_SUPPORT_CUDA_EMUL_WGMMA_HPP
#define TESTS_SUPPORT_CUDA_EMUL_WGMMA_HPP

#include <stdint.h>

#define __grid_constant__

/* ---- the driver ---- */

#define CUDART_VERSION 13000

typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_128B };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };
enum cudaDriverEntryPointQueryResult {
    cudaDriverEntryPointSuccess = 0,
    cudaDriverEntryPointSymbolNotFound = 1
};
enum { cudaEnableDefault = 0 };

struct tensor_map {
    const unsigned char *base;
    uint64_t dims[5], strides[5]; /* the first stride is an element's */
    uint32_t box[5];
};

typedef CUresult (*PFN_cuTensorMapEncodeTiled_v12000)(
    tensor_map *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *,
    const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
    CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

int cudaGetDriverEntryPointByVersion(const char *symbol, void **p, unsigned version,
                                     unsigned long long flags,
                                     cudaDriverEntryPointQueryResult *how);

/* ---- wgmma.cuh ---- */

void barrier_init(uint32_t barrier, uint32_t arrivals);
void barriers_ready();
void barrier_arrive(uint32_t barrier);
void barrier_expect(uint32_t barrier, uint32_t bytes);
void barrier_wait(uint32_t barrier, uint32_t parity);
void fetch_box(uint32_t tile, const tensor_map &map, uint32_t barrier, int row, int head,
               int batch);
void fetch_bytes(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier);
void turn_wait(uint32_t id, uint32_t threads);
void turn_give(uint32_t id, uint32_t threads);
void warp_meet();
int same_in_warp(int v);
void emul_registers(int n);
void shared_put(uint32_t at, int v);
int shared_get(uint32_t at);
void shared_get2(float v[2], uint32_t at);
void wgmma_fence();
void wgmma_commit();
void emul_wgmma_wait(int left);
void emul_wgmma_rows(float (*d)[4], int N, uint64_t a, uint64_t b, bool add);
void emul_wgmma_add(float (*d)[4], int N, const uint32_t *a, uint64_t b);

/* For tests in C: from here on products come out wrong, or right again; how many there have been;
 * which compute capability the device has, times ten. */
extern "C" void emul_break_wgmma(bool broken);
extern "C" uint64_t emul_wgmma_count(void);
extern "C" void emul_capability(int capability);

template <int N> static inline void registers_fewer()
{
    emul_registers(N);
}

template <int N> static inline void registers_more()
{
    emul_registers(N);
}

template <int N> static inline void wgmma_wait()
{
    emul_wgmma_wait(N);
}

static inline void compute_before_wait(uint32_t, uint32_t)
{
}

template <typename T, int N> static inline void settle(T (&)[N][4])
{
}

template <int N>
static inline void wgmma_rows(float (&d)[N][4], uint64_t a, uint64_t b, bool add)
{
    emul_wgmma_rows(d, 8 * N, a, b, add);
}

template <int N>
static inline void wgmma_add(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b)
{
    emul_wgmma_add(d, 8 * N, a, b);
}

#endif
