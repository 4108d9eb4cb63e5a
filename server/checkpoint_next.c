/* checkpoint_next.c - a checkpoint from its parent and the updates of its round. */
#include <assert.h>
#include <inttypes.h>
#include <unistd.h>

#include "common/layout.h"
#include "common/limits.h"
#include "common/mem.h"
#include "common/schedule.h"
#include "common/step.h"
#include "server/checkpoint_int.h"
#include "server/downlink.h"
#include "server/update.h"

/* Everything one call of checkpoint_next() holds. */
struct next {
    const struct checkpoint_job *job;
    struct arena *arena;
    struct param_table table;
    struct param_table state_table;
    struct layout update_layout, checkpoint_layout, step_layout;
    int count;
    struct checkpoint_in *inputs; // base, [state], updates
    struct checkpoint_in *base, *state, *updates;
    struct coded_file *coded; // of the updates
    struct checkpoint_out out, out_state, out_step, scratch;
    bool keeps_state;
    bool coded_down; // the outer optimizer moves y, which the state has; else the weights
    struct coding coding;
};

static const int64_t FLOAT = sizeof(float);

static void next_init(struct next *n, const struct checkpoint_job *job)
{
    n->job = job;
    n->arena = arena_new(LIMIT_REQUEST_ARENA);
    n->table = params_table(n->arena, &job->spec->model);
    n->out.fd = n->out_state.fd = n->out_step.fd = n->scratch.fd = -1;
    n->out.want = job->again ? &job->again->weights : NULL;
    n->out_state.want = job->again ? &job->again->state : NULL;
    n->out_step.want = job->again && job->again->has_step ? &job->again->step : NULL;
    n->update_layout = layout_update(n->arena, job->spec, job->round);
    n->checkpoint_layout = layout_checkpoint(n->arena, job->spec);
    n->state_table = checkpoint_state_table(n->arena, &n->table, job->spec);
    n->step_layout = layout_step(n->arena, job->spec, job->round);
    n->keeps_state = n->state_table.count > 0;
    n->coded_down = job->spec->codec.down != CODEC_F32;
    bool state = n->keeps_state && job->state;
    n->count = 1 + (state ? 1 : 0) + job->update_count;
    n->inputs = mem_alloc((size_t)n->count * sizeof(*n->inputs));
    n->coded = arena_alloc(n->arena, ((size_t)job->update_count + 1) * sizeof(*n->coded));
    n->base = &n->inputs[0];
    n->base->want = job->base;
    n->state = state ? &n->inputs[1] : NULL;
    if (state) {
        n->state->want = *job->state;
    }
    n->updates = &n->inputs[state ? 2 : 1];
    for (int k = 0; k < job->update_count; k++) {
        n->updates[k].want = job->updates[k].sha256;
    }
    for (int i = 0; i < n->count; i++) {
        n->inputs[i].fd = -1;
    }
}

static void next_release(struct next *n)
{
    for (int i = 0; i < n->count; i++) {
        checkpoint_in_close(&n->inputs[i]);
    }
    checkpoint_out_release(&n->out);
    checkpoint_out_release(&n->out_state);
    checkpoint_out_release(&n->out_step);
    checkpoint_out_release(&n->scratch);
    mem_free(n->inputs);
    arena_free(n->arena);
}

/* Are all files what they were when they were accepted? The first bad one in order is reported. */
static enum status next_check(struct next *n, int *corrupt, struct err *e)
{
    const struct checkpoint_job *j = n->job;
    checkpoint_in_check_all(j->blobs, n->inputs, n->count, j->threads);
    for (int i = 0; i < n->count; i++) {
        if (n->inputs[i].st) {
            *corrupt = n->inputs[i].st == ST_CORRUPT && &n->inputs[i] >= n->updates
                           ? (int)(&n->inputs[i] - n->updates)
                           : -1;
            if (e) {
                *e = n->inputs[i].err;
            }
            return n->inputs[i].st;
        }
    }
    TRY(checkpoint_in_check_header(n->base, j->spec, &n->checkpoint_layout.table, "checkpoint",
                                   j->round - 1, e));
    if (n->state) {
        TRY(checkpoint_in_check_header(n->state, j->spec, &n->state_table, "outer_state",
                                       j->round - 1, e));
    }
    for (int k = 0; k < j->update_count; k++) {
        struct update_expected want = {.run_name = j->spec->name,
                                       .round = j->round,
                                       .base = j->base,
                                       .silo_name = j->updates[k].silo_name,
                                       .tokens = j->updates[k].tokens,
                                       .steps = -1,
                                       .codec = j->updates[k].codec,
                                       .k = j->spec->codec.up_k};
        enum status st = update_open(&n->coded[k], n->arena, n->updates[k].fd,
                                     &n->update_layout.table, &want, e);
        if (st) {
            *corrupt = st == ST_CORRUPT ? k : -1;
            return st;
        }
    }
    return ST_OK;
}

/* Where weights begin in a checkpoint's file, and y in an outer state's: after its other arrays. */
static struct downlink_array weights_in(const struct next *n, int fd, int64_t data)
{
    return (struct downlink_array){fd, data + n->checkpoint_layout.part_at[LAYOUT_WEIGHTS] * FLOAT};
}

static struct downlink_array ideal_in(const struct next *n, int fd, int64_t data)
{
    int arrays = outer_arrays(n->job->spec->outer.name);
    return (struct downlink_array){fd, data + arrays * n->table.total * FLOAT};
}

/* y before the outer step; a run begins with y = x. */
static struct downlink_array ideal_before(const struct next *n)
{
    return n->state ? ideal_in(n, n->state->fd, n->state->data_offset)
                    : weights_in(n, n->base->fd, n->base->data_offset);
}

static enum status next_aggregate(struct next *n, struct aggregate_stats *stats,
                                  struct sha256 *data_hash, int *corrupt, struct err *e)
{
    const struct checkpoint_job *j = n->job;
    size_t inputs = (size_t)j->update_count;
    struct aggregate_input *in = arena_alloc(n->arena, (inputs + 1) * sizeof(*in));
    for (int k = 0; k < j->update_count; k++) {
        in[k].fd = n->updates[k].fd;
        in[k].data_offset = n->coded[k].data_offset;
        in[k].coded = &n->coded[k];
        in[k].weight = j->spec->weights == WEIGHTS_UNIFORM ? 1.0 : (double)j->updates[k].tokens;
    }
    struct downlink_array from =
        n->coded_down ? ideal_before(n) : weights_in(n, n->base->fd, n->base->data_offset);
    struct downlink_array to = n->coded_down
                                   ? ideal_in(n, n->out_state.fd, n->out_state.data_offset)
                                   : weights_in(n, n->out.fd, n->out.data_offset);
    struct aggregate_job job = {.spec = j->spec,
                                .table = &n->table,
                                .round = schedule_outer_step(j->spec, j->round) + j->outer_before,
                                .base_fd = from.fd,
                                .base_offset = from.offset,
                                .state_fd = n->state ? n->state->fd : -1,
                                .state_offset = n->state ? n->state->data_offset : 0,
                                .layout = &n->update_layout,
                                .inputs = in,
                                .input_count = j->update_count,
                                .out_fd = to.fd,
                                .out_offset = to.offset,
                                .out_state_fd = n->out_state.fd,
                                .out_state_offset = n->out_state.data_offset,
                                .threads = j->threads};
    if (!n->coded_down) { // else y lies behind the other arrays, and digests are taken afterwards
        job.out_hash = n->out.hash;
        job.out_data_hash = data_hash;
        job.out_state_hash = n->out_state.hash;
    }
    for (int i = 0; i < LAYOUT_PARTS; i++) {
        job.out_moments[i] = n->out.data_offset + n->checkpoint_layout.part_at[i] * FLOAT;
    }
    TRY(aggregate_run(&job, stats, corrupt, e));
    return stats->finite
               ? ST_OK
               : err_set(e, ST_INVALID, "round %" PRId32 " would give weights that are not finite",
                         j->round);
}

/* ---- the way down ---- */

static enum status copy_array(struct next *n, struct downlink_array from, int64_t at, int64_t count,
                              struct err *e)
{
    struct downlink_array to = weights_in(n, n->out.fd, n->out.data_offset);
    float *block = mem_alloc(READ_SIZE);
    enum status st = ST_OK;
    for (int64_t end = at + count; at < end && !st;) {
        int64_t m = end - at < READ_SIZE / FLOAT ? end - at : READ_SIZE / FLOAT;
        st = checkpoint_read(from.fd, block, m * FLOAT, from.offset + at * FLOAT, e);
        st = st ? st
                : checkpoint_write(to.fd, block, (size_t)(m * FLOAT), to.offset + at * FLOAT, e);
        at += m;
    }
    mem_free(block);
    return st;
}

/* x of what the step moves; of the other tensors as it was. */
static enum status code_step(struct next *n, struct err *e)
{
    const struct checkpoint_job *j = n->job;
    struct downlink_array x = weights_in(n, n->base->fd, n->base->data_offset);
    for (int32_t i = 0; i < n->table.count; i++) {
        const struct param *p = &n->table.items[i];
        if (n->step_layout.index[LAYOUT_WEIGHTS][i] < 0) {
            TRY(copy_array(n, x, p->offset, p->count, e));
        }
    }
    TRY(checkpoint_out_scratch(&n->scratch, j->blobs, e));
    struct downlink_job down = {.layout = &n->step_layout,
                                .codec = j->down,
                                .k = j->spec->codec.down_k,
                                .x = x,
                                .y_before = ideal_before(n),
                                .y = ideal_in(n, n->out_state.fd, n->out_state.data_offset),
                                .out = weights_in(n, n->out.fd, n->out.data_offset),
                                .scratch_fd = n->scratch.fd};
    return downlink_code(&n->coding, n->arena, &down, e);
}

static enum status place_step(struct next *n, struct checkpoint_files *f, struct err *e)
{
    const struct checkpoint_job *j = n->job;
    struct step_id id = {.run_name = j->spec->name,
                         .round = j->round,
                         .base = j->base,
                         .to = f->weights,
                         .codec = j->down,
                         .k = j->spec->codec.down_k};
    struct coded_meta meta = step_meta(n->arena, &id);
    int64_t bytes = coding_bytes(&n->coding, n->arena, &meta);
    TRY(checkpoint_out_create(&n->out_step, j->blobs, bytes, e));
    TRY(coding_place(&n->coding, n->arena, n->out_step.fd, &meta, &f->step, &f->step_bytes, e));
    f->has_step = true;
    f->step_codec = j->down;
    f->step_report = n->coding.report;
    return checkpoint_out_place_as(&n->out_step, &f->step, e);
}

/* ---- all of it ---- */

static enum status next_files(struct next *n, struct checkpoint_files *f, struct aggregate_stats *s,
                              struct sha256 *data_hash, int *corrupt, struct err *e)
{
    const struct checkpoint_job *j = n->job;
    bool steps = downlink_steps(j->spec, j->round);
    TRY(checkpoint_out_open(&n->out, j->blobs, j->spec, &n->checkpoint_layout.table, "checkpoint",
                            j->round, e));
    if (n->keeps_state) {
        TRY(checkpoint_out_open(&n->out_state, j->blobs, j->spec, &n->state_table, "outer_state",
                                j->round, e));
    }
    TRY(next_aggregate(n, s, data_hash, corrupt, e));
    if (n->coded_down) {
        struct downlink_array y = ideal_in(n, n->out_state.fd, n->out_state.data_offset);
        TRY(steps ? code_step(n, e) : copy_array(n, y, 0, n->table.total, e));
        TRY(checkpoint_out_hash(&n->out, data_hash, e));
        TRY(checkpoint_out_hash(&n->out_state, NULL, e));
    }
    f->params = n->table.total;
    f->weights_bytes = n->out.bytes;
    TRY(checkpoint_out_place(&n->out, &f->weights, e));
    if (n->keeps_state) {
        f->has_state = true;
        f->state_bytes = n->out_state.bytes;
        TRY(checkpoint_out_place(&n->out_state, &f->state, e));
    }
    return steps ? place_step(n, f, e) : ST_OK;
}

static enum status next_make(struct next *n, struct aggregate_stats *stats,
                             struct checkpoint_files *f, int *corrupt, struct err *e)
{
    TRY(next_check(n, corrupt, e));
    struct sha256 *data_hash = sha256_new();
    enum status st = next_files(n, f, stats, data_hash, corrupt, e);
    sha256_end(data_hash, &f->weights_digest);
    sha256_free(data_hash);
    return st;
}

enum status checkpoint_next(const struct checkpoint_job *job, struct checkpoint_files *out,
                            struct aggregate_stats *stats, int *corrupt_update, struct err *e)
{
    assert(job->round >= 1 && job->threads >= 1);
    struct next n = {0};
    struct checkpoint_files f = {0};
    *corrupt_update = -1;
    next_init(&n, job);
    enum status st = next_make(&n, stats, &f, corrupt_update, e);
    next_release(&n);
    if (!st) {
        *out = f;
    }
    return st;
}
