/* The kernels compiled for x86-64 machines with AMX: attention multiplies in tiles. */
#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(                                                                      \
    __attribute__((                                                                                \
        target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,avx2,fma"))),      \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,avx2,fma")
#endif

#define ISA_BF16   1
#define ISA_AMX    1
#define LANES      lanes_amx
#define LANES_NAME "amx_bf16"
#include "kernels/cpu/table.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
#include "kernels/cpu/cpu.h" // not a word of code for other machines, but a translation unit
#endif
