/*
 * schedule.h - which part of the model a round synchronises, and what a silo does meanwhile.
 *
 * Pure functions of the spec and of round numbers, which count from 1; server, silos and simulation
 * ask the same ones. With P = federation.fragments, round r synchronises fragment (r - 1) mod P
 * (common/layout.h says which tensors those are); the outer optimizer knows a fragment by its own
 * count of steps.
 */
#ifndef COMMON_SCHEDULE_H
#define COMMON_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/run_spec.h"

/* P; 1 where the whole model travels each round. */
int32_t schedule_fragments(const struct run_spec *s);

/* The fragment of that round, from 0. */
int32_t schedule_fragment(const struct run_spec *s, int64_t round);

/* Which outer step of its fragment that round takes, from 1. */
int32_t schedule_outer_step(const struct run_spec *s, int32_t round);

/* Has the fragment been synchronised since `kept`, the last round at whose end a silo kept its
 * weights, and before `round` starts? kept 0, or no earlier round than `round`: it has none. */
bool schedule_renewed(const struct run_spec *s, int32_t fragment, int64_t kept, int64_t round);

/*
 * How many of the round's steps a silo takes before the checkpoint it starts from: overlap_steps d
 * where it kept the end of the round just before, else none. They go on from that end, so that d
 * steps later its weights are local, and the round goes on from
 *
 *     start = checkpoint + (local - end)
 *
 * of the tensors that it takes from the checkpoint. Its delta is checkpoint - local at the end of
 * the round, so that every step's work arrives once, d steps' of it a round after the weights it
 * was made at. Douillard et al. 2025 mix alpha local + (1 - alpha) checkpoint instead, which sends
 * a part of the former round's work twice.
 */
int32_t schedule_steps_ahead(const struct run_spec *s, int64_t kept, int64_t round);

/* Must a silo keep its weights from round to round? */
bool schedule_keeps_weights(const struct run_spec *s);

#endif
