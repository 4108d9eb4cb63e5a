/*
 * db_upload.h - an update on its way: created, filled chunk by chunk, placed, accepted.
 *
 *     open --(all bytes, checked)--> placed --accept--> accepted
 *     open, placed --> refused | expired
 *
 * Each function is one transaction and harmless to repeat; the keys are (task, silo, sha256) for
 * the creation, (upload, offset) for a chunk and the upload's id for the acceptance. Locks as in
 * db_task.h. Refusals are ST_OK with refusal.code set.
 */
#ifndef SERVER_DB_UPLOAD_H
#define SERVER_DB_UPLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/codec.h"
#include "common/hash.h"
#include "common/id.h"
#include "common/status.h"
#include "server/blob.h"
#include "server/db.h"
#include "server/db_task.h"

/* What a silo says of the update it wants to send. Numbers that are not known are NAN. */
struct upload_wanted {
    const char *task_id;
    int64_t epoch;
    struct digest sha256;
    int64_t bytes;
    enum codec codec;
    int64_t tokens;
    int64_t steps;
    double train_loss;
    double download_s, train_s, encode_s;
    double codec_error, residual_ratio, fallback_share; /* struct coded_report's */
};

struct upload {
    char id[ID_LEN + 1];
    char task_id[ID_LEN + 1];
    struct digest sha256;
    int64_t bytes;
    int64_t received; /* the durable offset */
    int64_t tokens;
    int64_t steps;
    char state[16];
    char code[40]; /* why it was refused, or "" */
    char detail[200];
    char run_id[ID_LEN + 1];
    int32_t number; /* the round it is for */
    int64_t epoch;  /* of the lease it was created under */
    enum codec codec;
};

/* What the size of an update follows from; texts in the arena. */
struct upload_plan {
    const char *spec_text;
    const char *silo_name;
    int32_t round;
};

/* ST_NOT_FOUND: no such training task. */
enum status db_upload_plan(struct db *db, struct arena *a, const char *task_id, const char *silo_id,
                           struct upload_plan *out, struct err *e) MUST_CHECK;

/*
 * The upload of that file for that task: *fresh when it is new, else the one already there, in
 * whatever state. Other open uploads of the silo for this task expire: *dropped is one of them or
 * "". Refusals: STALE_LEASE, ROUND_CLOSED, OTHER_UPDATE_COUNTED, TOO_MANY_TOKENS, NOT_FOUND.
 */
enum status db_upload_create(struct db *db, const char *silo_id, const struct upload_wanted *w,
                             struct upload *out, bool *fresh, char *dropped, struct refusal *no,
                             struct err *e) MUST_CHECK;

/* ST_NOT_FOUND: no such upload of this silo. */
enum status db_upload_get(struct db *db, const char *upload_id, const char *silo_id,
                          struct upload *out, struct err *e) MUST_CHECK;

/* The file is lost or cannot be trusted: its offset would go back, so the upload ends. */
enum status db_upload_expire(struct db *db, const char *upload_id, struct err *e) MUST_CHECK;

/*
 * A request wants to write: the newest one wins. Renews the lease. Refusals: STALE_LEASE,
 * ROUND_CLOSED, OTHER_UPDATE_COUNTED, RUN_STOPPED, UPLOAD_GONE, NOT_FOUND.
 */
enum status db_upload_begin(struct db *db, const char *upload_id, const char *silo_id,
                            const char *task_id, int64_t epoch, struct upload *out,
                            int64_t *writer_epoch, struct refusal *no, struct err *e) MUST_CHECK;

/* Is this still the newest request, and offset where it would write? */
enum status db_upload_writes(struct db *db, const char *upload_id, int64_t writer_epoch,
                             int64_t offset, bool *writes, struct err *e) MUST_CHECK;

/* The bytes from..to are durable. Refusals as above, and UPLOAD_BUSY when a
 * newer request writes. */
enum status db_upload_commit(struct db *db, const struct upload *u, const char *silo_id,
                             int64_t epoch, int64_t writer_epoch, int64_t from, int64_t to,
                             struct refusal *no, struct err *e) MUST_CHECK;

/*
 * The file is whole and sound: give it its name under the locks of its rows. Nothing is to be done
 * when it is placed already. Refusal: UPLOAD_GONE.
 */
enum status db_upload_place(struct db *db, struct blob_store *s, const struct upload *u,
                            struct refusal *no, struct err *e) MUST_CHECK;

/* It is not what was asked for: refused for good, and an attempt of its task has failed. */
enum status db_upload_refuse(struct db *db, const struct upload *u, const char *silo_id,
                             int64_t epoch, const char *code, const char *detail,
                             struct err *e) MUST_CHECK;

/*
 * Count it. The round's share lock orders this against the seal. norm, upload_s: NAN when not
 * known. Refusals: STALE_LEASE, ROUND_CLOSED, OTHER_UPDATE_COUNTED, RUN_STOPPED, UPLOAD_GONE.
 */
enum status db_upload_accept(struct db *db, const struct upload *u, const char *silo_id,
                             int64_t epoch, double norm, double upload_s, struct refusal *no,
                             struct err *e) MUST_CHECK;

/* Would it be accepted now, as far as the lease and the round go? A repeat of
 * an accepted one would. */
enum status db_upload_may_finish(struct db *db, const struct upload *u, const char *silo_id,
                                 int64_t epoch, bool *accepted, struct refusal *no,
                                 struct err *e) MUST_CHECK;

#endif
