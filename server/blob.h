/*
 * blob.h - the blob folder: files named by their SHA-256, durable before they are named.
 *
 *     blobs/aa/bb/<64 hex>     finished, immutable, mode 0400
 *     tmp/<upload id>          an upload or a checkpoint being written
 *
 * Order, always: create in tmp, write, fsync, rename into place without replacing, fsync the
 * folder; only then is the row committed that refers to it (protocol: rows never name a file that
 * may be lost). Putting the same content twice is harmless. Paths are made of digests and ids that
 * were checked by pattern; nothing else from a request reaches a path.
 */
#ifndef SERVER_BLOB_H
#define SERVER_BLOB_H

#include <stdint.h>

#include "common/hash.h"
#include "common/status.h"

struct blob_store;

/* The folder is made when missing (mode 0700). ST_IO when it cannot be written. */
enum status blob_store_open(struct blob_store **out, const char *dir, struct err *e) MUST_CHECK;
void blob_store_close(struct blob_store *s);

/* Free bytes on the store's disk, for the floor and /readyz. */
int64_t blob_free_bytes(const struct blob_store *s);

/* A temporary file of exactly that size, its room reserved. ST_LIMIT: the disk is full (507). */
enum status blob_tmp_create(struct blob_store *s, const char *id, int64_t bytes, int *fd,
                            struct err *e) MUST_CHECK;
enum status blob_tmp_open(struct blob_store *s, const char *id, int *fd, struct err *e) MUST_CHECK;
void blob_tmp_remove(struct blob_store *s, const char *id);

/* Sync the temporary file and give it its name. Idempotent: if the blob exists, tmp is dropped. */
enum status blob_place(struct blob_store *s, const char *tmp_id, const struct digest *d,
                       struct err *e) MUST_CHECK;

/* ST_NOT_FOUND when there is no such blob. */
enum status blob_open(struct blob_store *s, const struct digest *d, int *fd, int64_t *bytes,
                      struct err *e) MUST_CHECK;

/* Remove a blob nobody refers to; absent is fine. */
enum status blob_remove(struct blob_store *s, const struct digest *d, struct err *e) MUST_CHECK;

#endif
