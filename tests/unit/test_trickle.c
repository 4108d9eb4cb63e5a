#include "server/trickle.h"

#include <stdio.h>

#include "tests/support/check.h"

static int pass(struct trickles *t, const char *name, int64_t now, int tries)
{
    static const struct trickle_rule rule = {10, 50};
    int passed = 0;
    for (int i = 0; i < tries; i++) {
        passed += trickles_take(t, name, &rule, now);
    }
    return passed;
}

static void one_that_asks_too_often_takes_nothing_from_another(void)
{
    static struct trickles t;
    CHECK_INT(pass(&t, "s_a", 1000, 100), 10);
    CHECK_INT(pass(&t, "s_b", 1000, 9), 9);
    CHECK_INT(pass(&t, "s_a", 1500, 100), 10);
    CHECK_INT(pass(&t, "s_b", 1050, 100), 2);
    CHECK_INT(pass(&t, "s_a", 1550, 100), 1);
}

static void more_names_than_there_is_room_for_forget_the_oldest(void)
{
    static struct trickles t;
    char name[TRICKLE_NAME];
    for (int i = 0; i < 3 * TRICKLE_NAMES; i++) {
        (void)snprintf(name, sizeof(name), "s_%d", i);
        CHECK_INT(pass(&t, name, 1000 + i, 20), 10); // as if it were alone
        CHECK_INT(pass(&t, name, 1000 + i, 20), 0);
    }
    CHECK_INT(pass(&t, "s_0", 1000 + 3 * TRICKLE_NAMES, 20), 10);
}

int main(void)
{
    RUN(one_that_asks_too_often_takes_nothing_from_another);
    RUN(more_names_than_there_is_room_for_forget_the_oldest);
    return check_end();
}
