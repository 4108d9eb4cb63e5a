#include "common/step.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/codec_file_int.h"
#include "common/limits.h"
#include "common/mem.h"
#include "common/run_header.h"
#include "common/schedule.h"

enum { META_BEFORE = 4, META_AFTER = 1 };

static const char *hex_of(struct arena *a, const struct digest *d)
{
    char *hex = arena_alloc(a, DIGEST_HEX + 1);
    digest_hex(d, hex);
    return hex;
}

struct coded_meta step_meta(struct arena *a, const struct step_id *id)
{
    struct st_meta *m = arena_alloc(a, (META_BEFORE + META_AFTER) * sizeof(*m));
    m[0] = (struct st_meta){"kind", "step"};
    m[1] = (struct st_meta){"run", id->run_name};
    m[2] = (struct st_meta){"round", arena_fmt(a, "%08" PRId32, id->round)};
    m[3] = (struct st_meta){"base", hex_of(a, &id->base)};
    m[4] = (struct st_meta){"to", hex_of(a, &id->to)};
    return (struct coded_meta){.before = m,
                               .before_count = META_BEFORE,
                               .after = m + META_BEFORE,
                               .after_count = META_AFTER};
}

enum status step_open(struct coded_file *out, struct arena *a, int fd,
                      const struct param_table *table, const struct step_id *id, struct err *e)
{
    struct coded_meta meta = step_meta(a, id);
    return coded_open(out, a, fd, table, id->codec, id->k, &meta, e);
}

void step_take(float *x, const float *v, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] -= v[i];
    }
}

/* ---- a silo's side ---- */

struct applying {
    const struct step_job *job;
    struct param_table model;
    const int32_t *fragment; // of the model's tensors, or -1
    const int32_t *place;    // of each among those of its fragment, which is where steps have it
    struct sha256 *hash;
    int64_t data; // where values begin, in both files
    uint8_t *scratch;
    float *x, *v;
};

static enum status put(struct applying *p, const void *bytes, int64_t size, int64_t at,
                       struct err *e)
{
    sha256_add(p->hash, bytes, (size_t)size);
    for (const char *from = bytes; size > 0;) {
        ssize_t n = pwrite(p->job->out_fd, from, (size_t)size, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            bool full = errno == ENOSPC || errno == EDQUOT;
            return err_set(e, full ? ST_LIMIT : ST_IO, "cannot write a checkpoint: %s",
                           strerror(errno));
        }
        from += n;
        at += n;
        size -= n;
    }
    return ST_OK;
}

/* Files of one run have headers of one length: rounds are written in eight digits. */
static enum status put_header(struct applying *p, struct arena *a, struct err *e)
{
    const struct step_job *j = p->job;
    const struct param_table table = layout_checkpoint(a, j->spec).table;
    const void *header = run_header(a, j->spec, &table, "checkpoint", j->round, &p->data);
    struct stat s;
    if (fstat(j->base_fd, &s) != 0) {
        return err_set(e, ST_IO, "cannot read a checkpoint: %s", strerror(errno));
    }
    if (s.st_size != p->data + table.total * (int64_t)sizeof(float)) {
        return err_set(e, ST_CORRUPT, "the base is no checkpoint of this run");
    }
    return put(p, header, p->data, 0, e);
}

/* Does the i-th step have this tensor? */
static bool moves(const struct applying *p, int i, int32_t tensor)
{
    const struct step_job *j = p->job;
    int32_t round = j->round - (j->count - 1 - i);
    return p->fragment[tensor] == schedule_fragment(j->spec, round);
}

static enum status apply_group(struct applying *p, int32_t tensor, int64_t group, struct err *e)
{
    const struct step_job *j = p->job;
    int64_t first = 0;
    int64_t n = 0;
    coded_group(&p->model, tensor, group, &first, &n);
    int64_t at = p->data + first * (int64_t)sizeof(float);
    int64_t size = n * (int64_t)sizeof(float);
    TRY(coded_read_full(j->base_fd, p->x, size, at, e));
    for (int i = 0; i < j->count; i++) {
        const struct step_file *f = &j->steps[i];
        if (moves(p, i, tensor)) {
            TRY(coded_read(&f->coded, f->fd, p->place[tensor], group, p->scratch, p->v, e));
            step_take(p->x, p->v, n);
        }
    }
    return put(p, p->x, size, at, e);
}

static enum status apply_all(struct applying *p, struct arena *a, struct err *e)
{
    TRY(put_header(p, a, e));
    for (int32_t i = 0; i < p->model.count; i++) {
        for (int64_t g = 0; g < coded_groups(&p->model, i); g++) {
            TRY(apply_group(p, i, g, e));
        }
    }
    return ST_OK;
}

static const int32_t *places(struct arena *a, const struct applying *p)
{
    int32_t *place = arena_alloc(a, (size_t)p->model.count * sizeof(*place));
    int32_t *next = arena_alloc(a, (size_t)schedule_fragments(p->job->spec) * sizeof(*next));
    for (int32_t i = 0; i < p->model.count; i++) {
        place[i] = p->fragment[i] < 0 ? -1 : next[p->fragment[i]]++;
    }
    return place;
}

enum status step_apply(const struct step_job *job, struct digest *made, struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct applying p = {.job = job, .hash = sha256_new()};
    struct digest d;
    p.model = params_table(a, &job->spec->model);
    p.fragment = layout_fragments(a, job->spec, &p.model);
    p.place = places(a, &p);
    p.scratch = mem_alloc(CODED_SCRATCH);
    p.x = mem_alloc(CODEC_GROUP * sizeof(*p.x));
    p.v = mem_alloc(CODEC_GROUP * sizeof(*p.v));
    enum status st = apply_all(&p, a, e);
    sha256_end(p.hash, &d);
    sha256_free(p.hash);
    mem_free(p.scratch);
    mem_free(p.x);
    mem_free(p.v);
    arena_free(a);
    if (!st) {
        *made = d;
    }
    return st;
}
