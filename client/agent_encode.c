/*
 * agent_encode.c - the update file: what this silo's training adds up to.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "client/feedback.h"
#include "client/trainer_code.h"
#include "common/fault.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/safetensors.h"
#include "common/schedule.h"

enum {
    ENCODE_BLOCK = 1 << 18,
};

static void *update_header(struct arena *arena, const struct agent *a, const struct task *t,
                           const struct run_state *rs, const struct param_table *table,
                           int64_t *len)
{
    const struct st_meta meta[] = {
        {"kind", "update"},
        {"run", t->run_name},
        {"round", arena_fmt(arena, "%08" PRId64, t->round)},
        {"base", t->base_sha256},
        {"codec", "f32"},
        {"silo", a->id.name},
        {"tokens", arena_fmt(arena, "%016" PRId64, rs->j.tokens)},
        {"steps", arena_fmt(arena, "%016" PRId64, t->local_steps)},
    };
    return st_params_header(arena, table, meta, (int)(sizeof(meta) / sizeof(meta[0])), len);
}

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

/* Where an update goes, and what it is taken from. */
struct encoding {
    struct agent *a;
    const struct layout *layout;
    int out;
    struct sha256 *hash;
    int base_fd;
    int64_t base_offset;
    float *base, *block;         // ENCODE_BLOCK each
    struct trainer_coder *coder; // or NULL: this machine codes
    int64_t at[2], begun, ended; // pieces: where those in hand begin, and how many there were
};

static enum status encode_block(struct encoding *c, enum layout_part part, int64_t at, int64_t n,
                                struct err *e)
{
    struct trainer *t = c->a->trainer;
    if (part != LAYOUT_WEIGHTS) {
        TRY(trainer_moments(t, part, at, n, c->block, e));
    } else {
        int64_t offset = c->base_offset + at * (int64_t)sizeof(float);
        TRY(read_floats(c->base_fd, offset, c->base, n, e));
        TRY(trainer_delta(t, at, n, c->base, c->block, e));
    }
    sha256_add(c->hash, c->block, (size_t)n * sizeof(float));
    return write_all(c->out, c->block, (size_t)n * sizeof(float), e);
}

/* Block by block, so that the update of a large model needs no memory of its own. */
static enum status encode_part(struct encoding *c, enum layout_part part, struct err *e)
{
    for (int32_t i = 0; i < c->layout->span_count; i++) {
        const struct layout_span *s = &c->layout->spans[i];
        for (int64_t done = 0; done < s->count; done += ENCODE_BLOCK) {
            int64_t n = s->count - done < ENCODE_BLOCK ? s->count - done : ENCODE_BLOCK;
            TRY(encode_block(c, part, s->model + done, n, e));
        }
    }
    return ST_OK;
}

static enum status encode_parts(struct encoding *c, struct err *e)
{
    enum status st = ST_OK;
    c->base = mem_alloc(2 * ENCODE_BLOCK * sizeof(float));
    c->block = c->base + ENCODE_BLOCK;
    for (int part = 0; part < LAYOUT_PARTS && !st; part++) {
        if (c->layout->part_at[part] >= 0) {
            st = encode_part(c, (enum layout_part)part, e);
        }
    }
    mem_free(c->base);
    return st;
}

static enum status write_update(struct agent *a, const struct task *t, struct run_state *rs, int fd,
                                int base_fd, int64_t base_offset, struct err *e)
{
    struct arena *arena = arena_new(16 * 1024 * 1024);
    struct sha256 *hash = sha256_new();
    int64_t len = 0;
    struct layout layout = layout_update(arena, &t->spec, t->round);
    struct encoding c = {.a = a,
                         .layout = &layout,
                         .out = fd,
                         .hash = hash,
                         .base_fd = base_fd,
                         .base_offset = base_offset};
    void *header = update_header(arena, a, t, rs, &layout.table, &len);
    sha256_add(hash, header, (size_t)len);
    enum status st = write_all(fd, header, (size_t)len, e);
    st = st ? st : encode_parts(&c, e);
    rs->j.bytes = len + layout.table.total * (int64_t)sizeof(float);
    struct digest d;
    sha256_end(hash, &d);
    digest_hex(&d, rs->j.sha256);
    sha256_free(hash);
    arena_free(arena);
    return st;
}

/* ---- on a lower rung ---- */

/* Elements of the update, which lie in spans of the model's order. */
static enum status read_spans(void *ctx, int64_t first, int64_t n, float *out, struct err *e)
{
    struct encoding *c = ctx;
    for (int32_t i = 0; i < c->layout->span_count && n > 0; i++) {
        const struct layout_span *s = &c->layout->spans[i];
        while (n > 0 && first >= s->at && first < s->at + s->count) {
            int64_t left = s->at + s->count - first;
            int64_t m = n < left ? n : left;
            m = m < ENCODE_BLOCK ? m : ENCODE_BLOCK;
            int64_t from = s->model + (first - s->at);
            TRY(read_floats(c->base_fd, c->base_offset + from * (int64_t)sizeof(float), c->base, m,
                            e));
            TRY(trainer_delta(c->a->trainer, from, m, c->base, out, e));
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
    struct encoding *c = ctx;
    const struct layout_span *s = c->layout->spans;
    const struct layout_span *end = s + c->layout->span_count;
    while (s < end && first >= s->at + s->count) {
        s++;
    }
    if (s == end || first + n > s->at + s->count) {
        return err_set(e, ST_CORRUPT, "an update without those elements");
    }
    int64_t from = s->model + (first - s->at);
    TRY(read_floats(c->base_fd, c->base_offset + from * (int64_t)sizeof(float),
                    trainer_coder_base(c->coder), n, e));
    if (residual) {
        memcpy(trainer_coder_residual(c->coder), residual, (size_t)n * sizeof(float));
    }
    trainer_coder_begin(c->coder, r, from, n, residual != NULL, beta);
    c->at[c->begun++ % 2] = first;
    return ST_OK;
}

static enum status end_on_device(void *ctx, struct coded_piece *out, const float **u,
                                 const float **left, struct err *e)
{
    struct encoding *c = ctx;
    struct coder_piece p;
    TRY(trainer_coder_end(c->coder, &p, e));
    *out = (struct coded_piece){c->at[c->ended++ % 2], p.n, p.parts, p.results};
    *u = p.u;
    *left = p.left;
    return ST_OK;
}

static const struct feedback_coder ON_DEVICE = {CODER_GROUPS, begin_on_device, end_on_device};

/* The device codes where it can; where it has no room, this machine does. */
static void open_coder(struct encoding *c)
{
    struct err e = {0};
    struct trainer *t = c->a->trainer;
    if (trainer_codes_apart(t) && trainer_coder_open(&c->coder, t, &e)) {
        log_warn("the update is coded on the host: %s", e.msg);
        c->coder = NULL;
    }
}

/* This silo's rung for this update: its own choice or the run's, by the link where that is `auto`,
 * one up while the guard holds. */
static enum codec choose(const struct agent *a, const struct task *t, const struct run_state *rs)
{
    const char *own = a->config->codec;
    bool by_link = own ? strcmp(own, "auto") == 0 : t->spec.codec.up_auto;
    enum codec c = t->spec.codec.up;
    if (t->spec.inner_state == INNER_STATE_AVERAGE) {
        return CODEC_F32; // moments travel too, and on no other rung
    }
    if (by_link) {
        double rate = a->link_bytes_per_s;
        if (!(rate > 0.0) && a->fetched_s > 0.0) {
            rate = (double)a->fetched_bytes / a->fetched_s;
        }
        int64_t params = model_param_count(&t->spec.model) / schedule_fragments(&t->spec);
        c = feedback_auto(params, rate, rs->j.train_s, t->spec.codec.share);
    } else if (own) {
        struct err unused = {0};
        enum status st = codec_parse(&c, own, &unused); // checked as the program began
        (void)st;
    }
    return t->round <= rs->j.guard_until ? codec_up(c) : c;
}

static void note_report(struct agent *a, const struct task *t, struct run_state *rs,
                        const struct coded_report *r)
{
    rs->j.codec_error = r->error;
    rs->j.residual_ratio = r->residual_ratio;
    rs->j.fallback_share = r->fallback_share;
    log_info("round %" PRId64 ": coded as %s, error %.4g, residual %.3g of the delta", t->round,
             rs->j.codec, r->error, r->residual_ratio);
    if (r->fallbacks > 0) {
        agent_say(a,
                  "round %" PRId64 ": %d tensors (%.3g %% of the update) do not fit %s and go "
                  "one rung up",
                  t->round, r->fallbacks, 100.0 * r->fallback_share, rs->j.codec);
    }
    if (r->fallback_share > CODED_FALLBACK_MAX) {
        rs->j.guard_until = t->round + CODED_GUARD_ROUNDS;
        agent_say(a, "updates go one rung above %s up to round %" PRId64, rs->j.codec,
                  rs->j.guard_until);
    }
}

/* The three files beside each other; each is whole before it has its name. */
static enum status encode_coded(struct agent *a, const struct task *t, struct run_state *rs,
                                enum codec codec, int base_fd, int64_t base_offset, struct err *e)
{
    char residual[STATE_PATH_MAX];
    char path[3][STATE_PATH_MAX];
    char tmp[3][STATE_PATH_MAX];
    static const char *const NAMES[] = {STATE_UPDATE, STATE_RESIDUAL_NEXT, STATE_RESIDUAL_LATE};
    static const char *const TMP[] = {"update.tmp", "residual.next.tmp", "residual.late.tmp"};
    struct arena *arena = arena_new(16 * 1024 * 1024);
    struct layout layout = layout_update(arena, &t->spec, t->round);
    struct encoding c = {.a = a, .layout = &layout, .base_fd = base_fd, .base_offset = base_offset};
    struct feedback_result r = {0};
    run_state_residual(rs, rs->j.key.fragment, residual);
    for (int i = 0; i < 3; i++) {
        run_state_path(rs, NAMES[i], path[i]);
        run_state_path(rs, TMP[i], tmp[i]);
    }
    open_coder(&c);
    struct feedback_job job = {.delta = read_spans,
                               .ctx = &c,
                               .coder = c.coder ? &ON_DEVICE : NULL,
                               .table = &layout.table,
                               .codec = codec,
                               .k = t->spec.codec.up_k,
                               .run_name = t->run_name,
                               .round = t->round,
                               .period = schedule_fragments(&t->spec),
                               .base_sha256 = t->base_sha256,
                               .silo_name = a->id.name,
                               .tokens = rs->j.tokens,
                               .steps = t->local_steps,
                               .residual = residual,
                               .update = tmp[0],
                               .next = tmp[1],
                               .late = tmp[2]};
    c.base = mem_alloc(ENCODE_BLOCK * sizeof(float));
    enum status st = feedback_encode(&job, &r, e);
    trainer_coder_close(c.coder);
    mem_free(c.base);
    arena_free(arena);
    for (int i = 0; i < 3 && !st; i++) {
        st = file_place(tmp[i], path[i], e);
    }
    if (!st) {
        digest_hex(&r.sha256, rs->j.sha256);
        rs->j.bytes = r.bytes;
        note_report(a, t, rs, &r.report);
    }
    return st;
}

/* The plan knows the size of what the run asks for: exactly in f32, else at most. */
static enum status check_size(const struct task *t, const struct run_state *rs, enum codec codec,
                              struct err *e)
{
    bool exact = codec == CODEC_F32;
    if (codec != t->spec.codec.up || // a rung of our own
        (exact ? rs->j.bytes == t->update_bytes : rs->j.bytes <= t->update_bytes)) {
        return ST_OK;
    }
    return err_set(e, ST_CONFLICT,
                   "the update has %" PRId64 " bytes, the plan says %s%" PRId64
                   "; try the server's version of photon-client",
                   rs->j.bytes, exact ? "" : "at most ", t->update_bytes);
}

static enum status encode_plain(struct agent *a, const struct task *t, struct run_state *rs,
                                int base_fd, int64_t base_offset, struct err *e)
{
    char tmp[STATE_PATH_MAX];
    char path[STATE_PATH_MAX];
    run_state_path(rs, "update.tmp", tmp);
    run_state_path(rs, STATE_UPDATE, path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return err_set(e, io_status(errno), "cannot create %s: %s", tmp, strerror(errno));
    }
    enum status st = write_update(a, t, rs, fd, base_fd, base_offset, e);
    if (close(fd) != 0 && !st) {
        st = err_set(e, io_status(errno), "cannot close %s: %s", tmp, strerror(errno));
    }
    return st ? st : file_place(tmp, path, e);
}

enum status agent_encode(struct agent *a, const struct task *t, struct run_state *rs, int base_fd,
                         int64_t base_offset, struct err *e)
{
    char residual[STATE_PATH_MAX];
    enum codec codec = choose(a, t, rs);
    run_state_residual(rs, rs->j.key.fragment, residual);
    bool waits = access(residual, F_OK) == 0; // a residual, for the next update to take along
    (void)snprintf(rs->j.codec, sizeof(rs->j.codec), "%s", codec_name(codec));
    rs->j.codec_error = rs->j.residual_ratio = rs->j.fallback_share = 0.0;
    if (codec == CODEC_F32 && (!waits || t->spec.inner_state == INNER_STATE_AVERAGE)) {
        TRY(encode_plain(a, t, rs, base_fd, base_offset, e));
    } else {
        TRY(encode_coded(a, t, rs, codec, base_fd, base_offset, e));
    }
    return check_size(t, rs, codec, e);
}
