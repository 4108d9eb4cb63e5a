/*
 * wide.h - loops that are compiled once for each width of vector register.
 *
 * A function marked WIDE is compiled for plain x86-64, AVX2 and AVX-512, and the loader takes the
 * widest that the machine has. Nothing is fused or reordered (-ffp-contract=off), so all of them
 * give the same bits. Elsewhere, and where a sanitizer watches from the first instruction on, it is
 * compiled once. Only leaf functions: what they call is not compiled again.
 */
#ifndef COMMON_WIDE_H
#define COMMON_WIDE_H

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&       \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define WIDE __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define WIDE
#endif

#endif
