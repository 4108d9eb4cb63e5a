/*
 * agent_encode.c - the update file: what this silo's training adds up to.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "common/fault.h"
#include "common/layout.h"
#include "common/mem.h"
#include "common/safetensors.h"

enum { ENCODE_BLOCK = 1 << 18 };

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
    float *base, *block; // ENCODE_BLOCK each
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
    struct layout layout = layout_update(arena, &t->spec);
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
    if (!st && rs->j.bytes != t->update_bytes) {
        st = err_set(e, ST_INVALID,
                     "the update has %" PRId64 " bytes, the plan says %" PRId64
                     "; try the server's version of photon-client",
                     rs->j.bytes, t->update_bytes);
    }
    return st;
}

enum status agent_encode(struct agent *a, const struct task *t, struct run_state *rs, int base_fd,
                         int64_t base_offset, struct err *e)
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
