/*
 * stream.h - the event log as Server-Sent Events, to many listeners at once.
 *
 * One thread of the process reads the event log past its cursor, when the hub says "events" and
 * each second anyway, and hands every event to the streams that want it. The cursor is the pair
 * (xid, id), and only rows of transactions older than every one still running are read, so that an
 * event whose id was drawn early and committed late is never skipped. A stream that falls behind
 * its buffer is told to load anew (`reset`), never slowed down with the others.
 *
 * A token that is revoked or expired ends its streams within a second. A comment every 15 s tells
 * the peer that we live, and us, by its failing, that the peer does not.
 */
#ifndef SERVER_STREAM_H
#define SERVER_STREAM_H

#include <stddef.h>
#include <stdint.h>

#include "common/status.h"
#include "server/db.h"

struct server;
struct streams; /* all of a process */
struct stream;  /* one listener */

/* A place in the event log. */
struct event_cursor {
    uint64_t xid;
    int64_t id;
};

/* "123-456" and back; ST_INVALID when it is no such pair. */
enum status event_cursor_parse(struct event_cursor *out, const char *text,
                               struct err *e) MUST_CHECK;

struct streams *streams_new(struct server *server);
void streams_end(struct streams *ss);  /* every stream ends; no new one */
void streams_stop(struct streams *ss); /* after streams_end() and the last close */
int streams_count(struct streams *ss);

/*
 * A stream of the run's events (NULL: all runs), from after on (NULL: from now), for as long as the
 * reader's secret (its SHA-256 in hex) speaks for somebody. Missed events are replayed from db.
 * ST_LIMIT: there are LIMIT_STREAMS already.
 */
enum status stream_open(struct stream **out, struct streams *ss, struct db *db, const char *run_id,
                        const char *secret, const struct event_cursor *after,
                        struct err *e) MUST_CHECK;
void stream_close(struct stream *s);
void stream_end(struct stream *s); /* its reader is told -1; it is still to be closed */

/*
 * Up to max bytes of event stream; -1 when it has ended. When there is nothing, wait(ctx) is called
 * and 0 returned, and later, once, ready(ctx): both under the stream's lock, so in this order.
 */
long stream_read(struct stream *s, char *out, size_t max, void (*wait)(void *ctx),
                 void (*ready)(void *ctx), void *ctx);

#endif
