#include "client/delta.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "client/durable.h"
#include "client/feedback.h"
#include "client/trainer_code.h"
#include "common/fault.h"
#include "common/layout.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/safetensors.h"
#include "common/schedule.h"

enum {
    BLOCK = 1 << 18,
};

static enum status write_all(int fd, const void *bytes, size_t len, struct err *e)
{
    const char *p = bytes;
    for (size_t done = 0; done < len;) {
        ssize_t n = FAULT_ERR("update.write") ? -1 : write(fd, p + done, len - done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_set(e, io_status(errno), "cannot write the update: %s", strerror(errno));
        }
        done += (size_t)n;
    }
    return ST_OK;
}

static enum status read_floats(int fd, int64_t at, float *out, int64_t count, struct err *e)
{
    char *p = (char *)out;
    int64_t want = count * (int64_t)sizeof(float);
    for (int64_t done = 0; done < want;) {
        ssize_t n = pread(fd, p + done, (size_t)(want - done), at + done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return err_set(e, ST_IO, "cannot read the base checkpoint");
        }
        done += n;
    }
    return ST_OK;
}

/* An update in the making. */
struct work {
    const struct delta_job *j;
    struct arena *arena;
    struct layout layout;
    int out;
    struct sha256 *hash;
    float *base, *block;         // BLOCK each
    struct trainer_coder *coder; // or NULL: this machine codes
    int64_t at[2], begun, ended; // pieces: where those in hand begin, and how many there were
};

static enum status read_base(const struct work *w, int64_t at, float *out, int64_t n, struct err *e)
{
    return read_floats(w->j->base_fd, w->j->base_offset + at * (int64_t)sizeof(float), out, n, e);
}

/* ---- as it is ---- */

static void *plain_header(const struct work *w, int64_t *len)
{
    const struct delta_job *j = w->j;
    const struct st_meta meta[] = {
        {"kind", "update"},
        {"run", j->run_name},
        {"round", arena_fmt(w->arena, "%08" PRId64, j->round)},
        {"base", j->base_sha256},
        {"codec", "f32"},
        {"silo", j->silo_name},
        {"tokens", arena_fmt(w->arena, "%016" PRId64, j->tokens)},
        {"steps", arena_fmt(w->arena, "%016" PRId64, j->steps)},
    };
    return st_params_header(w->arena, &w->layout.table, meta, (int)(sizeof(meta) / sizeof(meta[0])),
                            len);
}

static enum status write_block(struct work *w, enum layout_part part, int64_t at, int64_t n,
                               struct err *e)
{
    struct trainer *t = w->j->trainer;
    if (part != LAYOUT_WEIGHTS) {
        TRY(trainer_moments(t, part, at, n, w->block, e));
    } else {
        TRY(read_base(w, at, w->base, n, e));
        TRY(trainer_delta(t, at, n, w->base, w->block, e));
    }
    sha256_add(w->hash, w->block, (size_t)n * sizeof(float));
    return write_all(w->out, w->block, (size_t)n * sizeof(float), e);
}

/* Block by block, so that the update of a large model needs no memory of its own. */
static enum status write_part(struct work *w, enum layout_part part, struct err *e)
{
    for (int32_t i = 0; i < w->layout.span_count; i++) {
        const struct layout_span *s = &w->layout.spans[i];
        for (int64_t done = 0; done < s->count; done += BLOCK) {
            int64_t n = s->count - done < BLOCK ? s->count - done : BLOCK;
            TRY(write_block(w, part, s->model + done, n, e));
        }
    }
    return ST_OK;
}

static enum status write_parts(struct work *w, struct err *e)
{
    for (int part = 0; part < LAYOUT_PARTS; part++) {
        if (w->layout.part_at[part] >= 0) {
            TRY(write_part(w, (enum layout_part)part, e));
        }
    }
    return ST_OK;
}

static enum status write_plain(struct work *w, struct delta_result *r, struct err *e)
{
    int64_t len = 0;
    const char *path = w->j->update;
    w->out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (w->out < 0) {
        return err_set(e, io_status(errno), "cannot create %s: %s", path, strerror(errno));
    }
    void *header = plain_header(w, &len);
    w->hash = sha256_new();
    sha256_add(w->hash, header, (size_t)len);
    enum status st = write_all(w->out, header, (size_t)len, e);
    st = st ? st : write_parts(w, e);
    sha256_end(w->hash, &r->sha256);
    sha256_free(w->hash);
    r->bytes = len + w->layout.table.total * (int64_t)sizeof(float);
    if (close(w->out) != 0 && !st) {
        st = err_set(e, io_status(errno), "cannot close %s: %s", path, strerror(errno));
    }
    return st;
}

/* ---- on a lower rung ---- */

/* Elements of the update, which lie in spans of the model's order. */
static enum status read_spans(void *ctx, int64_t first, int64_t n, float *out, struct err *e)
{
    struct work *w = ctx;
    for (int32_t i = 0; i < w->layout.span_count && n > 0; i++) {
        const struct layout_span *s = &w->layout.spans[i];
        while (n > 0 && first >= s->at && first < s->at + s->count) {
            int64_t left = s->at + s->count - first;
            int64_t m = n < left ? n : left;
            m = m < BLOCK ? m : BLOCK;
            int64_t from = s->model + (first - s->at);
            TRY(read_base(w, from, w->base, m, e));
            TRY(trainer_delta(w->j->trainer, from, m, w->base, out, e));
            out += m;
            first += m;
            n -= m;
        }
    }
    return n == 0 ? ST_OK : err_set(e, ST_CORRUPT, "an update without those elements");
}

/* A piece of one tensor, and so of one span. */
static enum status begin_on_device(void *ctx, const struct codec_rule *r, int64_t first, int64_t n,
                                   const float *residual, float beta, struct err *e)
{
    struct work *w = ctx;
    const struct layout_span *s = w->layout.spans;
    const struct layout_span *end = s + w->layout.span_count;
    while (s < end && first >= s->at + s->count) {
        s++;
    }
    if (s == end || first + n > s->at + s->count) {
        return err_set(e, ST_CORRUPT, "an update without those elements");
    }
    int64_t from = s->model + (first - s->at);
    TRY(read_base(w, from, trainer_coder_base(w->coder), n, e));
    if (residual) {
        memcpy(trainer_coder_residual(w->coder), residual, (size_t)n * sizeof(float));
    }
    trainer_coder_begin(w->coder, r, from, n, residual != NULL, beta);
    w->at[w->begun++ % 2] = first;
    return ST_OK;
}

static enum status end_on_device(void *ctx, struct coded_piece *out, const float **u,
                                 const float **left, struct err *e)
{
    struct work *w = ctx;
    struct coder_piece p;
    TRY(trainer_coder_end(w->coder, &p, e));
    *out = (struct coded_piece){w->at[w->ended++ % 2], p.n, p.parts, p.results};
    *u = p.u;
    *left = p.left;
    return ST_OK;
}

static const struct feedback_coder ON_DEVICE = {CODER_GROUPS, begin_on_device, end_on_device};

/* The device codes where it can; where it has no room, this machine does. */
static void open_coder(struct work *w)
{
    struct err e = {0};
    struct trainer *t = w->j->trainer;
    if (trainer_codes_apart(t) && trainer_coder_open(&w->coder, t, &e)) {
        log_warn("the update is coded on the host: %s", e.msg);
        w->coder = NULL;
    }
}

static enum status write_coded(struct work *w, struct delta_result *out, struct err *e)
{
    const struct delta_job *j = w->j;
    struct feedback_result r = {0};
    open_coder(w);
    struct feedback_job job = {.delta = read_spans,
                               .ctx = w,
                               .coder = w->coder ? &ON_DEVICE : NULL,
                               .table = &w->layout.table,
                               .codec = j->codec,
                               .k = j->spec->codec.up_k,
                               .run_name = j->run_name,
                               .round = j->round,
                               .period = schedule_fragments(j->spec),
                               .base_sha256 = j->base_sha256,
                               .silo_name = j->silo_name,
                               .tokens = j->tokens,
                               .steps = j->steps,
                               .residual = j->residual,
                               .update = j->update,
                               .next = j->next,
                               .late = j->late};
    enum status st = feedback_encode(&job, &r, e);
    trainer_coder_close(w->coder);
    *out = (struct delta_result){r.sha256, r.bytes, true, r.report};
    return st;
}

enum status delta_write(const struct delta_job *j, struct delta_result *out, struct err *e)
{
    struct work w = {.j = j, .arena = arena_new(LIMIT_REQUEST_ARENA), .out = -1};
    struct delta_result r = {.coded = false};
    bool waits = access(j->residual, F_OK) == 0; // a residual, for this update to take along
    bool plain = j->codec == CODEC_F32 && (!waits || j->spec->inner_state == INNER_STATE_AVERAGE);
    w.layout = layout_update(w.arena, j->spec, j->round);
    w.base = mem_alloc(2 * BLOCK * sizeof(float));
    w.block = w.base + BLOCK;
    enum status st = plain ? write_plain(&w, &r, e) : write_coded(&w, &r, e);
    mem_free(w.base);
    arena_free(w.arena);
    if (!st) {
        *out = r;
    }
    return st;
}
