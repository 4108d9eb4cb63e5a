/*
 * upload_file.h - the file of one upload while its chunks arrive.
 *
 * A chunk is written at its place and hashed as it streams by; nothing of it counts before its
 * digest holds and fdatasync has said so, and before the caller has committed the new offset. What
 * a chunk that failed has left behind is beyond the durable offset and is written over.
 *
 *     open --add…--> check (digest, fdatasync) --> [caller commits the offset] --> keep --> close
 *
 * One writer per file. Within the process a newer one takes the file from an older one, whose peer
 * is usually long gone: the older one's next call says ST_CONFLICT. Between processes a lock on the
 * file decides, waited for a moment.
 *
 * The SHA-256 of the whole runs along in memory, a few hundred bytes per upload; after a restart,
 * or when too many uploads are under way, the file is read again at the end.
 */
#ifndef SERVER_UPLOAD_FILE_H
#define SERVER_UPLOAD_FILE_H

#include <stdint.h>

#include "common/hash.h"
#include "common/status.h"
#include "server/blob.h"

struct upload_file;

/*
 * To write up to bytes bytes at offset. ST_CONFLICT: another process writes it. ST_NOT_FOUND: there
 * is no such file.
 */
enum status upload_file_open(struct upload_file **out, struct blob_store *s, const char *id,
                             int64_t offset, int64_t bytes, struct err *e) MUST_CHECK;
void upload_file_close(struct upload_file *f); /* NULL is allowed */

/* ST_INVALID: more than was said. ST_CONFLICT: taken over. ST_LIMIT: the disk is full. ST_IO. */
enum status upload_file_add(struct upload_file *f, const void *data, size_t len,
                            struct err *e) MUST_CHECK;

/*
 * All bytes are here and durable. ST_INVALID: fewer than were said. ST_CORRUPT: not that digest.
 * ST_IO: the disk failed, and the file must not be written again: the kernel may have dropped what
 * it could not write.
 */
enum status upload_file_check(struct upload_file *f, const struct digest *chunk,
                              struct err *e) MUST_CHECK;

/* The offset is committed: the running digest now stands behind this chunk. */
void upload_file_keep(struct upload_file *f);

/*
 * The digest of the first *at bytes of an upload, as far as it is known: the caller's to free or to
 * give to upload_file_digest_rest(). Nothing is known of it afterwards.
 */
struct sha256 *upload_file_running(const char *id, int64_t *at);

/* SHA-256 of a file's first bytes bytes: h stands behind at of them, the rest is
 * read. h starts anew. */
enum status upload_file_digest_rest(int fd, struct sha256 *h, int64_t at, int64_t bytes,
                                    struct digest *out, struct err *e) MUST_CHECK;

/* Forget what is known of an upload that has ended. */
void upload_file_forget(const char *id);

#endif
