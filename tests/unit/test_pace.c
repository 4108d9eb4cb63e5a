#include "server/pace.h"

#include "tests/support/check.h"

static void pieces_go_as_fast_as_the_rate_and_no_faster(void)
{
    struct pace *p = pace_new(1000 * 1000); // 1000 bytes a millisecond
    int64_t last = 0;
    for (int i = 0; i < 1000; i++) {
        last = pace_book(p, 10000, 5000);
    }
    CHECK_INT(last, 10000 - 100); // ten seconds' worth, less what a tenth of a second may save up
    CHECK_INT(pace_book(p, 10000, 5000 + 9910), 0);
    pace_free(p);
}

static void time_that_was_not_used_is_not_saved(void)
{
    struct pace *p = pace_new(1000 * 1000);
    CHECK_INT(pace_book(p, 50000, 1000000), 0);
    CHECK_INT(pace_book(p, 50000, 2000000), 0);
    CHECK_INT(pace_book(p, 100000, 3000000), 0);
    CHECK_INT(pace_book(p, 100000, 3000000), 100);
    pace_free(p);
}

int main(void)
{
    RUN(pieces_go_as_fast_as_the_rate_and_no_faster);
    RUN(time_that_was_not_used_is_not_saved);
    return check_end();
}
