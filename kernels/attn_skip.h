/*
 * attn_skip.h - which tiles of an ALiBi head's scores cannot matter. C and CUDA.
 *
 * Row i always attends to itself, so p_ij <= exp(t_ij - t_ii), and Cauchy-Schwarz bounds both
 * products by the norms of q and k. For a tile of queries I from i0 on and an earlier tile of keys
 * J that ends at j1 < i0,
 *
 *     t_ij - t_ii <= max|q_I| (max|k_J| + max|k_I|) / sqrt(D) - slope (i0 - j1).
 *
 * Below -25 a whole tile of 64 keys adds less than 64 e^-25 = 9e-10 to a sum that is at least 1:
 * under half a unit in the last place of fp32. Forward and backward skip by the same rule, so the
 * gradient is that of what was computed. FlashAttention has no such rule.
 */
#ifndef KERNELS_ATTN_SKIP_H
#define KERNELS_ATTN_SKIP_H

#include <stdbool.h>

/* What norms are multiplied by, so that their own rounding cannot hide a score. */
#define ATTN_NORM_SLACK 1.001f

#ifdef __CUDACC__
#define ATTN_SKIP_FN static __host__ __device__ __forceinline__
#else
#define ATTN_SKIP_FN static inline
#endif

/* q, k_far, k_near: the largest norms of I's queries, J's keys and I's keys; gap = i0 - j1. */
ATTN_SKIP_FN bool attn_can_skip(float q, float k_far, float k_near, float scale, float slope,
                                float gap)
{
    return scale * q * (k_far + k_near) - slope * gap < -25.0f;
}

#endif
