#include "common/outer.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/wide.h"

int outer_arrays(enum outer_optimizer o)
{
    switch (o) {
    case OUTER_FEDNESTEROV:
    case OUTER_FEDMOM:
        return 1;
    case OUTER_FEDADAM:
    case OUTER_FEDYOGI:
        return 2;
    case OUTER_FEDAVG:
    case OUTER_COUNT:
        break;
    }
    return 0;
}

const char *outer_array_name(enum outer_optimizer o, int i)
{
    assert(i >= 0 && i < outer_arrays(o));
    return o == OUTER_FEDMOM || i == 1 ? "v" : "m";
}

void outer_begin(enum outer_optimizer o, const double *x, double *const *arrays, int64_t n)
{
    for (int i = 0; i < outer_arrays(o); i++) {
        if (o == OUTER_FEDMOM) {
            memcpy(arrays[i], x, (size_t)n * sizeof(*x));
        } else {
            memset(arrays[i], 0, (size_t)n * sizeof(*x));
        }
    }
}

static WIDE void step_avg(double lr, double *x, const double *delta, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] -= lr * delta[i];
    }
}

static WIDE void step_nesterov(const struct outer_spec *o, double *x, double *m,
                               const double *delta, int64_t n)
{
    double lr = o->lr;
    double momentum = o->momentum;
    for (int64_t i = 0; i < n; i++) {
        m[i] = momentum * m[i] + delta[i];
        x[i] -= lr * (delta[i] + momentum * m[i]);
    }
}

static WIDE void step_mom(const struct outer_spec *o, double *x, double *v, const double *delta,
                          int64_t n)
{
    double lr = o->lr;
    double momentum = o->momentum;
    for (int64_t i = 0; i < n; i++) {
        double u = x[i] - lr * delta[i];
        x[i] = (1.0 + momentum) * u - momentum * v[i];
        v[i] = u;
    }
}

static double second_adam(double v, double sq, double beta2)
{
    return beta2 * v + (1.0 - beta2) * sq;
}

static double second_yogi(double v, double sq, double beta2)
{
    double sign = (double)((sq > v) - (sq < v));
    return v + (1.0 - beta2) * sq * sign;
}

/* The moments start at zero, so early rounds are scaled up: 1 - beta^t is how much of t
 * equal terms a mean has taken in. */
static void step_adaptive(const struct outer_spec *o, int32_t round, double *x, double *m,
                          double *v, const double *delta, int64_t n)
{
    bool yogi = o->name == OUTER_FEDYOGI;
    double taken1 = 1.0 - pow(o->beta1, round);
    double taken2 = 1.0 - pow(o->beta2, round);
    for (int64_t i = 0; i < n; i++) {
        double sq = delta[i] * delta[i];
        m[i] = o->beta1 * m[i] + (1.0 - o->beta1) * delta[i];
        v[i] = yogi ? second_yogi(v[i], sq, o->beta2) : second_adam(v[i], sq, o->beta2);
        x[i] -= o->lr * (m[i] / taken1) / (sqrt(v[i] / taken2) + o->eps);
    }
}

void outer_step(const struct outer_spec *o, int32_t round, double *x, double *const *arrays,
                const double *delta, int64_t n)
{
    assert(round >= 1);
    switch (o->name) {
    case OUTER_FEDNESTEROV:
        step_nesterov(o, x, arrays[0], delta, n);
        return;
    case OUTER_FEDMOM:
        step_mom(o, x, arrays[0], delta, n);
        return;
    case OUTER_FEDADAM:
    case OUTER_FEDYOGI:
        step_adaptive(o, round, x, arrays[0], arrays[1], delta, n);
        return;
    case OUTER_FEDAVG:
    case OUTER_COUNT:
        break;
    }
    step_avg(o->lr, x, delta, n);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

void outer_clip(double clip_median, const double *norms, int count, double *factors)
{
    for (int k = 0; k < count; k++) {
        factors[k] = 1.0;
    }
    if (clip_median <= 0.0 || count < 1) {
        return;
    }
    double *sorted = mem_alloc((size_t)count * sizeof(*sorted));
    memcpy(sorted, norms, (size_t)count * sizeof(*sorted));
    qsort(sorted, (size_t)count, sizeof(*sorted), by_size);
    double median = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0;
    mem_free(sorted);
    for (int k = 0; k < count && median > 0.0; k++) {
        if (norms[k] > clip_median * median) {
            factors[k] = clip_median * median / norms[k];
        }
    }
}
