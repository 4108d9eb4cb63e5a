/*
 * db_silo.h - silos as they introduce themselves: joined once, heard of since, and
 * what they may read.
 *
 * As in db_task.h each function is one transaction and harmless to repeat.
 */
#ifndef SERVER_DB_SILO_H
#define SERVER_DB_SILO_H

#include <stdbool.h>
#include <stdint.h>

#include "common/hash.h"
#include "common/status.h"
#include "server/db.h"
#include "server/db_task.h"

/* What the agent says of itself. */
struct silo_hello {
    const char *agent;
    const char *version;
    const char *device;
    double tokens_per_s; /* NAN: not known */
    const char *tokenizer_sha256;
    int64_t train_tokens, heldout_tokens;
};
enum status db_silo_hello(struct db *db, const char *silo_id, const struct silo_hello *h,
                          struct err *e) MUST_CHECK;

/* A poll: the silo lives. Written at most every few seconds. */
enum status db_silo_seen(struct db *db, const char *silo_id, const char *agent,
                         struct err *e) MUST_CHECK;

/*
 * Exchange a join token for the silo's own: token_hash is of the new secret. Refusals: TOKEN_USED,
 * NAME_MISMATCH, SILO_REVOKED.
 */
enum status db_silo_join(struct db *db, const char *join_token_id, const char *name,
                         const struct digest *token_hash, char *silo_id, struct refusal *no,
                         struct err *e) MUST_CHECK;

/* Bytes of bulk bodies that crossed the socket. Counted, never worth failing a request for. */
enum status db_traffic_add(struct db *db, const char *run_id, int32_t number, const char *silo_id,
                           int64_t upload_bytes, int64_t download_bytes, struct err *e) MUST_CHECK;

/*
 * What became of a run of this silo. *forget: it ended, and so long ago that a server restored from
 * a backup will hardly take it up again: the silo may drop what it keeps for it. ST_NOT_FOUND: no
 * run that it takes part in.
 */
enum { SILO_RUN_KEEP_S = 24 * 3600 };
enum status db_silo_run(struct db *db, struct arena *a, const char *silo_id, const char *run_id,
                        const char **state, bool *forget, struct err *e) MUST_CHECK;

/*
 * May this silo read that blob, and for which round would it? ST_NOT_FOUND when no run it takes
 * part in refers to it.
 */
enum status db_silo_blob(struct db *db, const char *silo_id, const struct digest *d, char *run_id,
                         int32_t *number, struct err *e) MUST_CHECK;

#endif
