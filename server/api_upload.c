/*
 * Uploads over control: created, asked about, finished. Their chunks come to api_bulk.c.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/id.h"
#include "common/limits.h"
#include "common/log.h"
#include "server/accept.h"
#include "server/api.h"
#include "server/api_silo.h"
#include "server/blob.h"
#include "server/checkpoint.h"
#include "server/db_upload.h"
#include "server/quota.h"
#include "server/server.h"
#include "server/upload_hash.h"

enum { FINISH_WAIT_S = 15 }; // well below what a client waits for an answer

static bool read_timings(struct request *rq, struct response *rs, struct upload_wanted *w)
{
    static const char *const keys[] = {"download_s", "train_s", "encode_s", NULL};
    const struct json *t = json_get(rq->json, "timings");
    w->download_s = w->train_s = w->encode_s = NAN;
    if (!t || json_kind(t) == JSON_NULL) {
        return true;
    }
    struct err e = {0};
    if (json_kind(t) != JSON_OBJECT || json_only(t, keys, &e)) {
        (void)bad_member(rq, rs, "/timings", e.msg[0] ? e.msg : "must be an object");
        return false;
    }
    return silo_number(rq, rs, t, "download_s", 0.0, &w->download_s) &&
           silo_number(rq, rs, t, "train_s", 0.0, &w->train_s) &&
           silo_number(rq, rs, t, "encode_s", 0.0, &w->encode_s);
}

/* What the codec did to the update, as the silo measured it. */
static bool read_coding(struct request *rq, struct response *rs, struct upload_wanted *w)
{
    static const char *const keys[] = {"error", "residual_ratio", "fallback_share", NULL};
    const struct json *c = json_get(rq->json, "coding");
    w->codec_error = w->residual_ratio = w->fallback_share = NAN;
    if (!c || json_kind(c) == JSON_NULL) {
        return true;
    }
    struct err e = {0};
    if (json_kind(c) != JSON_OBJECT || json_only(c, keys, &e)) {
        (void)bad_member(rq, rs, "/coding", e.msg[0] ? e.msg : "must be an object");
        return false;
    }
    if (!silo_number(rq, rs, c, "error", 0.0, &w->codec_error) ||
        !silo_number(rq, rs, c, "residual_ratio", 0.0, &w->residual_ratio) ||
        !silo_number(rq, rs, c, "fallback_share", 0.0, &w->fallback_share)) {
        return false;
    }
    if (w->fallback_share > 1.0) {
        (void)bad_member(rq, rs, "/coding/fallback_share", "must be at most 1");
        return false;
    }
    return true;
}

static bool read_wanted(struct request *rq, struct response *rs, struct upload_wanted *w)
{
    static const char *const keys[] = {"task",    "epoch",  "sha256", "bytes",
                                       "codec",   "tokens", "steps",  "train_loss",
                                       "timings", "coding", NULL};
    *w = (struct upload_wanted){0};
    const char *sha256 = NULL;
    const char *codec = NULL;
    if (!only_members(rq, rs, keys) || !(w->task_id = want_member(rq, rs, "task")) ||
        !(sha256 = want_member(rq, rs, "sha256")) || !(codec = want_member(rq, rs, "codec")) ||
        !silo_want_int(rq, rs, "epoch", 0, INT64_MAX, &w->epoch) ||
        !silo_want_int(rq, rs, "bytes", 1, LIMIT_BLOB, &w->bytes) ||
        !silo_want_int(rq, rs, "tokens", 1, INT64_MAX, &w->tokens) ||
        !silo_want_int(rq, rs, "steps", 1, LIMIT_STEPS, &w->steps) ||
        !silo_number(rq, rs, rq->json, "train_loss", -INFINITY, &w->train_loss) ||
        !read_timings(rq, rs, w) || !read_coding(rq, rs, w)) {
        return false;
    }
    if (!id_valid('t', w->task_id)) {
        (void)not_found(rq, rs, "task");
    } else if (digest_parse(&w->sha256, sha256, NULL)) {
        (void)bad_member(rq, rs, "/sha256", "must be 64 lower-case hex digits");
    } else if (codec_parse(&w->codec, codec, NULL)) {
        (void)bad_member(rq, rs, "/codec", "must be f32, bf16, int8, q4, q2 or topk");
    } else {
        return true;
    }
    return false;
}

static const char *upload_json(struct request *rq, const struct upload *u)
{
    return arena_fmt(
        rq->arena, "{\"upload\":\"%s\",\"offset\":%" PRId64 ",\"chunk_bytes\":%d,\"state\":\"%s\"}",
        u->id, u->received, SILO_CHUNK_BYTES, u->state);
}

/* Planned and free? False: rs says why not. */
static enum status may_create(struct request *rq, struct response *rs,
                              const struct upload_wanted *w, bool *may, struct err *e)
{
    struct upload_plan plan;
    struct run_spec spec;
    *may = false;
    enum status st = db_upload_plan(rq->db, rq->arena, w->task_id, rq->who.silo_id, &plan, e);
    if (st == ST_NOT_FOUND) {
        return not_found(rq, rs, "training task");
    }
    TRY(st);
    TRY(silo_parse_spec(&spec, rq->arena, plan.spec_text, e));
    if (spec.inner_state == INNER_STATE_AVERAGE && w->codec != CODEC_F32) {
        return bad_member(rq, rs, "/codec", "must be f32 where moments are averaged");
    }
    int64_t planned = checkpoint_update_bytes(&spec, plan.silo_name, w->codec, plan.round);
    bool exact = w->codec == CODEC_F32; // else some tensors may be one rung up, and gaps vary
    if (exact ? w->bytes != planned : w->bytes > planned) {
        struct refusal no;
        refuse(&no, 413, "NOT_THE_PLANNED_SIZE",
               "the update has %" PRId64 " bytes, the plan says %s%" PRId64, w->bytes,
               exact ? "" : "at most ", planned);
        return respond_refusal(rq, rs, &no);
    }
    *may = true;
    return ST_OK;
}

/*
 * The upload's file, made when it is not there. *lost: some of it was durable once and is gone, so
 * the upload cannot go on.
 */
static enum status ensure_file(struct server *s, const struct upload *u, bool *lost, struct err *e)
{
    int fd = -1;
    *lost = false;
    enum status st = blob_tmp_open(s->blobs, u->id, &fd, e);
    if (st == ST_NOT_FOUND && u->received > 0) {
        *lost = true;
        return ST_OK;
    }
    if (st == ST_NOT_FOUND) {
        st = blob_tmp_create(s->blobs, u->id, u->bytes, &fd, e);
        if (st == ST_CONFLICT) {
            return ST_OK; // a request beside this one was faster
        }
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    return st;
}

enum status api_upload_create(struct request *rq, struct response *rs, struct err *e)
{
    struct upload_wanted w;
    bool may = false;
    if (!silo_protocol(rq, rs) || !read_wanted(rq, rs, &w)) {
        return ST_OK;
    }
    TRY(may_create(rq, rs, &w, &may, e));
    if (may) { // a large file may take days: one byte of today's is enough to begin
        TRY(quota_allows(rq, rs, QUOTA_UPLOAD, 1, &may, e));
    }
    if (!may) {
        return ST_OK;
    }
    for (int tries = 0; tries < 2; tries++) {
        struct upload u;
        struct refusal no = {0};
        char dropped[ID_LEN + 1];
        bool fresh = false;
        bool lost = false;
        TRY(db_upload_create(rq->db, rq->who.silo_id, &w, &u, &fresh, dropped, &no, e));
        if (no.code) {
            return respond_refusal(rq, rs, &no);
        }
        if (dropped[0]) {
            upload_hash_forget(dropped);
            blob_tmp_remove(rq->server->blobs, dropped);
        }
        enum status st = ST_OK;
        if (strcmp(u.state, "open") == 0) {
            st = ensure_file(rq->server, &u, &lost, e);
        }
        if (st == ST_LIMIT) {
            TRY(db_upload_expire(rq->db, u.id, e));
            return respond_disk_full(rq, rs);
        }
        TRY(st);
        if (!lost) {
            FAULT("create.reply");
            respond_json(rq, rs, fresh ? 201 : 200, upload_json(rq, &u));
            return ST_OK;
        }
        TRY(db_upload_expire(rq->db, u.id, e));
    }
    return err_set(e, ST_RETRY, "the upload was lost twice");
}

enum status api_upload_get(struct request *rq, struct response *rs, struct err *e)
{
    struct upload u;
    if (!silo_protocol(rq, rs) || !silo_path_id(rq, rs, 'u', "upload")) {
        return ST_OK;
    }
    enum status st = db_upload_get(rq->db, rq->params[0], rq->who.silo_id, &u, e);
    if (st == ST_NOT_FOUND) {
        return not_found(rq, rs, "upload");
    }
    TRY(st);
    struct buf b;
    buf_init(&b, 4096);
    jw_object(&b, NULL);
    jw_str(&b, "upload", u.id);
    jw_str(&b, "state", u.state);
    jw_int(&b, "offset", u.received);
    jw_int(&b, "bytes", u.bytes);
    if (strcmp(u.state, "accepted") == 0) {
        jw_raw(&b, "outcome", "{\"accepted\":true}");
    } else if (strcmp(u.state, "refused") == 0) {
        jw_object(&b, "outcome");
        jw_bool(&b, "accepted", false);
        jw_str(&b, "code", u.code);
        jw_str(&b, "detail", u.detail);
        jw_end_object(&b);
    } else {
        jw_null(&b, "outcome");
    }
    jw_end_object(&b);
    respond_buf(rq, rs, 200, &b);
    return ST_OK;
}

/* What a finish keeps while a large file is being read. */
struct finishing {
    int64_t epoch;
    double upload_s;
    double until_s;
};

static struct finishing *start_finish(struct request *rq, struct response *rs)
{
    static const char *const keys[] = {"epoch", "upload_s", NULL};
    struct finishing *f = arena_alloc(rq->arena, sizeof(*f));
    if (!silo_protocol(rq, rs) || !silo_path_id(rq, rs, 'u', "upload") ||
        !only_members(rq, rs, keys) || !silo_want_int(rq, rs, "epoch", 0, INT64_MAX, &f->epoch) ||
        !silo_number(rq, rs, rq->json, "upload_s", 0.0, &f->upload_s)) {
        return NULL;
    }
    f->until_s = clock_mono_s() + FINISH_WAIT_S;
    return f;
}

enum status api_upload_finish(struct request *rq, struct response *rs, struct err *e)
{
    struct upload u;
    if (!rq->state && !(rq->state = start_finish(rq, rs))) {
        return ST_OK;
    }
    const struct finishing *f = rq->state;
    enum status st = db_upload_get(rq->db, rq->params[0], rq->who.silo_id, &u, e);
    if (st == ST_NOT_FOUND) {
        return not_found(rq, rs, "upload");
    }
    TRY(st);
    struct refusal no = {0};
    bool pending = false;
    TRY(accept_upload(rq->server, rq->db, &u, rq->who.silo_id, f->epoch, f->upload_s, &pending, &no,
                      e));
    if (no.code) {
        silo_wake_run(rq, u.run_id); // its seat may have been the last
        return respond_refusal(rq, rs, &no);
    }
    if (pending && !rq->expired && clock_mono_s() < f->until_s) {
        response_park(rs, "uploads", f->until_s); // nobody wakes it: it looks again by itself
        return ST_OK;
    }
    if (pending) {
        respond_json(rq, rs, 202, "{\"accepted\":null}");
        response_header(rs, "Retry-After", "1");
        return ST_OK;
    }
    FAULT("finish.reply");
    silo_wake_run(rq, u.run_id);
    log_info("update accepted run=%s round=%" PRId32 " silo=%s bytes=%" PRId64, u.run_id, u.number,
             rq->who.name, u.bytes);
    respond_json(rq, rs, 200,
                 arena_fmt(rq->arena, "{\"accepted\":true,\"round\":%" PRId32 "}", u.number));
    return ST_OK;
}
