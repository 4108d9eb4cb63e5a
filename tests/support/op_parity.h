/*
 * op_parity.h - every op of a backend against the reference. op_kit.h says how one is judged.
 */
#ifndef TESTS_SUPPORT_OP_PARITY_H
#define TESTS_SUPPORT_OP_PARITY_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"

/* How large the shapes may be: what an emulator, a CPU, a device gets through in seconds. */
enum op_scale { OP_SMALL = 0, OP_MEDIUM, OP_LARGE };

/* Open the reference and begin; run every test; end. The single checks below need the first. */
void op_parity_open(struct backend *be, enum op_scale scale);
void op_parity(void);
void op_parity_close(void);

/*
 * What of it is attention: for a backend that has more than one way to do it. Of the shapes all, or
 * those alone that Hopper's kernels take: bf16 and heads of 64 and 128.
 */
void op_parity_attention(bool all_shapes);

/* One product in every use and dtype, by a function that need not be the backend's op. */
typedef void gemm_fn(struct backend *be, const struct gemm *g, void *out, const void *a,
                     const void *b, const void *bias);
void op_parity_gemms(gemm_fn *fn, const char *who, int64_t M, int64_t N, int64_t K);

/* Has one step of n elements the bits of the reference? */
bool op_parity_optim(enum optim_kind kind, int64_t t, int64_t n);

#endif
