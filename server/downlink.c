#include "server/downlink.h"

#include <assert.h>

#include "common/mem.h"
#include "common/step.h"
#include "server/checkpoint_int.h"

bool downlink_steps(const struct run_spec *spec, int32_t round)
{
    return spec->codec.down != CODEC_F32 && round >= 1 && round < spec->federation.rounds;
}

enum codec downlink_rung(const struct run_spec *spec, int32_t round, int32_t tripped)
{
    bool guarded = tripped > 0 && round <= tripped + CODED_GUARD_ROUNDS;
    return guarded ? codec_up(spec->codec.down) : spec->codec.down;
}

struct work {
    const struct downlink_job *job;
    float *x, *before, *y;
    int64_t at; // the model's first element in x
};

static enum status read_array(const struct downlink_array *f, int64_t at, int64_t n, float *out,
                              struct err *e)
{
    return checkpoint_read(f->fd, out, n * (int64_t)sizeof(float),
                           f->offset + at * (int64_t)sizeof(float), e);
}

/* u = x - y; fresh in it is what this outer step moved. */
static enum status read_step(void *ctx, int64_t first, int64_t n, float *u, double *fresh,
                             struct err *e)
{
    struct work *w = ctx;
    w->at = layout_model_at(w->job->layout, first);
    TRY(read_array(&w->job->x, w->at, n, w->x, e));
    TRY(read_array(&w->job->y_before, w->at, n, w->before, e));
    TRY(read_array(&w->job->y, w->at, n, w->y, e));
    for (int64_t i = 0; i < n; i++) {
        double d = (double)w->before[i] - (double)w->y[i];
        *fresh += d * d;
        u[i] = w->x[i] - w->y[i];
    }
    return ST_OK;
}

static enum status wrote_step(void *ctx, int64_t first, int64_t n, const float *u, const float *v,
                              struct err *e)
{
    struct work *w = ctx;
    (void)u;
    assert(w->at == layout_model_at(w->job->layout, first)); // x is still that of this group
    step_take(w->x, v, n);
    return checkpoint_write(w->job->out.fd, w->x, (size_t)n * sizeof(float),
                            w->job->out.offset + w->at * (int64_t)sizeof(float), e);
}

enum status downlink_code(struct coding *c, struct arena *a, const struct downlink_job *job,
                          struct err *e)
{
    struct work w = {.job = job};
    w.x = mem_alloc(CODEC_GROUP * sizeof(*w.x));
    w.before = mem_alloc(CODEC_GROUP * sizeof(*w.before));
    w.y = mem_alloc(CODEC_GROUP * sizeof(*w.y));
    struct coded_source source = {&w, read_step, wrote_step};
    enum status st =
        coding_run(c, a, job->scratch_fd, &job->layout->table, job->codec, job->k, &source, e);
    mem_free(w.x);
    mem_free(w.before);
    mem_free(w.y);
    return st;
}
