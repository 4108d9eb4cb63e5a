/*
 * table.h - the kernels of one instruction set as a table; LANES and LANES_NAME say which.
 *
 * Included last by lanes_*.c.
 */
#ifndef KERNELS_CPU_TABLE_H
#define KERNELS_CPU_TABLE_H

#include "kernels/cpu/attn.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/step.h"
#include "kernels/cpu/tile.h"

#ifdef LANES
const struct lanes LANES = {
    .name = LANES_NAME,
#ifdef ISA_BF16
    .bf16 = true,
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
    .mr = MR,
    .nr = NR,
    .tile_m = TILE_M,
    .tile_n = TILE_N,
    .pack_inner = pack_inner,
    .pack_outer = pack_outer,
    .tile = tile,
};
#endif

#endif
