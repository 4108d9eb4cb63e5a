/*
 * pins.cuh - the file of choices that were made by trying: which algorithm, which kernel.
 *
 * PHOTON_CUDA_ALGOS names it; without, nothing is kept. A line is a name, which begins with the
 * machine, a blank and a value; the last line of a name counts. Trying again could choose
 * otherwise, and with it other bits, so the file belongs to a silo's state.
 */
#ifndef KERNELS_CUDA_PINS_CUH
#define KERNELS_CUDA_PINS_CUH

#include <stdio.h>

#include "kernels/cuda/cuda.cuh"

enum { PIN_LINE = 1024 };

/* Which file, and what the machine is called: GPU and driver. */
void pins_open(struct cuda *c);

/* The file, locked so that processes that race agree; NULL where none is named or, which then
 * sticks, where it cannot be opened. */
FILE *pins_lock(struct cuda *c);
void pins_unlock(FILE *f); /* NULL is allowed */

/* The value of a name, or false. The file may be NULL here and below. */
bool pins_find(FILE *f, const char *name, char value[PIN_LINE]);
void pins_note(FILE *f, const char *name, const char *value);

#endif
