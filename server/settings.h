/*
 * settings.h - is this PostgreSQL one that keeps what it acknowledged?
 *
 * A positive reply of ours means durable, and that rests on PostgreSQL's fsync, full_page_writes
 * and synchronous_commit. A database without them is refused before it is touched.
 */
#ifndef SERVER_SETTINGS_H
#define SERVER_SETTINGS_H

#include <stdbool.h>

#include "common/status.h"
#include "server/db.h"

/*
 * ST_DENIED names the settings and what to do; with allow_unsafe they are only warned of.
 * ST_CONFLICT: older than PostgreSQL 15.
 */
enum status settings_check(struct db *db, bool allow_unsafe, struct err *e) MUST_CHECK;

/* The same of what may differ from session to session, for another one of the same database. */
enum status settings_check_session(struct db *db, bool allow_unsafe, struct err *e) MUST_CHECK;

/* A warning in the log where this session's role may not have so many connections at once. */
enum status settings_check_room(struct db *db, int connections, struct err *e) MUST_CHECK;

#endif
