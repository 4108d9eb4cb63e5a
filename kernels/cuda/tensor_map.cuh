/*
 * tensor_map.cuh - arrays as the tensor memory accelerator of Hopper sees them.
 */
#ifndef KERNELS_CUDA_TENSOR_MAP_CUH
#define KERNELS_CUDA_TENSOR_MAP_CUH

#include "kernels/cuda/attn_ring.h"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/wgmma.cuh"

/*
 * bf16 (batch, time, heads, D), D a multiple of 64, as (D % 64, time, D / 64, heads, batch): a box
 * is `rows` positions of one head, and arrives as attn_ring.h lays a tile out. Positions beyond the
 * end arrive as zeros. false where the driver will not have it; that then sticks.
 */
bool tensor_map_heads(struct cuda *c, tensor_map *out, const void *p, int64_t batch, int64_t time,
                      int64_t heads, int64_t D, int rows);

#endif
