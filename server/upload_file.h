/*
 * upload_file.h - the file of one upload while its chunks arrive.
 *
 * A chunk is written at its place and hashed as it streams by; nothing of it counts before its
 * digest holds and fdatasync has said so, and before the caller has committed the new offset. What
 * a chunk that failed has left behind is beyond the durable offset and is written over.
 *
 *     open --add…--> check (digest, fdatasync) --> [caller commits the offset] --> keep --> close
 *
 * One writer per file, the one with the highest writer_epoch. Within the process a newer one takes
 * the file from an older one, whose peer is usually long gone: the older one's next call says
 * ST_CONFLICT. Between processes a lock on the file decides, waited for a moment; who has it looks
 * at the row once more before it writes, for a newer request may have come and gone in between.
 *
 * The disk begins to write while the chunk arrives, and the SHA-256 of the whole is computed beside
 * it (upload_hash.h).
 */
#ifndef SERVER_UPLOAD_FILE_H
#define SERVER_UPLOAD_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/hash.h"
#include "common/status.h"
#include "server/blob.h"

struct upload_file;

/* What a chunk's bytes must give: SHA-256, or the CRC that is enough against a wire. */
struct chunk_digest {
    bool is_crc;
    uint32_t crc32c;
    struct digest sha256;
};

/*
 * To write up to bytes bytes at offset. ST_CONFLICT: a newer request or another process writes it.
 * ST_NOT_FOUND: there is no such file.
 */
enum status upload_file_open(struct upload_file **out, struct blob_store *s, const char *id,
                             int64_t writer_epoch, int64_t offset, int64_t bytes,
                             const struct chunk_digest *want, struct err *e) MUST_CHECK;
void upload_file_close(struct upload_file *f); /* NULL is allowed */

/* ST_INVALID: more than was said. ST_CONFLICT: taken over. ST_LIMIT: the disk is full. ST_IO. */
enum status upload_file_add(struct upload_file *f, const void *data, size_t len,
                            struct err *e) MUST_CHECK;

/*
 * All bytes are here and durable. ST_INVALID: fewer than were said. ST_CORRUPT: not that digest.
 * ST_IO: the disk failed, and the file must not be written again: the kernel may have dropped what
 * it could not write.
 */
enum status upload_file_check(struct upload_file *f, struct err *e) MUST_CHECK;

/* The offset is committed: the digest of the whole may go on behind this chunk. */
void upload_file_keep(struct upload_file *f);

#endif
