/*
 * sim_store_int.h - what the files of sim_store.h share.
 */
#ifndef TESTS_SUPPORT_SIM_STORE_INT_H
#define TESTS_SUPPORT_SIM_STORE_INT_H

#include "tests/support/sim_store.h"

extern const char *const sim_names[SIM_SILOS];

/* The first thing that does not hold is kept. */
void sim_broken(struct sim_store *s, const char *fmt, ...);
/* The live round, or NULL. */
struct sim_round *sim_live(struct sim_store *s);
/* What the next check looks at. */
void sim_touch(struct sim_store *s, const struct sim_round *q);
void sim_end_lease(struct sim_seat *k, enum sim_outcome outcome);
/* A promise of seat.h: whoever beats in time keeps its seat. */
void sim_check_takeover(struct sim_store *s, const struct sim_seat *k, double now);
/* As the deadline has them; *m is the median. */
double sim_task_seconds(const struct sim_store *s, double *m);
int sim_add_update(struct sim_store *s, struct sim_update u);
/* Counted updates of a round. */
int sim_accepted(const struct sim_store *s, int round);
/* The counted update of a seat, or -1. */
int sim_update_of(const struct sim_store *s, int round, int seat);
uint64_t sim_manifest_now(const struct sim_store *s, int round);
/* The weights that these updates make of the base. */
uint64_t sim_sum(const struct sim_store *s, uint64_t base, const int *update, int n);

#endif
