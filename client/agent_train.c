/*
 * agent_train.c - a round on the silo: where it starts, local steps with snapshots, its end.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/safetensors.h"
#include "common/schedule.h"

enum {
    SNAP_LEAST_MS = 2000,
    SNAP_COST = 20,     // a snapshot may cost one part in so many of the time
    DIVERGED_STEPS = 5, // steps in a row without a finite loss and gradient
    DEVICE_TRIES = 3,
};

/* ---- where rows come from ---- */

static enum status train_rows(void *ctx, int64_t step, int32_t rows, int32_t seq_len, int32_t *out,
                              struct err *e)
{
    const struct agent *a = ctx;
    return data_train_rows(a->data, a->row_seed, a->row_ordinal, step, rows, seq_len, out, e);
}

static enum status heldout_row(void *ctx, int64_t i, int32_t seq_len, int32_t *out,
                               int64_t *target_bytes, struct err *e)
{
    const struct agent *a = ctx;
    return data_heldout_row(a->data, i, seq_len, out, target_bytes, e);
}

enum task_end agent_without_base(struct agent *a, struct beat *b, const struct err *e)
{
    if (agent_stopping()) {
        return TASK_LEAVING;
    }
    if (beat_order(b) != BEAT_CONTINUE) {
        return TASK_DROPPED;
    }
    return agent_fail(a, e->st == ST_LIMIT ? "disk_full" : "transient", e);
}

const char *agent_start_code(enum status st)
{
    return st == ST_LIMIT     ? "disk_full"
           : st == ST_NOMEM   ? "oom"
           : st == ST_INVALID ? "bad_data"
                              : "transient";
}

static void forget_trainer(struct agent *a)
{
    if (!a->ahead.parked) {
        agent_ahead_drop(a);
    }
    trainer_close(a->trainer);
    a->trainer = NULL;
}

void agent_note_device(struct agent *a, enum status st)
{
    if (st == ST_DEVICE) {
        a->device_failures++;
        forget_trainer(a);
    } else if (!st) {
        a->device_failures = 0;
    }
}

bool agent_lost_device(const struct agent *a)
{
    return a->device_failures >= DEVICE_TRIES;
}

/* "auto" may not turn into the cores when the GPU is gone: that would be a silo of other bits and a
 * hundredth of the speed, and nobody would know. */
static const char *device_of(const struct agent *a)
{
    return strcmp(a->config->device, "auto") == 0 ? a->backend : a->config->device;
}

enum task_end agent_trainer(struct agent *a, const struct task *t)
{
    struct err e = {0};
    if (data_fits(a->data, t->spec.tokenizer_sha256, t->spec.model.vocab_size, &e)) {
        return agent_fail(a, "bad_data", &e);
    }
    a->row_seed = t->spec.seed;
    if (a->trainer && strcmp(a->trainer_run, t->run) == 0 &&
        strcmp(a->trainer_spec, t->spec_sha256) == 0) {
        return TASK_DONE;
    }
    agent_ahead_park(a);
    forget_trainer(a);
    struct trainer_config c = {.model = t->spec.model,
                               .inner = t->spec.inner,
                               .freeze = t->spec.freeze,
                               .rows = {a, train_rows, heldout_row},
                               .device = device_of(a),
                               .dtype = a->config->dtype,
                               .threads = a->config->threads,
                               .sync_every = a->config->sync_every};
    enum status st = trainer_open(&a->trainer, &c, &e);
    if (st) {
        // It was there at the start. A device that failed may also say that it has no memory.
        bool lost = st == ST_NOT_FOUND || st == ST_DEVICE || a->device_failures > 0;
        a->trainer = NULL;
        agent_note_device(a, lost ? ST_DEVICE : st);
        return agent_fail(a, st == ST_NOMEM ? "oom" : "transient", &e);
    }
    (void)snprintf(a->trainer_run, sizeof(a->trainer_run), "%s", t->run);
    (void)snprintf(a->trainer_spec, sizeof(a->trainer_spec), "%s", t->spec_sha256);
    trainer_describe(a->trainer, a->device);
    a->hello_due = true;
    return TASK_DONE;
}

/* ---- training ---- */

struct training {
    struct agent *a;
    const struct task *t;
    struct beat *b;
    struct arena *arena;
    struct run_state rs;
    struct snap done; // what was done up to now
    int bad_steps;
    int64_t snapped_ms;
    int64_t snap_cost_ms;
    double rate; // tokens/s, smoothed
};

static enum status take_snapshot(struct training *w, struct err *e)
{
    char tmp[STATE_PATH_MAX];
    int64_t begin = clock_mono_ms();
    run_state_path(&w->rs, "snapshot.tmp", tmp);
    TRY(trainer_save_state(w->a->trainer, tmp, true, e));
    FAULT("snapshot.saved");
    TRY(run_state_snap(&w->rs, &w->done, tmp, e));
    FAULT("snapshot.placed");
    w->snapped_ms = clock_mono_ms();
    w->snap_cost_ms = w->snapped_ms - begin;
    return ST_OK;
}

struct own agent_own(const struct run_state *rs, char path[STATE_PATH_MAX])
{
    run_state_path(rs, STATE_MOMENTS, path);
    return (struct own){access(path, F_OK) == 0 ? path : NULL, rs->j.kept};
}

/* The newest snapshot of this round, if there is one that can be used. */
static bool load_snapshot(struct training *w)
{
    char path[STATE_PATH_MAX];
    struct err why = {0};
    if (!run_state_snap_best(&w->rs, &w->done, path)) {
        return false;
    }
    if (trainer_load_state(w->a->trainer, path, &why) == ST_OK) {
        agent_say(w->a, "round %" PRId64 " goes on from step %" PRId64 " of %" PRId64, w->t->round,
                  w->done.step, w->t->local_steps);
        return true;
    }
    log_warn("a snapshot is not used: %s", why.msg);
    return false;
}

static void report_step(struct training *w, const struct step_report *r)
{
    struct agent *a = w->a;
    double rate = r->seconds > 0.0 ? (double)r->tokens / r->seconds : 0.0;
    w->rate = w->rate > 0.0 ? 0.9 * w->rate + 0.1 * rate : rate;
    a->tokens_per_s = w->rate;
    beat_report(w->b, "train", w->done.step, w->rate);
    if (r->finite) {
        beat_point(w->b, r->step, "train_loss", r->loss);
        beat_point(w->b, r->step, "grad_norm", r->grad_norm);
        beat_point(w->b, r->step, "lr", r->lr);
        beat_point(w->b, r->step, "tokens_per_s", rate);
    }
    struct progress_values v = progress_none();
    v.round = w->t->round;
    v.rounds = w->t->rounds;
    v.step = w->done.step;
    v.steps = w->t->local_steps;
    v.loss = r->loss;
    v.ppl = exp(r->loss);
    v.tokens_per_s = w->rate;
    v.up_bytes = a->sent_bytes;
    v.eta_s = r->seconds * (double)(w->t->local_steps - w->done.step);
    progress_show(&a->progress, &v, false);
}

static enum task_end count_step(struct training *w, const struct step_report *r, double seconds)
{
    struct err e = {0};
    w->done.step++;
    w->done.tokens += r->tokens;
    w->done.train_s += seconds;
    w->done.loss_sum += r->finite ? r->loss : 0.0;
    w->bad_steps = r->finite ? 0 : w->bad_steps + 1;
    report_step(w, r);
    if (w->bad_steps >= DIVERGED_STEPS) {
        (void)err_set(&e, ST_DEVICE,
                      "loss or gradient is not finite for %d steps, up to global step %" PRId64
                      "; try a lower learning rate",
                      DIVERGED_STEPS, r->step);
        return agent_fail(w->a, "diverged", &e);
    }
    return TASK_DONE;
}

static enum task_end one_step(struct training *w)
{
    struct step_report r;
    struct err e = {0};
    double begin = clock_mono_s();
    enum status st = FAULT_ERR("train.device")
                         ? err_set(&e, ST_DEVICE, "the device is lost, as asked for")
                         : trainer_step(w->a->trainer, w->t->global_step + w->done.step, &r, &e);
    agent_note_device(w->a, st);
    if (st) {
        const char *code = st == ST_NOMEM ? "oom" : st == ST_DEVICE ? "transient" : "bad_data";
        return agent_fail(w->a, code, &e);
    }
    FAULT("train.step");
    return count_step(w, &r, clock_mono_s() - begin);
}

/* ---- steps that need no checkpoint ---- */

/* From the end of the former round on: taken while its update travelled, or now. */
static enum task_end steps_ahead(struct training *w, int32_t steps)
{
    struct agent *a = w->a;
    struct err e = {0};
    enum task_end end = TASK_DONE;
    bool taken = agent_ahead_take(a, w->t);
    log_info("round %" PRId64 ": its first %" PRId32 " steps %s", w->t->round, steps,
             taken ? "were taken ahead" : "go on from this silo's own weights");
    if (taken) {
        for (int32_t i = 0; i < a->ahead.count && !end; i++) {
            end = count_step(w, &a->ahead.taken[i].report, a->ahead.taken[i].seconds);
        }
        agent_ahead_drop(a);
        return end;
    }
    char path[STATE_PATH_MAX];
    struct own own = agent_own(&w->rs, path);
    enum status st = own_load(a->trainer, &w->t->spec, &own, &e);
    if (st) {
        return agent_fail(a, agent_start_code(st), &e);
    }
    trainer_run_until(a->trainer, w->t->global_step + steps);
    while (w->done.step < steps && !end) {
        end = agent_stopping()                    ? TASK_LEAVING
              : beat_order(w->b) == BEAT_CONTINUE ? one_step(w)
                                                  : TASK_DROPPED;
    }
    if (end && a->trainer) {
        trainer_run_until(a->trainer, 0);
    }
    return end;
}

/* To the round's start, or to where it stood. */
static enum task_end load_start(struct training *w, const struct own_base *base)
{
    struct err e = {0};
    struct trainer *t = w->a->trainer;
    const struct run_spec *spec = &w->t->spec;
    char path[STATE_PATH_MAX];
    struct own own = agent_own(&w->rs, path);
    int32_t steps = schedule_steps_ahead(spec, own.kept, w->t->round);
    w->done = (struct snap){0};
    if (load_snapshot(w)) {
        return TASK_DONE;
    }
    w->done = (struct snap){0};
    bool ahead = steps > 0 && own.path;
    enum task_end end = ahead ? steps_ahead(w, steps) : TASK_DONE;
    if (end) {
        return end;
    }
    enum status st = ahead ? own_rebase(t, spec, &own, w->t->round, base, &e)
                           : own_start(t, spec, &own, w->t->round, w->t->global_step, base, &e);
    return st ? agent_fail(w->a, agent_start_code(st), &e) : TASK_DONE;
}

/* A lost lease may come back to us with the next claim; what was done is kept for that. */
static enum task_end leave_with_snapshot(struct training *w, enum task_end end)
{
    struct err e = {0};
    if (w->done.step > 0 && take_snapshot(w, &e)) {
        log_warn("no snapshot: %s", e.msg);
    }
    return end;
}

static bool snapshot_due(const struct training *w)
{
    int64_t wait = SNAP_COST * w->snap_cost_ms;
    wait = wait > SNAP_LEAST_MS ? wait : SNAP_LEAST_MS;
    return clock_mono_ms() - w->snapped_ms >= wait && w->done.step < w->t->local_steps;
}

/* A step that is begun is part of what was done: what interrupts waits for its report, and until
 * then no further one is begun. */
static enum task_end train_steps(struct training *w)
{
    struct trainer *t = w->a->trainer;
    while (w->done.step < w->t->local_steps) {
        enum beat_order order = beat_order(w->b);
        bool stopping = agent_stopping();
        bool calm = !trainer_begun(t);
        if (calm && stopping) {
            return leave_with_snapshot(w, TASK_LEAVING);
        }
        if (calm && order == BEAT_STALE) {
            return leave_with_snapshot(w, TASK_DROPPED);
        }
        if (order != BEAT_CONTINUE && order != BEAT_STALE) {
            return TASK_DROPPED;
        }
        bool on = !stopping && order == BEAT_CONTINUE && !snapshot_due(w);
        trainer_run_until(t, on ? w->t->global_step + w->t->local_steps : 0);
        enum task_end end = one_step(w);
        if (end) {
            return end;
        }
        if (snapshot_due(w) && !trainer_begun(t)) {
            struct err e = {0};
            enum status st = take_snapshot(w, &e);
            if (st) {
                return agent_fail(w->a, st == ST_LIMIT ? "disk_full" : "transient", &e);
            }
            agent_doing(w->a, w->t, "training", w->done.step);
        }
    }
    return TASK_DONE;
}

/* The update file, then the moments that go with it; both synced before the journal says so. */
static enum status conclude(struct training *w, const struct own_base *base, struct err *e)
{
    char tmp[STATE_PATH_MAX];
    char next[STATE_PATH_MAX];
    double begin = clock_mono_s();
    w->rs.j.tokens = w->done.tokens;
    w->rs.j.personal = w->t->spec.personal.count > 0;
    w->rs.j.train_loss = w->done.loss_sum / (double)w->t->local_steps;
    w->rs.j.train_s = w->done.train_s;
    TRY(agent_encode(w->a, w->t, &w->rs, base, e));
    FAULT("update.encoded");
    if (own_keeps(&w->t->spec)) {
        run_state_path(&w->rs, "moments.tmp", tmp);
        run_state_path(&w->rs, STATE_MOMENTS_NEXT, next);
        TRY(own_save(w->a->trainer, &w->t->spec, tmp, e));
        TRY(file_place(tmp, next, e));
        FAULT("moments.placed");
    }
    w->rs.j.encode_s = clock_mono_s() - begin;
    return run_state_trained(&w->rs, e);
}

static enum task_end train_from(struct training *w, const struct own_base *base)
{
    struct agent *a = w->a;
    struct err e = {0};
    enum task_end end = load_start(w, base);
    if (end) {
        return end;
    }
    w->snapped_ms = clock_mono_ms();
    agent_doing(a, w->t, "training", w->done.step);
    beat_report(w->b, "train", w->done.step, a->tokens_per_s);
    end = train_steps(w);
    if (end) {
        return end;
    }
    beat_report(w->b, "encode", w->done.step, w->rate);
    enum status st = conclude(w, base, &e);
    if (st) { // invalid: a delta that no rung takes
        const char *code = st == ST_LIMIT     ? "disk_full"
                           : st == ST_INVALID ? "diverged"
                                              : "transient";
        return agent_fail(a, code, &e);
    }
    return TASK_DONE;
}

/* The update of this very round is there, whole, from before: only its upload is missing. */
static bool has_update(const struct run_state *rs, const struct round_key *key)
{
    bool done = rs->j.phase == JOURNAL_TRAINED || (rs->j.phase == JOURNAL_SETTLED && rs->j.keep);
    if (!done || !round_key_equal(&rs->j.key, key)) {
        return false;
    }
    char path[STATE_PATH_MAX];
    struct digest d;
    char hex[DIGEST_HEX + 1];
    int64_t bytes = 0;
    struct err e = {0};
    run_state_path(rs, STATE_UPDATE, path);
    if (sha256_file(path, &d, &bytes, &e)) {
        log_warn("the finished update is gone: %s", e.msg);
        return false;
    }
    digest_hex(&d, hex);
    return bytes == rs->j.bytes && strcmp(hex, rs->j.sha256) == 0;
}

static enum status begin_round(struct training *w, struct arena *arena, struct err *e)
{
    struct round_key key = task_key(w->t);
    struct run_state *rs = &w->rs;
    bool same = round_key_equal(&rs->j.key, &key);
    if (rs->j.phase == JOURNAL_TRAINED && same) { // its file is damaged: make it again
        TRY(run_state_settle(rs, false, e));
    } else if (rs->j.phase == JOURNAL_TRAINED) {
        TRY(agent_resolve(w->a, rs, arena, e));
    }
    bool goes_on = rs->j.phase == JOURNAL_TRAIN && same;
    return goes_on ? ST_OK : run_state_begin(rs, &key, e);
}

enum task_end agent_train(struct agent *a, const struct task *t, struct beat *b,
                          struct arena *arena)
{
    struct training w = {.a = a, .t = t, .b = b, .arena = arena};
    struct err e = {0};
    enum status st = run_state_open(&w.rs, a->config->state_dir, t->run, &e);
    if (st) {
        return agent_fail(a, st == ST_LIMIT ? "disk_full" : "transient", &e);
    }
    if (run_state_hold_spec(&w.rs, t->spec_sha256, &e)) {
        return agent_fail(a, "bad_data", &e);
    }
    if (!t->codec_known) {
        (void)err_set(&e, ST_INVALID,
                      "the run's codec is not known to this version; try a newer one");
        return agent_fail(a, "transient", &e);
    }
    struct round_key key = task_key(t);
    if (has_update(&w.rs, &key)) {
        return agent_upload(a, t, &w.rs, b, arena);
    }
    st = begin_round(&w, arena, &e);
    if (st) {
        return agent_stopping() ? TASK_LEAVING
                                : agent_fail(a, st == ST_LIMIT ? "disk_full" : "transient", &e);
    }
    enum task_end end = agent_trainer(a, t);
    if (end) {
        return end;
    }
    a->row_ordinal = (int32_t)t->silo_ordinal;
    struct own_base base = {.fd = -1};
    double seconds = 0.0;
    st = agent_base(a, t, b, arena, &base, &seconds, &e);
    if (st) {
        return agent_without_base(a, b, &e);
    }
    w.rs.j.download_s = seconds;
    end = train_from(&w, &base);
    (void)close(base.fd);
    return end ? end : agent_send(a, t, &w.rs, b, arena);
}
