#include "client/solo.h"

#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "client/durable.h"
#include "client/metrics_file.h"
#include "client/mfu.h"
#include "client/model.h"
#include "client/progress.h"
#include "client/state.h"
#include "client/trainer.h"
#include "client/weights_file.h"
#include "common/clock.h"
#include "common/hash.h"
#include "common/json.h"
#include "common/limits.h"
#include "common/mem.h"

enum {
    SNAP_LEAST_MS = 10000,
    SNAP_COST = 20, // a snapshot may cost one part in so many of the time
    DIVERGED_STEPS = 5,
    TEXT_MAX = 4096
};

/* Rows to train on and windows to evaluate may come from different text. */
struct rows {
    struct data_rows train;
    struct data_rows heldout;
    int64_t windows; // that an evaluation takes, of all
    int64_t all;
};

struct solo {
    const struct solo_config *c;
    const struct run_spec *spec;
    struct rows rows;
    struct trainer *trainer;
    int lock; // of the folder
    struct metrics_file metrics;
    struct progress progress;
    char spec_sha256[DIGEST_HEX + 1];
    int64_t step; // done
    int64_t saved_step;
    int bad_steps;
    double token_flops;
    double peak; // operations a second; 0: not known
    double rate; // tokens a second, smoothed
    double eval_loss;
    int64_t snapped_ms;
    int64_t snap_cost_ms;
    int64_t device_bytes; // planned on a GPU; 0: the training is in the host's memory
};

static enum status train_rows(void *ctx, int64_t step, int32_t rows, int32_t seq_len, int32_t *out,
                              struct err *e)
{
    const struct rows *r = ctx;
    return data_train_rows(r->train.data, r->train.seed, r->train.silo_ordinal, step, rows, seq_len,
                           out, e);
}

static enum status heldout_row(void *ctx, int64_t i, int32_t seq_len, int32_t *out,
                               int64_t *target_bytes, struct err *e)
{
    const struct rows *r = ctx;
    int64_t at = i * r->all / r->windows; // spread over all sources
    return data_heldout_row(r->heldout.data, at, seq_len, out, target_bytes, e);
}

/* ---- the folder ---- */

static void path_of(const struct solo *s, char out[STATE_PATH_MAX], const char *name, int64_t step)
{
    if (step < 0) {
        (void)snprintf(out, STATE_PATH_MAX, "%.900s/%s", s->c->dir, name);
    } else if (strcmp(name, "checkpoint") == 0) {
        (void)snprintf(out, STATE_PATH_MAX, "%.900s/%s-%08" PRId64 ".safetensors", s->c->dir, name,
                       step);
    } else {
        (void)snprintf(out, STATE_PATH_MAX, "%.900s/%s-%" PRId64, s->c->dir, name, step);
    }
}

/* State first, then the file that names it, then the one before it goes. */
static enum status take_snapshot(struct solo *s, struct err *e)
{
    char path[STATE_PATH_MAX];
    int64_t begin = clock_mono_ms();
    if (s->step == s->saved_step) {
        return ST_OK;
    }
    path_of(s, path, "state", s->step);
    TRY(trainer_save_state(s->trainer, path, true, e));
    struct buf b;
    buf_init(&b, TEXT_MAX);
    jw_object(&b, NULL);
    jw_int(&b, "step", s->step);
    jw_str(&b, "spec_sha256", s->spec_sha256);
    jw_num(&b, "eval_loss", s->eval_loss);
    jw_end_object(&b);
    path_of(s, path, "progress.json", -1);
    enum status st = file_write(path, b.data, b.len, e);
    buf_release(&b);
    if (!st && s->saved_step >= 0) {
        path_of(s, path, "state", s->saved_step);
        (void)unlink(path);
    }
    s->saved_step = st ? s->saved_step : s->step;
    s->snapped_ms = clock_mono_ms();
    s->snap_cost_ms = s->snapped_ms - begin;
    return st;
}

/* Snapshots of a process that died before it had named them, or before the one before was gone. */
static void drop_other_snapshots(const struct solo *s)
{
    char kept[32];
    (void)snprintf(kept, sizeof(kept), "state-%" PRId64, s->saved_step);
    DIR *d = opendir(s->c->dir);
    for (struct dirent *f = d ? readdir(d) : NULL; f; f = readdir(d)) {
        size_t digits =
            strncmp(f->d_name, "state-", 6) == 0 ? strspn(f->d_name + 6, "0123456789") : 0;
        const char *end = f->d_name + 6 + digits;
        if (digits > 0 && (!*end || strcmp(end, ".tmp") == 0) && strcmp(f->d_name, kept) != 0) {
            (void)unlinkat(dirfd(d), f->d_name, 0);
        }
    }
    if (d) {
        (void)closedir(d);
    }
}

static enum status read_progress(struct solo *s, struct arena *a, bool *found, struct err *e)
{
    char path[STATE_PATH_MAX];
    char *text = arena_alloc(a, TEXT_MAX);
    const struct json *o = NULL;
    const char *sha256 = NULL;
    path_of(s, path, "progress.json", -1);
    enum status st = file_read(path, text, TEXT_MAX, e);
    *found = st == ST_OK;
    if (st == ST_NOT_FOUND) {
        return ST_OK;
    }
    TRY(st);
    TRY(json_parse(&o, a, text, strlen(text), e));
    TRY(json_want_int(o, "step", 0, INT64_MAX >> 12, &s->step, e));
    TRY(json_want_str(o, "spec_sha256", &sha256, e));
    if (strcmp(sha256, s->spec_sha256) != 0) {
        return err_set(e, ST_CONFLICT, "%.150s holds a training of another spec; try another -o",
                       s->c->dir);
    }
    const struct json *loss = json_get(o, "eval_loss");
    s->eval_loss = loss && json_kind(loss) == JSON_NUMBER ? json_num(loss) : (double)NAN;
    return ST_OK;
}

/* Weights and moments of the newest snapshot, or the first weights. */
static enum status load_start(struct solo *s, struct err *e)
{
    char path[STATE_PATH_MAX];
    bool found = false;
    struct arena *a = arena_new(1 << 20);
    enum status st = read_progress(s, a, &found, e);
    arena_free(a);
    TRY(st);
    if (found) {
        path_of(s, path, "state", s->step);
        s->saved_step = s->step;
        return trainer_load_state(s->trainer, path, e);
    }
    path_of(s, path, "checkpoint", 0);
    TRY(weights_file_first(s->spec, path, e));
    return weights_file_load(s->trainer, path, e);
}

static enum status write_checkpoint(struct solo *s, struct err *e)
{
    char path[STATE_PATH_MAX];
    path_of(s, path, "checkpoint", s->step);
    TRY(weights_file_write(s->trainer, s->spec, s->step / s->spec->federation.local_steps, path,
                           e));
    int64_t keep = s->spec->keep_checkpoints;
    int64_t old = ((s->step - 1) / s->c->save_every - (keep - 1)) * s->c->save_every;
    if (keep > 0 && old >= 0) {
        path_of(s, path, "checkpoint", old);
        (void)unlink(path);
    }
    return ST_OK;
}

/* ---- saying ---- */

static double mfu(const struct solo *s)
{
    return s->peak > 0.0 ? s->rate * s->token_flops / s->peak : (double)NAN;
}

/* What a GPU holds by its plan, else the most this process ever held. */
static int64_t memory_bytes(const struct solo *s)
{
    struct rusage u;
    if (s->device_bytes > 0) {
        return s->device_bytes;
    }
    return getrusage(RUSAGE_SELF, &u) == 0 ? (int64_t)u.ru_maxrss * 1024 : -1;
}

static void show(struct solo *s, const struct step_report *r)
{
    if (s->c->quiet) {
        return;
    }
    char note[64];
    char memory[16];
    format_bytes(memory, memory_bytes(s));
    if (isfinite(mfu(s))) {
        (void)snprintf(note, sizeof(note), "mfu %.1f%%  mem %s", 100.0 * mfu(s), memory);
    } else {
        (void)snprintf(note, sizeof(note), "mem %s", memory);
    }
    struct progress_values v = progress_none();
    v.step = s->step;
    v.steps = s->c->steps;
    v.loss = r->loss;
    v.ppl = exp(r->loss);
    v.tokens_per_s = s->rate;
    v.eta_s = r->seconds * (double)(s->c->steps - s->step);
    v.note = note;
    progress_show(&s->progress, &v, s->step == s->c->steps);
}

static void say(struct solo *s, const char *text)
{
    if (!s->c->quiet) {
        progress_say(&s->progress, text);
    }
}

static enum status log_step(struct solo *s, const struct step_report *r, struct err *e)
{
    if (s->step % s->c->log_every != 0 && s->step != s->c->steps) {
        return ST_OK;
    }
    struct buf *b = metrics_file_begin(&s->metrics, "train", s->step);
    jw_int(b, "tokens", s->step * r->tokens);
    jw_num(b, "train_loss", r->finite ? r->loss : (double)NAN);
    jw_num(b, "grad_norm", r->grad_norm);
    jw_num(b, "lr", r->lr);
    jw_num(b, "tokens_per_s", s->rate);
    jw_num(b, "mfu", mfu(s));
    jw_int(b, "memory_bytes", memory_bytes(s));
    return metrics_file_end(&s->metrics, e);
}

/* ---- evaluation ---- */

static enum status evaluate(struct solo *s, struct err *e)
{
    struct eval_result r;
    int64_t count = s->rows.windows;
    if (count < 1) {
        return ST_OK;
    }
    TRY(trainer_eval(s->trainer, 0, count, &r, e));
    double loss = r.nll / (double)r.tokens;
    s->eval_loss = loss;
    struct buf *b = metrics_file_begin(&s->metrics, "eval", s->step);
    jw_int(b, "tokens", s->step * s->spec->inner.batch * s->spec->model.seq_len);
    jw_num(b, "eval_loss", loss);
    jw_num(b, "eval_ppl", exp(loss));
    jw_num(b, "eval_bpb", r.bytes > 0 ? r.nll / (log(2.0) * (double)r.bytes) : (double)NAN);
    jw_int(b, "windows", count);
    jw_num(b, "seconds", r.seconds);
    char text[120];
    (void)snprintf(text, sizeof(text),
                   "step %" PRId64 ": loss %.4f, perplexity %.4g on %" PRId64 " held-out tokens",
                   s->step, loss, exp(loss), r.tokens);
    say(s, text);
    return metrics_file_end(&s->metrics, e);
}

/* ---- training ---- */

static bool due(const struct solo *s, int64_t every)
{
    return s->step % every == 0 || s->step == s->c->steps;
}

static enum status one_step(struct solo *s, struct err *e)
{
    struct step_report r;
    TRY(trainer_step(s->trainer, s->step, &r, e));
    s->step++;
    double rate = r.seconds > 0.0 ? (double)r.tokens / r.seconds : 0.0;
    s->rate = s->rate > 0.0 ? 0.9 * s->rate + 0.1 * rate : rate;
    s->bad_steps = r.finite ? 0 : s->bad_steps + 1;
    TRY(log_step(s, &r, e));
    show(s, &r);
    if (s->bad_steps >= DIVERGED_STEPS) {
        return err_set(e, ST_CORRUPT,
                       "the training diverged: loss or gradient is not finite for %d steps up to "
                       "%" PRId64 "; try a lower learning rate",
                       DIVERGED_STEPS, s->step);
    }
    return ST_OK;
}

/* The step after which something is due next. */
static int64_t next_due(const struct solo *s)
{
    const int64_t every[] = {s->c->eval_every, s->c->save_every};
    int64_t next = s->c->steps;
    for (int i = 0; i < 2; i++) {
        int64_t at = (s->step / every[i] + 1) * every[i];
        next = at < next ? at : next;
    }
    return next;
}

static bool snapshot_due(const struct solo *s)
{
    int64_t wait = SNAP_COST * s->snap_cost_ms;
    wait = wait > SNAP_LEAST_MS ? wait : SNAP_LEAST_MS;
    return clock_mono_ms() - s->snapped_ms >= wait;
}

/* What interrupts waits for a step that is begun (trainer_run_until()). */
static enum status run(struct solo *s, bool *stopped, struct err *e)
{
    s->snapped_ms = clock_mono_ms();
    if (s->step == 0) {
        TRY(evaluate(s, e));
    }
    while (s->step < s->c->steps) {
        bool stopping = s->c->stopping && s->c->stopping();
        if (stopping && !trainer_begun(s->trainer)) {
            *stopped = true;
            break;
        }
        trainer_run_until(s->trainer, stopping || snapshot_due(s) ? 0 : next_due(s));
        TRY(one_step(s, e));
        if (due(s, s->c->eval_every)) {
            TRY(evaluate(s, e));
        }
        if (due(s, s->c->save_every)) {
            TRY(write_checkpoint(s, e));
        }
        if (snapshot_due(s) && !trainer_begun(s->trainer)) {
            TRY(take_snapshot(s, e));
        }
    }
    return take_snapshot(s, e);
}

/* ---- opening ---- */

static enum status open_trainer(struct solo *s, struct err *e)
{
    const struct solo_config *c = s->c;
    TRY(data_fits(c->data, s->spec->tokenizer_sha256, s->spec->model.vocab_size, e));
    TRY(data_fits(c->heldout, s->spec->tokenizer_sha256, s->spec->model.vocab_size, e));
    s->rows.train = (struct data_rows){.data = c->data, .seed = s->spec->seed};
    s->rows.heldout = (struct data_rows){.data = c->heldout};
    s->rows.all = data_heldout_windows(c->heldout, s->spec->model.seq_len);
    s->rows.windows = c->windows > 0 && c->windows < s->rows.all ? c->windows : s->rows.all;
    struct trainer_config t = {.model = s->spec->model,
                               .inner = s->spec->inner,
                               .freeze = s->spec->freeze,
                               .rows = {&s->rows, train_rows, heldout_row},
                               .device = c->device,
                               .dtype = c->dtype,
                               .threads = c->threads};
    return trainer_open(&s->trainer, &t, e);
}

/* The device, what a token costs, and the rate that MFU is a share of. */
static void introduce(struct solo *s)
{
    char device[96];
    char text[240];
    char memory[16];
    trainer_describe(s->trainer, device);
    const struct plan_request *q = &model_plan(trainer_model(s->trainer))->request;
    bool bf16 = q->a_size == 2;
    s->token_flops = mfu_token_flops(&s->spec->model);
    if (strstr(device, "cuda")) {
        s->device_bytes = model_plan(trainer_model(s->trainer))->total;
    }
    format_bytes(memory, model_plan(trainer_model(s->trainer))->total);
    (void)snprintf(text, sizeof(text),
                   "%s; %.3g parameters, batch %d in passes of %d, planned memory %s", device,
                   (double)trainer_params(s->trainer)->total, s->spec->inner.batch, q->micro_batch,
                   memory);
    say(s, text);
    (void)snprintf(
        text, sizeof(text),
        "MFU counts 6 (P - p) + 6 L d T = %.4g operations a token against %.4g a second, "
        "a large product in %s measured here",
        s->token_flops, s->peak, bf16 ? "bf16" : "f32");
    if (s->c->measure_peak) {
        say(s, text);
    }
}

static enum status train(struct solo *s, struct solo_report *out, struct err *e)
{
    char path[STATE_PATH_MAX];
    TRY(dir_make(s->c->dir, e));
    TRY(state_lock(s->c->dir, &s->lock, e));
    if (s->c->measure_peak) {
        TRY(mfu_peak(s->c->device, s->c->threads, s->c->dtype, &s->peak, e));
    }
    TRY(open_trainer(s, e));
    TRY(load_start(s, e));
    drop_other_snapshots(s);
    path_of(s, path, "metrics.jsonl", -1);
    TRY(metrics_file_open(&s->metrics, path, s->saved_step, e));
    introduce(s);
    if (s->step > 0) {
        char text[80];
        (void)snprintf(text, sizeof(text), "goes on from step %" PRId64, s->step);
        say(s, text);
    }
    TRY(run(s, &out->stopped, e));
    out->steps = s->step;
    out->tokens = s->step * s->spec->inner.batch * s->spec->model.seq_len;
    out->eval_loss = s->eval_loss;
    return ST_OK;
}

enum status solo_train(const struct solo_config *c, struct solo_report *out, struct err *e)
{
    struct solo s = {
        .c = c, .spec = c->spec, .saved_step = -1, .lock = -1, .eval_loss = (double)NAN};
    struct digest d;
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    const char *text = run_spec_json(a, c->spec);
    sha256_of(text, strlen(text), &d);
    digest_hex(&d, s.spec_sha256);
    arena_free(a);
    progress_init(&s.progress, stderr);
    *out = (struct solo_report){0};
    enum status st = train(&s, out, e);
    progress_end(&s.progress);
    metrics_file_close(&s.metrics);
    trainer_close(s.trainer);
    if (s.lock >= 0) {
        (void)close(s.lock);
    }
    return st;
}
