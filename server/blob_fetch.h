/*
 * blob_fetch.h - objects on their way into the cache: one fetch of each at a time, however many
 * wait for it.
 *
 * A fetch has a thread of its own and goes on when those who asked have left, so that a large
 * object comes at last to a client that loses patience and asks again. Whoever waits gets its
 * outcome; an error that nobody waited for is told to the next who asks.
 */
#ifndef SERVER_BLOB_FETCH_H
#define SERVER_BLOB_FETCH_H

#include <stdbool.h>
#include <stdint.h>

#include "server/blob.h"

struct blob_fetches;

/* Brings the object; the thread has a share of the store. */
typedef enum status blob_fetch_fn(struct blob_store *s, const struct digest *d, struct err *e);

struct blob_fetches *blob_fetches_new(struct blob_store *s, blob_fetch_fn *fn);
void blob_fetches_free(struct blob_fetches *f); /* none is under way; NULL is allowed */

/*
 * The outcome of the fetch under way, or of a new one. patience_ms < 0: waits as long as it takes;
 * else ST_RETRY when it takes longer, and *coming.
 */
enum status blob_fetch_wait(struct blob_fetches *f, const struct digest *d, int64_t patience_ms,
                            bool *coming, struct err *e) MUST_CHECK;

/* For tests: how many fetches are under way, and how many wait for them. */
void blob_fetches_count(struct blob_fetches *f, int *under_way, int *waiting);

#endif
