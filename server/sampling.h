/*
 * sampling.h - which silos get the seats of a round.
 *
 * A keyed permutation of the eligible silos' names, from the run's seed and the round's number and
 * nothing else: not the order in which silos came, not the clock, not the attempt. So a draw can be
 * replayed from the list that the round stores, and an aborted round draws the same silos again.
 */
#ifndef SERVER_SAMPLING_H
#define SERVER_SAMPLING_H

#include <stdint.h>

/* Puts n distinct names into the order of the draw: seats first, spares after them. */
void sampling_draw(uint64_t seed, int32_t round, const char **names, int n);

#endif
