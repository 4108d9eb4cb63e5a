#include "server/http_turn.h"

enum { FRESH_IN_A_ROW = 3 };

static enum turn next(const struct turns *t, const bool waits[TURN_COUNT])
{
    bool may_take = t->workers == 1 || t->parked_busy < t->workers - (t->workers + 3) / 4;
    if (may_take && waits[TURN_CALLED]) {
        return TURN_CALLED;
    }
    if (may_take && waits[TURN_WOKEN] && t->fresh_in_a_row >= FRESH_IN_A_ROW) {
        return TURN_WOKEN;
    }
    if (waits[TURN_FRESH]) {
        return TURN_FRESH;
    }
    return may_take && waits[TURN_WOKEN] ? TURN_WOKEN : TURN_NONE;
}

enum turn turn_next(struct turns *t, const bool waits[TURN_COUNT])
{
    enum turn which = next(t, waits);
    if (which == TURN_FRESH) {
        t->fresh_in_a_row = waits[TURN_WOKEN] ? t->fresh_in_a_row + 1 : 0;
    } else if (which == TURN_WOKEN) {
        t->fresh_in_a_row = 0;
    }
    return which;
}
