/* checkpoint_next.c - a checkpoint from its parent and the updates of its round. */
#include <assert.h>
#include <inttypes.h>
#include <unistd.h>

#include "common/layout.h"
#include "common/limits.h"
#include "common/mem.h"
#include "common/schedule.h"
#include "server/checkpoint_int.h"
#include "server/update.h"

/* Everything one call of checkpoint_next() holds. */
struct next {
    const struct checkpoint_job *job;
    struct arena *arena;
    struct param_table table;
    struct param_table checkpoint_state_table;
    struct layout update_layout, checkpoint_layout;
    int count;
    struct input *inputs; // base, [state], updates
    struct input *base, *state, *updates;
    struct coded_file *coded; // of the updates
    struct output out, out_state;
    bool keeps_state;
};

static void next_init(struct next *n, const struct checkpoint_job *job)
{
    n->job = job;
    n->arena = arena_new(LIMIT_REQUEST_ARENA);
    n->table = params_table(n->arena, &job->spec->model);
    n->out.fd = n->out_state.fd = -1;
    n->out.want = job->again ? &job->again->weights : NULL;
    n->out_state.want = job->again ? &job->again->state : NULL;
    n->update_layout = layout_update(n->arena, job->spec, job->round);
    n->checkpoint_layout = layout_checkpoint(n->arena, job->spec);
    n->checkpoint_state_table = checkpoint_state_table(n->arena, &n->table, job->spec->outer.name);
    n->keeps_state = n->checkpoint_state_table.count > 0;
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
        if (n->inputs[i].fd >= 0) {
            (void)close(n->inputs[i].fd);
        }
    }
    output_release(&n->out);
    output_release(&n->out_state);
    mem_free(n->inputs);
    arena_free(n->arena);
}

/* Are all files what they were when they were accepted? The first bad one in order is reported. */
static enum status next_check(struct next *n, int *corrupt, struct err *e)
{
    const struct checkpoint_job *j = n->job;
    input_check_all(j->blobs, n->inputs, n->count, j->threads);
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
    TRY(input_check_header(n->base, j->spec, &n->checkpoint_layout.table, "checkpoint",
                           j->round - 1, e));
    if (n->state) {
        TRY(input_check_header(n->state, j->spec, &n->checkpoint_state_table, "outer_state",
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

static enum status next_aggregate(struct next *n, struct aggregate_stats *stats,
                                  struct checkpoint_files *f, int *corrupt, struct err *e)
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
    const int64_t *part = n->checkpoint_layout.part_at;
    int64_t weights = part[LAYOUT_WEIGHTS] * (int64_t)sizeof(float);
    struct sha256 *data_hash = sha256_new();
    struct aggregate_job job = {.spec = j->spec,
                                .table = &n->table,
                                .round = schedule_outer_step(j->spec, j->round) + j->outer_before,
                                .base_fd = n->base->fd,
                                .base_offset = n->base->data_offset + weights,
                                .state_fd = n->state ? n->state->fd : -1,
                                .state_offset = n->state ? n->state->data_offset : 0,
                                .layout = &n->update_layout,
                                .inputs = in,
                                .input_count = j->update_count,
                                .out_fd = n->out.fd,
                                .out_offset = n->out.data_offset + weights,
                                .out_state_fd = n->out_state.fd,
                                .out_state_offset = n->out_state.data_offset,
                                .out_hash = n->out.hash,
                                .out_data_hash = data_hash,
                                .out_state_hash = n->out_state.hash,
                                .threads = j->threads};
    for (int i = 0; i < LAYOUT_PARTS; i++) {
        job.out_moments[i] = n->out.data_offset + part[i] * (int64_t)sizeof(float);
    }
    enum status st = aggregate_run(&job, stats, corrupt, e);
    sha256_end(data_hash, &f->weights_digest);
    sha256_free(data_hash);
    if (!st && !stats->finite) {
        st = err_set(e, ST_INVALID, "round %" PRId32 " would give weights that are not finite",
                     j->round);
    }
    return st;
}

static enum status next_make(struct next *n, struct aggregate_stats *stats,
                             struct checkpoint_files *f, int *corrupt, struct err *e)
{
    const struct checkpoint_job *j = n->job;
    TRY(next_check(n, corrupt, e));
    TRY(output_open(&n->out, j->blobs, j->spec, &n->checkpoint_layout.table, "checkpoint", j->round,
                    e));
    if (n->keeps_state) {
        TRY(output_open(&n->out_state, j->blobs, j->spec, &n->checkpoint_state_table, "outer_state",
                        j->round, e));
    }
    TRY(next_aggregate(n, stats, f, corrupt, e));
    f->params = n->table.total;
    f->weights_bytes = n->out.bytes;
    TRY(output_place(&n->out, &f->weights, e));
    if (n->keeps_state) {
        f->has_state = true;
        f->state_bytes = n->out_state.bytes;
        TRY(output_place(&n->out_state, &f->state, e));
    }
    return ST_OK;
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
