/*
 * blob.h - the blob folder: files named by their SHA-256, durable before they are named.
 *
 *     blobs/aa/bb/<64 hex>     finished, immutable, mode 0400
 *     tmp/<upload id>          an upload or a checkpoint being written
 *     tmp/gone-<64 hex>-<id>   a blob that was set aside to be removed
 *
 * or, with a bucket, objects of the same names, tmp/ as before, and cache/aa/bb/<64 hex>, of which
 * nothing is needed.
 *
 * Order, always: create in tmp, write, fsync, rename into place without replacing, fsync the
 * folder; only then is the row committed that refers to it (protocol: rows never name a file that
 * may be lost). Putting the same content twice is harmless. Paths are made of digests and ids that
 * were checked by pattern; nothing else from a request reaches a path.
 */
#ifndef SERVER_BLOB_H
#define SERVER_BLOB_H

#include <stdbool.h>
#include <stdint.h>

#include "common/hash.h"
#include "common/status.h"

struct blob_store;
struct s3;

/* The folder is made when missing (mode 0700). ST_IO when it cannot be written. */
enum status blob_store_open(struct blob_store **out, const char *dir, struct err *e) MUST_CHECK;
void blob_store_close(struct blob_store *s);

/*
 * From now on blobs are objects of this bucket, which the store closes; the folder has temporary
 * files and a cache. ST_CONFLICT: the folder has blobs of its own.
 */
enum status blob_store_bucket(struct blob_store *s, struct s3 *bucket, struct err *e) MUST_CHECK;
bool blob_is_remote(const struct blob_store *s);

/* One more user of the store, who closes it too: for a thread that may outlive the others. */
struct blob_store *blob_store_share(struct blob_store *s);

/*
 * Room on the disk that uploads and checkpoints may not take, whoever asks: percent of the disk but
 * not above most, or bytes. Without another one it is 10 %, at most 2 GiB.
 */
struct blob_floor {
    double percent; /* 0: bytes says it */
    int64_t most;
    int64_t bytes;
};
/* "10%", "20G", "512M", "0". ST_INVALID. */
enum status blob_floor_parse(struct blob_floor *out, const char *text, struct err *e) MUST_CHECK;
void blob_store_floor(struct blob_store *s, const struct blob_floor *floor);

/*
 * Free bytes on the store's disk, how many must stay so, and how many there are before an upload is
 * refused: those of the cache count when it comes to that. < 0: the disk does not say.
 */
int64_t blob_free_bytes(const struct blob_store *s);
int64_t blob_floor_bytes(const struct blob_store *s);
int64_t blob_room_bytes(const struct blob_store *s);

/* What the cache has not used for a while goes until twice the floor is free: how many files. */
int blob_cache_tend(struct blob_store *s);

/*
 * A temporary file of exactly that size, its room reserved. ST_LIMIT: the disk is full, or would
 * have less free than the floor (507).
 */
enum status blob_tmp_create(struct blob_store *s, const char *id, int64_t bytes, int *fd,
                            struct err *e) MUST_CHECK;
enum status blob_tmp_open(struct blob_store *s, const char *id, int *fd, struct err *e) MUST_CHECK;
void blob_tmp_remove(struct blob_store *s, const char *id);
/* ST_NOT_FOUND. */
enum status blob_tmp_size(struct blob_store *s, const char *id, int64_t *bytes,
                          struct err *e) MUST_CHECK;

/*
 * What of a placing takes its time and needs no lock, done before: a bucket gets the object. The
 * placing itself looks that it is still there.
 */
enum status blob_stage(struct blob_store *s, const char *tmp_id, const struct digest *d,
                       struct err *e) MUST_CHECK;

/* Sync the temporary file and give it its name. Idempotent: if the blob exists, tmp is dropped. */
enum status blob_place(struct blob_store *s, const char *tmp_id, const struct digest *d,
                       struct err *e) MUST_CHECK;

/*
 * The same for a file whose content is known to be that of the digest, while what has the name is
 * damaged: it is replaced in one step. Who has the damaged one open keeps it.
 */
enum status blob_replace(struct blob_store *s, const char *tmp_id, const struct digest *d,
                         struct err *e) MUST_CHECK;

/* ST_NOT_FOUND when there is no such blob. */
enum status blob_stat(struct blob_store *s, const struct digest *d, int64_t *bytes,
                      struct err *e) MUST_CHECK;
enum status blob_open(struct blob_store *s, const struct digest *d, int *fd, int64_t *bytes,
                      struct err *e) MUST_CHECK;

/*
 * blob_open() for those who cannot wait as long as a bucket may take: *coming, with ST_RETRY, when
 * the object is still on its way into the cache. It goes on without them, so they ask again.
 */
enum status blob_open_within(struct blob_store *s, const struct digest *d, int64_t patience_ms,
                             int *fd, int64_t *bytes, bool *coming, struct err *e) MUST_CHECK;

/*
 * What is stored, in pieces, past any cache; fn's refusal ends it with its status. ST_NOT_FOUND;
 * ST_CORRUPT: the disk cannot read it; ST_IO, ST_RETRY.
 */
typedef enum status blob_scan_fn(void *ctx, const void *data, size_t len, struct err *e);
enum status blob_scan(struct blob_store *s, const struct digest *d, blob_scan_fn *fn, void *ctx,
                      struct err *e) MUST_CHECK;

/* A local copy that blob_open() gave is damaged: dropped when there is another behind it. False:
 * it was the blob itself. */
bool blob_distrust(struct blob_store *s, const struct digest *d);

/*
 * Reads it whole: is it what its name says? ST_NOT_FOUND; ST_CORRUPT: it is not, or the disk cannot
 * read it; ST_IO.
 */
enum status blob_verify(struct blob_store *s, const struct digest *d, int64_t *bytes,
                        struct err *e) MUST_CHECK;

/* Remove a blob nobody refers to; absent is fine. */
enum status blob_remove(struct blob_store *s, const struct digest *d, struct err *e) MUST_CHECK;

/*
 * Removing under a lock that may lapse (server/db_blob.h): the blob is set aside under a name that
 * is this call's alone, and then either removed by blob_tmp_remove() or put back, unless there is a
 * blob of its digest again. name is set before anything is done and is "" when nothing was there. A
 * bucket cannot set aside: there it is removed, and name is "".
 */
enum { BLOB_ASIDE_SIZE = 120 };
enum status blob_set_aside(struct blob_store *s, const struct digest *d, char name[BLOB_ASIDE_SIZE],
                           struct err *e) MUST_CHECK;
enum status blob_put_back(struct blob_store *s, const char *name, const struct digest *d,
                          struct err *e) MUST_CHECK;
/* Is it the name of one? Then *d is whose. */
bool blob_is_aside(const char *name, struct digest *d);

/* What lies in the store, whether or not a row refers to it. */
struct blob_entry {
    bool tmp;         /* a temporary file */
    bool strange;     /* no name of ours: digest is not set */
    const char *name; /* of a temporary file, else where it lies; for the call alone */
    struct digest digest;
    int64_t bytes;
    int64_t age_s;    /* since it got its name, whatever time its content claims */
    int64_t unused_s; /* of a cache: since blob_open() gave it last */
};
typedef enum status blob_walk_fn(void *ctx, const struct blob_entry *f, struct err *e);

/* Calls fn for each; an error of it ends the walk. What comes or goes meanwhile may be missed. */
enum status blob_walk(struct blob_store *s, blob_walk_fn *fn, void *ctx, struct err *e) MUST_CHECK;
/* Those alone that are set aside; digest is set. */
enum status blob_walk_aside(struct blob_store *s, blob_walk_fn *fn, void *ctx,
                            struct err *e) MUST_CHECK;

#endif
