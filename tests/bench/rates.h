/*
 * rates.h - how long something took, and how fast a machine copies: what the benches share.
 */
#ifndef TESTS_BENCH_RATES_H
#define TESTS_BENCH_RATES_H

#include "kernels/backend.h"

enum { TIMES_MAX = 2000 };

struct times {
    int n;
    double s[TIMES_MAX];
};

/* Sorts t; q 0.5 is the median. */
double quantile(struct times *t, double q);

/* CPU time of the whole process: steadier than the clock where others use the machine too. */
double cpu_now(void);

double load_now(void); /* of the last minute; -1: not known */

/* Bytes read plus written in a second, with as many threads as the backend has; 0: no room. */
double copy_rate(struct backend *be);

/* Operations in a second of our own products whose operands stay in the first cache, on all
 * threads: what the multiply instruction gives. 0: the backend multiplies otherwise. */
double block_rate(struct backend *be, enum dtype at);

#endif
