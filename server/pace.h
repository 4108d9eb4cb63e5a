/*
 * pace.h - how fast weights may go, all connections together.
 *
 * Each piece is booked before it moves; whoever finds the time up to now taken waits for its turn.
 * What was not used is kept for a tenth of a second, no longer, so that the line behind it sees an
 * even flow. Any thread may call, and the caller's thread is the one that waits.
 */
#ifndef SERVER_PACE_H
#define SERVER_PACE_H

#include <stddef.h>
#include <stdint.h>

struct pace;

struct pace *pace_new(int64_t bytes_per_s);
void pace_free(struct pace *p); /* NULL is allowed */

/* When these bytes may go, in ms from now_ms: the rule alone. */
int64_t pace_book(struct pace *p, size_t bytes, int64_t now_ms);

/* Waits until they may. NULL: at once. */
void pace_take(struct pace *p, size_t bytes);

#endif
