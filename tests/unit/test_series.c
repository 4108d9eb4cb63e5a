#include "server/series.h"

#include <math.h>

#include "tests/support/check.h"

enum { MANY = 100000 };

static struct series_point many[MANY];

static void fill(double (*y)(int64_t i))
{
    for (int64_t i = 0; i < MANY; i++) {
        many[i] = (struct series_point){.x = (double)(i + 1), .y = y(i)};
    }
}

static double falling(int64_t i)
{
    return 10.0 / sqrt((double)i + 1.0);
}

static double spiky(int64_t i)
{
    return i == 54321 ? 99.0 : i == 54322 ? -99.0 : 1.0;
}

static double gap(int64_t i)
{
    return i > 20000 && i < 80000 ? (double)NAN : 1.0;
}

static const struct series_want plain = {.from = (double)NAN, .to = (double)NAN, .points = 1000};

static void smoothing_is_corrected_for_its_start(void)
{
    struct series_point in[] = {{0, 4}, {1, 8}, {2, (double)NAN}, {3, 2}};
    double out[4];
    series_smooth(out, in, 4, 0.5);
    CHECK_NEAR(out[0], 4.0, 1e-12); // the first value itself, not half of it
    CHECK_NEAR(out[1], (0.25 * 4 + 0.5 * 8) / 0.75, 1e-12);
    CHECK(isnan(out[2]));
    CHECK_NEAR(out[3], (0.125 * 4 + 0.25 * 8 + 0.5 * 2) / 0.875, 1e-12);
}

static void a_constant_stays_what_it_is(void)
{
    struct series_point in[] = {{0, 3}, {1, 3}, {2, 3}};
    double out[3];
    series_smooth(out, in, 3, 0.999);
    CHECK_NEAR(out[0], 3.0, 1e-9);
    CHECK_NEAR(out[2], 3.0, 1e-9);
}

static void first_and_last_survive_and_the_bound_holds(void)
{
    fill(falling);
    for (int32_t points = 2; points <= 3000; points = points * 3 + 1) {
        for (int scale = 0; scale < 2; scale++) {
            struct series_want want = plain;
            want.points = points;
            want.log_x = scale == 1;
            struct arena *a = arena_new(1 << 24);
            struct series_bucket *b = NULL;
            int64_t of = 0;
            int32_t n = series_thin(&b, a, &of, many, MANY, &want);
            CHECK_INT(of, MANY);
            CHECK(n >= 2 && n <= points);
            CHECK_NEAR(b[0].x, 1.0, 0);
            CHECK_NEAR(b[n - 1].x, (double)MANY, 0);
            int64_t sum = 0;
            for (int32_t i = 0; i < n; i++) {
                sum += b[i].count;
                CHECK(b[i].min <= b[i].y && b[i].y <= b[i].max);
                CHECK(i == 0 || b[i].x > b[i - 1].x);
            }
            CHECK_INT(sum, MANY); // every point is in exactly one bucket
            arena_free(a);
        }
    }
}

static void a_log_axis_keeps_its_left_end(void)
{
    fill(falling);
    struct series_want want = plain;
    want.points = 100;
    want.log_x = true;
    struct arena *a = arena_new(1 << 24);
    struct series_bucket *b = NULL;
    int64_t of = 0;
    (void)series_thin(&b, a, &of, many, MANY, &want);
    CHECK_NEAR(b[1].x, 2.0, 0); // equal widths in x would have put hundreds into the first bucket
    CHECK_NEAR(b[2].x, 3.0, 0);
    arena_free(a);
}

static void a_spike_is_in_its_buckets_extremes(void)
{
    fill(spiky);
    struct arena *a = arena_new(1 << 24);
    struct series_bucket *b = NULL;
    int64_t of = 0;
    int32_t n = series_thin(&b, a, &of, many, MANY, &plain);
    double min = 0;
    double max = 0;
    for (int32_t i = 0; i < n; i++) {
        min = b[i].min < min ? b[i].min : min;
        max = b[i].max > max ? b[i].max : max;
    }
    CHECK_NEAR(max, 99.0, 0);
    CHECK_NEAR(min, -99.0, 0);
    arena_free(a);
}

static void a_gap_stays_a_gap(void)
{
    fill(gap);
    struct arena *a = arena_new(1 << 24);
    struct series_bucket *b = NULL;
    int64_t of = 0;
    int32_t n = series_thin(&b, a, &of, many, MANY, &plain);
    CHECK(n > 300 && n < 500);
    for (int32_t i = 0; i < n; i++) {
        CHECK(b[i].x <= 20001 || b[i].x > 80000);
        CHECK(isfinite(b[i].y));
    }
    arena_free(a);
}

static void perplexity_is_smoothed_as_a_loss(void)
{
    struct series_point in[] = {{1, 1}, {2, 3}};
    struct series_want want = plain;
    want.exp = true;
    want.smooth = 0.5;
    struct arena *a = arena_new(1 << 20);
    struct series_bucket *b = NULL;
    int64_t of = 0;
    CHECK_INT(series_thin(&b, a, &of, in, 2, &want), 2);
    CHECK_NEAR(b[1].y, exp(3.0), 1e-12);
    CHECK_NEAR(b[1].smooth, exp((0.25 * 1 + 0.5 * 3) / 0.75), 1e-12);
    arena_free(a);
}

static void few_points_are_left_alone_even_at_one_x(void)
{
    struct series_point in[] = {{1, 1}, {1, 2}, {1, 3}};
    struct arena *a = arena_new(1 << 20);
    struct series_bucket *b = NULL;
    int64_t of = 0;
    CHECK_INT(series_thin(&b, a, &of, in, 3, &plain), 3);
    CHECK_INT(series_thin(&b, a, &of, in, 0, &plain), 0);
    CHECK_INT(of, 0);
    arena_free(a);
}

static void a_window_is_thinned_by_itself_but_smoothed_by_all(void)
{
    fill(falling);
    struct series_want want = plain;
    want.from = 50000;
    want.to = 50009;
    want.smooth = 0.9;
    struct arena *a = arena_new(1 << 24);
    struct series_bucket *b = NULL;
    int64_t of = 0;
    CHECK_INT(series_thin(&b, a, &of, many, MANY, &want), 10);
    CHECK_INT(of, 10);
    CHECK_NEAR(b[0].x, 50000, 0);
    CHECK(b[0].smooth > b[0].y); // the past, outside the window, pulls it up
    arena_free(a);
}

static void what_a_log_axis_cannot_show_is_left_out(void)
{
    struct series_point in[] = {{0, 1}, {1, 2}, {2, 3}};
    struct series_want want = plain;
    want.log_x = true;
    struct arena *a = arena_new(1 << 20);
    struct series_bucket *b = NULL;
    int64_t of = 0;
    CHECK_INT(series_thin(&b, a, &of, in, 3, &want), 2);
    CHECK_NEAR(b[0].x, 1, 0);
    arena_free(a);
}

int main(void)
{
    RUN(smoothing_is_corrected_for_its_start);
    RUN(a_constant_stays_what_it_is);
    RUN(first_and_last_survive_and_the_bound_holds);
    RUN(a_log_axis_keeps_its_left_end);
    RUN(a_spike_is_in_its_buckets_extremes);
    RUN(a_gap_stays_a_gap);
    RUN(perplexity_is_smoothed_as_a_loss);
    RUN(few_points_are_left_alone_even_at_one_x);
    RUN(a_window_is_thinned_by_itself_but_smoothed_by_all);
    RUN(what_a_log_axis_cannot_show_is_left_out);
    return check_end();
}
