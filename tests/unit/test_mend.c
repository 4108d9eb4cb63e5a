#include "server/mend.h"

#include <stdio.h>

#include "tests/support/check.h"

static struct digest nth(int n)
{
    struct digest d;
    sha256_of(&n, sizeof(n), &d);
    return d;
}

static void a_wanted_file_is_remembered_once(void)
{
    struct digest d = nth(1);
    struct digest got;
    CHECK(!mend_wanted(&got));
    mend_want(&d);
    mend_want(&d);
    CHECK(mend_wanted(&got));
    CHECK(digest_equal(&got, &d));
    CHECK(!mend_wanted(&got));
}

static void too_many_are_forgotten_from_the_oldest(void)
{
    struct digest got;
    for (int i = 0; i < 100; i++) {
        struct digest d = nth(i);
        mend_want(&d);
    }
    int count = 0;
    while (mend_wanted(&got)) {
        struct digest want = nth(99 - count++);
        CHECK(digest_equal(&got, &want));
    }
    CHECK_INT(count, 64);
}

static void a_second_taking_by_the_same_silo_is_suspicious(void)
{
    struct digest a = nth(1);
    struct digest b = nth(2);
    const int64_t minute = 60000;
    CHECK(!mend_taken_again("s_1", &a, 0));
    CHECK(!mend_taken_again("s_2", &a, minute));
    CHECK(!mend_taken_again("s_1", &b, minute));
    CHECK(mend_taken_again("s_1", &a, 9 * minute));
    CHECK(mend_taken_again("s_1", &b, 9 * minute));
    // Whoever asks, and how often: a file is looked at once in ten minutes.
    for (int i = 0; i < 10; i++) {
        CHECK(!mend_taken_again("s_1", &a, (10 + i % 9) * minute));
        CHECK(!mend_taken_again("s_2", &a, (10 + i % 9) * minute));
    }
    CHECK(!mend_taken_again("s_2", &a, 20 * minute));
    CHECK(mend_taken_again("s_2", &a, 21 * minute));
}

int main(void)
{
    RUN(a_wanted_file_is_remembered_once);
    RUN(too_many_are_forgotten_from_the_oldest);
    RUN(a_second_taking_by_the_same_silo_is_suspicious);
    return check_end();
}
