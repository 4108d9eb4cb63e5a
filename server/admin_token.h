/*
 * admin_token.h - the first key to a new server: an admin's token in <data>/admin-token, mode 0600.
 *
 * Written to the file first and to the database then, so that a kill in between leaves a file that
 * the next start finds useless and replaces. A file whose token is still good is left alone.
 */
#ifndef SERVER_ADMIN_TOKEN_H
#define SERVER_ADMIN_TOKEN_H

#include <stdbool.h>

#include "common/status.h"
#include "server/auth.h"
#include "server/db.h"

/* *fresh: it was made just now. secret[SECRET_LEN + 1] is the token itself. */
enum status admin_token_ensure(struct db *db, const char *data_dir, char *secret, bool *fresh,
                               struct err *e) MUST_CHECK;

#endif
