/*
 * ops.h - the CPU backend: the op table of kernels/backend.h, fast, on the machine's own cores.
 *
 * Matrix products are our own in bf16 where the processor has no AMX (faster than oneDNN's on two
 * cores of Zen 4 and of Emerald Rapids; more were not measured), else oneDNN's, or our own where
 * that was not found at build time; the rest is OpenMP over kernels that exist once per instruction
 * set, of which the best is taken at open. Its own choice is BF16 with AVX-512, where that is no
 * slower than F32 and takes less memory, else F32.
 *
 * Bits: they do not depend on the number of threads, save where oneDNN splits a long sum over a
 * small output; hence the number is fixed at open and belongs to a silo's saved state. Between
 * instruction sets bits differ, except those of the optimizer.
 *
 * Waiting: GNU OpenMP's idle threads spin before they sleep, for which there is no call, only the
 * environment: where several processes share the cores, start them with OMP_WAIT_POLICY=passive.
 * With more work than cores a step without it takes several times as long, since a spinning thread
 * holds the core that another waits for.
 */
#ifndef KERNELS_CPU_OPS_H
#define KERNELS_CPU_OPS_H

#include "kernels/backend.h"

/*
 * Open the backend on this many threads (0: all the cores this process may use; a
 * container's quota counts). The caller owns
 * *out and ends it through its table's close().
 */
enum status cpu_open(struct backend **out, int threads, struct err *e) MUST_CHECK;

#endif
