/*
 * accept.h - the finish of an upload: is the file what was asked for, and does it count?
 *
 * All bytes durable, SHA-256 as declared, container, metadata and shapes as planned, every value
 * finite, the norm within reason; then placed as a blob; then counted, in one transaction that the
 * seal of the round waits for. The positive answer comes after that commit, and is the same
 * whenever it is asked again.
 */
#ifndef SERVER_ACCEPT_H
#define SERVER_ACCEPT_H

#include <stdint.h>

#include "server/db_upload.h"
#include "server/server.h"

/*
 * *u is what db_upload_get() said. *pending: the file is large and still being read; ask again in a
 * while. Refusals: INCOMPLETE with offset, BAD_UPDATE, UPLOAD_GONE, and those of
 * db_upload_accept().
 */
enum status accept_upload(struct server *s, struct db *db, const struct upload *u,
                          const char *silo_id, int64_t epoch, double upload_s, bool *pending,
                          struct refusal *no, struct err *e) MUST_CHECK;

#endif
