/*
 * db_rotate.h - a new token for a silo while the old one still works.
 *
 * Two live at most: the one that asks, for the grace it names, and the new one. Whoever has an old
 * token cannot push out one that is in use, so a stolen one does not take a silo over.
 */
#ifndef SERVER_DB_ROTATE_H
#define SERVER_DB_ROTATE_H

#include <stdint.h>

#include "common/hash.h"
#include "common/id.h"
#include "common/status.h"
#include "server/db.h"
#include "server/db_task.h"

/*
 * Another token for the silo that speaks with token_id: that one ends after grace_s, the new one
 * after ttl_s (0: when it is revoked), all others now, so that two live at most. The same request
 * again, before the new token was ever used, replaces it: a lost reply costs nothing. Refusals:
 * UNAUTHENTICATED, TOKEN_ROTATED. Times as the API prints them; expires_at "" when there is none.
 */
struct rotation {
    char token_id[ID_LEN + 1]; /* the new one */
    char expires_at[32], old_expires_at[32];
};
enum status db_silo_rotate(struct db *db, const char *silo_id, const char *token_id,
                           const struct digest *token_hash, int64_t grace_s, int64_t ttl_s,
                           struct rotation *out, struct refusal *no, struct err *e) MUST_CHECK;

#endif
