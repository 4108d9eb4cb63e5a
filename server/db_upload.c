#include "server/db_upload.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/fault.h"
#include "server/db_blob.h"

static void copy_text(char *out, size_t size, const char *text)
{
    (void)snprintf(out, size, "%s", text ? text : "");
}

/* NULL for NAN: SQL's null says "not known". */
static const char *arg_known(struct arena *a, double v)
{
    return isfinite(v) ? db_arg_double(a, v) : NULL;
}

// The columns that read_upload() wants, from upload u and task t.
#define UPLOAD_COLUMNS                                                                             \
    "u.id, u.task_id, u.sha256, u.bytes, u.received, u.tokens, u.steps, u.state,"                  \
    " coalesce(u.code, ''), coalesce(u.detail, ''), t.run_id, t.number, u.epoch, u.codec"

static enum status read_upload(const struct db_rows *rows, struct upload *out, struct err *e)
{
    struct upload u = {0};
    copy_text(u.id, sizeof(u.id), db_text(rows, 0, 0));
    copy_text(u.task_id, sizeof(u.task_id), db_text(rows, 0, 1));
    TRY(db_digest(rows, 0, 2, &u.sha256, e));
    TRY(db_int64(rows, 0, 3, &u.bytes, e));
    TRY(db_int64(rows, 0, 4, &u.received, e));
    TRY(db_int64(rows, 0, 5, &u.tokens, e));
    TRY(db_int64(rows, 0, 6, &u.steps, e));
    copy_text(u.state, sizeof(u.state), db_text(rows, 0, 7));
    copy_text(u.code, sizeof(u.code), db_text(rows, 0, 8));
    copy_text(u.detail, sizeof(u.detail), db_text(rows, 0, 9));
    copy_text(u.run_id, sizeof(u.run_id), db_text(rows, 0, 10));
    TRY(db_int32(rows, 0, 11, &u.number, e));
    TRY(db_int64(rows, 0, 12, &u.epoch, e));
    TRY(codec_parse(&u.codec, db_text(rows, 0, 13), e));
    *out = u;
    return ST_OK;
}

/* ---- create and get ---- */

enum status db_upload_plan(struct db *db, struct arena *a, const char *task_id, const char *silo_id,
                           struct upload_plan *out, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {task_id, silo_id};
    TRY(db_query(db, a,
                 "SELECT r.spec_text, s.name, t.number FROM task t JOIN run r ON r.id = t.run_id"
                 "  JOIN silo s ON s.id = $2 WHERE t.id = $1 AND t.kind = 'train'",
                 2, argv, &rows, e));
    if (rows.count == 0) {
        return err_set(e, ST_NOT_FOUND, "there is no such training task");
    }
    struct upload_plan plan = {.spec_text = db_text(&rows, 0, 0),
                               .silo_name = db_text(&rows, 0, 1)};
    TRY(db_int32(&rows, 0, 2, &plan.round, e));
    *out = plan;
    return ST_OK;
}

/* What the transactions of one upload share. */
struct work {
    const char *silo_id;
    const struct upload_wanted *wanted;
    const char *upload_id, *task_id;
    const struct upload *upload;
    struct blob_store *blobs;
    int64_t epoch, writer_epoch, from, to;
    double norm, upload_s;
    const char *code, *detail;
    char id[ID_LEN + 1]; // of the upload to be made
    struct upload out;
    bool fresh, accepted;
    char dropped[ID_LEN + 1];
    struct refusal no;
};

static enum status find_upload(struct db *db, struct arena *a, struct work *w, bool *found,
                               struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {w->wanted->task_id, w->silo_id, db_arg_digest(a, &w->wanted->sha256)};
    TRY(db_query(db, a,
                 "SELECT " UPLOAD_COLUMNS " FROM upload u JOIN task t ON t.id = u.task_id"
                 " WHERE (u.task_id, u.silo_id, u.sha256) = ($1, $2, $3)"
                 "   AND u.state NOT IN ('refused', 'expired')",
                 3, argv, &rows, e));
    *found = rows.count > 0;
    return *found ? read_upload(&rows, &w->out, e) : ST_OK;
}

/* A silo sends one file for a task: another digest means that it has thrown the first one away. */
static enum status drop_others(struct db *db, struct arena *a, struct work *w, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {w->wanted->task_id, w->silo_id};
    TRY(db_query(
        db, a,
        "UPDATE upload SET state = 'expired', detail = 'another file came in its place'"
        " WHERE task_id = $1 AND silo_id = $2 AND state IN ('open', 'placed') RETURNING id",
        2, argv, &rows, e));
    copy_text(w->dropped, sizeof(w->dropped), rows.count ? db_text(&rows, 0, 0) : "");
    return ST_OK;
}

static enum status create_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct work *w = ctx;
    const struct upload_wanted *n = w->wanted;
    struct task_lock lock = {0};
    bool found = false;
    w->no = (struct refusal){0};
    w->dropped[0] = '\0';
    TRY(db_task_lock(db, a, n->task_id, w->silo_id, n->epoch, &lock, &w->no, e));
    if (w->no.status == 404) {
        return ST_OK;
    }
    TRY(find_upload(db, a, w, &found, e));
    if (found && strcmp(w->out.state, "accepted") == 0) {
        w->no = (struct refusal){0}; // it counted already; its finish says so again
    }
    w->fresh = !found;
    if (w->no.code || found) {
        return ST_OK;
    }
    if (n->tokens > lock.plan_tokens || n->steps > lock.steps) {
        refuse(&w->no, 422, "TOO_MANY_TOKENS",
               "the plan has %" PRId64 " tokens in %" PRId32 " steps, the update claims %" PRId64
               " in %" PRId64,
               lock.plan_tokens, lock.steps, n->tokens, n->steps);
        return ST_OK;
    }
    TRY(drop_others(db, a, w, e));
    struct db_rows rows;
    const char *argv[] = {w->id,
                          n->task_id,
                          w->silo_id,
                          db_arg_int(a, n->epoch),
                          db_arg_digest(a, &n->sha256),
                          db_arg_int(a, n->bytes),
                          db_arg_int(a, n->tokens),
                          db_arg_int(a, n->steps),
                          arg_known(a, n->train_loss),
                          arg_known(a, n->download_s),
                          arg_known(a, n->train_s),
                          arg_known(a, n->encode_s),
                          codec_name(n->codec),
                          arg_known(a, n->codec_error),
                          arg_known(a, n->residual_ratio),
                          arg_known(a, n->fallback_share)};
    TRY(db_query(db, a,
                 "WITH u AS (INSERT INTO upload (id, task_id, silo_id, epoch, sha256, bytes, codec,"
                 "                  tokens, steps, train_loss, download_s, train_s, encode_s,"
                 "                  codec_error, residual_ratio, fallback_share)"
                 "     VALUES ($1, $2, $3, $4, $5, $6, $13, $7, $8, $9, $10, $11, $12, $14, $15,"
                 "             $16)"
                 "     RETURNING *)"
                 " SELECT " UPLOAD_COLUMNS " FROM u JOIN task t ON t.id = u.task_id",
                 16, argv, &rows, e));
    return read_upload(&rows, &w->out, e);
}

enum status db_upload_create(struct db *db, const char *silo_id, const struct upload_wanted *wanted,
                             struct upload *out, bool *fresh, char *dropped, struct refusal *no,
                             struct err *e)
{
    struct work w = {.silo_id = silo_id, .wanted = wanted};
    id_new('u', w.id);
    TRY(db_tx(db, create_tx, &w, e));
    FAULT("create.committed");
    *out = w.out;
    *fresh = w.fresh;
    copy_text(dropped, ID_LEN + 1, w.dropped);
    *no = w.no;
    return ST_OK;
}

static enum status get(struct db *db, struct arena *a, const char *upload_id, const char *silo_id,
                       const char *lock, struct upload *out, bool *found, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {upload_id, silo_id};
    const char *sql =
        arena_fmt(a,
                  "SELECT " UPLOAD_COLUMNS " FROM upload u JOIN task t ON t.id = u.task_id"
                  " WHERE u.id = $1 AND u.silo_id = $2 %s",
                  lock);
    TRY(db_query(db, a, sql, 2, argv, &rows, e));
    *found = rows.count > 0;
    return *found ? read_upload(&rows, out, e) : ST_OK;
}

enum status db_upload_get(struct db *db, const char *upload_id, const char *silo_id,
                          struct upload *out, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    bool found = false;
    enum status st = get(db, a, upload_id, silo_id, "", out, &found, e);
    if (!st && !found) {
        st = err_set(e, ST_NOT_FOUND, "there is no such upload of this silo");
    }
    arena_free(a);
    return st;
}

enum status db_upload_expire(struct db *db, const char *upload_id, struct err *e)
{
    const char *argv[] = {upload_id};
    return db_exec(db,
                   "UPDATE upload SET state = 'expired', detail = 'its file was lost'"
                   " WHERE id = $1 AND state IN ('open', 'placed')",
                   1, argv, NULL, e);
}

/* ---- chunks ---- */

static enum status renew(struct db *db, struct arena *a, const char *task_id, struct err *e)
{
    const char *argv[] = {task_id, db_arg_int(a, LEASE_S)};
    return db_exec(db,
                   "WITH t AS (UPDATE task SET phase = 'upload',"
                   "           lease_until = clock_timestamp() + make_interval(secs => $2)"
                   "     WHERE id = $1 AND state = 'leased' RETURNING id, lease_epoch)"
                   " UPDATE lease SET beat_at = clock_timestamp() FROM t"
                   "  WHERE (task_id, epoch) = (t.id, t.lease_epoch)",
                   2, argv, NULL, e);
}

static enum status begin_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct work *w = ctx;
    struct task_lock lock = {0};
    bool found = false;
    w->no = (struct refusal){0};
    TRY(db_task_lock(db, a, w->task_id, w->silo_id, w->epoch, &lock, &w->no, e));
    TRY(get(db, a, w->upload_id, w->silo_id, "FOR NO KEY UPDATE OF u", &w->out, &found, e));
    if (!found) {
        refuse(&w->no, 404, "NOT_FOUND", "there is no such upload of this silo");
        return ST_OK;
    }
    bool whole = strcmp(w->out.state, "placed") == 0 || strcmp(w->out.state, "accepted") == 0;
    if (whole) { // a repeat of something that is long durable
        w->no = (struct refusal){0};
        return ST_OK;
    }
    if (strcmp(w->out.task_id, w->task_id) != 0) {
        refuse(&w->no, 409, "STALE_LEASE", "the upload is for another task");
    }
    if (w->no.code) {
        return ST_OK;
    }
    if (strcmp(w->out.state, "open") != 0) {
        refuse(&w->no, 410, "UPLOAD_GONE", "the upload is %s; create a new one", w->out.state);
        return ST_OK;
    }
    TRY(renew(db, a, w->task_id, e));
    struct db_rows rows;
    const char *argv[] = {w->upload_id};
    TRY(db_query(db, a,
                 "UPDATE upload SET writer_epoch = writer_epoch + 1, touched_at = clock_timestamp()"
                 " WHERE id = $1 RETURNING writer_epoch",
                 1, argv, &rows, e));
    return db_int64(&rows, 0, 0, &w->writer_epoch, e);
}

enum status db_upload_begin(struct db *db, const char *upload_id, const char *silo_id,
                            const char *task_id, int64_t epoch, struct upload *out,
                            int64_t *writer_epoch, struct refusal *no, struct err *e)
{
    struct work w = {
        .silo_id = silo_id, .upload_id = upload_id, .task_id = task_id, .epoch = epoch};
    TRY(db_tx(db, begin_tx, &w, e));
    FAULT("chunk.begun");
    *out = w.out;
    *writer_epoch = w.writer_epoch;
    *no = w.no;
    return ST_OK;
}

enum status db_upload_writes(struct db *db, const char *upload_id, int64_t writer_epoch,
                             int64_t offset, bool *writes, struct err *e)
{
    struct arena *a = arena_new(1 << 16);
    struct db_rows rows;
    const char *argv[] = {upload_id, db_arg_int(a, writer_epoch), db_arg_int(a, offset)};
    enum status st = db_query(db, a,
                              "SELECT 1 FROM upload WHERE (id, writer_epoch, received) ="
                              " ($1, $2, $3) AND state = 'open'",
                              3, argv, &rows, e);
    if (!st) {
        *writes = rows.count > 0;
    }
    arena_free(a);
    return st;
}

static enum status commit_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct work *w = ctx;
    struct task_lock lock = {0};
    w->no = (struct refusal){0};
    TRY(db_task_lock(db, a, w->upload->task_id, w->silo_id, w->epoch, &lock, &w->no, e));
    if (w->no.code) {
        return ST_OK;
    }
    TRY(renew(db, a, w->upload->task_id, e));
    int64_t hit = 0;
    const char *argv[] = {w->upload->id, db_arg_int(a, w->writer_epoch), db_arg_int(a, w->from),
                          db_arg_int(a, w->to)};
    // A commit whose answer was lost finds received = $4 already, and says the same again.
    TRY(db_exec(db,
                "UPDATE upload SET received = $4, touched_at = clock_timestamp()"
                " WHERE id = $1 AND writer_epoch = $2 AND state = 'open' AND received IN ($3, $4)",
                4, argv, &hit, e));
    if (hit != 1) {
        refuse(&w->no, 409, "UPLOAD_BUSY", "a newer request writes this upload");
    }
    return ST_OK;
}

enum status db_upload_commit(struct db *db, const struct upload *u, const char *silo_id,
                             int64_t epoch, int64_t writer_epoch, int64_t from, int64_t to,
                             struct refusal *no, struct err *e)
{
    struct work w = {.silo_id = silo_id,
                     .upload = u,
                     .epoch = epoch,
                     .writer_epoch = writer_epoch,
                     .from = from,
                     .to = to};
    FAULT("chunk.commit");
    TRY(db_tx(db, commit_tx, &w, e));
    FAULT("chunk.committed");
    *no = w.no;
    return ST_OK;
}

/* ---- finish ---- */

static enum status place_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct work *w = ctx;
    struct db_rows rows;
    w->no = (struct refusal){0};
    const char *argv[] = {w->upload->id};
    TRY(db_query(db, a, "SELECT state FROM upload WHERE id = $1 FOR NO KEY UPDATE", 1, argv, &rows,
                 e));
    const char *state = rows.count ? db_text(&rows, 0, 0) : "gone";
    if (strcmp(state, "placed") == 0 || strcmp(state, "accepted") == 0) {
        return ST_OK;
    }
    if (strcmp(state, "open") != 0) {
        refuse(&w->no, 410, "UPLOAD_GONE", "the upload is %s; create a new one", state);
        return ST_OK;
    }
    // Under the lock of the blob's row, so that nobody removes the file beside us. Doing it twice
    // is harmless, and the row is committed only after the file is durable under its name.
    TRY(db_blob_place(db, a, w->blobs, w->upload->id, &w->upload->sha256, w->upload->bytes, e));
    FAULT("place.named");
    return db_exec(db, "UPDATE upload SET state = 'placed' WHERE id = $1", 1, argv, NULL, e);
}

enum status db_upload_place(struct db *db, struct blob_store *s, const struct upload *u,
                            struct refusal *no, struct err *e)
{
    struct work w = {.upload = u, .blobs = s};
    TRY(db_tx(db, place_tx, &w, e));
    FAULT("place.committed");
    *no = w.no;
    return ST_OK;
}

static enum status refuse_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct work *w = ctx;
    struct task_lock lock = {0};
    struct refusal held = {0};
    TRY(db_task_lock(db, a, w->upload->task_id, w->silo_id, w->epoch, &lock, &held, e));
    int64_t hit = 0;
    const char *argv[] = {w->upload->id, w->code, w->detail};
    TRY(db_exec(db,
                "UPDATE upload SET state = 'refused', code = $2, detail = $3"
                " WHERE id = $1 AND state IN ('open', 'placed')",
                3, argv, &hit, e));
    if (hit == 0) {
        return ST_OK; // refused before
    }
    const char *event[] = {
        lock.run_id,
        db_arg_int(a, lock.number),
        db_arg_int(a, lock.slot),
        w->silo_id,
        arena_fmt(a, "the update for seat %" PRId32 " was refused: %.160s", lock.slot, w->detail),
        w->upload->task_id,
        w->code};
    TRY(db_exec(db,
                "INSERT INTO event (kind, run_id, round, slot, silo_id, message, detail) VALUES"
                " ('update_refused', $1, $2, $3, $4, $5,"
                "  jsonb_build_object('task', $6::text, 'code', $7::text))",
                7, event, NULL, e));
    return held.code
               ? ST_OK
               : db_task_fail(db, a, w->upload->task_id, w->silo_id, "bad_update", w->detail, e);
}

enum status db_upload_refuse(struct db *db, const struct upload *u, const char *silo_id,
                             int64_t epoch, const char *code, const char *detail, struct err *e)
{
    struct work w = {
        .silo_id = silo_id, .upload = u, .epoch = epoch, .code = code, .detail = detail};
    TRY(db_tx(db, refuse_tx, &w, e));
    FAULT("refuse.committed");
    return ST_OK;
}

/* The update that this upload became, if it did. */
static enum status find_update(struct db *db, struct arena *a, const char *upload_id, bool *found,
                               struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {upload_id};
    TRY(db_query(db, a, "SELECT 1 FROM update WHERE upload_id = $1", 1, argv, &rows, e));
    *found = rows.count > 0;
    return ST_OK;
}

static const char SQL_INSERT_UPDATE[] =
    "INSERT INTO update (round_id, slot, task_id, silo_id, lease_epoch, upload_id, digest, bytes,"
    "                    codec, tokens, steps, train_loss, norm, codec_error, residual_ratio,"
    "                    fallback_share)"
    " SELECT $1, $2, u.task_id, u.silo_id, $3, u.id, u.sha256, u.bytes, u.codec, u.tokens, u.steps,"
    "        u.train_loss, $5, u.codec_error, u.residual_ratio, u.fallback_share"
    "   FROM upload u WHERE u.id = $4 RETURNING id";

static const char SQL_TASK_DONE[] =
    "WITH u AS (UPDATE upload SET state = 'accepted', upload_s = $3 WHERE id = $1 RETURNING *),"
    " t AS (UPDATE task SET state = 'done', done_at = clock_timestamp(), lease_until = NULL,"
    "           step = u.steps, tokens = u.tokens, train_loss = u.train_loss,"
    "           download_s = u.download_s, train_s = u.train_s, encode_s = u.encode_s,"
    "           upload_s = u.upload_s FROM u WHERE task.id = u.task_id RETURNING task.id),"
    " l AS (UPDATE lease SET ended_at = clock_timestamp(), outcome = 'accepted' FROM t"
    "     WHERE (task_id, epoch) = (t.id, $2))"
    " UPDATE silo SET fails = 0, phase = 'waiting' FROM u WHERE silo.id = u.silo_id";

static const char SQL_ACCEPTED_EVENT[] =
    "INSERT INTO event (kind, run_id, round, slot, silo_id, update_id, message, detail)"
    " SELECT 'update_accepted', $1, $2, $3, s.id, $5, format('the update of %s counts: %s of %s',"
    "        s.name, n.n, q.silos_expected),"
    "        jsonb_build_object('task', $6::text, 'accepted', n.n, 'expected', q.silos_expected)"
    "   FROM silo s, round q, (SELECT count(*) AS n FROM update WHERE round_id = $7"
    "                             AND state = 'accepted') n"
    "  WHERE s.id = $4 AND q.id = $7";

static enum status count_it(struct db *db, struct arena *a, struct work *w,
                            const struct task_lock *lock, struct err *e)
{
    struct db_rows rows;
    const char *round_id = db_arg_int(a, lock->round_id);
    const char *slot = db_arg_int(a, lock->slot);
    const char *epoch = db_arg_int(a, w->epoch);
    const char *insert[] = {round_id, slot, epoch, w->upload->id, arg_known(a, w->norm)};
    TRY(db_query(db, a, SQL_INSERT_UPDATE, 5, insert, &rows, e));
    const char *done[] = {w->upload->id, epoch, arg_known(a, w->upload_s)};
    TRY(db_exec(db, SQL_TASK_DONE, 3, done, NULL, e));
    const char *event[] = {lock->run_id,         db_arg_int(a, lock->number), slot,    w->silo_id,
                           db_text(&rows, 0, 0), w->upload->task_id,          round_id};
    return db_exec(db, SQL_ACCEPTED_EVENT, 7, event, NULL, e);
}

static enum status accept_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct work *w = ctx;
    struct task_lock lock = {0};
    bool counted = false;
    bool found = false;
    struct upload now = {0};
    w->no = (struct refusal){0};
    TRY(db_task_lock(db, a, w->upload->task_id, w->silo_id, w->epoch, &lock, &w->no, e));
    FAULT("accept.locked");
    TRY(find_update(db, a, w->upload->id, &counted, e));
    if (!counted && !w->no.code) {
        TRY(get(db, a, w->upload->id, w->silo_id, "FOR NO KEY UPDATE OF u", &now, &found, e));
    }
    switch (seat_accept(&lock.seat, lock.hold, counted, strcmp(now.state, "placed") == 0)) {
    case ACCEPT_COUNT:
        TRY(count_it(db, a, w, &lock, e));
        FAULT("accept.counted");
        return ST_OK;
    case ACCEPT_AGAIN:
        w->no = (struct refusal){0}; // the same answer as before, whatever happened since
        return ST_OK;
    case ACCEPT_GONE:
        refuse(&w->no, 410, "UPLOAD_GONE", "the upload is %s", found ? now.state : "gone");
        return ST_OK;
    case ACCEPT_REFUSE:
    default:
        return ST_OK; // db_task_lock() said why
    }
}

enum status db_upload_accept(struct db *db, const struct upload *u, const char *silo_id,
                             int64_t epoch, double norm, double upload_s, struct refusal *no,
                             struct err *e)
{
    struct work w = {
        .silo_id = silo_id, .upload = u, .epoch = epoch, .norm = norm, .upload_s = upload_s};
    FAULT("accept.begin");
    TRY(db_tx(db, accept_tx, &w, e));
    FAULT("accept.committed");
    *no = w.no;
    return ST_OK;
}

static enum status may_tx(struct db *db, struct arena *a, void *ctx, struct err *e)
{
    struct work *w = ctx;
    struct task_lock lock = {0};
    w->no = (struct refusal){0};
    TRY(db_task_lock(db, a, w->upload->task_id, w->silo_id, w->epoch, &lock, &w->no, e));
    TRY(find_update(db, a, w->upload->id, &w->accepted, e));
    if (w->accepted) {
        w->no = (struct refusal){0};
        return ST_OK;
    }
    return w->no.code ? ST_OK : renew(db, a, w->upload->task_id, e);
}

enum status db_upload_may_finish(struct db *db, const struct upload *u, const char *silo_id,
                                 int64_t epoch, bool *accepted, struct refusal *no, struct err *e)
{
    struct work w = {.silo_id = silo_id, .upload = u, .epoch = epoch};
    TRY(db_tx(db, may_tx, &w, e));
    *accepted = w.accepted;
    *no = w.no;
    return ST_OK;
}
