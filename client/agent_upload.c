/*
 * agent_upload.c - an update's way to the server: create, chunks, finish, whatever breaks between.
 *
 * A refusal is a decision; a broken connection is none: then the durable offset is asked for and
 * the upload goes on from there. At most one chunk is sent twice per cut.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "client/acks.h"
#include "client/agent_int.h"
#include "client/chunking.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/id.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/rng.h"

enum { CUT_WAITS = 2, DIGEST_TRIES = 5, WAIT_SLICE_MS = 100, LOST_MAX = 5 };

struct sending {
    struct agent *a;
    const struct task *t;
    struct run_state *rs;
    struct beat *b;
    int fd;
    int64_t offset;
    int64_t chunk_bytes; // what the server takes at most
    int64_t piece;       // of the next chunk, as the link allows
    struct ahead *ahead;
    int attempt; // failures in a row, for the wait
    int lost;    // how often the server had the upload no more
    double seconds;
};

/* What the next step is. */
enum step { STEP_CREATE = 0, STEP_CHUNK, STEP_ASK, STEP_FINISH, STEP_END };

static enum task_end ended(const struct reply *r, bool *decided)
{
    *decided = true;
    if (strcmp(r->code, "ROUND_CLOSED") == 0 || strcmp(r->code, "OTHER_UPDATE_COUNTED") == 0) {
        return TASK_LATE;
    }
    if (strcmp(r->code, "STALE_LEASE") == 0) {
        return TASK_DROPPED; // claim again: the task may still be ours, under a new epoch
    }
    if (r->http == 410 && strcmp(r->code, "RUN_STOPPED") == 0) {
        return TASK_LATE;
    }
    if (strcmp(r->code, "BAD_UPDATE") == 0) {
        return TASK_REFUSED;
    }
    *decided = false;
    return TASK_DONE;
}

/* Only what the server says on the upload itself decides about a finished piece of work. */
static bool gives_up(const struct sending *s)
{
    enum beat_order order = beat_order(s->b);
    return order == BEAT_STALE || order == BEAT_DENIED;
}

static void pause_before_retry(struct sending *s, double retry_after_s)
{
    uint64_t draw = 0;
    random_bytes(&draw, sizeof(draw));
    int64_t wait = retry_delay_ms(s->attempt++, rng_unit(draw, 0), retry_after_s);
    log_info("going on with the upload in %.1f s", (double)wait / 1000.0);
    int64_t until = clock_mono_ms() + wait;
    // Only what ends the upload ends the wait: a round that is over while the server is away must
    // not make a storm of requests of it.
    while (clock_mono_ms() < until && !agent_stopping() && !gives_up(s)) {
        clock_sleep_ms(WAIT_SLICE_MS);
    }
}

static void create_body(const struct sending *s, struct buf *b)
{
    const struct journal *j = &s->rs->j;
    jw_object(b, NULL);
    jw_str(b, "task", s->t->id);
    jw_int(b, "epoch", s->t->epoch);
    jw_str(b, "sha256", j->sha256);
    jw_int(b, "bytes", j->bytes);
    jw_str(b, "codec", j->codec[0] ? j->codec : codec_name(CODEC_F32));
    jw_int(b, "tokens", j->tokens);
    jw_int(b, "steps", s->t->local_steps);
    jw_num(b, "train_loss", j->train_loss);
    jw_object(b, "timings");
    jw_num(b, "download_s", j->download_s);
    jw_num(b, "train_s", j->train_s);
    jw_num(b, "encode_s", j->encode_s);
    jw_end_object(b);
    jw_object(b, "coding");
    jw_num(b, "error", j->codec_error);
    jw_num(b, "residual_ratio", j->residual_ratio);
    jw_num(b, "fallback_share", j->fallback_share);
    jw_end_object(b);
    jw_end_object(b);
}

/* Reads upload id, offset, chunk size of a create's or a GET's answer. */
static enum status read_upload(struct sending *s, const struct reply *r, struct err *e)
{
    if (!r->json) {
        return err_set(e, ST_CORRUPT, "the server's answer is not JSON");
    }
    const char *id = NULL;
    TRY(json_want_str(r->json, "upload", &id, e));
    if (!id_valid('u', id)) { // it goes into paths, the journal and the lines of the acks
        return err_set(e, ST_CORRUPT, "the server's answer names no upload");
    }
    TRY(json_want_int(r->json, "offset", 0, s->rs->j.bytes, &s->offset, e));
    const struct json *chunk = json_get(r->json, "chunk_bytes");
    if (json_is_int(chunk, 1, LIMIT_CHUNK)) {
        s->chunk_bytes = json_int(chunk);
        s->piece = s->piece < s->chunk_bytes ? s->piece : s->chunk_bytes;
    }
    if (strcmp(s->rs->j.upload, id) != 0) {
        TRY(run_state_upload(s->rs, id, e));
    }
    return ST_OK;
}

/* The file is ours, so it starts anew; not for ever with a server that keeps losing it. */
static enum step start_anew(struct sending *s, enum task_end *end)
{
    if (++s->lost < LOST_MAX) {
        return STEP_CREATE;
    }
    struct err e = {0};
    (void)err_set(&e, ST_RETRY, "the server lost the upload %d times", LOST_MAX);
    *end = agent_fail(s->a, "transient", &e);
    return STEP_END;
}

/* Sorts what a failed request means: a decision ends it, anything unknown asks for the offset. */
static enum step after_failure(struct sending *s, const struct reply *r, const struct err *e,
                               enum step retry, enum task_end *end)
{
    bool decided = false;
    *end = ended(r, &decided);
    if (decided) {
        log_warn("%s", e->msg);
        return STEP_END;
    }
    if (r->cancelled || agent_stopping()) {
        *end = TASK_LEAVING;
        return STEP_END;
    }
    const struct json *offset = r->json ? json_get(r->json, "offset") : NULL;
    if (r->http == 409 && json_is_int(offset, 0, s->rs->j.bytes)) { // OFFSET_MISMATCH, INCOMPLETE
        s->offset = json_int(offset);
        return STEP_CHUNK;
    }
    bool gone = r->http == 410 || r->http == 404;
    if (gone && *r->code) { // UPLOAD_GONE, NOT_FOUND
        pause_before_retry(s, r->retry_after_s);
        return start_anew(s, end);
    }
    // Without a code it is not the server's word, but that of something before it.
    if (retry_allowed(r->http) || gone || strcmp(r->code, "UPLOAD_BUSY") == 0) {
        log_info("%s", e->msg);
        pause_before_retry(s, r->retry_after_s);
        return retry;
    }
    *end = agent_fail(s->a, "transient", e);
    return STEP_END;
}

static enum step do_create(struct sending *s, struct arena *arena, enum task_end *end)
{
    struct buf body;
    buf_init(&body, 4096);
    create_body(s, &body);
    struct reply r;
    struct err e = {0};
    enum status st =
        transport_call(s->a->control, arena, "POST", "/silo/v1/uploads", body.data, &r, &e);
    buf_release(&body);
    if (st) {
        return after_failure(s, &r, &e, STEP_CREATE, end);
    }
    FAULT("send.created");
    st = read_upload(s, &r, &e);
    if (st) {
        *end = agent_fail(s->a, "transient", &e);
        return STEP_END;
    }
    s->attempt = 0;
    const char *state = json_str(json_get(r.json, "state"));
    bool whole = state && (strcmp(state, "placed") == 0 || strcmp(state, "accepted") == 0);
    return whole ? STEP_FINISH : STEP_CHUNK;
}

/* After a broken send: what is durable? */
static enum step do_ask(struct sending *s, struct arena *arena, enum task_end *end)
{
    struct reply r;
    struct err e = {0};
    enum status st =
        transport_call(s->a->control, arena, "GET",
                       arena_fmt(arena, "/silo/v1/uploads/%s", s->rs->j.upload), NULL, &r, &e);
    st = st ? st : read_upload(s, &r, &e);
    if (st) {
        return after_failure(s, &r, &e, STEP_ASK, end);
    }
    // The server is there, only the piece did not get through: no reason to wait ever longer.
    s->attempt = s->attempt < CUT_WAITS ? s->attempt : CUT_WAITS;
    const char *state = json_str(json_get(r.json, "state"));
    if (state && strcmp(state, "expired") == 0) {
        return start_anew(s, end);
    }
    return state && strcmp(state, "open") == 0 ? STEP_CHUNK : STEP_FINISH;
}

/* The piece at the durable offset; the digest of the one behind it is made while it is sent. */
static enum status next_chunk(struct sending *s, struct arena *arena, struct chunk *out,
                              struct err *e)
{
    int64_t left = s->rs->j.bytes - s->offset;
    int64_t bytes = left < s->piece ? left : s->piece;
    uint32_t crc = 0;
    TRY(ahead_take(s->ahead, s->offset, &bytes, &crc, e));
    int64_t after = left - bytes;
    ahead_start(s->ahead, s->offset + bytes, after < s->piece ? after : s->piece);
    *out = (struct chunk){.path = arena_fmt(arena, "/silo/v1/uploads/%s", s->rs->j.upload),
                          .lease = arena_fmt(arena, "%s:%" PRId64, s->t->id, s->t->epoch),
                          .fd = s->fd,
                          .offset = s->offset,
                          .bytes = bytes,
                          .meta = arena_fmt(arena,
                                            "{\"offset\":%" PRId64 ",\"bytes\":%" PRId64
                                            ",\"crc32c\":\"%08x\"}",
                                            s->offset, bytes, crc)};
    return ST_OK;
}

static enum step do_chunk(struct sending *s, struct arena *arena, enum task_end *end)
{
    if (s->offset >= s->rs->j.bytes) {
        return STEP_FINISH;
    }
    struct chunk c;
    struct err e = {0};
    if (next_chunk(s, arena, &c, &e)) {
        *end = agent_fail(s->a, "transient", &e);
        return STEP_END;
    }
    struct reply r;
    double begin = clock_mono_s();
    FAULT("send.chunk");
    enum status st = transport_chunk(s->a->bulk, arena, &c, &r, &e);
    FAULT("send.chunked");
    double took = clock_mono_s() - begin;
    s->seconds += took;
    if (!st && took > 0.0) {
        s->a->link_bytes_per_s = (double)c.bytes / took;
    }
    s->a->sent_bytes += c.sent;
    if (!st || r.http == 0) { // a refusal says nothing of the link
        s->piece = chunk_next(c.bytes, took, !st, s->chunk_bytes);
    }
    if (st) {
        bool damaged = r.http == 422 && strcmp(r.code, "DIGEST_MISMATCH") == 0;
        if (damaged && s->attempt < DIGEST_TRIES) { // the wire flipped a bit
            pause_before_retry(s, r.retry_after_s);
            return STEP_CHUNK;
        }
        return after_failure(s, &r, &e, STEP_ASK, end);
    }
    s->attempt = 0;
    const struct json *offset = r.json ? json_get(r.json, "offset") : NULL;
    if (!json_is_int(offset, s->offset, s->rs->j.bytes)) {
        return STEP_ASK;
    }
    s->offset = json_int(offset);
    return s->offset >= s->rs->j.bytes ? STEP_FINISH : STEP_CHUNK;
}

static enum step do_finish(struct sending *s, struct arena *arena, enum task_end *end)
{
    struct buf body;
    buf_init(&body, 512);
    jw_object(&body, NULL);
    jw_int(&body, "epoch", s->t->epoch);
    jw_num(&body, "upload_s", s->seconds);
    jw_end_object(&body);
    struct reply r;
    struct err e = {0};
    FAULT("send.finish");
    enum status st = transport_call(s->a->control, arena, "POST",
                                    arena_fmt(arena, "/silo/v1/uploads/%s/finish", s->rs->j.upload),
                                    body.data, &r, &e);
    buf_release(&body);
    if (st) {
        return after_failure(s, &r, &e, STEP_FINISH, end);
    }
    FAULT("send.finished");
    if (r.http == 202) { // still being checked: no failure, so the waits do not grow
        s->attempt = 0;
        pause_before_retry(s, 1.0);
        return STEP_FINISH;
    }
    *end = TASK_DONE;
    return STEP_END;
}

static enum task_end send_all(struct sending *s)
{
    enum task_end end = TASK_DONE;
    for (enum step step = STEP_CREATE; step != STEP_END;) {
        if (agent_stopping()) {
            return TASK_LEAVING;
        }
        if (gives_up(s)) {
            return TASK_DROPPED;
        }
        struct arena *arena = arena_new(64 * 1024 * 1024);
        switch (step) {
        case STEP_CREATE:
            step = do_create(s, arena, &end);
            break;
        case STEP_CHUNK:
            step = do_chunk(s, arena, &end);
            break;
        case STEP_ASK:
            step = do_ask(s, arena, &end);
            break;
        case STEP_FINISH:
            step = do_finish(s, arena, &end);
            break;
        case STEP_END:
        default:
            break;
        }
        arena_free(arena);
    }
    return end;
}

/* Its folder has the run's name. */
static const char *run_of(const struct run_state *rs)
{
    const char *slash = strrchr(rs->dir, '/');
    return slash ? slash + 1 : rs->dir;
}

/* The optimizer state follows the decision; without one it waits. */
static enum task_end settle(struct agent *a, struct run_state *rs, enum task_end end)
{
    struct err e = {0};
    if (end == TASK_DONE && acks_note(a->config->state_dir, rs->j.upload, rs->j.sha256, run_of(rs),
                                      rs->j.key.round, &e)) {
        return agent_fail(a, "transient", &e); // asked again, the server says the same again
    }
    bool decided = end == TASK_DONE || end == TASK_LATE || end == TASK_REFUSED;
    enum outcome o = end == TASK_DONE   ? OUTCOME_COUNTED
                     : end == TASK_LATE ? OUTCOME_LATE
                                        : OUTCOME_REFUSED;
    if (decided && run_state_settle(rs, o, &e)) {
        return agent_fail(a, "transient", &e);
    }
    return end;
}

enum task_end agent_upload(struct agent *a, const struct task *t, struct run_state *rs,
                           struct beat *b, struct arena *arena)
{
    (void)arena;
    char path[STATE_PATH_MAX];
    run_state_path(rs, STATE_UPDATE, path);
    struct sending s = {.a = a, .t = t, .rs = rs, .b = b, .chunk_bytes = t->chunk_bytes};
    s.piece = CHUNK_FIRST < s.chunk_bytes ? CHUNK_FIRST : s.chunk_bytes;
    s.fd = open(path, O_RDONLY | O_CLOEXEC);
    if (s.fd < 0) {
        struct err e = {0};
        (void)err_set(&e, ST_IO, "cannot open %s: %s", path, strerror(errno));
        return agent_fail(a, "transient", &e);
    }
    agent_doing(a, t, "uploading", t->local_steps);
    beat_report(b, "upload", t->local_steps, a->tokens_per_s);
    s.ahead = ahead_new(s.fd);
    enum task_end end = send_all(&s);
    ahead_free(s.ahead);
    (void)close(s.fd);
    end = settle(a, rs, end);
    if (end == TASK_DONE) {
        char size[16];
        format_bytes(size, rs->j.bytes);
        a->updates++;
        agent_say(a, "round %" PRId64 ": update of %s accepted (loss %.4f, %" PRId64 " tokens)",
                  t->round, size, rs->j.train_loss, rs->j.tokens);
    } else if (end == TASK_LATE) {
        agent_say(a, "round %" PRId64 ": the update came too late and is not counted", t->round);
    }
    return end;
}

/* What an answer about the upload says; an error, and nothing is settled, when it says nothing. */
static enum status read_outcome(const struct json *answer, const char *upload, enum outcome *o,
                                struct err *e)
{
    bool object = answer && json_kind(answer) == JSON_OBJECT;
    const char *named = object ? json_str(json_get(answer, "upload")) : NULL;
    const struct json *outcome = object ? json_get(answer, "outcome") : NULL;
    if (!outcome || !named || strcmp(named, upload) != 0) {
        return err_set(e, ST_RETRY, "the answer says nothing of the upload");
    }
    if (json_kind(outcome) == JSON_NULL) { // its round is over, and it was never counted in it
        *o = OUTCOME_LATE;
        return ST_OK;
    }
    const struct json *yes =
        json_kind(outcome) == JSON_OBJECT ? json_get(outcome, "accepted") : NULL;
    if (!yes || json_kind(yes) != JSON_BOOL) {
        return err_set(e, ST_RETRY, "the answer says nothing of the upload's outcome");
    }
    const char *code = json_str(json_get(outcome, "code"));
    bool bad = code && strcmp(code, "BAD_UPDATE") == 0;
    *o = json_bool(yes) ? OUTCOME_COUNTED : bad ? OUTCOME_REFUSED : OUTCOME_LATE;
    return ST_OK;
}

/*
 * Only the server's own word settles. A token that was revoked meanwhile, a proxy's refusal or its
 * page say nothing of whether the update counted: taken for late, its work would be sent again by
 * error feedback and its acknowledgement never be noted. So they are returned, and it is asked
 * again.
 */
static enum status ask_outcome(struct agent *a, const struct run_state *rs, struct arena *arena,
                               enum outcome *o, struct err *e)
{
    struct reply r;
    enum status st = transport_call_retry(a->control, arena, "GET",
                                          arena_fmt(arena, "/silo/v1/uploads/%s", rs->j.upload),
                                          NULL, 0.0, &r, e);
    bool forgotten = (r.http == 404 && strcmp(r.code, "NOT_FOUND") == 0) ||
                     (r.http == 410 && strcmp(r.code, "UPLOAD_GONE") == 0);
    if (forgotten) {
        *o = OUTCOME_LATE;
        return ST_OK;
    }
    return st ? st : read_outcome(r.json, rs->j.upload, o, e);
}

enum status agent_resolve(struct agent *a, struct run_state *rs, struct arena *arena, struct err *e)
{
    enum outcome o = OUTCOME_LATE; // never created
    if (rs->j.upload[0]) {
        TRY(ask_outcome(a, rs, arena, &o, e));
    }
    if (o == OUTCOME_COUNTED) {
        TRY(acks_note(a->config->state_dir, rs->j.upload, rs->j.sha256, run_of(rs), rs->j.key.round,
                      e));
    }
    log_info("round %" PRId64 " of before: its optimizer state is %s", rs->j.key.round,
             o != OUTCOME_REFUSED ? "kept" : "rolled back");
    return run_state_settle(rs, o, e);
}
