#include "common/rng.h"

#include <assert.h>
#include <math.h>

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

uint64_t rng_u64(uint64_t key, uint64_t counter)
{
    return mix(mix(key) + counter * 0x9e3779b97f4a7c15U);
}

double rng_unit(uint64_t key, uint64_t counter)
{
    return (double)(rng_u64(key, counter) >> 11) * 0x1p-53;
}

double rng_normal(uint64_t key, uint64_t counter)
{
    static const double TWO_PI = 6.283185307179586;
    double u = 1.0 - rng_unit(key, 2 * counter); // in (0, 1]: its logarithm is finite
    return sqrt(-2.0 * log(u)) * cos(TWO_PI * rng_unit(key, 2 * counter + 1));
}

uint64_t rng_key(uint64_t seed, const char *purpose)
{
    uint64_t h = 0xcbf29ce484222325U;
    for (const char *p = purpose; *p; p++) {
        h = (h ^ (unsigned char)*p) * 0x100000001b3U;
    }
    return mix(mix(seed) ^ h);
}

uint64_t rng_permute(uint64_t key, uint64_t i, uint64_t n)
{
    assert(i < n);
    int half = 1;
    while (half < 32 && (1ULL << (2 * half)) < n) {
        half++;
    }
    uint64_t mask = (1ULL << half) - 1;
    do {
        uint64_t left = i >> half;
        uint64_t right = i & mask;
        for (uint64_t round = 0; round < 4; round++) {
            uint64_t next = left ^ (rng_u64(key + round, right) & mask);
            left = right;
            right = next;
        }
        i = (left << half) | right;
    } while (i >= n);
    return i;
}
