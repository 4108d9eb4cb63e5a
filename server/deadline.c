#include "server/deadline.h"

#include <math.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof(*v), by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2.0;
}

struct deadline_estimate deadline_estimate(double *samples, int n)
{
    struct deadline_estimate d = {0};
    if (n < DEADLINE_SAMPLES_MIN) {
        return d;
    }
    d.m = median(samples, n);
    for (int i = 0; i < n; i++) {
        samples[i] = fabs(samples[i] - d.m);
    }
    d.s = fmax(1.4826 * median(samples, n), 0.05 * d.m);
    d.known = d.m > 0.0 && isfinite(d.m);
    return d;
}

double deadline_task_seconds(const struct deadline_estimate *d, double k, double tau)
{
    return d->known ? (d->m + k * d->s) * tau : 0.0;
}

double deadline_seconds(const struct deadline_estimate *d, double k, double tau, double floor_s,
                        double cap_s)
{
    if (!d->known) {
        return cap_s;
    }
    double s = fmax(1.5 * d->m * tau, deadline_task_seconds(d, k, tau));
    return fmin(fmax(s, floor_s), cap_s);
}
