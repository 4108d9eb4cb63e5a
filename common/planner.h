/*
 * planner.h - what a run costs before it runs: bytes, seconds, and when data-parallel would win.
 *
 * Pure arithmetic. With S bytes of one transfer, B bytes/s of the link that carries it, L its
 * one-way latency and K silos in the round, a round communicates for
 *
 *     server      K S_down / B + K S_up / B + 2 L, and never less than the slowest silo's own
 *                 S_down / b + S_up / b + 2 L
 *     all-reduce  (K - 1) S / B + L            every silo sends its update to every other
 *     ring        2 S (K - 1) / (K B) + 2 (K - 1) L
 *
 * (0 when K is 1 and nobody is between), and the whole run takes
 *
 *     total = compute + max(0, rounds fold + (1 - o) comm + max(0, o comm - compute) - ahead)
 *
 * with comm, compute and ahead over all rounds and o the share of communication hidden behind
 * compute. ahead is compute that needs no checkpoint (federation.overlap_steps d of tau, so d / tau
 * of it): it goes on while the round communicates and folds.
 */
#ifndef COMMON_PLANNER_H
#define COMMON_PLANNER_H

#include <stdint.h>

#include "common/codec.h"
#include "common/run_spec.h"

enum plan_topology { PLAN_SERVER = 0, PLAN_ALL_REDUCE, PLAN_RING, PLAN_TOPOLOGIES };

struct plan_round {
    int64_t silos;
    double up_bytes, down_bytes; /* of one silo */
    double link;                 /* bytes/s where all transfers meet */
    double silo_link;            /* bytes/s of the slowest silo's own; 0: no bound */
    double latency_s;            /* one way */
    double compute_s;            /* of the slowest silo */
    double fold_s;               /* aggregation and outer step */
    double overlap;              /* o, 0 to 1 */
    double ahead_s;              /* of compute_s */
};

struct plan_cost {
    double comm_s;  /* a round's, hidden or not */
    double round_s; /* the mean over the run */
    double total_s;
    double bytes;       /* through the network, both directions, of all silos, over the run */
    double utilisation; /* compute / total */
};

struct plan_cost plan_cost(enum plan_topology t, const struct plan_round *r, int64_t rounds);

/* Seconds of compute for so many tokens: 6 params tokens / flops, flops after MFU, of all GPUs. */
double plan_compute_s(int64_t params, int64_t tokens, double flops);

/*
 * The link speed above which the rival wins, both measured at `link`: its communication shrinks as
 * links grow, what it computes more does not. INFINITY: never, 0: always.
 */
double plan_break_even(double link, double rival_compute_s, double rival_comm_s, double compute_s,
                       double comm_s);

/* The size of the tensors of an update on a rung, without headers and when nothing falls back;
 * the mean over the fragments. */
double plan_update_bytes(const struct run_spec *s, enum codec codec, int32_t k);

/* The size of a checkpoint's tensors. */
double plan_checkpoint_bytes(const struct run_spec *s);

/* The middle value, of an even number the mean of two; NAN of none. Sorts v. */
double plan_median(double *v, int count);

#endif
