/* The kernels compiled for x86-64 machines with AVX-512 but no bf16, or slow pairs of it. */
#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif

#define ISA_AVX512 1
#define LANES      lanes_avx512
#define LANES_NAME "avx512"
#include "kernels/cpu/table.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
#include "kernels/cpu/cpu.h" // not a word of code for other machines, but a translation unit
#endif
