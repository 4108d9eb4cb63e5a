#include "client/cli/sim_silo.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "client/delta.h"
#include "client/durable.h"
#include "client/own.h"
#include "common/clock.h"
#include "common/codec_file.h"
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

/* What the silo kept of its own; its path is in `path`. */
static struct own own_of(const struct sim_desk *d, const struct sim_silo *s,
                         char path[STATE_PATH_MAX])
{
    kept_path(d, s, MOMENTS, s->settled, path);
    return (struct own){s->settled > 0 ? path : NULL, s->settled};
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
    char path[STATE_PATH_MAX];
    struct training w = {0};
    struct own own = own_of(d, s, path);
    int64_t first = (int64_t)(base->round - 1) * d->spec->federation.local_steps;
    int32_t ahead = schedule_steps_ahead(d->spec, s->settled, base->round);
    if (ahead > 0) {
        TRY(own_load(d->trainer, d->spec, &own, e));
        TRY(train_to(d, base, ahead, &w, u, e));
        TRY(own_rebase(d->trainer, d->spec, &own, base->round, &base->file, e));
    } else {
        TRY(own_start(d->trainer, d->spec, &own, base->round, first, &base->file, e));
    }
    TRY(train_to(d, base, u->steps, &w, u, e));
    u->train_loss = w.loss_sum / (double)u->steps;
    return ST_OK;
}

static enum status encode(struct sim_desk *d, const struct sim_silo *s, const struct sim_base *base,
                          struct sim_update *u, struct err *e)
{
    char hex[DIGEST_HEX + 1];
    char former[STATE_PATH_MAX];
    char next[STATE_PATH_MAX];
    char late[STATE_PATH_MAX];
    struct delta_result r;
    digest_hex(&base->sha, hex);
    silo_path(d, s, "update.safetensors", u->path);
    silo_path(d, s, "late", late); // nobody is late here
    kept_path(d, s, RESIDUAL, former_residual(d, s, base->round), former);
    kept_path(d, s, RESIDUAL, base->round, next);
    struct delta_job job = {.trainer = d->trainer,
                            .spec = d->spec,
                            .base_fd = base->file.fd,
                            .base_offset = base->file.offset,
                            .codec = rung(d, s, base->round),
                            .run_name = d->spec->name,
                            .round = base->round,
                            .base_sha256 = hex,
                            .silo_name = s->name,
                            .tokens = u->tokens,
                            .steps = u->steps,
                            .residual = former,
                            .update = u->path,
                            .next = next,
                            .late = late};
    TRY(delta_write(&job, &r, e));
    u->codec = job.codec;
    u->sha256 = r.sha256;
    u->bytes = r.bytes;
    if (r.coded) {
        (void)unlink(late);
    }
    bool trips = r.report.fallback_share > CODED_FALLBACK_MAX;
    return trips ? trip_guard(d, s, base->round, e) : ST_OK;
}

enum status sim_silo_train(struct sim_desk *d, const struct sim_silo *s,
                           const struct sim_base *base, int32_t steps, struct sim_update *out,
                           struct err *e)
{
    char path[STATE_PATH_MAX];
    struct sim_update u = {.steps = steps};
    double begin = clock_mono_s();
    silo_path(d, s, "", path);
    TRY(dir_make(path, e));
    d->data = s->data;
    d->ordinal = s->ordinal;
    TRY(train(d, s, base, &u, e));
    TRY(encode(d, s, base, &u, e));
    if (own_keeps(d->spec)) {
        kept_path(d, s, MOMENTS, base->round, path);
        TRY(own_save(d->trainer, d->spec, path, e));
    }
    u.seconds = clock_mono_s() - begin;
    *out = u;
    return ST_OK;
}

/* ---- evaluation ---- */

enum status sim_silo_load(struct sim_desk *d, const struct sim_silo *s, const struct sim_base *head,
                          struct err *e)
{
    char path[STATE_PATH_MAX];
    struct own own = own_of(d, s, path);
    TRY(own_load(d->trainer, d->spec, &own, e));
    return own_load_common(d->trainer, d->spec, &own, 0, &head->file, e);
}

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
