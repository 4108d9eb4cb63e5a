#include "server/round.h"

#include <math.h>
#include <string.h>

bool round_eligible(const struct round_silo *s, bool recall)
{
    if (s->carried) {
        return true;
    }
    return s->active && s->introduced && s->tokens_fit && s->silent_s < ROUND_PATIENCE_S &&
           (recall || s->aside_rounds == 0);
}

enum round_verdict round_may_open(const struct round_opening *o)
{
    if (o->eligible >= o->silos_per_round) {
        return ROUND_OPEN;
    }
    if (o->waited_s < ROUND_PATIENCE_S) {
        return ROUND_WAIT;
    }
    if (o->eligible >= o->quorum && o->eligible > 0) {
        return ROUND_OPEN;
    }
    return o->recallable >= o->quorum && o->recallable > 0 ? ROUND_RECALL : ROUND_WAIT;
}

int round_seats(int eligible, int silos_per_round, int oversample)
{
    int wanted = silos_per_round + oversample;
    return eligible < wanted ? eligible : wanted;
}

int round_expected(int eligible, int silos_per_round)
{
    return eligible < silos_per_round ? eligible : silos_per_round;
}

int round_quorum(int expected, int min_silos)
{
    return min_silos < expected ? min_silos : expected;
}

enum round_verdict round_judge(const struct round_progress *p)
{
    int at_work = p->pending + p->leased;
    if (p->accepted >= p->expected) {
        return ROUND_SEAL;
    }
    if (p->accepted >= p->quorum) {
        return at_work == 0 || p->deadline_passed || p->cap_passed ? ROUND_SEAL : ROUND_WAIT;
    }
    return p->cap_passed || p->accepted + at_work < p->quorum ? ROUND_ABORT : ROUND_WAIT;
}

double round_deadline(double deadline, double cap_at, double claimed_at, double task_s)
{
    return fmax(deadline, fmin(cap_at, claimed_at + task_s));
}

bool round_tries_again(int attempt)
{
    return attempt % ROUND_ATTEMPTS != 0;
}

bool round_fence(enum round_state state, int64_t newest, int64_t epoch)
{
    return state == ROUND_IS_AGGREGATING && newest == epoch;
}

bool round_keeps_quorum(int accepted, int quorum)
{
    return accepted >= quorum;
}

static int name_index(const char *const *names, int n, const char *name)
{
    int i = 0;
    while (i < n && (!name || strcmp(names[i], name) != 0)) {
        i++;
    }
    return i;
}

enum run_state run_state_of(const char *name)
{
    static const char *const names[RUN_STATE_COUNT] = {"created",  "running", "paused",
                                                       "finished", "stopped", "failed"};
    return (enum run_state)name_index(names, RUN_STATE_COUNT, name);
}

enum round_state round_state_of(const char *name)
{
    static const char *const names[ROUND_STATE_COUNT] = {"",       "pending", "open", "aggregating",
                                                         "closed", "aborted"};
    return (enum round_state)name_index(names, ROUND_STATE_COUNT, name);
}
