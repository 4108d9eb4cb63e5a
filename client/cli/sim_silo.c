#include "client/cli/sim_silo.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/sim_encode.h"
#include "client/state.h"
#include "common/clock.h"

enum { DIVERGED_STEPS = 5 };

static const char MOMENTS[] = "moments";
static const char RESIDUAL[] = "residual";

/* ---- the desk ---- */

static enum status train_rows(void *ctx, int64_t step, int32_t rows, int32_t seq_len, int32_t *out,
                              struct err *e)
{
    const struct sim_desk *d = ctx;
    return data_train_rows(d->data, d->spec->seed, d->ordinal, step, rows, seq_len, out, e);
}

static enum status heldout_row(void *ctx, int64_t i, int32_t seq_len, int32_t *out,
                               int64_t *target_bytes, struct err *e)
{
    const struct sim_desk *d = ctx;
    return data_heldout_row(d->data, i * d->all / d->windows, seq_len, out, target_bytes, e);
}

enum status sim_desk_open(struct sim_desk *d, const struct sim_desk_config *c, struct err *e)
{
    *d = (struct sim_desk){.spec = c->spec, .dir = c->dir, .stopping = c->stopping};
    if (c->spec->federation.local_steps_policy != STEPS_FIXED) {
        return err_set(e, ST_INVALID, "one machine has one speed; try local_steps_policy fixed");
    }
    if (c->spec->inner_state == INNER_STATE_AVERAGE || c->spec->personal.count > 0) {
        return err_set(
            e, ST_INVALID,
            "photon sim averages no moments and keeps no personal tensors; try a server");
    }
    struct trainer_config t = {.model = c->spec->model,
                               .inner = c->spec->inner,
                               .freeze = c->spec->freeze,
                               .rows = {d, train_rows, heldout_row},
                               .device = c->device,
                               .dtype = c->dtype,
                               .threads = c->threads};
    return trainer_open(&d->trainer, &t, e);
}

void sim_desk_close(struct sim_desk *d)
{
    trainer_close(d->trainer);
    d->trainer = NULL;
}

/* ---- moments ---- */

static void silo_path(const struct sim_desk *d, const struct sim_silo *s, const char *name,
                      char out[STATE_PATH_MAX])
{
    (void)snprintf(out, STATE_PATH_MAX, "%.800s/silos/%s/%s", d->dir, s->name, name);
}

/* What a silo keeps from a round: moments, residual. */
static void kept_path(const struct sim_desk *d, const struct sim_silo *s, const char *what,
                      int32_t round, char out[STATE_PATH_MAX])
{
    char name[48];
    (void)snprintf(name, sizeof(name), "%s-%" PRId32, what, round);
    silo_path(d, s, name, out);
}

void sim_silo_settle(struct sim_silo *s, int32_t round)
{
    s->settled = round;
}

void sim_silo_tidy(const struct sim_desk *d, const struct sim_silo *s, int32_t before, int32_t now)
{
    char path[STATE_PATH_MAX];
    const int32_t rounds[] = {before, now};
    for (int i = 0; i < 2; i++) {
        if (rounds[i] > 0 && rounds[i] != s->settled) {
            kept_path(d, s, MOMENTS, rounds[i], path);
            (void)unlink(path);
            kept_path(d, s, RESIDUAL, rounds[i], path);
            (void)unlink(path);
        }
    }
}

static enum status load_start(struct sim_desk *d, const struct sim_silo *s,
                              const struct sim_base *base, struct err *e)
{
    char path[STATE_PATH_MAX];
    if (d->spec->inner_state == INNER_STATE_KEEP && s->settled > 0) {
        kept_path(d, s, MOMENTS, s->settled, path);
        TRY(trainer_load_state(d->trainer, path, e));
    } else {
        trainer_reset_state(d->trainer);
    }
    return trainer_load_weights(d->trainer, base->fd, base->offset, e);
}

/* ---- a task ---- */

static enum status train_steps(struct sim_desk *d, const struct sim_base *base,
                               struct sim_update *u, struct err *e)
{
    int64_t steps = d->spec->federation.local_steps;
    int64_t first = (int64_t)(base->round - 1) * steps;
    double loss_sum = 0.0;
    int bad = 0;
    for (int64_t i = 0; i < steps; i++) {
        struct step_report r;
        if (d->stopping && d->stopping()) {
            return err_set(e, ST_RETRY, "stopped; the same command goes on from the last round");
        }
        TRY(trainer_step(d->trainer, first + i, &r, e));
        u->tokens += r.tokens;
        loss_sum += r.finite ? r.loss : 0.0;
        bad = r.finite ? 0 : bad + 1;
        if (bad >= DIVERGED_STEPS) {
            return err_set(e, ST_CORRUPT,
                           "the training diverged: loss or gradient is not finite for %d steps, up "
                           "to global step %" PRId64 "; try a lower learning rate",
                           DIVERGED_STEPS, r.step);
        }
    }
    u->train_loss = loss_sum / (double)steps;
    return ST_OK;
}

static enum status encode(struct sim_desk *d, const struct sim_silo *s, const struct sim_base *base,
                          struct sim_update *u, struct err *e)
{
    char former[STATE_PATH_MAX];
    char next[STATE_PATH_MAX];
    silo_path(d, s, "update.safetensors", u->path);
    kept_path(d, s, RESIDUAL, s->settled, former);
    kept_path(d, s, RESIDUAL, base->round, next);
    return sim_encode(d, s, base, u, s->settled > 0 ? former : NULL, next, e);
}

enum status sim_silo_train(struct sim_desk *d, const struct sim_silo *s,
                           const struct sim_base *base, struct sim_update *out, struct err *e)
{
    char path[STATE_PATH_MAX];
    struct sim_update u = {0};
    double begin = clock_mono_s();
    silo_path(d, s, "", path);
    TRY(dir_make(path, e));
    d->data = s->data;
    d->ordinal = s->ordinal;
    TRY(load_start(d, s, base, e));
    TRY(train_steps(d, base, &u, e));
    TRY(encode(d, s, base, &u, e));
    if (d->spec->inner_state == INNER_STATE_KEEP) {
        kept_path(d, s, MOMENTS, base->round, path);
        TRY(trainer_save_state(d->trainer, path, false, e));
    }
    u.seconds = clock_mono_s() - begin;
    *out = u;
    return ST_OK;
}

/* ---- evaluation ---- */

enum status sim_evaluate(struct sim_desk *d, const struct data *data, int64_t windows, bool spread,
                         struct eval_result *sum, struct err *e)
{
    enum { SLICE = 16 }; // as photon-client does, whose sums this repeats
    int64_t all = data_heldout_windows(data, d->spec->model.seq_len);
    int64_t count = windows > 0 && windows < all ? windows : all;
    d->windows = count;
    d->all = spread ? all : count;
    if (count < 1) {
        return err_set(e, ST_INVALID, "there is no held-out window of %d tokens; try more text",
                       d->spec->model.seq_len);
    }
    d->data = data;
    *sum = (struct eval_result){0};
    for (int64_t at = 0; at < count; at += SLICE) {
        struct eval_result r;
        TRY(trainer_eval(d->trainer, at, count - at < SLICE ? count - at : SLICE, &r, e));
        sum->nll += r.nll;
        sum->tokens += r.tokens;
        sum->bytes += r.bytes;
        sum->seconds += r.seconds;
    }
    return ST_OK;
}
