/*
 * attn_ring.h - what attention on Hopper must get right beside attn_tile.h: where a tile lies in
 * shared memory, how a descriptor names it, and who waits for whom. Plain C, tested on a host.
 *
 * Tiles. R rows of D bf16 are D / 64 panels of R rows of 128 bytes, one panel after the other, each
 * on a multiple of 1024 bytes. Within 1024 bytes, eight rows, chunk c of 16 bytes of row r lies at
 * c ^ r. That is how TMA stores a box under its 128-byte swizzle, and how wgmma reads one (PTX
 * manual, "Swizzling modes"; both permute bits 4-6 of the address by bits 7-9).
 *
 * Descriptors (PTX manual, "Matrix descriptor format"): bits 0-13 the start, 16-29 the leading
 * offset, 32-45 the stride offset, all in units of 16 bytes, 62-63 the swizzle, 1 for 128 bytes.
 *
 *     read by rows, the depth along a row ("K-major")       stride: from 8 rows to the next 8
 *     read by columns, the depth down the rows ("MN-major") stride: the same; leading: from one
 *                                                           panel to the next
 *
 * A step of 16 in depth moves the start by 32 bytes along a row, or by 16 rows. Every start keeps
 * the phase of the swizzle, since that is taken from the address and not from the start.
 *
 * The ring. The producer's n-th fill goes to slot n % stages. A barrier of a slot counts phases
 * from 0; its parity says which phase is over. "Full" has phase n / stages over when fill n is
 * there; "empty" when fill n has been used. So the producer waits for the phase before: for the
 * first fill of a slot that is the one before all, which a fresh barrier reports as over.
 */
#ifndef KERNELS_CUDA_ATTN_RING_H
#define KERNELS_CUDA_ATTN_RING_H

#include "kernels/cuda/attn_tile.h"

enum {
    PANEL = 64,          /* columns of a panel: 128 bytes of bf16 */
    PANEL_ROW = 128,     /* bytes */
    RING_ALIGN = 1024,   /* of every panel: the period of the swizzle */
    WARPGROUP = 128,     /* threads that multiply together */
    WARPGROUP_ROWS = 64, /* of a product: 16 a warp */
    CONSUMERS = 2,       /* warpgroups that compute; one more feeds them */
    RING_THREADS = (1 + CONSUMERS) * WARPGROUP,
    /* A slot is free when each warp of the consumers has said so. */
    RING_READERS = CONSUMERS * WARPGROUP / 32,
    OWN_ROWS = CONSUMERS * WARPGROUP_ROWS, /* of the tile that a block owns */
    /* Per thread: a block starts with these, of 65,536, and they are shared out anew. */
    START_REGISTERS = 168,
    PRODUCER_REGISTERS = 24,
    CONSUMER_REGISTERS = 240,
};

/* ---- tiles ---- */

TILE_FN uint32_t ring_align(uint32_t address)
{
    return (address + RING_ALIGN - 1) / RING_ALIGN * RING_ALIGN;
}

TILE_FN uint32_t ring_swizzle(uint32_t address)
{
    return address ^ ((address >> 7 & 7) << 4);
}

TILE_FN uint32_t ring_tile_bytes(int rows, int D)
{
    return (uint32_t)(2 * rows * D);
}

/* Where element (row, column) of a tile of `rows` rows lies, the tile itself on RING_ALIGN. */
TILE_FN uint32_t ring_at(uint32_t tile, int rows, int row, int column)
{
    uint32_t panel = (uint32_t)(column / PANEL * rows * PANEL_ROW);
    return ring_swizzle(tile + panel + (uint32_t)(row * PANEL_ROW + column % PANEL * 2));
}

/* ---- descriptors ---- */

TILE_FN uint64_t ring_desc(uint32_t start, uint32_t leading, uint32_t stride)
{
    return (uint64_t)(start >> 4 & 0x3fff) | (uint64_t)(leading >> 4 & 0x3fff) << 16 |
           (uint64_t)(stride >> 4 & 0x3fff) << 32 | (uint64_t)1 << 62;
}

/* The tile's rows from row0 on, a multiple of 8, at columns 16 k .. 16 k + 15, read by rows. */
TILE_FN uint64_t ring_rows(uint32_t tile, int rows, int row0, int k)
{
    uint32_t panel = (uint32_t)(k / 4 * rows * PANEL_ROW);
    // The leading offset means nothing here.
    return ring_desc(tile + panel + (uint32_t)(row0 * PANEL_ROW + k % 4 * 32), 16, RING_ALIGN);
}

/* All columns of the tile's rows 16 k .. 16 k + 15, read by columns. */
TILE_FN uint64_t ring_columns(uint32_t tile, int rows, int k)
{
    return ring_desc(tile + (uint32_t)(16 * k * PANEL_ROW), (uint32_t)(rows * PANEL_ROW),
                     RING_ALIGN);
}

/* ---- the ring ---- */

TILE_FN uint32_t ring_slot(uint32_t n, uint32_t stages)
{
    return n % stages;
}

/* What "full" is waited for with by the reader of fill n. */
TILE_FN uint32_t ring_filled(uint32_t n, uint32_t stages)
{
    return n / stages & 1;
}

/* What "empty" is waited for with by the writer of fill n. */
TILE_FN uint32_t ring_freed(uint32_t n, uint32_t stages)
{
    return (n / stages & 1) ^ 1;
}

/* With a tile the producer says which it is, and whether it is the last. */
TILE_FN int ring_word(int tile, bool last)
{
    return tile * 2 + last;
}

TILE_FN int ring_word_tile(int word)
{
    return word / 2;
}

TILE_FN bool ring_word_last(int word)
{
    return word % 2 != 0;
}

/*
 * Turns. The two consumers issue their products alternately, so that one computes exponentials
 * while the other's products run: 0 at step 0, 1 at step 0, 0 at step 1, ... Both have as many
 * steps. Nobody waits before the first turn of all or gives after the last, so that every wait
 * meets one gift and none is left over.
 */
TILE_FN bool turn_waits(int who, int step)
{
    return who != 0 || step != 0;
}

TILE_FN bool turn_gives(int who, bool last)
{
    return who == 0 || !last;
}

#endif
