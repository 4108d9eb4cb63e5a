/*
 * sampling.h - which silos get the seats of a round.
 *
 * A keyed permutation of the eligible silos' names, from the run's seed and the round's number and
 * nothing else: not the order in which silos came, not the clock, not the attempt. So a draw can be
 * replayed from the list that the round stores, and an aborted round draws the same silos again.
 */
#ifndef SERVER_SAMPLING_H
#define SERVER_SAMPLING_H

#include <stdbool.h>
#include <stdint.h>

/* Puts n distinct names into the order of the draw: seats first, spares after them. */
void sampling_draw(uint64_t seed, int32_t round, const char **names, int n);

struct sampled {
    const char *name;
    int index;    /* the caller's */
    bool carried; /* it has an update of the attempt before, so it keeps a seat */
};

/*
 * The silos in the order of the draw, the first `seats` of them with a seat. Whoever has an update
 * already keeps a seat; among the seats the order is the draw's all the same, so that a second
 * attempt with the same silos sums in the same order as the first would have.
 */
void sampling_seats(uint64_t seed, int32_t round, struct sampled *s, int n, int seats);

#endif
