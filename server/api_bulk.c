/*
 * Weights and updates over the bulk listener: chunks of uploads in, checkpoints out.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/id.h"
#include "common/limits.h"
#include "common/log.h"
#include "server/api.h"
#include "server/api_file.h"
#include "server/api_silo.h"
#include "server/blob.h"
#include "server/db_silo.h"
#include "server/db_upload.h"
#include "server/mend.h"
#include "server/multipart.h"
#include "server/pace.h"
#include "server/quota.h"
#include "server/range.h"
#include "server/server.h"
#include "server/upload_file.h"
#include "server/upload_hash.h"

enum { MULTIPART_OVERHEAD = 64 * 1024 };

/* ---- a chunk ---- */

/* The two parts of a chunk's body, in this order. */
enum part { PART_NONE = 0, PART_META, PART_CHUNK, PART_OVER };

struct chunk {
    struct request *rq;
    char task_id[ID_LEN + 1];
    int64_t epoch;
    struct upload upload;
    int64_t writer_epoch;
    struct multipart *reader;
    enum part part;
    struct buf meta;
    int64_t offset, bytes;
    struct chunk_digest digest;
    bool durable_before; // a repeat: its bytes are read and dropped
    struct upload_file *file;
    int64_t received;    // of the body
    enum status durable; // what became of making it so
    struct err why;
    struct refusal no;
};

static void release_chunk(void *p)
{
    struct chunk *c = p;
    upload_file_close(c->file);
    multipart_free(c->reader);
    buf_release(&c->meta);
}

/* "t_…:<epoch>" */
static bool read_lease(struct chunk *c, const char *header)
{
    if (!header || strlen(header) < ID_LEN + 2 || header[ID_LEN] != ':') {
        return false;
    }
    memcpy(c->task_id, header, ID_LEN);
    const char *digits = header + ID_LEN + 1;
    size_t len = strspn(digits, "0123456789");
    if (len == 0 || len > 18 || digits[len] || !id_valid('t', c->task_id)) {
        return false;
    }
    c->epoch = strtoll(digits, NULL, 10);
    return true;
}

/* A refusal from within the multipart reader travels as c->no; this only ends the reading. */
static enum status stop(struct err *e)
{
    return err_set(e, ST_INVALID, "the chunk is refused");
}

/* Eight lower-case hex digits. */
static bool read_crc32c(const char *text, uint32_t *out)
{
    if (strlen(text) != 8 || strspn(text, "0123456789abcdef") != 8) {
        return false;
    }
    *out = (uint32_t)strtoul(text, NULL, 16);
    return true;
}

/* "sha256", or "crc32c" from those who trust the digest of the whole for the rest. */
static enum status read_digest(const struct json *doc, struct chunk_digest *out, struct err *e)
{
    const char *text = NULL;
    out->is_crc = json_get(doc, "crc32c") != NULL;
    if (!out->is_crc) {
        TRY(json_want_str(doc, "sha256", &text, e));
        return digest_parse(&out->sha256, text, e);
    }
    TRY(json_want_str(doc, "crc32c", &text, e));
    if (json_get(doc, "sha256") || !read_crc32c(text, &out->crc32c)) {
        return err_set(e, ST_INVALID, "'crc32c' must be 8 lower-case hex digits, without 'sha256'");
    }
    return ST_OK;
}

static enum status meta_done(struct chunk *c, struct err *e)
{
    static const char *const keys[] = {"offset", "bytes", "sha256", "crc32c", NULL};
    const struct json *doc = NULL;
    struct arena *a = c->rq->arena;
    TRY(json_parse(&doc, a, c->meta.data, c->meta.len, e));
    if (json_kind(doc) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "the meta part must be an object");
    }
    TRY(json_only(doc, keys, e));
    TRY(json_want_int(doc, "offset", 0, LIMIT_BLOB, &c->offset, e));
    TRY(json_want_int(doc, "bytes", 1, LIMIT_CHUNK, &c->bytes, e));
    TRY(read_digest(doc, &c->digest, e));

    int64_t durable = c->upload.received;
    c->durable_before = c->offset + c->bytes <= durable;
    if (c->durable_before) {
        return ST_OK;
    }
    if (c->offset != durable || c->bytes > c->upload.bytes - durable) {
        refuse(&c->no, 409, "OFFSET_MISMATCH",
               "the chunk is for %" PRId64 " to %" PRId64 ", of %" PRId64 " bytes %" PRId64
               " are durable",
               c->offset, c->offset + c->bytes, c->upload.bytes, durable);
        c->no.offset = durable;
        return stop(e);
    }
    return ST_OK;
}

/*
 * The file, and then the row once more: a request that was long on its way may have been overtaken
 * by a newer one that is done by now, and must not write into what is durable. Nobody can overtake
 * it from here on without taking its file first.
 */
static enum status open_file(struct chunk *c, struct err *e)
{
    struct server *s = c->rq->server;
    struct db *db = NULL;
    bool writes = false;
    enum status st = upload_file_open(&c->file, s->blobs, c->upload.id, c->writer_epoch, c->offset,
                                      c->bytes, &c->digest, e);
    if (st == ST_NOT_FOUND) {
        refuse(&c->no, 410, "UPLOAD_GONE", "the upload's file is gone");
        return stop(e);
    }
    TRY(st);
    TRY(db_pool_take(s->bulk_pool, &db, e));
    st = db_upload_writes(db, c->upload.id, c->writer_epoch, c->offset, &writes, e);
    db_pool_give(s->bulk_pool, db);
    TRY(st);
    return writes ? ST_OK : err_set(e, ST_CONFLICT, "a newer request writes this upload");
}

static enum status part_begin(void *ctx, const char *name, const char *type, struct err *e)
{
    struct chunk *c = ctx;
    (void)type;
    c->part++;
    if (c->part == PART_META && strcmp(name, "meta") == 0) {
        return ST_OK;
    }
    if (c->part != PART_CHUNK || strcmp(name, "chunk") != 0) {
        return err_set(e, ST_INVALID, "the parts must be meta and chunk, in this order");
    }
    return c->durable_before ? ST_OK : open_file(c, e);
}

static enum status part_bytes(void *ctx, const void *data, size_t len, struct err *e)
{
    struct chunk *c = ctx;
    if (c->part == PART_META) {
        buf_add(&c->meta, data, len);
        return c->meta.full ? err_set(e, ST_INVALID, "the meta part is longer than %d bytes",
                                      LIMIT_META_PART)
                            : ST_OK;
    }
    return c->file ? upload_file_add(c->file, data, len, e) : ST_OK;
}

static enum status part_end(void *ctx, struct err *e)
{
    struct chunk *c = ctx;
    return c->part == PART_META ? meta_done(c, e) : ST_OK;
}

static const struct multipart_handler parts = {part_begin, part_bytes, part_end};

/* What a failure of the reader or the file means to the silo. */
static enum status chunk_failed(struct request *rq, struct response *rs, struct chunk *c,
                                enum status st, struct err *e)
{
    if (c->no.code) {
        return respond_refusal(rq, rs, &c->no);
    }
    switch (st) {
    case ST_INVALID:
        return problem(rq, rs, 422, "UNPROCESSABLE", "see docs/API.md, \"Silos\"", "%s", e->msg);
    case ST_CORRUPT:
        refuse(&c->no, 422, "DIGEST_MISMATCH", "%s", e->msg);
        return respond_refusal(rq, rs, &c->no);
    case ST_CONFLICT:
        refuse(&c->no, 409, "UPLOAD_BUSY", "%s", e->msg);
        return respond_refusal(rq, rs, &c->no);
    case ST_LIMIT:
        return respond_disk_full(rq, rs);
    case ST_OK:
    case ST_DENIED:
    case ST_NOT_FOUND:
    case ST_RETRY:
    case ST_NOMEM:
    case ST_IO:
    case ST_DB:
    case ST_NET:
    case ST_DEVICE:
    case ST_COUNT:
        break;
    }
    return st;
}

static enum status chunk_begin(struct request *rq, struct response *rs, int64_t content_length,
                               struct err *e)
{
    bool allows = false;
    if (!silo_protocol(rq, rs)) {
        return ST_OK;
    }
    TRY(quota_allows(rq, rs, QUOTA_UPLOAD, content_length, &allows, e));
    if (!allows) {
        return ST_OK;
    }
    if (!id_valid('u', rq->params[0])) {
        return not_found(rq, rs, "upload");
    }
    struct chunk *c = arena_alloc(rq->arena, sizeof(*c));
    c->rq = rq;
    if (!read_lease(c, request_header(rq, "Photon-Lease"))) {
        return problem(rq, rs, 422, "UNPROCESSABLE", "send it with each chunk",
                       "the header Photon-Lease must be <task>:<epoch>");
    }
    buf_init(&c->meta, LIMIT_META_PART);
    arena_defer(rq->arena, release_chunk, c);
    if (multipart_open(&c->reader, request_header(rq, "Content-Type"), &parts, c, e)) {
        return problem(rq, rs, 415, "UNSUPPORTED_MEDIA_TYPE", NULL, "%s", e->msg);
    }
    TRY(db_upload_begin(rq->db, rq->params[0], rq->who.silo_id, c->task_id, c->epoch, &c->upload,
                        &c->writer_epoch, &c->no, e));
    if (c->no.code) {
        return respond_refusal(rq, rs, &c->no);
    }
    rq->state = c;
    return ST_OK;
}

static enum status chunk_bytes(struct request *rq, struct response *rs, const void *data,
                               size_t len, struct err *e)
{
    struct chunk *c = rq->state;
    c->received += (int64_t)len;
    pace_take(rq->server->bulk_pace, len); // meanwhile the peer's window fills, and it waits
    enum status st = multipart_feed(c->reader, data, len, e);
    return st ? chunk_failed(rq, rs, c, st, e) : ST_OK;
}

/* Bytes that came count even when their chunk did not. */
static void count_upload(struct db *db, const struct chunk *c, const char *silo_id)
{
    struct err e = {0};
    if (c->upload.run_id[0] &&
        db_traffic_add(db, c->upload.run_id, c->upload.number, silo_id, c->received, 0, &e)) {
        log_warn("traffic was not counted: %s", e.msg);
    }
}

static void chunk_abandon(struct request *rq)
{
    struct chunk *c = rq->state;
    struct db *db = NULL;
    upload_file_close(c->file); // let the next request have it at once
    c->file = NULL;
    if (c->received > 0 && db_pool_take(rq->server->bulk_pool, &db, NULL) == ST_OK) {
        count_upload(db, c, rq->who.silo_id);
        db_pool_give(rq->server->bulk_pool, db);
    }
}

static enum status make_durable(struct chunk *c, struct err *e)
{
    TRY(multipart_end(c->reader, e));
    if (c->part != PART_CHUNK) {
        return err_set(e, ST_INVALID, "the parts must be meta and chunk, in this order");
    }
    return c->durable_before ? ST_OK : upload_file_check(c->file, e);
}

/* The disk may be slow: nobody waits meanwhile for a connection that this one would hold. */
static void chunk_end(struct request *rq)
{
    struct chunk *c = rq->state;
    c->durable = make_durable(c, &c->why);
    if (c->durable == ST_IO) {
        // What the kernel could not write it may have dropped: the file is not to be trusted again.
        log_error("upload lost upload=%s: %s", c->upload.id, c->why.msg);
        upload_hash_forget(c->upload.id);
        blob_tmp_remove(rq->server->blobs, c->upload.id);
    }
}

static enum status commit_chunk(struct request *rq, struct response *rs, struct chunk *c,
                                struct err *e)
{
    struct err ignored = {0};
    if (c->durable == ST_IO && db_upload_expire(rq->db, c->upload.id, &ignored)) {
        log_error("nor could it be marked: %s", ignored.msg); // its file is gone all the same
    }
    if (c->durable || c->durable_before) {
        *e = c->why;
        return c->durable;
    }
    int64_t to = c->offset + c->bytes;
    TRY(db_upload_commit(rq->db, &c->upload, rq->who.silo_id, c->epoch, c->writer_epoch, c->offset,
                         to, &c->no, e));
    if (c->no.code) {
        return respond_refusal(rq, rs, &c->no);
    }
    upload_file_keep(c->file);
    c->upload.received = to;
    return ST_OK;
}

static enum status chunk_done(struct request *rq, struct response *rs, struct err *e)
{
    struct chunk *c = rq->state;
    enum status st = commit_chunk(rq, rs, c, e);
    upload_file_close(c->file);
    c->file = NULL;
    count_upload(rq->db, c, rq->who.silo_id);
    if (st) {
        return chunk_failed(rq, rs, c, st, e);
    }
    if (rs->status == 0) {
        FAULT("chunk.reply");
        respond_json(rq, rs, 200,
                     arena_fmt(rq->arena, "{\"upload\":\"%s\",\"offset\":%" PRId64 "}",
                               c->upload.id, c->upload.received));
    }
    return ST_OK;
}

static const struct sink chunk_sink = {chunk_begin, chunk_bytes, chunk_end, chunk_abandon};

/* ---- a blob ---- */

/* For which round a file goes out. */
struct going {
    char run_id[ID_LEN + 1];
    int32_t number;
};

/* What left counts, not what was asked for. */
static void blob_sent(struct request *rq, int64_t bytes)
{
    const struct going *g = rq->state;
    struct db *db = NULL;
    struct err e = {0};
    enum status st = bytes > 0 ? db_pool_take(rq->server->bulk_pool, &db, &e) : ST_OK;
    if (!st && db) {
        st = db_traffic_add(db, g->run_id, g->number, rq->who.silo_id, 0, bytes, &e);
        db_pool_give(rq->server->bulk_pool, db);
    }
    if (st) {
        log_warn("traffic was not counted: %s", e.msg);
    }
}

static enum status blob_get(struct request *rq, struct response *rs, struct err *e)
{
    struct digest d;
    char run_id[ID_LEN + 1];
    int32_t number = 0;
    int fd = -1;
    int64_t bytes = 0;
    if (!silo_protocol(rq, rs)) {
        return ST_OK;
    }
    if (digest_parse(&d, rq->params[0], NULL)) {
        return not_found(rq, rs, "file");
    }
    enum status st = db_silo_blob(rq->db, rq->who.silo_id, &d, run_id, &number, e);
    if (st == ST_NOT_FOUND) {
        return not_found(rq, rs, "file");
    }
    TRY(st);
    TRY(file_open(rq, rs, &d, true, &fd, &bytes, e));
    if (fd < 0) {
        return ST_OK;
    }

    const char *etag = arena_fmt(rq->arena, "\"%s\"", rq->params[0]);
    const char *range = request_header(rq, "Range");
    if (!range_allowed(request_header(rq, "If-Range"), etag)) {
        range = NULL;
    }
    int64_t start = 0;
    int64_t len = 0;
    enum range_kind kind = range_parse(range, bytes, &start, &len);
    bool get = strcmp(rq->method, "GET") == 0;
    bool allows = true;
    st = get ? quota_allows(rq, rs, QUOTA_DOWNLOAD, len, &allows, e) : ST_OK;
    if (st || !allows) {
        (void)close(fd);
        return st;
    }
    response_header(rs, "ETag", etag);
    response_header(rs, "Accept-Ranges", "bytes");
    response_header(rs, "Cache-Control", "private, max-age=31536000, immutable");
    if (kind == RANGE_UNSATISFIABLE) {
        (void)close(fd);
        (void)problem(rq, rs, 416, "RANGE_NOT_SATISFIABLE", NULL, "the file has %" PRId64 " bytes",
                      bytes);
        response_header(rs, "Content-Range", arena_fmt(rq->arena, "bytes */%" PRId64, bytes));
        return ST_OK;
    }
    if (kind == RANGE_PART) {
        response_header(rs, "Content-Range",
                        arena_fmt(rq->arena, "bytes %" PRId64 "-%" PRId64 "/%" PRId64, start,
                                  start + len - 1, bytes));
    }
    rs->status = kind == RANGE_PART ? 206 : 200;
    rs->content_type = "application/octet-stream";
    rs->fd = fd;
    rs->file_offset = start;
    rs->file_len = len;
    if (get && start == 0 && mend_taken_again(rq->who.silo_id, &d, clock_mono_ms())) {
        mend_want(&d); // why would it take the whole file twice?
    }
    rs->pace = rq->server->bulk_pace;
    if (get) {
        struct going *g = arena_alloc(rq->arena, sizeof(*g));
        (void)snprintf(g->run_id, sizeof(g->run_id), "%s", run_id);
        g->number = number;
        rq->state = g;
        rs->sent = blob_sent;
    }
    return ST_OK;
}

const struct route routes_bulk[] = {
    {"POST", "/silo/v1/uploads/{upload}", ROLES_SILO, LISTENER_BULK,
     LIMIT_CHUNK + MULTIPART_OVERHEAD, chunk_done, &chunk_sink},
    {"GET", "/silo/v1/blobs/{sha256}", ROLES_SILO, LISTENER_BULK, 0, blob_get, NULL},
    {0},
};
