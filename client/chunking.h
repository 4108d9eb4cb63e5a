/*
 * chunking.h - how large the next piece of an upload is, and its digest before it is asked for.
 *
 * A cut costs what of a piece was on its way, so a piece is no longer than a few seconds take; each
 * piece costs a sync and a round trip, so on a fast link it is as large as the server takes. The
 * digest of the next piece is made by a thread while the one before is sent.
 */
#ifndef CLIENT_CHUNKING_H
#define CLIENT_CHUNKING_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"

enum {
    CHUNK_FIRST = 8 * 1024 * 1024, /* before anything is known of the link */
    CHUNK_LEAST = 1024 * 1024,
    CHUNK_AIM_S = 10
};

/*
 * The next size after a piece of `bytes` that took `seconds`: what CHUNK_AIM_S would take at that
 * rate, at most four times as much as before; half as much after one that was not whole. A multiple
 * of CHUNK_LEAST, unless most is below it.
 */
int64_t chunk_next(int64_t bytes, double seconds, bool whole, int64_t most);

struct ahead;

struct ahead *ahead_new(int fd);  /* the open file, borrowed */
void ahead_free(struct ahead *a); /* waits for the thread; NULL is allowed */

/* Begin with the CRC32C of that piece. One at a time: what was begun before is forgotten. */
void ahead_start(struct ahead *a, int64_t offset, int64_t bytes);

/*
 * The CRC32C of a piece at offset: of *bytes, or of another length, said in *bytes, when such a one
 * was begun. Else it is made now. ST_IO: the file cannot be read or is shorter.
 */
enum status ahead_take(struct ahead *a, int64_t offset, int64_t *bytes, uint32_t *crc32c,
                       struct err *e) MUST_CHECK;

#endif
