/* test_round.c - every case of server/round.h's rules. */
#include "server/round.h"

#include "tests/support/check.h"

static void a_round_opens_at_once_with_all_silos_and_later_with_a_quorum(void)
{
    for (int eligible = 0; eligible <= 6; eligible++) {
        for (int quorum = 1; quorum <= 4; quorum++) {
            struct round_opening o = {eligible, eligible, 4, quorum, 0.0};
            CHECK_INT(round_may_open(&o), eligible >= 4 ? ROUND_OPEN : ROUND_WAIT);
            o.waited_s = ROUND_PATIENCE_S - 0.001;
            CHECK_INT(round_may_open(&o), eligible >= 4 ? ROUND_OPEN : ROUND_WAIT);
            o.waited_s = ROUND_PATIENCE_S;
            CHECK_INT(round_may_open(&o), eligible >= quorum ? ROUND_OPEN : ROUND_WAIT);
        }
    }
}

static void who_sits_out_is_called_back_when_there_is_no_quorum_without(void)
{
    struct round_opening o = {
        .eligible = 1, .recallable = 3, .silos_per_round = 4, .quorum = 3, .waited_s = 0.0};
    CHECK_INT(round_may_open(&o), ROUND_WAIT);
    o.waited_s = ROUND_PATIENCE_S;
    CHECK_INT(round_may_open(&o), ROUND_RECALL);
    o.recallable = 2;
    CHECK_INT(round_may_open(&o), ROUND_WAIT);
    o.eligible = o.recallable = 3;
    CHECK_INT(round_may_open(&o), ROUND_OPEN);
}

static void a_seat_is_for_who_is_here_and_can_use_it(void)
{
    const struct round_silo fit = {.active = true, .introduced = true, .tokens_fit = true};
    struct round_silo s = fit;
    CHECK(round_eligible(&s, false));
    s.active = false;
    CHECK(!round_eligible(&s, true));
    s = fit;
    s.introduced = false;
    CHECK(!round_eligible(&s, true));
    s = fit;
    s.tokens_fit = false;
    CHECK(!round_eligible(&s, true));
    s = fit;
    s.silent_s = ROUND_PATIENCE_S;
    CHECK(!round_eligible(&s, true));
    s.carried = true;
    CHECK(round_eligible(&s, false));
    s = fit;
    s.aside_rounds = 1;
    CHECK(!round_eligible(&s, false));
    CHECK(round_eligible(&s, true));
}

static void a_deadline_moves_for_a_seat_that_changed_hands_and_never_back(void)
{
    CHECK_NEAR(round_deadline(100.0, 500.0, 50.0, 30.0), 100.0, 0.0);
    CHECK_NEAR(round_deadline(100.0, 500.0, 90.0, 30.0), 120.0, 0.0);
    CHECK_NEAR(round_deadline(100.0, 500.0, 490.0, 30.0), 500.0, 0.0);
}

static void only_the_newest_aggregation_of_a_sealed_round_may_publish(void)
{
    for (int state = 0; state < ROUND_STATE_COUNT; state++) {
        bool sealed = state == ROUND_IS_AGGREGATING;
        CHECK_INT(round_fence((enum round_state)state, 7, 7), sealed);
        CHECK(!round_fence((enum round_state)state, 8, 7));
    }
    CHECK(round_keeps_quorum(2, 2) && !round_keeps_quorum(1, 2));
}

static void a_run_tries_three_times_before_it_asks_a_person(void)
{
    CHECK(round_tries_again(1) && round_tries_again(2) && !round_tries_again(3));
    CHECK(round_tries_again(4) && !round_tries_again(6));
}

static void states_have_the_names_of_the_columns(void)
{
    CHECK_INT(run_state_of("running"), RUN_RUNNING);
    CHECK_INT(run_state_of("failed"), RUN_FAILED);
    CHECK_INT(run_state_of("asleep"), RUN_STATE_COUNT);
    CHECK_INT(run_state_of(0), RUN_STATE_COUNT);
    CHECK_INT(round_state_of(""), ROUND_IS_NONE);
    CHECK_INT(round_state_of("aborted"), ROUND_IS_ABORTED);
}

static void seats_are_over_sampled_but_never_more_than_silos(void)
{
    CHECK_INT(round_seats(10, 4, 2), 6);
    CHECK_INT(round_seats(5, 4, 2), 5);
    CHECK_INT(round_seats(3, 4, 0), 3);
    CHECK_INT(round_expected(10, 4), 4);
    CHECK_INT(round_expected(3, 4), 3);
}

/* The rule in the words of its header, to hold the code against, over every small round. */
static enum round_verdict in_words(const struct round_progress *p)
{
    bool all = p->accepted >= p->expected;
    bool quorum = p->accepted >= p->quorum;
    bool nobody = p->pending == 0 && p->leased == 0;
    if (all || (quorum && (nobody || p->deadline_passed || p->cap_passed))) {
        return ROUND_SEAL;
    }
    if (!quorum && (p->cap_passed || p->accepted + p->pending + p->leased < p->quorum)) {
        return ROUND_ABORT;
    }
    return ROUND_WAIT;
}

static void every_small_round_gets_the_verdict_of_the_rule(void)
{
    int seen[5] = {0};
    for (int i = 0; i < 5 * 5 * 6 * 4 * 4 * 4; i++) {
        int rest = i;
        struct round_progress p = {0};
        p.expected = rest % 5 + 1;
        rest /= 5;
        p.quorum = rest % 5 + 1;
        rest /= 5;
        p.accepted = rest % 6;
        rest /= 6;
        p.pending = rest % 4;
        rest /= 4;
        p.leased = rest % 4;
        rest /= 4;
        p.deadline_passed = rest & 1;
        p.cap_passed = rest & 2;
        if (p.quorum > p.expected) {
            continue;
        }
        enum round_verdict v = round_judge(&p);
        CHECK_INT(v, in_words(&p));
        seen[v]++;
        // A sealed round has its quorum, whatever else.
        CHECK(v != ROUND_SEAL || p.accepted >= p.quorum);
    }
    CHECK(seen[ROUND_WAIT] > 0 && seen[ROUND_SEAL] > 0 && seen[ROUND_ABORT] > 0);
    CHECK_INT(seen[ROUND_OPEN] + seen[ROUND_RECALL], 0);
    CHECK_INT(round_quorum(2, 3), 2);
    CHECK_INT(round_quorum(4, 3), 3);
}

static void one_more_update_never_turns_a_seal_into_waiting(void)
{
    for (int accepted = 0; accepted < 4; accepted++) {
        struct round_progress p = {
            .expected = 4, .quorum = 3, .accepted = accepted, .leased = 1, .deadline_passed = true};
        enum round_verdict before = round_judge(&p);
        p.accepted++;
        p.leased = 0;
        CHECK(before != ROUND_SEAL || round_judge(&p) == ROUND_SEAL);
    }
}

int main(void)
{
    RUN(a_round_opens_at_once_with_all_silos_and_later_with_a_quorum);
    RUN(who_sits_out_is_called_back_when_there_is_no_quorum_without);
    RUN(a_seat_is_for_who_is_here_and_can_use_it);
    RUN(a_deadline_moves_for_a_seat_that_changed_hands_and_never_back);
    RUN(only_the_newest_aggregation_of_a_sealed_round_may_publish);
    RUN(a_run_tries_three_times_before_it_asks_a_person);
    RUN(states_have_the_names_of_the_columns);
    RUN(seats_are_over_sampled_but_never_more_than_silos);
    RUN(every_small_round_gets_the_verdict_of_the_rule);
    RUN(one_more_update_never_turns_a_seal_into_waiting);
    return check_end();
}
