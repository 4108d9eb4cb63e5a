/*
 * ops.h - the CPU backend: the op table of kernels/backend.h, fast, on the machine's own cores.
 */
#ifndef KERNELS_CPU_OPS_H
#define KERNELS_CPU_OPS_H

#include "kernels/backend.h"

/*
 * Open the backend on this many threads (0: all the cores this process may use). The caller owns
 * *out and ends it through its table's close().
 */
enum status cpu_open(struct backend **out, int threads, struct err *e) MUST_CHECK;

#endif
