#include "server/round.h"

enum round_verdict round_may_open(const struct round_opening *o)
{
    if (o->eligible >= o->silos_per_round) {
        return ROUND_OPEN;
    }
    bool enough = o->eligible >= o->quorum && o->eligible > 0;
    return enough && o->waited_s >= ROUND_PATIENCE_S ? ROUND_OPEN : ROUND_WAIT;
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
