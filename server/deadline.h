/*
 * deadline.h - how long a round may take, from how long tasks took.
 *
 * A sample is one accepted task's seconds from claim to accept, divided by its local steps. With m
 * the median and s = max(1.4826 MAD, m / 20) of the run's newest samples (the median absolute
 * deviation, scaled to a normal's standard deviation), a task of tau steps that is not stuck ends
 * within max(1.5 m, m + k s) tau. Median and MAD shrug at the one silo that hung all night, where
 * mean and variance would not.
 */
#ifndef SERVER_DEADLINE_H
#define SERVER_DEADLINE_H

#include <stdbool.h>

enum { DEADLINE_SAMPLES_MIN = 4, DEADLINE_ROUNDS = 8 };

struct deadline_estimate {
    bool known; /* enough samples */
    double m;   /* seconds per step */
    double s;
};

/* Sorts the samples. Fewer than DEADLINE_SAMPLES_MIN: not known. */
struct deadline_estimate deadline_estimate(double *samples, int n);

/*
 * Seconds from the opening of a round of tau steps to its deadline: never beyond cap_s, and not
 * below floor_s (a silo that is killed keeps its seat for two lease times; a deadline within them
 * would drop it all the same). Not known: cap_s.
 */
double deadline_seconds(const struct deadline_estimate *d, double k, double tau, double floor_s,
                        double cap_s);

/* Seconds that a task claimed now needs at most; 0 when not known. */
double deadline_task_seconds(const struct deadline_estimate *d, double k, double tau);

#endif
