/*
 * upload_hash.h - the SHA-256 of uploads as they grow, computed beside the connections.
 *
 * A thread of its own reads what is durable of each upload, while it is still in the page cache,
 * and keeps a running digest: when the last chunk is there, so is nearly all of the digest. Nothing
 * depends on it: what it does not know is read at the end, after a restart as well as when too many
 * uploads are under way.
 */
#ifndef SERVER_UPLOAD_HASH_H
#define SERVER_UPLOAD_HASH_H

#include <stdint.h>

#include "common/hash.h"
#include "common/status.h"
#include "server/blob.h"

/* The first `bytes` bytes of the upload are durable and never change again. */
void upload_hash_more(struct blob_store *s, const char *id, int64_t bytes);

/*
 * The digest of the first *at bytes, as far as it is known: the caller's to free or to give to
 * upload_hash_rest(). Nothing is known of it afterwards.
 */
struct sha256 *upload_hash_take(const char *id, int64_t *at);

/* Forget what is known of an upload that has ended. */
void upload_hash_forget(const char *id);

/* Forget all uploads of a store that is about to be closed: afterwards nobody reads from it. */
void upload_hash_end(const struct blob_store *s);

/* SHA-256 of a file's first bytes bytes: h stands behind at of them, the rest is read. h starts
 * anew. ST_CORRUPT: the file is shorter. */
enum status upload_hash_rest(int fd, struct sha256 *h, int64_t at, int64_t bytes,
                             struct digest *out, struct err *e) MUST_CHECK;

#endif
