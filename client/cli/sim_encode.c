#include "client/cli/sim_encode.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "client/durable.h"
#include "common/codec_file.h"
#include "common/layout.h"
#include "common/limits.h"
#include "common/mem.h"
#include "common/safetensors.h"
#include "common/schedule.h"

enum { BLOCK = 1 << 18, META = 8, META_CODEC = 4 };

/* An update in the making: arrays of the numbers that travel, in the file's order. */
struct encoding {
    struct sim_desk *desk;
    const struct sim_base *base;
    struct layout layout;
    int64_t total;
    float *delta;   // owned
    float *carried; // owned; under a codec: beta e
    float *left;    // what this update leaves out
    enum codec codec;
};

static enum status io_error(const char *what, const char *path, struct err *e)
{
    return err_set(e, io_status(errno), "cannot %s %s: %s", what, path, strerror(errno));
}

static enum status write_all(int fd, const void *bytes, size_t size, const char *path,
                             struct err *e)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)bytes + done, size - done);
        if (n < 0 && errno != EINTR) {
            return io_error("write", path, e);
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return ST_OK;
}

/* ---- the numbers ---- */

static enum status read_base(const struct sim_base *base, int64_t at, float *out, int64_t count,
                             struct err *e)
{
    size_t size = (size_t)count * sizeof(float);
    ssize_t n = pread(base->fd, out, size, base->offset + at * (int64_t)sizeof(float));
    return n == (ssize_t)size ? ST_OK : err_set(e, ST_IO, "cannot read the base checkpoint");
}

static enum status take_deltas(struct encoding *c, struct err *e)
{
    float *block = mem_alloc(BLOCK * sizeof(float));
    enum status st = ST_OK;
    for (int32_t i = 0; i < c->layout.span_count && !st; i++) {
        const struct layout_span *s = &c->layout.spans[i];
        for (int64_t done = 0; done < s->count && !st; done += BLOCK) {
            int64_t n = s->count - done < BLOCK ? s->count - done : BLOCK;
            int64_t to = c->layout.part_at[LAYOUT_WEIGHTS] + s->at + done;
            st = read_base(c->base, s->model + done, block, n, e);
            st = st ? st
                    : trainer_delta(c->desk->trainer, s->model + done, n, block, c->delta + to, e);
        }
    }
    mem_free(block);
    return st;
}

/* beta^(1 + skipped) e, or zeros. */
static enum status take_residual(struct encoding *c, const struct sim_residual *r, struct err *e)
{
    const char *former = r->former;
    int32_t rounds = (c->base->round - r->round) / schedule_fragments(c->desk->spec);
    int fd = former ? open(former, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) {
        return former && errno != ENOENT ? io_error("open", former, e) : ST_OK;
    }
    ssize_t size = (ssize_t)(c->total * (int64_t)sizeof(float));
    ssize_t n = pread(fd, c->carried, (size_t)size, 0);
    (void)close(fd);
    if (n != size) {
        return err_set(e, ST_CORRUPT, "%s is cut short", former);
    }
    float share = (float)pow(codec_beta(c->codec), (double)rounds);
    for (int64_t i = 0; i < c->total; i++) {
        c->carried[i] *= share;
    }
    return ST_OK;
}

static enum status put_residual(const struct encoding *c, const char *next, struct err *e)
{
    int fd = open(next, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return io_error("create", next, e);
    }
    enum status st = write_all(fd, c->left, (size_t)c->total * sizeof(float), next, e);
    if (close(fd) != 0 && !st) {
        st = io_error("close", next, e);
    }
    return st;
}

/* ---- the file ---- */

static void fill_meta(struct arena *a, const struct encoding *c, const struct sim_silo *s,
                      const struct sim_update *u, struct st_meta meta[META])
{
    const struct run_spec *spec = c->desk->spec;
    char *hex = arena_alloc(a, DIGEST_HEX + 1);
    digest_hex(&c->base->sha, hex);
    int64_t steps = spec->federation.local_steps;
    const struct st_meta all[META] = {
        {"kind", "update"},
        {"run", spec->name},
        {"round", arena_fmt(a, "%08" PRId32, c->base->round)},
        {"base", hex},
        {"codec", "f32"},
        {"silo", s->name},
        {"tokens", arena_fmt(a, "%016" PRId64, u->tokens)},
        {"steps", arena_fmt(a, "%016" PRId64, steps)},
    };
    memcpy(meta, all, sizeof(all));
}

static enum status read_coded(void *ctx, int64_t first, int64_t n, float *u, double *fresh,
                              struct err *e)
{
    const struct encoding *c = ctx;
    (void)e;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)c->delta[first + i];
        *fresh += d * d;
        u[i] = c->delta[first + i] + c->carried[first + i];
    }
    return ST_OK;
}

static enum status wrote_coded(void *ctx, int64_t first, int64_t n, const float *u, const float *v,
                               struct err *e)
{
    const struct encoding *c = ctx;
    (void)e;
    for (int64_t i = 0; i < n; i++) {
        c->left[first + i] = u[i] - v[i];
    }
    return ST_OK;
}

static enum status write_coded(struct encoding *c, struct arena *a, const struct st_meta *meta,
                               struct sim_update *u, int out, struct err *e)
{
    char path[STATE_PATH_MAX];
    struct coding coding;
    struct digest d;
    const struct run_spec *spec = c->desk->spec;
    (void)snprintf(path, sizeof(path), "%.1000s.coded", u->path);
    int scratch = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (scratch < 0) {
        return io_error("create", path, e);
    }
    (void)unlink(path);
    struct coded_source source = {c, read_coded, wrote_coded};
    struct coded_meta around = {.before = meta,
                                .before_count = META_CODEC,
                                .after = meta + META_CODEC + 1,
                                .after_count = META - META_CODEC - 1};
    enum status st =
        coding_run(&coding, a, scratch, &c->layout.table, c->codec, spec->codec.up_k, &source, e);
    st = st ? st : coding_place(&coding, a, out, &around, &d, &u->bytes, e);
    u->fallback_share = st ? 0.0 : coding.report.fallback_share;
    (void)close(scratch);
    return st;
}

static enum status write_f32(const struct encoding *c, struct arena *a, const struct st_meta *meta,
                             struct sim_update *u, int out, struct err *e)
{
    int64_t len = 0;
    const void *header = st_params_header(a, &c->layout.table, meta, META, &len);
    u->bytes = len + c->total * (int64_t)sizeof(float);
    TRY(write_all(out, header, (size_t)len, u->path, e));
    return write_all(out, c->delta, (size_t)c->total * sizeof(float), u->path, e);
}

static enum status write_file(struct encoding *c, struct arena *a, const struct sim_silo *s,
                              struct sim_update *u, struct err *e)
{
    struct st_meta meta[META];
    fill_meta(a, c, s, u, meta);
    int out = open(u->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (out < 0) {
        return io_error("create", u->path, e);
    }
    bool coded = c->desk->spec->codec.up != CODEC_F32;
    enum status st = coded ? write_coded(c, a, meta, u, out, e) : write_f32(c, a, meta, u, out, e);
    if (close(out) != 0 && !st) {
        st = io_error("close", u->path, e);
    }
    return st;
}

enum status sim_encode(struct sim_desk *d, const struct sim_silo *s, const struct sim_base *base,
                       struct sim_update *update, const struct sim_residual *residual,
                       struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct encoding c = {.desk = d,
                         .base = base,
                         .layout = layout_update(a, d->spec, base->round),
                         .codec = residual->codec};
    c.total = c.layout.table.total;
    bool coded = d->spec->codec.up != CODEC_F32;
    void *p = NULL;
    enum status st = mem_alloc_large(&p, (size_t)c.total * sizeof(float), e);
    c.delta = p;
    if (!st && coded) {
        st = mem_alloc_large(&p, 2 * (size_t)c.total * sizeof(float), e);
        c.carried = st ? NULL : p;
        c.left = st ? NULL : c.carried + c.total;
    }
    st = st ? st : take_deltas(&c, e);
    if (!st && coded) {
        st = take_residual(&c, residual, e);
    }
    st = st ? st : write_file(&c, a, s, update, e);
    if (!st && coded) {
        st = put_residual(&c, residual->next, e);
    }
    mem_free(c.delta);
    mem_free(c.carried); // and left
    arena_free(a);
    return st;
}
