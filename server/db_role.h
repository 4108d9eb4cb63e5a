/*
 * db_role.h - two roles of the database: the owner migrates, the other one serves.
 *
 * The role that serves owns nothing: a statement that should never have been sent by it cannot
 * change or drop a table, disable a trigger or rewrite the audit log. What it may do is let_serve()
 * of sql/0013_roles.sql; the owner's connection calls it after each migration.
 */
#ifndef SERVER_DB_ROLE_H
#define SERVER_DB_ROLE_H

#include "server/db.h"

/* Who serves in a cluster of our own. */
#define DB_ROLE_SERVER "photon_server"

/* Make that role where it is missing; owner is a superuser. */
enum status db_role_make(struct db *owner, struct err *e) MUST_CHECK;

/*
 * Give the role of the other connection its rights. ST_INVALID: it may do all that the owner may,
 * so nothing is gained.
 */
enum status db_role_let_serve(struct db *owner, struct db *server, struct err *e) MUST_CHECK;

#endif
