#include "server/series.h"

#include <assert.h>
#include <math.h>

#include "common/mem.h"

void series_smooth(double *out, const struct series_point *in, int64_t count, double a)
{
    assert(a >= 0.0 && a < 1.0);
    double s = 0.0;
    double w = 0.0;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(in[i].y)) {
            out[i] = (double)NAN;
            continue;
        }
        s = a * s + (1.0 - a) * in[i].y;
        w = a * w + (1.0 - a);
        out[i] = s / w;
    }
}

static bool is_shown(const struct series_point *p, const struct series_want *want)
{
    return isfinite(p->x) && isfinite(p->y) && !(p->x < want->from) && !(p->x > want->to) &&
           (!want->log_x || p->x > 0.0);
}

static double on_axis(double x, const struct series_want *want)
{
    return want->log_x ? log(x) : x;
}

/* First and last shown point, or false when there is none; counts them all. */
static bool extent(int64_t *first, int64_t *last, int64_t *shown, const struct series_point *in,
                   int64_t count, const struct series_want *want)
{
    *shown = 0;
    for (int64_t i = 0; i < count; i++) {
        if (is_shown(&in[i], want)) {
            if (*shown == 0) {
                *first = i;
            }
            *last = i;
            (*shown)++;
        }
    }
    return *shown > 0;
}

static void add_point(struct series_bucket *b, double x, double y, double smooth)
{
    if (b->count == 0) {
        b->min = y;
        b->max = y;
    }
    b->x = x;
    b->y = y;
    b->smooth = smooth;
    b->min = y < b->min ? y : b->min;
    b->max = y > b->max ? y : b->max;
    b->count++;
}

/*
 * The first point has a bucket of its own, the rest of the axis is cut into points - 1 equal ones;
 * a bucket is named by its last point, so the last point survives by itself.
 */
static int64_t bucket_of(double at, double start, double end, int64_t buckets)
{
    if (!(end > start)) {
        return 1;
    }
    double share = (at - start) / (end - start);
    int64_t i = 1 + (int64_t)(share * (double)(buckets - 1));
    return i >= buckets ? buckets - 1 : i;
}

int32_t series_thin(struct series_bucket **out, struct arena *a, int64_t *shown_of,
                    const struct series_point *in, int64_t count, const struct series_want *want)
{
    assert(want->points >= 2);
    *out = NULL;
    int64_t first = 0;
    int64_t last = 0;
    if (!extent(&first, &last, shown_of, in, count, want)) {
        return 0;
    }
    double *smooth = NULL;
    if (want->smooth > 0.0) {
        smooth = mem_alloc((size_t)count * sizeof(*smooth));
        series_smooth(smooth, in, count, want->smooth);
    }
    bool all = *shown_of <= want->points; // nothing to thin: each point is its own bucket
    int64_t room = all ? *shown_of : want->points;
    struct series_bucket *b = arena_alloc(a, (size_t)room * sizeof(*b));
    double start = on_axis(in[first].x, want);
    double end = on_axis(in[last].x, want);

    int32_t n = 0;
    int64_t current = -1;
    for (int64_t i = first; i <= last; i++) {
        if (!is_shown(&in[i], want)) {
            continue;
        }
        int64_t into = i == first ? 0 : bucket_of(on_axis(in[i].x, want), start, end, room);
        if (all || into != current) {
            n++;
            current = into;
        }
        double s = smooth ? smooth[i] : (double)NAN;
        add_point(&b[n - 1], in[i].x, want->exp ? exp(in[i].y) : in[i].y, want->exp ? exp(s) : s);
    }
    mem_free(smooth);
    *out = b;
    return n;
}
