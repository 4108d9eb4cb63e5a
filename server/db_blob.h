/*
 * db_blob.h - files and the rows that own them, under one lock: the row's.
 *
 * A file is placed before its row is committed, and removed before its row's removal is committed;
 * both happen under the lock of the row, so whoever places and whoever removes the same content
 * wait for each other, in however many servers. A cleaner goes in three steps: mark the row dead;
 * lock it; ask again whether anybody needs the file, with the lock held, and only then take it
 * away. Who wants the content meanwhile makes the row live again under the same lock and finds, or
 * places, the file.
 *
 * A lock ends with its session, and PostgreSQL ends that of a machine that stands still for ten
 * seconds; waking, it would take away what somebody has found meanwhile. So a file is set aside
 * under the lock and removed only when COMMIT has succeeded, which proves that the session, and so
 * the lock, was there all the time. What else comes of COMMIT, the file is put back. Whoever dies
 * in between leaves it set aside; the next collection of any server asks, under the lock of its
 * row, or of one made for that:
 *
 *     dies before the file is set aside      nothing has happened: the row is dead as before
 *     dies before COMMIT                     the row is there: the file is put back
 *     dies after COMMIT                      there is no row: the file is removed
 *
 * A bucket cannot rename. There the object is removed under the lock, and when COMMIT fails and the
 * row is live, the file is looked at and mended, as far as it can be (server/mend.h).
 *
 * Files that no row knows (a crash between placing and commit, an upload nobody finished) are
 * reaped once they are old (a day: a checkpoint being made has no row yet), under the lock of a row
 * that is made for it and never seen.
 */
#ifndef SERVER_DB_BLOB_H
#define SERVER_DB_BLOB_H

#include <stdint.h>

#include "server/blob.h"
#include "server/db.h"

/*
 * Within a transaction: the row that owns a file is live, its lock is ours, and the file is looked
 * for under it. ST_NOT_FOUND: it is not there, or no longer. ST_CORRUPT: it has another size.
 */
enum status db_blob_own(struct db *db, struct arena *a, struct blob_store *blobs,
                        const struct digest *d, int64_t bytes, struct err *e) MUST_CHECK;

/*
 * Within a transaction: the row is live and locked, and the temporary file has its name. Harmless
 * to repeat.
 */
enum status db_blob_place(struct db *db, struct arena *a, struct blob_store *blobs,
                          const char *tmp_id, const struct digest *d, int64_t bytes,
                          struct err *e) MUST_CHECK;

/*
 * Remove what nobody needs: soon after it was let go, or a day after its last use when it never was
 * needed. Some at a time; what cannot be removed now is tried again at the next call.
 */
enum status db_blob_collect(struct db *db, struct blob_store *blobs, struct err *e) MUST_CHECK;

/* Called for each file that no row knows and that is old. */
typedef enum status db_orphan_fn(void *ctx, const struct blob_entry *f, struct err *e);
enum status db_blob_orphans(struct db *db, struct blob_store *blobs, int64_t age_s,
                            db_orphan_fn *fn, void *ctx, struct err *e) MUST_CHECK;

/* Removes them; *removed counts. Strangers' files, and blobs older than the database, are left
 * alone. */
enum status db_blob_reap(struct db *db, struct blob_store *blobs, int64_t age_s, int *removed,
                         struct err *e) MUST_CHECK;

/*
 * Uploads whose durable bytes are no longer on the disk cannot go on: they expire, with an event,
 * and their silo sends the file again. *lost counts. For the start of a server.
 */
enum status db_blob_lost_uploads(struct db *db, struct blob_store *blobs, int *lost,
                                 struct err *e) MUST_CHECK;

#endif
