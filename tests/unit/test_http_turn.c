#include "server/http_turn.h"

#include "tests/support/check.h"

static enum turn ask(struct turns *t, bool called, bool fresh, bool woken)
{
    const bool waits[TURN_COUNT] = {
        [TURN_CALLED] = called, [TURN_FRESH] = fresh, [TURN_WOKEN] = woken};
    return turn_next(t, waits);
}

static void who_is_called_goes_first_then_what_is_new(void)
{
    struct turns t = {.workers = 8};
    CHECK_INT(ask(&t, true, true, true), TURN_CALLED);
    CHECK_INT(ask(&t, false, true, true), TURN_FRESH);
    CHECK_INT(ask(&t, false, false, true), TURN_WOKEN);
    CHECK_INT(ask(&t, false, false, false), TURN_NONE);
}

static void what_was_woken_has_its_turn_while_there_is_always_something_new(void)
{
    struct turns t = {.workers = 8};
    int woken = 0;
    for (int i = 0; i < 400; i++) {
        woken += ask(&t, false, true, true) == TURN_WOKEN;
    }
    CHECK_INT(woken, 100);
    // Not one that comes after many for which nobody waited.
    t = (struct turns){.workers = 8};
    for (int i = 0; i < 10; i++) {
        CHECK_INT(ask(&t, false, true, false), TURN_FRESH);
    }
    CHECK_INT(ask(&t, false, true, true), TURN_FRESH);
}

static void a_quarter_of_the_workers_is_kept_for_what_is_new(void)
{
    static const struct {
        int workers, most;
    } cases[] = {{2, 1}, {3, 2}, {4, 3}, {5, 3}, {8, 6}, {64, 48}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct turns t = {.workers = cases[i].workers};
        for (t.parked_busy = 0; t.parked_busy < cases[i].most; t.parked_busy++) {
            CHECK_INT(ask(&t, true, true, true), TURN_CALLED);
        }
        t.fresh_in_a_row = 1000;
        CHECK_INT(ask(&t, true, true, true), TURN_FRESH);
        CHECK_INT(ask(&t, true, false, true), TURN_NONE);
    }
}

static void one_worker_alone_serves_all(void)
{
    struct turns t = {.workers = 1, .parked_busy = 0};
    CHECK_INT(ask(&t, true, true, true), TURN_CALLED);
    CHECK_INT(ask(&t, false, false, true), TURN_WOKEN);
}

int main(void)
{
    RUN(who_is_called_goes_first_then_what_is_new);
    RUN(what_was_woken_has_its_turn_while_there_is_always_something_new);
    RUN(a_quarter_of_the_workers_is_kept_for_what_is_new);
    RUN(one_worker_alone_serves_all);
    return check_end();
}
