#include "client/cli/sim_silo.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/sim_encode.h"
#include "client/state.h"
#include "common/clock.h"
#include "common/codec_file.h"
#include "common/layout.h"
#include "common/limits.h"
#include "common/schedule.h"

enum { DIVERGED_STEPS = 5 };

static const char MOMENTS[] = "moments";
static const char RESIDUAL[] = "residual";
static const char GUARD[] = "guard"; // a round whose update tripped it

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

/* What a silo keeps from a round: moments, with the weights where they are its own; residual. */
static void kept_path(const struct sim_desk *d, const struct sim_silo *s, const char *what,
                      int32_t round, char out[STATE_PATH_MAX])
{
    char name[48];
    (void)snprintf(name, sizeof(name), "%s-%" PRId32, what, round);
    silo_path(d, s, name, out);
}

/* The newest round whose residual of this round's fragment the silo has, or 0. A round that did not
 * count leaves none (sim_silo_tidy()), or one that is newer than what is settled. */
static int32_t former_residual(const struct sim_desk *d, const struct sim_silo *s, int32_t round)
{
    char path[STATE_PATH_MAX];
    for (int32_t r = round - schedule_fragments(d->spec); r > 0; r -= schedule_fragments(d->spec)) {
        kept_path(d, s, RESIDUAL, r, path);
        if (r <= s->settled && access(path, F_OK) == 0) {
            return r;
        }
    }
    return 0;
}

/* The rung of this round's update: as photon-client chooses it. Rounds that tripped the guard have
 * left a file each, so that a round that is done again finds what it found before. */
static enum codec rung(const struct sim_desk *d, const struct sim_silo *s, int32_t round)
{
    char path[STATE_PATH_MAX];
    enum codec up = d->spec->codec.up;
    for (int32_t r = round - 1; r > 0 && r >= round - CODED_GUARD_ROUNDS; r--) {
        kept_path(d, s, GUARD, r, path);
        if (access(path, F_OK) == 0) {
            return codec_up(up);
        }
    }
    return up;
}

static enum status trip_guard(const struct sim_desk *d, const struct sim_silo *s, int32_t round,
                              struct err *e)
{
    char path[STATE_PATH_MAX];
    kept_path(d, s, GUARD, round, path);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || close(fd) != 0) {
        return err_set(e, io_status(errno), "cannot create %s: %s", path, strerror(errno));
    }
    return ST_OK;
}

void sim_silo_settle(struct sim_silo *s, int32_t round)
{
    s->settled = round;
}

void sim_silo_tidy(const struct sim_desk *d, const struct sim_silo *s, int32_t before, int32_t now)
{
    char path[STATE_PATH_MAX];
    bool counted = s->settled == now;
    int32_t moments = counted ? before : now;
    int32_t residual = counted ? former_residual(d, s, now) : now;
    if (moments > 0) {
        kept_path(d, s, MOMENTS, moments, path);
        (void)unlink(path);
    }
    if (residual > 0) {
        kept_path(d, s, RESIDUAL, residual, path);
        (void)unlink(path);
    }
    if (now > CODED_GUARD_ROUNDS + 1) {
        kept_path(d, s, GUARD, now - CODED_GUARD_ROUNDS - 1, path); // holds no longer
        (void)unlink(path);
    }
}

static bool keeps_state(const struct run_spec *s)
{
    return s->inner_state == INNER_STATE_KEEP || schedule_keeps_weights(s);
}

/* What the silo kept of its own. */
static enum status load_own(struct sim_desk *d, const struct sim_silo *s, struct err *e)
{
    char path[STATE_PATH_MAX];
    trainer_reset_state(d->trainer);
    if (s->settled > 0 && keeps_state(d->spec)) {
        kept_path(d, s, MOMENTS, s->settled, path);
        TRY(trainer_load_state(d->trainer, path, e));
    }
    if (d->spec->inner_state == INNER_STATE_RESET) {
        trainer_reset_state(d->trainer);
    }
    return ST_OK;
}

/* The checkpoint, or as much of it as the silo has not its own of. */
static enum status load_common(struct sim_desk *d, const struct sim_silo *s,
                               const struct sim_base *base, struct err *e)
{
    if (!schedule_keeps_weights(d->spec) || s->settled == 0) {
        return trainer_load_weights(d->trainer, base->fd, base->offset, e);
    }
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct layout l = layout_common(a, d->spec, s->settled, base->round);
    enum status st =
        trainer_load_spans(d->trainer, base->fd, base->offset, l.spans, l.span_count, e);
    arena_free(a);
    return st;
}

/* The checkpoint, with what the steps ahead came to on top of it. */
static enum status rebase(struct sim_desk *d, const struct sim_silo *s, const struct sim_base *base,
                          struct err *e)
{
    char path[STATE_PATH_MAX];
    struct trainer_rebase r = {.base_fd = base->fd, .base_offset = base->offset};
    kept_path(d, s, MOMENTS, s->settled, path);
    TRY(trainer_state_weights(d->trainer, path, &r.end_fd, &r.end_offset, e));
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct layout l = layout_common(a, d->spec, s->settled, base->round);
    r.spans = l.spans;
    r.count = l.span_count;
    enum status st = trainer_rebase(d->trainer, &r, e);
    (void)close(r.end_fd);
    arena_free(a);
    return st;
}

/* ---- a task ---- */

/* How far a task has come. */
struct training {
    int64_t done;
    double loss_sum;
    int bad; // steps in a row without a finite gradient
};

static enum status train_to(struct sim_desk *d, const struct sim_base *base, int64_t steps,
                            struct training *w, struct sim_update *u, struct err *e)
{
    int64_t first = (int64_t)(base->round - 1) * d->spec->federation.local_steps;
    trainer_run_until(d->trainer, first + steps);
    for (; w->done < steps; w->done++) {
        struct step_report r;
        if (d->stopping && d->stopping()) {
            return err_set(e, ST_RETRY, "stopped; the same command goes on from the last round");
        }
        TRY(trainer_step(d->trainer, first + w->done, &r, e));
        u->tokens += r.tokens;
        w->loss_sum += r.finite ? r.loss : 0.0;
        w->bad = r.finite ? 0 : w->bad + 1;
        if (w->bad >= DIVERGED_STEPS) {
            return err_set(e, ST_CORRUPT,
                           "the training diverged: loss or gradient is not finite for %d steps, up "
                           "to global step %" PRId64 "; try a lower learning rate",
                           DIVERGED_STEPS, r.step);
        }
    }
    return ST_OK;
}

static enum status train(struct sim_desk *d, const struct sim_silo *s, const struct sim_base *base,
                         struct sim_update *u, struct err *e)
{
    struct training w = {0};
    int64_t steps = d->spec->federation.local_steps;
    int32_t ahead = schedule_steps_ahead(d->spec, s->settled, base->round);
    TRY(load_own(d, s, e));
    TRY(train_to(d, base, ahead, &w, u, e));
    TRY(ahead > 0 ? rebase(d, s, base, e) : load_common(d, s, base, e));
    TRY(train_to(d, base, steps, &w, u, e));
    u->train_loss = w.loss_sum / (double)steps;
    return ST_OK;
}

static enum status encode(struct sim_desk *d, const struct sim_silo *s, const struct sim_base *base,
                          struct sim_update *u, struct err *e)
{
    char former[STATE_PATH_MAX];
    char next[STATE_PATH_MAX];
    silo_path(d, s, "update.safetensors", u->path);
    int32_t before = former_residual(d, s, base->round);
    kept_path(d, s, RESIDUAL, before, former);
    kept_path(d, s, RESIDUAL, base->round, next);
    struct sim_residual r = {.codec = rung(d, s, base->round),
                             .former = before > 0 ? former : NULL,
                             .round = before,
                             .next = next};
    u->codec = r.codec;
    TRY(sim_encode(d, s, base, u, &r, e));
    return u->fallback_share > CODED_FALLBACK_MAX ? trip_guard(d, s, base->round, e) : ST_OK;
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
    TRY(train(d, s, base, &u, e));
    TRY(encode(d, s, base, &u, e));
    if (keeps_state(d->spec)) {
        kept_path(d, s, MOMENTS, base->round, path);
        TRY(trainer_save_state(d->trainer, path, schedule_keeps_weights(d->spec), e));
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
