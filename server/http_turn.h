/*
 * http_turn.h - which queue a worker serves next. A pure rule; http_work.c keeps the queues.
 *
 * Called: the few polls that may have a seat. Fresh: what has just come. Woken: the rest of what
 * was parked; a thousand of these at once must not stand before a new request, and they must not
 * wait without end while there is always something new. Of several workers a quarter never has
 * what was parked, called or woken.
 */
#ifndef SERVER_HTTP_TURN_H
#define SERVER_HTTP_TURN_H

#include <stdbool.h>

enum turn { TURN_CALLED, TURN_FRESH, TURN_WOKEN, TURN_COUNT, TURN_NONE = TURN_COUNT };

struct turns {
    int workers;
    int parked_busy;    /* workers that have what was parked; the caller counts them */
    int fresh_in_a_row; /* taken while what was woken waited */
};

/* waits[turn]: there is something in that queue. The caller takes from the one that is named. */
enum turn turn_next(struct turns *t, const bool waits[TURN_COUNT]);

#endif
