/*
 * migrate.h - brings a database to the schema this program was built for.
 *
 * sql/NNNN_name.sql are applied in order of their numbers, each once, in a transaction of its own
 * together with its row in the table `migration`, so a kill at any moment leaves a prefix of them
 * applied. A session lock lets one server work while others wait. Each file's SHA-256 is kept: a
 * file that was edited after it was applied, or a database that knows more files than this
 * program, is refused rather than guessed at.
 */
#ifndef SERVER_MIGRATE_H
#define SERVER_MIGRATE_H

#include "common/status.h"
#include "server/db.h"

/*
 * ST_NOT_FOUND: dir has no such files. ST_CONFLICT: edited, missing or newer ones, in words.
 * ST_RETRY: another server still migrates after a minute.
 */
enum status migrate(struct db *db, const char *dir, struct err *e) MUST_CHECK;

/* Is the schema this program's already? Changes nothing. ST_CONFLICT: it is not, in words. */
enum status migrate_check(struct db *db, const char *dir, struct err *e) MUST_CHECK;

#endif
