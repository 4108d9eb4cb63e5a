/*
 * blob_bucket.h - blobs as objects of a bucket, with a folder of this machine's own as cache.
 *
 * The other half of blob.h. An object is <prefix>/blobs/aa/bb/<64 hex>. What is placed goes to the
 * bucket first and then, as the same file, into the cache, so that who made it need not fetch it.
 * What is fetched is compared with its digest before it is in the cache. The cache gives way,
 * oldest use first: what was not used for a while as soon as the disk comes near the floor, the
 * rest when there is no other room. Nothing in it is needed.
 */
#ifndef SERVER_BLOB_BUCKET_H
#define SERVER_BLOB_BUCKET_H

#include "server/blob.h"
#include "server/blob_folder.h"
#include "server/s3.h"

/* The object is there with the content of this file. */
enum status blob_bucket_put(struct s3 *s3, int fd, const struct digest *d, bool replace,
                            struct err *e) MUST_CHECK;
enum status blob_bucket_stat(struct s3 *s3, const struct digest *d, int64_t *bytes,
                             struct err *e) MUST_CHECK;
enum status blob_bucket_remove(struct s3 *s3, const struct digest *d, struct err *e) MUST_CHECK;
enum status blob_bucket_scan(struct s3 *s3, const struct digest *d, blob_scan_fn *fn, void *ctx,
                             struct err *e) MUST_CHECK;

/* Into fd, whose size is the object's. ST_CORRUPT: it is not what its name says. */
enum status blob_bucket_fetch(struct s3 *s3, const struct digest *d, int fd, int64_t bytes,
                              struct err *e) MUST_CHECK;
enum status blob_bucket_walk(struct s3 *s3, blob_walk_fn *fn, void *ctx, struct err *e) MUST_CHECK;

/*
 * The least lately used file of the cache goes, if nobody used it for so long: its bytes. < 0:
 * there is none. Who has it open keeps it, and so long its room is not free.
 */
int64_t blob_bucket_evict(const struct blob_folder *cache, int64_t unused_s);

/* Bytes of the cache, all of which give way. */
int64_t blob_bucket_cached(const struct blob_folder *cache);

#endif
