/* The kernels compiled for x86-64 machines with AVX2 and FMA. */
#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define ISA_AVX2   1
#define LANES      lanes_avx2
#define LANES_NAME "avx2"
#include "kernels/cpu/table.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
#include "kernels/cpu/cpu.h" // not a word of code for other machines, but a translation unit
#endif
