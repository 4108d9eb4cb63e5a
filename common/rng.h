/*
 * rng.h - random numbers as functions of a key and a counter: no state, no order, no replay.
 *
 * The same call gives the same number on every machine. Used for first weights, data order and
 * client sampling, all of which must be recomputable from the run's seed alone.
 */
#ifndef COMMON_RNG_H
#define COMMON_RNG_H

#include <stdint.h>

/* A well-mixed 64-bit word (SplitMix64's finaliser over key and counter; Steele et al. 2014). */
uint64_t rng_u64(uint64_t key, uint64_t counter);

/* Uniform in [0, 1), 53 bits. */
double rng_unit(uint64_t key, uint64_t counter);

/* Standard normal, Box-Muller on counters 2c and 2c + 1. */
double rng_normal(uint64_t key, uint64_t counter);

/* A key for a named purpose: FNV-1a of the text folded into the seed. */
uint64_t rng_key(uint64_t seed, const char *purpose);

/*
 * The image of i under a keyed permutation of 0..n-1 (a four-round Feistel network on the next
 * even number of bits, walked until it lands below n). O(1), i < n, n >= 1.
 */
uint64_t rng_permute(uint64_t key, uint64_t i, uint64_t n);

#endif
