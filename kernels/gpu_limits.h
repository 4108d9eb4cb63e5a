/*
 * gpu_limits.h - what a plan must know of a GPU before there is one: the CUDA backend says the same
 * of the device it has (backend_caps), client/gpu_plan.h of one that a person thinks of.
 */
#ifndef KERNELS_GPU_LIMITS_H
#define KERNELS_GPU_LIMITS_H

#include <stdint.h>

/* Tokens in one pass beyond which it gains no speed. */
enum { GPU_PASS_TOKENS = 32768 };

/* Of a GPU's whole memory, in bytes, what its context, the libraries and working space leave. */
static inline int64_t gpu_memory_usable(int64_t memory)
{
    const int64_t reserve = (int64_t)768 << 20;
    return memory > 2 * reserve ? memory - memory / 32 - reserve : memory / 2;
}

#endif
