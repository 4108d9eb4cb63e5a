/*
 * hub.h - who waits for what: the process's one notice board.
 *
 * Topics are short strings: "tasks" (a task may be free), "rounds" (one opened, was sealed or
 * closed), "run:<id>", "tokens" (one ended), "events" (somebody waits to see an event). A wake is a
 * hint: whoever waits looks again in the database, and looks again each second anyway. PostgreSQL's
 * NOTIFY is turned into wakes by the coordinator's listener, so that another process's commit wakes
 * ours; what happens often does not notify, for such commits stand in a row (sql/0018_wakes.sql).
 */
#ifndef SERVER_HUB_H
#define SERVER_HUB_H

#include <stdint.h>

struct hub;

struct hub *hub_new(void);
void hub_free(struct hub *h);
void hub_wake(struct hub *h, const char *topic);

/* fn(ctx, topic) on every wake, from the waking thread; it must not block. At most 8. */
void hub_subscribe(struct hub *h, void (*fn)(void *ctx, const char *topic), void *ctx);

/* After it returns fn is not called any more. */
void hub_unsubscribe(struct hub *h, void (*fn)(void *ctx, const char *topic), void *ctx);

#endif
