#include "server/budget.h"

#include <math.h>

#include "tests/support/check.h"

static void steps_follow_the_speed_rounded_down(void)
{
    CHECK_INT(budget_steps(100, 1, 1000.0, 1000.0), 100);
    CHECK_INT(budget_steps(100, 1, 500.0, 1000.0), 50);
    CHECK_INT(budget_steps(100, 1, 999.9, 1000.0), 99);
    CHECK_INT(budget_steps(64, 1, 100.0, 300.0), 21);
}

static void nobody_goes_below_the_floor_or_beyond_tau(void)
{
    CHECK_INT(budget_steps(100, 13, 1.0, 1000.0), 13);
    CHECK_INT(budget_steps(100, 100, 1.0, 1000.0), 100);
    CHECK_INT(budget_steps(100, 1, 2000.0, 1000.0), 100);
}

static void an_unknown_speed_takes_all(void)
{
    CHECK_INT(budget_steps(100, 10, 0.0, 1000.0), 100);
    CHECK_INT(budget_steps(100, 10, (double)NAN, 1000.0), 100);
    CHECK_INT(budget_steps(100, 10, 5.0, 0.0), 100);
}

int main(void)
{
    RUN(steps_follow_the_speed_rounded_down);
    RUN(nobody_goes_below_the_floor_or_beyond_tau);
    RUN(an_unknown_speed_takes_all);
    return check_end();
}
