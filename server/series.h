/*
 * series.h - the numbers behind a chart: smooth at full resolution, then thin in axis space.
 *
 * Pure: points in, points out. A series is read whole, smoothed with every point (never after
 * thinning, which would smooth gaps), then put into equal buckets of the axis as it is shown: of x,
 * or of log x. A bucket keeps its last point and the extremes of all its points; empty buckets are
 * absent, so that a gap stays a gap. The first and the last point always survive.
 *
 * Perplexity is exp of a loss. Means and smoothing are of the loss, exp comes last, and once.
 */
#ifndef SERVER_SERIES_H
#define SERVER_SERIES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"

struct series_point {
    double x;
    double y; /* NaN: no value here */
};

struct series_bucket {
    double x;      /* of the bucket's last point */
    double y;      /* raw, of that point */
    double smooth; /* smoothed, at that point; NaN when there is none */
    double min, max;
    int32_t count; /* points with a value */
};

struct series_want {
    bool log_x;
    double from, to; /* of x; NaN: open */
    int32_t points;  /* buckets at most, >= 2 */
    double smooth;   /* weight of the past, 0 <= a <= 0.999; 0: none */
    bool exp;        /* show exp(y) */
};

/*
 * Bias-corrected exponential mean over all of in: s <- a s + (1-a) y, w <- a w + (1-a), out s / w.
 * Points without a value are skipped and get NaN.
 */
void series_smooth(double *out, const struct series_point *in, int64_t count, double a);

/*
 * The buckets to show, in the arena; returns how many. in is sorted by x. With log_x, points at
 * x <= 0 are left out. *shown_of counts the points with a value inside from..to.
 */
int32_t series_thin(struct series_bucket **out, struct arena *a, int64_t *shown_of,
                    const struct series_point *in, int64_t count, const struct series_want *want);

#endif
