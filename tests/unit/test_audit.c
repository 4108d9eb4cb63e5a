#include "server/audit.h"
#include "server/trickle.h"
#include "tests/support/check.h"

static const struct trickle_rule refusals = {AUDIT_BURST, AUDIT_EVERY_MS};

static void a_burst_passes_and_the_rest_is_counted(void)
{
    struct trickle t = {0};
    int64_t left_out = -1;
    for (int i = 0; i < AUDIT_BURST; i++) {
        CHECK(trickle_take(&t, &refusals, 5000, &left_out));
        CHECK_INT(left_out, 0);
    }
    for (int i = 0; i < 7; i++) {
        CHECK(!trickle_take(&t, &refusals, 5000 + i, &left_out));
    }
    CHECK(!trickle_take(&t, &refusals, 5000 + AUDIT_EVERY_MS - 1, &left_out));
    CHECK(trickle_take(&t, &refusals, 5000 + AUDIT_EVERY_MS, &left_out));
    CHECK_INT(left_out, 8);
    CHECK(!trickle_take(&t, &refusals, 5000 + AUDIT_EVERY_MS,
                        &left_out)); // one has come back, no more
}

static void quiet_time_brings_the_burst_back_and_no_more(void)
{
    struct trickle t = {0};
    int64_t left_out = 0;
    for (int i = 0; i < AUDIT_BURST; i++) {
        CHECK(trickle_take(&t, &refusals, 0, &left_out));
    }
    int64_t later = (int64_t)1000 * AUDIT_BURST * AUDIT_EVERY_MS;
    int passed = 0;
    while (trickle_take(&t, &refusals, later, &left_out)) {
        passed++;
    }
    CHECK_INT(passed, AUDIT_BURST);
}

static void a_day_of_refusals_makes_a_bounded_number_of_rows(void)
{
    struct trickle t = {0};
    int64_t left_out = 0;
    int64_t passed = 0;
    int64_t counted = 0;
    enum { DAY_MS = 86400000, STEP_MS = 100 };
    for (int64_t now = 0; now < DAY_MS; now += STEP_MS) {
        if (trickle_take(&t, &refusals, now, &left_out)) {
            passed++;
            counted += left_out;
        }
    }
    CHECK_INT(passed, AUDIT_BURST + DAY_MS / AUDIT_EVERY_MS - 1);
    CHECK_INT(passed + counted + t.left_out, DAY_MS / STEP_MS);
}

int main(void)
{
    RUN(a_burst_passes_and_the_rest_is_counted);
    RUN(quiet_time_brings_the_burst_back_and_no_more);
    RUN(a_day_of_refusals_makes_a_bounded_number_of_rows);
    return check_end();
}
