/*
 * Tensor maps are made by the driver. Its library is asked for by name through the runtime, so that
 * an object linked without it still loads where there is no driver.
 */
#include "kernels/cuda/tensor_map.cuh"

#ifndef CUDA_EMULATED
#include <cudaTypedefs.h>
#endif

typedef PFN_cuTensorMapEncodeTiled_v12000 encode_fn;

static encode_fn look_for_encoder()
{
    void *p = nullptr;
    enum cudaDriverEntryPointQueryResult how = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaError_t err = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000,
                                                       cudaEnableDefault, &how);
#else
    cudaError_t err =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &p, cudaEnableDefault, &how);
#endif
    bool found = err == cudaSuccess && how == cudaDriverEntryPointSuccess;
    return found ? reinterpret_cast<encode_fn>(p) : nullptr;
}

bool tensor_map_heads(struct cuda *c, tensor_map *out, const void *p, int64_t batch, int64_t time,
                      int64_t heads, int64_t D, int rows)
{
    const cuuint64_t row = (cuuint64_t)(heads * D) * sizeof(bf16);
    const cuuint64_t dims[] = {PANEL, (cuuint64_t)time, (cuuint64_t)(D / PANEL), (cuuint64_t)heads,
                               (cuuint64_t)batch};
    const cuuint64_t strides[] = {row, PANEL * sizeof(bf16), (cuuint64_t)D * sizeof(bf16),
                                  (cuuint64_t)time * row};
    const cuuint32_t box[] = {PANEL, (cuuint32_t)rows, (cuuint32_t)(D / PANEL), 1, 1};
    const cuuint32_t every[] = {1, 1, 1, 1, 1};
    static const encode_fn encode = look_for_encoder();
    if (!encode) {
        cuda_fail(c, "this driver knows no tensor maps; try PHOTON_CUDA_ATTN=mma");
        return false;
    }
    if (encode(out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5, const_cast<void *>(p), dims, strides, box,
               every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
        cuda_fail(c, "the driver refused a tensor map; try PHOTON_CUDA_ATTN=mma");
        return false;
    }
    return true;
}
