#include "client/feedback.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/durable.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/safetensors.h"

enum { META_BEFORE = 4, META_AFTER = 3 };

enum codec feedback_auto(int64_t params, double bytes_per_s, double compute_s, double share)
{
    static const double BITS[CODEC_COUNT] = {32.0, 16.0, 8.0625, 4.0625, 2.0625, 0.15};
    if (!(bytes_per_s > 0.0) || !(compute_s > 0.0)) {
        return CODEC_INT8;
    }
    for (int c = CODEC_F32; c < CODEC_TOPK; c++) {
        if ((double)params * BITS[c] / 8.0 / bytes_per_s <= share * compute_s) {
            return (enum codec)c;
        }
    }
    return CODEC_TOPK;
}

/* ---- files ---- */

static enum status read_full(int fd, void *out, int64_t size, int64_t at, struct err *e)
{
    for (char *p = out; size > 0;) {
        ssize_t n = pread(fd, p, (size_t)size, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return err_set(e, ST_IO, "cannot read: %s", n ? strerror(errno) : "the file is short");
        }
        p += n;
        at += n;
        size -= n;
    }
    return ST_OK;
}

static enum status write_full(int fd, const void *bytes, int64_t size, int64_t at, struct err *e)
{
    for (const char *p = bytes; size > 0;) {
        ssize_t n = pwrite(fd, p, (size_t)size, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return err_set(e, io_status(errno), "cannot write: %s", strerror(errno));
        }
        p += n;
        at += n;
        size -= n;
    }
    return ST_OK;
}

static enum status create(const char *path, int *fd, struct err *e)
{
    *fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return *fd >= 0 ? ST_OK
                    : err_set(e, io_status(errno), "cannot create %s: %s", path, strerror(errno));
}

/* What is being made, and from what. */
struct work {
    const struct feedback_job *j;
    struct arena *a;
    int residual_fd; // -1: none
    int64_t residual_at;
    float beta;
    int update_fd, scratch_fd, next_fd, late_fd;
    int64_t kept_at; // where values begin in next and late
    float *block;    // a group, or a piece of the coder's
};

static void *residual_header(struct work *w, int64_t *len)
{
    const struct st_meta meta[] = {{"kind", "residual"},
                                   {"run", w->j->run_name},
                                   {"round", arena_fmt(w->a, "%08" PRId64, w->j->round)},
                                   {"base", w->j->base_sha256},
                                   {"codec", codec_name(w->j->codec)}};
    return st_params_header(w->a, w->j->table, meta, sizeof(meta) / sizeof(meta[0]), len);
}

/* The rounds of these tensors since the residual's, as a power of beta; a residual from a later
 * round (the run went back) counts as one from the round before. */
static float aged(const struct feedback_job *j, int64_t round)
{
    int64_t rounds = (j->round - round) / (j->period > 1 ? j->period : 1);
    return (float)pow(codec_beta(j->codec), (double)(rounds < 1 ? 1 : rounds));
}

static void open_residual(struct work *w)
{
    struct st_header h;
    struct err e = {0};
    int fd = open(w->j->residual, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    enum status st = st_read(&h, w->a, fd, &e);
    const char *round = st ? NULL : st_meta_get(&h, "round");
    bool fits = round && st_check_params(&h, w->j->table, &e) == ST_OK;
    if (!fits) {
        log_warn("the residual of former updates is not used: %s",
                 e.msg[0] ? e.msg : "it does not say its round");
        (void)close(fd);
        return;
    }
    w->residual_fd = fd;
    w->residual_at = h.data_offset;
    w->beta = aged(w->j, strtoll(round, NULL, 10));
}

/* ---- the values ---- */

static enum status read_values(void *ctx, int64_t first, int64_t n, float *u, double *fresh,
                               struct err *e)
{
    struct work *w = ctx;
    TRY(w->j->delta(w->j->ctx, first, n, u, e));
    *fresh += codec_squares(u, n);
    if (w->residual_fd < 0) {
        return ST_OK;
    }
    TRY(read_full(w->residual_fd, w->block, 4 * n, w->residual_at + 4 * first, e));
    for (int64_t i = 0; i < n; i++) {
        u[i] += w->beta * w->block[i];
    }
    return ST_OK;
}

static enum status keep_values(void *ctx, int64_t first, int64_t n, const float *u, const float *v,
                               struct err *e)
{
    struct work *w = ctx;
    for (int64_t i = 0; i < n; i++) {
        w->block[i] = u[i] - v[i];
    }
    TRY(write_full(w->next_fd, w->block, 4 * n, w->kept_at + 4 * first, e));
    return write_full(w->late_fd, u, 4 * n, w->kept_at + 4 * first, e);
}

/* ---- coded elsewhere ---- */

static enum status begin_piece(void *ctx, const struct codec_rule *r, int64_t first, int64_t n,
                               struct err *e)
{
    struct work *w = ctx;
    bool old = w->residual_fd >= 0;
    if (old) {
        TRY(read_full(w->residual_fd, w->block, 4 * n, w->residual_at + 4 * first, e));
    }
    return w->j->coder->begin(w->j->ctx, r, first, n, old ? w->block : NULL, w->beta, e);
}

static enum status end_piece(void *ctx, struct coded_piece *out, struct err *e)
{
    struct work *w = ctx;
    const float *u = NULL;
    const float *left = NULL;
    TRY(w->j->coder->end(w->j->ctx, out, &u, &left, e));
    TRY(write_full(w->next_fd, left, 4 * out->n, w->kept_at + 4 * out->first, e));
    return write_full(w->late_fd, u, 4 * out->n, w->kept_at + 4 * out->first, e);
}

static struct coded_meta update_meta(struct work *w)
{
    const struct feedback_job *j = w->j;
    struct st_meta *m = arena_alloc(w->a, (META_BEFORE + META_AFTER) * sizeof(*m));
    m[0] = (struct st_meta){"kind", "update"};
    m[1] = (struct st_meta){"run", j->run_name};
    m[2] = (struct st_meta){"round", arena_fmt(w->a, "%08" PRId64, j->round)};
    m[3] = (struct st_meta){"base", j->base_sha256};
    m[4] = (struct st_meta){"silo", j->silo_name};
    m[5] = (struct st_meta){"tokens", arena_fmt(w->a, "%016" PRId64, j->tokens)};
    m[6] = (struct st_meta){"steps", arena_fmt(w->a, "%016" PRId64, j->steps)};
    return (struct coded_meta){m, META_BEFORE, m + META_BEFORE, META_AFTER};
}

/* ---- the files ---- */

static enum status open_outputs(struct work *w, struct err *e)
{
    char scratch[STATE_PATH_MAX];
    int64_t len = 0;
    (void)snprintf(scratch, sizeof(scratch), "%.1000s.scratch", w->j->update);
    TRY(create(scratch, &w->scratch_fd, e));
    (void)unlink(scratch); // its space is given back whatever happens
    TRY(create(w->j->next, &w->next_fd, e));
    TRY(create(w->j->late, &w->late_fd, e));
    const void *header = residual_header(w, &len);
    w->kept_at = len;
    TRY(write_full(w->next_fd, header, len, 0, e));
    return write_full(w->late_fd, header, len, 0, e);
}

static enum status encode(struct work *w, struct feedback_result *r, struct err *e)
{
    struct coding c;
    const struct feedback_coder *own = w->j->coder;
    struct coded_coder coder = {own ? own->groups : 0, begin_piece, end_piece};
    struct coded_source source = {w, read_values, keep_values, own ? &coder : NULL};
    struct coded_meta meta = update_meta(w);
    TRY(open_outputs(w, e));
    TRY(coding_run(&c, w->a, w->scratch_fd, w->j->table, w->j->codec, w->j->k, &source, e));
    TRY(coding_place(&c, w->a, w->update_fd, &meta, &r->sha256, &r->bytes, e));
    r->report = c.report;
    return ST_OK;
}

static enum status close_all(struct work *w, enum status st, struct err *e)
{
    const int fds[] = {w->residual_fd, w->update_fd, w->scratch_fd, w->next_fd, w->late_fd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (fds[i] >= 0 && close(fds[i]) != 0 && !st) {
            st = err_set(e, io_status(errno), "cannot close a file: %s", strerror(errno));
        }
    }
    return st;
}

enum status feedback_encode(const struct feedback_job *j, struct feedback_result *out,
                            struct err *e)
{
    struct work w = {
        .j = j, .residual_fd = -1, .update_fd = -1, .scratch_fd = -1, .next_fd = -1, .late_fd = -1};
    struct feedback_result r = {0};
    w.a = arena_new(LIMIT_REQUEST_ARENA);
    w.block = mem_alloc((size_t)(j->coder ? j->coder->groups : 1) * CODEC_GROUP * sizeof(float));
    open_residual(&w);
    enum status st = create(j->update, &w.update_fd, e);
    st = st ? st : encode(&w, &r, e);
    st = close_all(&w, st, e);
    mem_free(w.block);
    arena_free(w.a);
    if (!st) {
        *out = r;
    }
    return st;
}
