#include "client/own.h"

#include <unistd.h>

#include "common/layout.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/schedule.h"

bool own_keeps(const struct run_spec *s)
{
    return s->inner_state == INNER_STATE_KEEP || schedule_keeps_weights(s);
}

/* Of the moments alone the next steps make new ones, and a round goes on as one of a new silo does.
 * Weights that are this silo's own are nowhere else: a person decides. */
static enum status without_file(struct trainer *t, const struct run_spec *s, struct err *e)
{
    if (schedule_keeps_weights(s)) {
        return err_set(e, ST_INVALID,
                       "own weights cannot be loaded: %.120s; try a backup of it or the former "
                       "devices, or remove it to start from the checkpoint",
                       e->msg);
    }
    log_warn("the optimizer's moments begin anew: %s", e->msg);
    trainer_reset_state(t);
    return ST_OK;
}

enum status own_load(struct trainer *t, const struct run_spec *s, const struct own *o,
                     struct err *e)
{
    trainer_reset_state(t);
    if (own_keeps(s) && o->path) {
        enum status st = trainer_load_state(t, o->path, e);
        bool useless = st == ST_CORRUPT || st == ST_CONFLICT;
        TRY(useless ? without_file(t, s, e) : st);
    }
    if (s->inner_state == INNER_STATE_RESET) {
        trainer_reset_state(t);
    }
    return ST_OK;
}

enum status own_load_common(struct trainer *t, const struct run_spec *s, const struct own *o,
                            int64_t round, const struct own_base *base, struct err *e)
{
    if (!schedule_keeps_weights(s) || !o->path) {
        return trainer_load_weights(t, base->fd, base->offset, e);
    }
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct layout l = layout_common(a, s, o->kept, round);
    enum status st = trainer_load_spans(t, base->fd, base->offset, l.spans, l.span_count, e);
    arena_free(a);
    return st;
}

/* The mean moments of the round before, of the tensors that travel. They count as having seen
 * every step of the run up to here: what each silo did is not known to the others. */
static enum status load_means(struct trainer *t, const struct run_spec *s, int64_t round,
                              int64_t global_step, const struct own_base *base, struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct layout update = layout_update(a, s, round);
    int32_t count = update.span_count;
    struct layout_span *spans = arena_alloc(a, (size_t)(count + 1) * sizeof(*spans));
    for (int32_t i = 0; i < count; i++) {
        spans[i] = update.spans[i];
        spans[i].at = spans[i].model;
    }
    int64_t total = trainer_params(t)->total * (int64_t)sizeof(float); // m, weights, v
    int64_t m = base->offset - total;
    int64_t v = base->offset + total;
    enum status st = trainer_load_moments(t, LAYOUT_M, base->fd, m, spans, count, e);
    st = st ? st : trainer_load_moments(t, LAYOUT_V, base->fd, v, spans, count, e);
    arena_free(a);
    if (!st) {
        trainer_set_steps(t, global_step);
    }
    return st;
}

enum status own_start(struct trainer *t, const struct run_spec *s, const struct own *o,
                      int64_t round, int64_t global_step, const struct own_base *base,
                      struct err *e)
{
    TRY(own_load(t, s, o, e));
    if (s->inner_state == INNER_STATE_AVERAGE) {
        TRY(load_means(t, s, round, global_step, base, e));
    }
    return own_load_common(t, s, o, round, base, e);
}

enum status own_rebase(struct trainer *t, const struct run_spec *s, const struct own *o,
                       int64_t round, const struct own_base *base, struct err *e)
{
    struct trainer_rebase r = {.base_fd = base->fd, .base_offset = base->offset};
    TRY(trainer_state_weights(t, o->path, &r.end_fd, &r.end_offset, e));
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct layout l = layout_common(a, s, o->kept, round);
    r.spans = l.spans;
    r.count = l.span_count;
    enum status st = trainer_rebase(t, &r, e);
    (void)close(r.end_fd);
    arena_free(a);
    return st;
}

enum status own_save(struct trainer *t, const struct run_spec *s, const char *path, struct err *e)
{
    // Between rounds the weights are the aggregator's, where none are this silo's own.
    return trainer_save_state(t, path, schedule_keeps_weights(s), e);
}
