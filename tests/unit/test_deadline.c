/* test_deadline.c - how long a round may take. */
#include "server/deadline.h"

#include "tests/support/check.h"

static void too_few_samples_mean_the_cap(void)
{
    double v[] = {1, 2, 3};
    struct deadline_estimate d = deadline_estimate(v, 3);
    CHECK(!d.known);
    CHECK_NEAR(deadline_seconds(&d, 5, 64, 120, 86400), 86400, 1e-12);
    CHECK_NEAR(deadline_task_seconds(&d, 5, 64), 0, 1e-12);
}

static void median_and_deviation_are_those_of_the_book(void)
{
    double odd[] = {9, 1, 2, 2, 4};
    struct deadline_estimate d = deadline_estimate(odd, 5); // deviations 0 0 1 2 7
    CHECK_NEAR(d.m, 2, 1e-12);
    CHECK_NEAR(d.s, 1.4826, 1e-12);
    double even[] = {4, 1, 3, 2}; // median 2.5, deviations .5 .5 1.5 1.5
    d = deadline_estimate(even, 4);
    CHECK_NEAR(d.m, 2.5, 1e-12);
    CHECK_NEAR(d.s, 1.4826, 1e-12);
}

static void silos_that_all_take_the_same_time_still_get_a_margin(void)
{
    double v[] = {2, 2, 2, 2};
    struct deadline_estimate d = deadline_estimate(v, 4);
    CHECK_NEAR(d.s, 0.1, 1e-12);
    CHECK_NEAR(deadline_seconds(&d, 5, 100, 0, 86400), 300, 1e-12);  // 1.5 m rules
    CHECK_NEAR(deadline_seconds(&d, 20, 100, 0, 86400), 400, 1e-12); // m + k s rules
}

static void one_night_long_hang_moves_the_deadline_little(void)
{
    double v[] = {1.0, 1.1, 0.9, 1.05, 0.95, 40000};
    struct deadline_estimate d = deadline_estimate(v, 6);
    CHECK(deadline_seconds(&d, 5, 100, 0, 86400) < 200);
}

static void neither_cap_nor_floor_is_crossed_and_the_cap_wins(void)
{
    double v[] = {1, 1, 1, 1};
    struct deadline_estimate d = deadline_estimate(v, 4);
    CHECK_NEAR(deadline_seconds(&d, 5, 10, 120, 86400), 120, 1e-12);
    CHECK_NEAR(deadline_seconds(&d, 5, 1000000, 120, 86400), 86400, 1e-12);
    CHECK_NEAR(deadline_seconds(&d, 5, 10, 120, 30), 30, 1e-12);
}

static void samples_without_time_teach_nothing(void)
{
    double v[] = {0, 0, 0, 0};
    CHECK(!deadline_estimate(v, 4).known);
}

int main(void)
{
    RUN(too_few_samples_mean_the_cap);
    RUN(median_and_deviation_are_those_of_the_book);
    RUN(silos_that_all_take_the_same_time_still_get_a_margin);
    RUN(one_night_long_hang_moves_the_deadline_little);
    RUN(neither_cap_nor_floor_is_crossed_and_the_cap_wins);
    RUN(samples_without_time_teach_nothing);
    return check_end();
}
