/*
 * outer.h - the aggregator's step: settings of the outer optimizer, and the rule itself.
 *
 * With D = sum_k w_k (theta_base - theta_k), sum_k w_k = 1, a pseudo-gradient: every rule descends,
 * D is subtracted. t is the round, from 1; eta is lr, mu is momentum.
 *
 *     fedavg       x <- x - eta D                                         (McMahan et al. 2017)
 *     fednesterov  m <- mu m + D;  x <- x - eta (D + mu m)       m_0 = 0  (Douillard et al. 2023)
 *     fedmom       u = x - eta D;  x <- (1 + mu) u - mu v;  v <- u
 *                                                              v_0 = x_0  (Huo et al. 2020)
 *     fedadam      m <- b1 m + (1 - b1) D;  v <- b2 v + (1 - b2) D^2
 *                  x <- x - eta (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
 *                                                           m_0 = v_0 = 0  (Reddi et al. 2021)
 *     fedyogi      as fedadam with v <- v + (1 - b2) D^2 sign(D^2 - v)
 *
 * With one eta and mu, fedmom and fednesterov are the same iteration in exact arithmetic
 * (v_t - v_(t-1) = -eta m_t); they differ in what they store, and so in rounding.
 */
#ifndef COMMON_OUTER_H
#define COMMON_OUTER_H

#include <stdint.h>

enum outer_optimizer {
    OUTER_FEDAVG = 0,
    OUTER_FEDNESTEROV,
    OUTER_FEDMOM,
    OUTER_FEDADAM,
    OUTER_FEDYOGI,
    OUTER_COUNT
};

enum { OUTER_ARRAYS_MAX = 2 };

struct outer_spec {
    enum outer_optimizer name;
    double lr;
    double momentum;     /* fednesterov, fedmom; otherwise 0 */
    double beta1, beta2; /* fedadam, fedyogi; otherwise 0 */
    double eps;
    double clip_median; /* most that an update's norm may be, in medians of the round's; 0: no bound
                         */
};

/* How many arrays of the model's size the optimizer keeps between rounds: 0, 1 or 2. */
int outer_arrays(enum outer_optimizer o);

/* "m" or "v": what the outer state's file calls array i. */
const char *outer_array_name(enum outer_optimizer o, int i);

/* The arrays' first values for these weights, before round 1. */
void outer_begin(enum outer_optimizer o, const double *x, double *const *arrays, int64_t n);

/* One step over n parameters; x and the arrays in place. */
void outer_step(const struct outer_spec *o, int32_t round, double *x, double *const *arrays,
                const double *delta, int64_t n);

/*
 * factors[k] = what update k is multiplied with so that its norm is at most clip_median times the
 * median of the norms (of an even number: the mean of the two in the middle). All 1 when
 * clip_median is 0, or the median is: nothing can be said then.
 */
void outer_clip(double clip_median, const double *norms, int count, double *factors);

#endif
