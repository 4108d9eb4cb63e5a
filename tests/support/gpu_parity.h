/*
 * gpu_parity.h - a backend whose memory is its own, against the reference, op by op.
 *
 * Inputs are drawn, rounded to the dtype, and given to three computations: the backend, the
 * reference in the same dtype (what the contract's rounding points cost) and the reference in
 * double (the truth). The backend's distance from the truth may be at most twice the reference's,
 * plus what fp32 sums over K terms lose, and never more than the cap of its kind.
 */
#ifndef TESTS_SUPPORT_GPU_PARITY_H
#define TESTS_SUPPORT_GPU_PARITY_H

#include <stdbool.h>

#include "kernels/backend.h"

/* Run every test. thorough: also the shapes that would take an emulator long. */
void gpu_parity(struct backend *be, bool thorough);

#endif
