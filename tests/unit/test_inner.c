/* test_inner.c - the learning rate as a function of the run's global step. */
#include "common/inner.h"

#include "tests/support/check.h"

static const struct inner_spec SPEC = {
    .lr = 6e-4, .warmup = 100, .schedule_steps = 1100, .min_lr_ratio = 0.1};

static void it_warms_up_in_equal_steps(void)
{
    CHECK_NEAR(inner_lr(&SPEC, 0), 6e-6, 1e-18);
    CHECK_NEAR(inner_lr(&SPEC, 49), 3e-4, 1e-18);
    CHECK_NEAR(inner_lr(&SPEC, 99), 6e-4, 1e-18);
}

static void then_it_falls_along_a_cosine_to_its_floor(void)
{
    CHECK_NEAR(inner_lr(&SPEC, 100), 6e-4, 1e-18);
    CHECK_NEAR(inner_lr(&SPEC, 600), 6e-5 + 0.5 * 5.4e-4, 1e-18);
    CHECK_NEAR(inner_lr(&SPEC, 350), 6e-5 + 0.5 * 5.4e-4 * (1.0 + 0.70710678118654752), 1e-18);
    CHECK_NEAR(inner_lr(&SPEC, 1100), 6e-5, 1e-18);
    CHECK_NEAR(inner_lr(&SPEC, 1000000), 6e-5, 1e-18);
}

static void it_never_rises_after_the_warm_up(void)
{
    for (int64_t step = 100; step < 1200; step++) {
        CHECK(inner_lr(&SPEC, step + 1) <= inner_lr(&SPEC, step));
        CHECK(inner_lr(&SPEC, step) >= 6e-5 - 1e-18);
    }
}

static void schedules_without_a_warm_up_or_a_fall_are_flat(void)
{
    struct inner_spec s = SPEC;
    s.warmup = 0;
    CHECK_NEAR(inner_lr(&s, 0), 6e-4, 1e-18);
    s.schedule_steps = 0;
    CHECK_NEAR(inner_lr(&s, 0), 6e-5, 1e-18);
    s.min_lr_ratio = 1.0;
    CHECK_NEAR(inner_lr(&s, 12345), 6e-4, 1e-18);
    // A warm-up that is as long as the schedule ends at the floor.
    s = SPEC;
    s.schedule_steps = 100;
    CHECK_NEAR(inner_lr(&s, 99), 6e-4, 1e-18);
    CHECK_NEAR(inner_lr(&s, 100), 6e-5, 1e-18);
}

int main(void)
{
    RUN(it_warms_up_in_equal_steps);
    RUN(then_it_falls_along_a_cosine_to_its_floor);
    RUN(it_never_rises_after_the_warm_up);
    RUN(schedules_without_a_warm_up_or_a_fall_are_flat);
    return check_end();
}
