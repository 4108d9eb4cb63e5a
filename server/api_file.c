#include "server/api_file.h"

#include <unistd.h>

#include "common/clock.h"
#include "server/blob.h"
#include "server/mend.h"
#include "server/server.h"

enum {
    PATIENCE_MS = 20 * 1000, // a client gives a silent link up after a minute
    LOOK_MS = 500,           // whoever waits here looks whether the server stops
};

static enum status still_coming(struct request *rq, struct response *rs)
{
    (void)problem(rq, rs, 503, "UNAVAILABLE", "ask again in a moment",
                  "the file is on its way from the object store");
    response_header(rs, "Retry-After", "2");
    return ST_OK;
}

typedef enum status open_fn(struct blob_store *s, const struct digest *d, int64_t patience_ms,
                            int *fd, int64_t *bytes, bool *coming, struct err *e);

/* Control: aside, until it is there or the time is over. */
static enum status wait_aside(struct request *rq, struct response *rs)
{
    double now = clock_mono_s();
    double *until = rq->state;
    if (!until) {
        until = arena_alloc(rq->arena, sizeof(*until));
        *until = now + PATIENCE_MS / 1e3;
        rq->state = until;
    }
    if (rq->expired || now >= *until) {
        return still_coming(rq, rs);
    }
    response_park(rs, "files", *until); // nobody wakes it: it looks again by itself
    return ST_OK;
}

/* Bulk: on the connection's own thread. */
static enum status wait_here(struct request *rq, struct response *rs, open_fn *open,
                             const struct digest *d, int *fd, int64_t *bytes, struct err *e)
{
    bool coming = false;
    int64_t until = clock_mono_ms() + PATIENCE_MS;
    enum status st = ST_OK;
    request_db_give(rq);
    do {
        st = open(rq->server->blobs, d, LOOK_MS, fd, bytes, &coming, e);
    } while (coming && !atomic_load(&rq->server->stopping) && clock_mono_ms() < until);
    if (!request_db_take(rq)) {
        if (!st) {
            (void)close(*fd);
            *fd = -1;
        }
        return ST_OK; // rs says it
    }
    return coming ? still_coming(rq, rs) : st;
}

enum status file_open(struct request *rq, struct response *rs, const struct digest *d, bool mends,
                      int *fd, int64_t *bytes, struct err *e)
{
    open_fn *open = mends ? mend_open_within : blob_open_within;
    bool coming = false;
    *fd = -1;
    enum status st = open(rq->server->blobs, d, 0, fd, bytes, &coming, e);
    if (!coming) {
        return st;
    }
    return rq->bulk ? wait_here(rq, rs, open, d, fd, bytes, e) : wait_aside(rq, rs);
}
