/* test_seat.c - every rule of server/seat.h. */
#include "server/seat.h"

#include <math.h>
#include <string.h>

#include "tests/support/check.h"

enum { TTL = ROUND_LEASE_S, ASH = 0, BIRCH, CEDAR, DOGWOOD, ELM };

static const struct claimant ash = {.silo = ASH, .active = true};

static enum claim own(const struct seat *s, const struct claimant *c, double now)
{
    return seat_claim_own(s, c, RUN_RUNNING, ROUND_IS_OPEN, now);
}

static void a_silo_gets_its_own_seat_and_asking_again_is_safe(void)
{
    struct seat s = seat_new(ASH, false, 10.0);
    CHECK_INT(own(&s, &ash, 9.9), CLAIM_NO);
    CHECK_INT(own(&s, &ash, 10.0), CLAIM_OWN);
    seat_take(&s, ASH, 10.0);
    CHECK_INT(s.epoch, 1);
    CHECK_INT(seat_hold(&s, ASH, 1, RUN_RUNNING, ROUND_IS_OPEN), HOLD_YES);
    CHECK_INT(own(&s, &ash, 11.0), CLAIM_AGAIN);
    seat_take(&s, ASH, 11.0);
    CHECK_INT(seat_hold(&s, ASH, 1, RUN_RUNNING, ROUND_IS_OPEN), HOLD_LOST);
    CHECK_INT(seat_hold(&s, ASH, 2, RUN_RUNNING, ROUND_IS_OPEN), HOLD_YES);
    CHECK_INT(seat_hold(&s, BIRCH, 2, RUN_RUNNING, ROUND_IS_OPEN), HOLD_LOST);
}

static void who_is_paused_keeps_what_it_holds_and_gets_nothing_new(void)
{
    struct claimant paused = {.silo = ASH, .active = false};
    struct seat s = seat_new(ASH, false, 0.0);
    CHECK_INT(own(&s, &paused, 1.0), CLAIM_NO);
    seat_take(&s, ASH, 0.0);
    CHECK_INT(own(&s, &paused, 1.0), CLAIM_AGAIN);
    CHECK_INT(seat_claim_own(&s, &paused, RUN_PAUSED, ROUND_IS_OPEN, 1.0), CLAIM_AGAIN);
    CHECK_INT(seat_claim_own(&s, &paused, RUN_STOPPED, ROUND_IS_OPEN, 1.0), CLAIM_NO);
}

static void a_paused_run_gives_no_new_task_and_a_finished_one_evaluations_alone(void)
{
    struct seat train = seat_new(ASH, false, 0.0);
    struct seat evaluate = seat_new(ASH, true, 0.0);
    CHECK_INT(seat_claim_own(&train, &ash, RUN_PAUSED, ROUND_IS_OPEN, 1.0), CLAIM_NO);
    CHECK_INT(seat_claim_own(&evaluate, &ash, RUN_PAUSED, ROUND_IS_NONE, 1.0), CLAIM_NO);
    CHECK_INT(seat_claim_own(&evaluate, &ash, RUN_FINISHED, ROUND_IS_NONE, 1.0), CLAIM_OWN);
    CHECK_INT(seat_claim_own(&train, &ash, RUN_RUNNING, ROUND_IS_AGGREGATING, 1.0), CLAIM_NO);
}

static void a_hold_ends_with_the_run_then_the_round_then_the_task(void)
{
    struct seat s = seat_new(ASH, false, 0.0);
    seat_take(&s, ASH, 0.0);
    CHECK_INT(seat_hold(&s, ASH, 1, RUN_STOPPED, ROUND_IS_OPEN), HOLD_RUN_OVER);
    CHECK_INT(seat_hold(&s, ASH, 1, RUN_FAILED, ROUND_IS_ABORTED), HOLD_RUN_OVER);
    CHECK_INT(seat_hold(&s, ASH, 1, RUN_PAUSED, ROUND_IS_OPEN), HOLD_YES);
    for (int round = 0; round < ROUND_STATE_COUNT; round++) {
        CHECK_INT(seat_hold(&s, ASH, 1, RUN_RUNNING, (enum round_state)round),
                  round == ROUND_IS_OPEN ? HOLD_YES : HOLD_ROUND_OVER);
    }
    CHECK_INT(seat_accept(&s, HOLD_YES, false, true), ACCEPT_COUNT);
    CHECK_INT(seat_hold(&s, ASH, 1, RUN_RUNNING, ROUND_IS_OPEN), HOLD_DONE);
}

static void an_upload_counts_once_and_says_so_for_ever(void)
{
    struct seat s = seat_new(ASH, false, 0.0);
    seat_take(&s, ASH, 0.0);
    CHECK_INT(seat_accept(&s, HOLD_YES, false, false), ACCEPT_GONE);
    CHECK_INT(s.state, SEAT_LEASED);
    CHECK_INT(seat_accept(&s, HOLD_LOST, false, true), ACCEPT_REFUSE);
    CHECK_INT(s.state, SEAT_LEASED);
    CHECK_INT(seat_accept(&s, HOLD_YES, false, true), ACCEPT_COUNT);
    CHECK_INT(seat_accept(&s, HOLD_DONE, false, true), ACCEPT_REFUSE);
    CHECK_INT(seat_accept(&s, HOLD_ROUND_OVER, true, true), ACCEPT_AGAIN);
}

static void a_silent_silo_keeps_its_seat_for_two_lease_times(void)
{
    struct seat s = seat_new(ASH, false, 0.0);
    CHECK_NEAR(seat_open_since(&s), 2.0 * TTL, 0.0);
    seat_take(&s, ASH, 5.0);
    CHECK_NEAR(seat_open_since(&s), 5.0 + 2.0 * TTL, 0.0);
    CHECK(!seat_expire(&s, true, 5.0 + 2.0 * TTL));
    CHECK(!seat_expire(&s, false, 1e9));
    CHECK(seat_expire(&s, true, 5.1 + 2.0 * TTL));
    CHECK_INT(s.state, SEAT_PENDING);
    CHECK_INT(s.attempt, 1);
    CHECK(seat_open_since(&s) <= 5.1 + 2.0 * TTL);
    struct seat evaluate = seat_new(ASH, true, 0.0);
    seat_take(&evaluate, ASH, 0.0);
    CHECK(isinf(seat_open_since(&evaluate)));
}

static void the_third_failure_is_the_seats_last(void)
{
    struct seat s = seat_new(ASH, false, 0.0);
    bool counts = false;
    for (int i = 1; i <= 3; i++) {
        CHECK_INT(s.attempt, i);
        seat_take(&s, ASH, 0.0);
        CHECK(seat_fail(&s, "oom", 0.5, &counts, 0.0));
        CHECK(counts);
        CHECK_INT(s.state, i < 3 ? SEAT_PENDING : SEAT_FAILED);
    }
    CHECK_INT(s.attempt, 3);
    CHECK(!seat_fail(&s, "bored", 0.5, &counts, 0.0));
}

static void what_failed_says_when_and_where_the_seat_comes_back(void)
{
    static const struct {
        const char *code;
        bool counts;
        double own_from, own_to, others;
    } rows[] = {{"oom", true, TTL, TTL, 0},      {"disk_full", true, TTL, TTL, 0},
                {"bad_data", true, TTL, TTL, 0}, {"diverged", true, TTL, TTL, 0},
                {"bad_update", true, 5, 5, 0},   {"transient", true, 5, TTL, TTL},
                {"shutdown", false, 0, 0, TTL}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (int k = 0; k < 2; k++) {
            struct seat s = seat_new(ASH, false, 0.0);
            bool counts = !rows[i].counts;
            seat_take(&s, ASH, 0.0);
            CHECK(seat_fail(&s, rows[i].code, k, &counts, 100.0));
            CHECK_INT(counts, rows[i].counts);
            CHECK_INT(s.attempt, counts ? 2 : 1);
            CHECK_NEAR(s.free_at, 100.0 + (k ? rows[i].own_to : rows[i].own_from), 1e-9);
            CHECK_NEAR(s.open_at, 100.0 + rows[i].others, 1e-9);
        }
    }
}

/* A round of ash's and birch's seats, drawn before cedar, dogwood and elm. */
struct fixture {
    struct seat seat[2];
    struct spare drawn[5];
    struct seats round;
};

static void setup(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    for (int i = 0; i < 5; i++) {
        f->drawn[i] = (struct spare){.silo = i, .here = true};
    }
    for (int i = 0; i < 2; i++) {
        f->seat[i] = seat_new(i, false, 0.0);
    }
    f->round = (struct seats){.run = RUN_RUNNING,
                              .round = ROUND_IS_OPEN,
                              .seat = f->seat,
                              .count = 2,
                              .drawn = f->drawn,
                              .drawn_count = 5,
                              .deadline = 1000.0};
}

static int over(const struct fixture *f, int silo, double now)
{
    struct claimant c = {.silo = silo, .active = true, .tokens_fit = true};
    return seats_claim_over(&f->round, &c, now);
}

static void spares_get_a_free_seat_in_the_order_of_the_draw(void)
{
    struct fixture f;
    setup(&f);
    f.seat[1].open_at = 100.0;
    CHECK_INT(over(&f, CEDAR, 99.0), -1);
    CHECK_INT(over(&f, CEDAR, 100.0), 1);
    CHECK_INT(over(&f, DOGWOOD, 100.0), -1);
    CHECK_INT(over(&f, DOGWOOD, 100.0 + SEAT_TURN_S), 1);
    CHECK_INT(over(&f, ELM, 100.0 + SEAT_TURN_S), -1);
    CHECK_INT(over(&f, ELM, 100.0 + 2 * SEAT_TURN_S), 1);
    f.drawn[CEDAR].here = false;
    CHECK_INT(over(&f, DOGWOOD, 100.0), 1);
    f.drawn[DOGWOOD].aside = true;
    CHECK_INT(over(&f, ELM, 100.0), 1);
}

static void two_free_seats_serve_two_spares_at_once(void)
{
    struct fixture f;
    setup(&f);
    f.seat[0].open_at = 90.0;
    f.seat[1].open_at = 90.0;
    CHECK_INT(over(&f, CEDAR, 90.0), 0);
    CHECK_INT(over(&f, DOGWOOD, 90.0), 1);
    CHECK_INT(over(&f, ELM, 90.0), -1);
    seat_take(&f.seat[0], CEDAR, 90.0);
    CHECK_INT(over(&f, DOGWOOD, 90.0), -1); // ash has no seat any more, and is before it
    CHECK_INT(over(&f, ASH, 90.0), 1);
    f.drawn[ASH].here = false;
    CHECK_INT(over(&f, DOGWOOD, 90.0), 1);
    CHECK_INT(over(&f, CEDAR, 90.0), -1); // one seat each
}

static void a_latecomer_is_behind_all_spares_and_needs_the_time_of_a_task(void)
{
    struct fixture f;
    setup(&f);
    f.seat[0].open_at = 100.0;
    CHECK_INT(over(&f, 77, 100.0 + 2 * SEAT_TURN_S), -1);
    CHECK_INT(over(&f, 77, 100.0 + 3 * SEAT_TURN_S), 0);
    f.round.task_s = 300.0;
    CHECK_INT(over(&f, 77, 700.0), 0);
    CHECK_INT(over(&f, 77, 700.1), -1);
    CHECK_INT(over(&f, CEDAR, 700.1), 0); // was in the draw
}

static void nobody_takes_over_what_is_closed_done_or_not_for_him(void)
{
    struct fixture f;
    setup(&f);
    f.seat[0].open_at = 0.0;
    struct claimant c = {.silo = CEDAR, .active = true, .tokens_fit = true, .aside = true};
    CHECK_INT(seats_claim_over(&f.round, &c, 1.0), -1);
    c = (struct claimant){.silo = CEDAR, .active = true, .tokens_fit = false};
    CHECK_INT(seats_claim_over(&f.round, &c, 1.0), -1);
    c = (struct claimant){.silo = CEDAR, .active = false, .tokens_fit = true};
    CHECK_INT(seats_claim_over(&f.round, &c, 1.0), -1);
    CHECK_INT(over(&f, BIRCH, 1.0), -1); // has a seat
    f.round.run = RUN_PAUSED;
    CHECK_INT(over(&f, CEDAR, 1.0), -1);
    f.round.run = RUN_RUNNING;
    f.round.round = ROUND_IS_AGGREGATING;
    CHECK_INT(over(&f, CEDAR, 1.0), -1);
    f.round.round = ROUND_IS_OPEN;
    f.seat[0].state = SEAT_DONE;
    CHECK_INT(over(&f, CEDAR, 1.0), -1);
}

static void three_failures_in_a_row_set_a_silo_aside(void)
{
    CHECK(!silo_set_aside(0) && !silo_set_aside(2) && silo_set_aside(3) && !silo_set_aside(4));
    CHECK(!silo_left_out(0) && !silo_left_out(2) && silo_left_out(3) && silo_left_out(6));
}

static void silence_of_all_servers_costs_nobody_a_seat(void)
{
    CHECK(!outage_counts(TTL / 2.0) && outage_counts(TTL / 2.0 + 0.1));
    struct seat s = seat_new(ASH, false, 0.0);
    seat_outage(&s, 1000.0);
    CHECK_NEAR(s.open_at, 1000.0 + 2.0 * TTL, 0.0);
    seat_take(&s, ASH, 0.0);
    seat_outage(&s, 1000.0);
    CHECK_NEAR(s.lease_until, 1000.0 + TTL, 0.0);
    CHECK_NEAR(round_outage(500.0, 2000.0, 900.0), 1400.0, 0.0);
    CHECK_NEAR(round_outage(500.0, 1200.0, 900.0), 1200.0, 0.0);
}

int main(void)
{
    RUN(a_silo_gets_its_own_seat_and_asking_again_is_safe);
    RUN(who_is_paused_keeps_what_it_holds_and_gets_nothing_new);
    RUN(a_paused_run_gives_no_new_task_and_a_finished_one_evaluations_alone);
    RUN(a_hold_ends_with_the_run_then_the_round_then_the_task);
    RUN(an_upload_counts_once_and_says_so_for_ever);
    RUN(a_silent_silo_keeps_its_seat_for_two_lease_times);
    RUN(the_third_failure_is_the_seats_last);
    RUN(what_failed_says_when_and_where_the_seat_comes_back);
    RUN(spares_get_a_free_seat_in_the_order_of_the_draw);
    RUN(two_free_seats_serve_two_spares_at_once);
    RUN(a_latecomer_is_behind_all_spares_and_needs_the_time_of_a_task);
    RUN(nobody_takes_over_what_is_closed_done_or_not_for_him);
    RUN(three_failures_in_a_row_set_a_silo_aside);
    RUN(silence_of_all_servers_costs_nobody_a_seat);
    return check_end();
}
