/*
 * table.h - the kernels of one instruction set as a table; LANES and LANES_NAME say which.
 *
 * Included last by lanes_*.c.
 */
#ifndef KERNELS_CPU_TABLE_H
#define KERNELS_CPU_TABLE_H

#include "kernels/cpu/attn.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/step.h"

#ifdef LANES
const struct lanes LANES = {
    .name = LANES_NAME,
#ifdef ISA_BF16
    .pairs = true,
#endif
#ifdef ISA_AVX512
    .best = DTYPE_BF16,
#else
    .best = DTYPE_F32,
#endif
#ifndef ISA_AMX
    .own_bf16 = true,
#endif
    .embed_fwd = embed_fwd,
    .embed_bwd = embed_bwd,
    .norm_fwd = norm_fwd,
    .norm_bwd = norm_bwd,
    .add_parts = add_parts,
    .bias_bwd = bias_bwd,
    .gelu_fwd = gelu_fwd,
    .gelu_bwd = gelu_bwd,
    .xent = xent,
    .sqnorm = sqnorm,
    .optim = optim,
    .attn_scratch = attn_scratch,
    .attn_fwd = attn_fwd,
    .attn_pack = attn_pack,
    .attn_bwd = attn_bwd,
    .a_group = VL,
    .b_group = NR,
    .gemm_pack = gemm_pack,
    .gemm_block = gemm_block,
};
#endif

#endif
