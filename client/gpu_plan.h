/*
 * gpu_plan.h - what a silo's GPUs would hold, without one.
 *
 * The trainer asks the device how much memory there is and lays out the rest by
 * common/memory_plan.h. Here the answer is given, so a spec can be looked at before a machine is
 * rented. Pure.
 */
#ifndef CLIENT_GPU_PLAN_H
#define CLIENT_GPU_PLAN_H

#include "common/memory_plan.h"
#include "common/run_spec.h"
#include "kernels/backend.h"
#include "kernels/gpu_limits.h"

/*
 * The plan of each of gpus >= 1 that share a silo's batch and the optimizer's state, with `memory`
 * bytes to use. ST_INVALID: the batch does not divide over them, or they are too many; ST_NOMEM:
 * no pass fits, with what the smallest would take.
 */
enum status gpu_plan(struct memory_plan *out, const struct run_spec *s, int32_t gpus,
                     enum dtype dtype, int64_t memory, struct err *e) MUST_CHECK;

/* "norms and GELU recomputed": what a level buys memory with. */
const char *recompute_text(enum recompute level);

#endif
