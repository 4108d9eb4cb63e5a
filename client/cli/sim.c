#include "client/cli/sim.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/sim_book.h"
#include "client/metrics_file.h"
#include "client/progress.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/json.h"
#include "common/layout.h"
#include "common/limits.h"
#include "common/mem.h"
#include "common/rng.h"
#include "common/safetensors.h"
#include "server/budget.h"
#include "server/checkpoint.h"
#include "server/downlink.h"
#include "server/round.h"
#include "server/sampling.h"

enum { COPY_SIZE = 1 << 20 };

/* A silo's part in the round that is played. */
struct seat {
    bool counted; // its update is in the store, and in the sum
    struct digest sha256;
    enum codec codec;
    int64_t tokens;
    double train_loss;
    int32_t former; // round of the moments before
};

/* What one round came to. */
struct outcome {
    int attempts;
    int seats; // of all attempts
    int accepted;
    int64_t upload_bytes, download_bytes, tokens;
    double loss_sum; // times tokens
    double train_s;
    struct aggregate_stats stats;
};

struct sim {
    const struct sim_config *c;
    const struct run_spec *spec;
    struct blob_store *blobs;
    struct sim_desk desk;
    struct metrics_file metrics;
    struct progress progress;
    struct sim_book book;
    struct seat *seats;    // [silo_count]
    struct sampled *drawn; // [silo_count]
    int drawn_seats;
};

static void say(struct sim *s, const char *text)
{
    if (!s->c->quiet) {
        progress_say(&s->progress, text);
    }
}

/* ---- files ---- */

/* A copy of the silo's file under its digest, as an upload becomes one. */
static enum status put_update(struct sim *s, const struct sim_update *u, struct err *e)
{
    char tmp[ID_LEN + 1];
    int out = -1;
    int in = open(u->path, O_RDONLY | O_CLOEXEC);
    if (in < 0) {
        return err_set(e, ST_IO, "cannot read %s: %s", u->path, strerror(errno));
    }
    id_new('u', tmp);
    char *block = mem_alloc(COPY_SIZE);
    enum status st = blob_tmp_create(s->blobs, tmp, u->bytes, &out, e);
    for (int64_t at = 0; at < u->bytes && !st;) {
        ssize_t n = read(in, block, COPY_SIZE);
        if (n <= 0 || pwrite(out, block, (size_t)n, at) != n) {
            st = err_set(e, ST_IO, "cannot store an update: %s", strerror(errno));
        }
        at += n > 0 ? n : 0;
    }
    if (out >= 0) {
        (void)close(out);
    }
    (void)close(in);
    mem_free(block);
    st = st ? st : blob_place(s->blobs, tmp, &u->sha256, e);
    (void)unlink(u->path);
    return st;
}

static enum status open_base(struct sim *s, int32_t round, struct sim_base *base, struct err *e)
{
    *base = (struct sim_base){.round = round, .sha = s->book.weights};
    int64_t bytes = 0;
    TRY(blob_open(s->blobs, &s->book.weights, &base->file.fd, &bytes, e));
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct st_header h;
    enum status st = st_read(&h, a, base->file.fd, e);
    if (st) {
        (void)close(base->file.fd);
    } else {
        int64_t before = layout_checkpoint(a, s->spec).part_at[LAYOUT_WEIGHTS];
        base->file.offset = h.data_offset + before * (int64_t)sizeof(float);
    }
    arena_free(a);
    return st;
}

/* The newest checkpoints have a name that a person finds; the store has them by digest. */
static enum status name_checkpoint(struct sim *s, struct err *e)
{
    char hex[DIGEST_HEX + 1];
    char name[200];
    char from[SIM_PATH_MAX];
    char to[SIM_PATH_MAX];
    digest_hex(&s->book.weights, hex);
    (void)snprintf(name, sizeof(name), "store/blobs/%.2s/%.2s/%s", hex, hex + 2, hex);
    sim_book_path(&s->book, name, from);
    (void)snprintf(name, sizeof(name), "checkpoint-%08" PRId32 ".safetensors", s->book.round);
    sim_book_path(&s->book, name, to);
    (void)unlink(to);
    if (link(from, to) != 0) {
        return err_set(e, ST_IO, "cannot name %s: %s", to, strerror(errno));
    }
    int32_t old = s->book.round - s->spec->keep_checkpoints;
    if (s->spec->keep_checkpoints > 0 && old >= 0) {
        (void)snprintf(name, sizeof(name), "checkpoint-%08" PRId32 ".safetensors", old);
        sim_book_path(&s->book, name, to);
        (void)unlink(to);
    }
    return ST_OK;
}

/* ---- a round ---- */

static bool drops_out(const struct sim *s, const struct sim_silo *silo, int32_t round, int attempt)
{
    uint64_t key = rng_u64(rng_key(s->spec->seed, "drop-outs"), (uint64_t)silo->ordinal);
    return rng_unit(rng_u64(key, (uint64_t)round), (uint64_t)attempt) < s->c->drop;
}

static void show(struct sim *s, int32_t round, int seat, int seats, double loss)
{
    if (s->c->quiet) {
        return;
    }
    char note[100];
    (void)snprintf(note, sizeof(note), "silo %d of %d", seat + 1, seats);
    struct progress_values v = progress_none();
    v.round = round;
    v.rounds = s->spec->federation.rounds;
    v.loss = loss;
    v.ppl = exp(s->book.eval_loss);
    v.up_bytes = s->book.upload_bytes;
    v.down_bytes = s->book.download_bytes;
    v.note = note;
    progress_show(&s->progress, &v, false);
}

static enum status play_seat(struct sim *s, int silo, const struct sim_base *base, int32_t steps,
                             struct outcome *o, struct err *e)
{
    struct sim_update u;
    TRY(sim_silo_train(&s->desk, &s->c->silos[silo], base, steps, &u, e));
    struct seat *seat = &s->seats[silo];
    TRY(put_update(s, &u, e));
    seat->counted = true;
    seat->sha256 = u.sha256;
    seat->codec = u.codec;
    seat->tokens = u.tokens;
    seat->train_loss = u.train_loss;
    o->accepted++;
    o->upload_bytes += u.bytes;
    o->tokens += u.tokens;
    o->loss_sum += u.train_loss * (double)u.tokens;
    o->train_s += u.seconds;
    return ST_OK;
}

/* A silo's speed as the aggregator would know it: once an update of it has counted. */
static double speed_of(const struct sim *s, int silo)
{
    bool known = s->seats[silo].counted || s->c->silos[silo].settled > 0;
    return known ? s->c->silos[silo].speed : 0.0;
}

static double fastest_drawn(const struct sim *s)
{
    double fastest = 0.0;
    for (int k = 0; k < s->drawn_seats; k++) {
        fastest = fmax(fastest, speed_of(s, s->drawn[k].index));
    }
    return fastest;
}

static int32_t steps_of(const struct sim *s, int silo, double fastest)
{
    const struct run_spec *spec = s->spec;
    int32_t tau = spec->federation.local_steps;
    return spec->federation.local_steps_policy == STEPS_FIXED
               ? tau
               : budget_steps(tau, spec->federation.local_steps_min, speed_of(s, silo), fastest);
}

/* One opening of the round: its seats in the order of the draw. *sealed: it has what it needs. */
static enum status play_attempt(struct sim *s, const struct sim_base *base, int attempt,
                                struct outcome *o, bool *sealed, struct err *e)
{
    const int n = s->c->silo_count;
    int expected = round_expected(n, s->spec->federation.silos_per_round);
    for (int i = 0; i < n; i++) {
        s->drawn[i] = (struct sampled){s->c->silos[i].name, i, s->seats[i].counted};
    }
    s->drawn_seats =
        round_seats(n, s->spec->federation.silos_per_round, s->spec->federation.oversample);
    sampling_seats(s->spec->seed, base->round, s->drawn, n, s->drawn_seats);
    const double fastest = fastest_drawn(s); // as the seats are made, whoever is done by then
    for (int k = 0; k < s->drawn_seats && o->accepted < expected; k++) {
        int silo = s->drawn[k].index;
        if (s->seats[silo].counted) {
            continue;
        }
        o->seats++;
        o->download_bytes += sim_book_down(&s->book, s->spec, &s->c->silos[silo]);
        s->c->silos[silo].held = s->book.round + 1;
        if (drops_out(s, &s->c->silos[silo], base->round, attempt)) {
            continue;
        }
        TRY(play_seat(s, silo, base, steps_of(s, silo, fastest), o, e));
        show(s, base->round, k, s->drawn_seats, s->seats[silo].train_loss);
    }
    struct round_progress p = {.expected = expected,
                               .quorum = round_quorum(expected, s->spec->federation.min_silos),
                               .accepted = o->accepted};
    *sealed = round_judge(&p) == ROUND_SEAL;
    return ST_OK;
}

static enum status fold(struct sim *s, int32_t round, struct outcome *o,
                        struct checkpoint_files *next, struct err *e)
{
    struct checkpoint_update *updates = mem_alloc((size_t)o->accepted * sizeof(*updates));
    int count = 0;
    for (int k = 0; k < s->drawn_seats; k++) { // in the order of slots
        const struct seat *seat = &s->seats[s->drawn[k].index];
        if (seat->counted) {
            updates[count++] = (struct checkpoint_update){.sha256 = seat->sha256,
                                                          .silo_name = s->drawn[k].name,
                                                          .tokens = seat->tokens,
                                                          .codec = seat->codec};
        }
    }
    struct checkpoint_job job = {.blobs = s->blobs,
                                 .spec = s->spec,
                                 .round = round,
                                 .base = s->book.weights,
                                 .state = s->book.has_state ? &s->book.state : NULL,
                                 .updates = updates,
                                 .update_count = count,
                                 .down = downlink_rung(s->spec, round, s->book.tripped),
                                 .threads = s->c->aggregate_threads};
    int corrupt = -1;
    enum status st = checkpoint_next(&job, next, &o->stats, &corrupt, e);
    mem_free(updates);
    if (!st && next->has_step) { // no virtual silo reads it
        st = blob_remove(s->blobs, &next->step, e);
    }
    return st;
}

/* Updates, base and outer state that no later round needs. */
static enum status clear_round(struct sim *s, const struct sim_book *before, struct err *e)
{
    for (int i = 0; i < s->c->silo_count; i++) {
        sim_silo_tidy(&s->desk, &s->c->silos[i], s->seats[i].former, s->book.round);
        if (s->seats[i].counted) {
            TRY(blob_remove(s->blobs, &s->seats[i].sha256, e));
        }
    }
    if (!digest_equal(&before->weights, &s->book.weights)) {
        TRY(blob_remove(s->blobs, &before->weights, e));
    }
    bool same =
        before->has_state && s->book.has_state && digest_equal(&before->state, &s->book.state);
    return before->has_state && !same ? blob_remove(s->blobs, &before->state, e) : ST_OK;
}

static enum status log_round(struct sim *s, int32_t round, const struct outcome *o,
                             const struct checkpoint_files *f, struct err *e)
{
    int64_t step = (int64_t)round * s->spec->federation.local_steps;
    struct buf *b = metrics_file_begin(&s->metrics, "round", step);
    jw_int(b, "round", round);
    jw_int(b, "attempts", o->attempts);
    jw_int(b, "seats", o->seats);
    jw_int(b, "accepted", o->accepted);
    jw_num(b, "train_loss", o->loss_sum / (double)o->tokens);
    jw_num(b, "delta_norm", o->stats.delta_norm);
    jw_num(b, "outer_step_norm", o->stats.outer_step_norm);
    jw_int(b, "tokens", s->book.tokens);
    jw_int(b, "upload_bytes", o->upload_bytes);
    jw_int(b, "download_bytes", o->download_bytes);
    jw_num(b, "train_s", o->train_s);
    jw_num(b, "aggregate_s", o->stats.seconds);
    if (f->has_step) {
        jw_str(b, "step_codec", codec_name(f->step_codec));
        jw_int(b, "step_bytes", f->step_bytes);
        jw_num(b, "step_error", f->step_report.error);
        jw_num(b, "step_residual", f->step_report.residual_ratio);
        jw_num(b, "step_fallback", f->step_report.fallback_share);
    }
    jw_array(b, "silos"); // that counted, in the order of slots
    for (int k = 0; k < s->drawn_seats; k++) {
        if (s->seats[s->drawn[k].index].counted) {
            jw_str(b, NULL, s->drawn[k].name);
        }
    }
    jw_end_array(b);
    return metrics_file_end(&s->metrics, e);
}

/* ---- evaluation ---- */

static enum status evaluate_text(struct sim *s, const struct sim_base *head,
                                 struct eval_result *sum, struct err *e)
{
    const bool own = s->spec->personal.count > 0;
    if (!own) {
        TRY(trainer_load_weights(s->desk.trainer, head->file.fd, head->file.offset, e));
    }
    if (s->c->eval) {
        return sim_evaluate(&s->desk, s->c->eval, s->c->windows, true, sum, e);
    }
    *sum = (struct eval_result){0};
    for (int i = 0; i < s->c->silo_count; i++) { // by name, as the aggregator adds them
        struct eval_result r;
        if (own) {
            TRY(sim_silo_load(&s->desk, &s->c->silos[i], head, e));
        }
        TRY(sim_evaluate(&s->desk, s->c->silos[i].data, s->spec->eval.windows, false, &r, e));
        sum->nll += r.nll;
        sum->tokens += r.tokens;
        sum->bytes += r.bytes;
        sum->seconds += r.seconds;
    }
    return ST_OK;
}

static enum status evaluate(struct sim *s, struct err *e)
{
    struct sim_base head;
    struct eval_result r;
    int32_t round = s->book.round;
    if (round % s->spec->eval.every != 0 && round != s->spec->federation.rounds) {
        return ST_OK;
    }
    TRY(open_base(s, round + 1, &head, e));
    enum status st = evaluate_text(s, &head, &r, e);
    (void)close(head.file.fd);
    TRY(st);
    double loss = r.nll / (double)r.tokens;
    s->book.eval_loss = loss;
    struct buf *b =
        metrics_file_begin(&s->metrics, "eval", (int64_t)round * s->spec->federation.local_steps);
    jw_int(b, "round", round);
    jw_int(b, "tokens", s->book.tokens);
    jw_num(b, "eval_loss", loss);
    jw_num(b, "eval_ppl", exp(loss));
    jw_num(b, "eval_bpb", r.bytes > 0 ? r.nll / (log(2.0) * (double)r.bytes) : (double)NAN);
    jw_int(b, "eval_tokens", r.tokens);
    jw_num(b, "seconds", r.seconds);
    char text[160];
    (void)snprintf(text, sizeof(text),
                   "round %" PRId32 " of %" PRId32 ": loss %.4f, perplexity %.4g on %" PRId64
                   " held-out tokens",
                   round, s->spec->federation.rounds, loss, exp(loss), r.tokens);
    say(s, text);
    return metrics_file_end(&s->metrics, e);
}

/* ---- the run ---- */

static enum status play_seats(struct sim *s, const struct sim_base *base, struct outcome *o,
                              struct err *e)
{
    bool sealed = false;
    memset(s->seats, 0, (size_t)s->c->silo_count * sizeof(*s->seats));
    while (!sealed) {
        if (o->attempts > 0 && !round_tries_again(o->attempts)) {
            return err_set(e, ST_LIMIT, "round %" PRId32 " found no quorum in %d attempts",
                           base->round, o->attempts);
        }
        TRY(play_attempt(s, base, ++o->attempts, o, &sealed, e));
    }
    return ST_OK;
}

static void take_head(struct sim *s, int32_t round, const struct checkpoint_files *f)
{
    s->book.round = round;
    s->book.step_bytes[round % STEP_CHAIN_MAX] = f->has_step ? f->step_bytes : 0;
    if (f->has_step && f->step_report.fallback_share > CODED_FALLBACK_MAX) {
        s->book.tripped = round;
    }
    s->book.weights = f->weights;
    s->book.weights_bytes = f->weights_bytes;
    s->book.has_state = f->has_state;
    s->book.state = f->state;
}

static enum status play_round(struct sim *s, struct err *e)
{
    int32_t round = s->book.round + 1;
    struct outcome o = {0};
    struct sim_base base;
    struct checkpoint_files next;
    const struct sim_book before = s->book;
    TRY(open_base(s, round, &base, e));
    enum status st = play_seats(s, &base, &o, e);
    (void)close(base.file.fd);
    TRY(st);
    TRY(fold(s, round, &o, &next, e));
    take_head(s, round, &next);
    s->book.tokens += o.tokens;
    s->book.upload_bytes += o.upload_bytes;
    s->book.download_bytes += o.download_bytes;
    for (int i = 0; i < s->c->silo_count; i++) {
        s->seats[i].former = s->c->silos[i].settled;
        if (s->seats[i].counted) {
            sim_silo_settle(&s->c->silos[i], round);
        }
    }
    TRY(log_round(s, round, &o, &next, e));
    TRY(evaluate(s, e));
    TRY(name_checkpoint(s, e));
    // From here on the round is never played again, and what it left behind may go.
    TRY(sim_book_write(&s->book, s->c->silos, s->c->silo_count, e));
    return clear_round(s, &before, e);
}

static enum status begin(struct sim *s, struct err *e)
{
    char path[SIM_PATH_MAX];
    bool found = false;
    const struct sim_config *c = s->c;
    TRY(sim_book_read(&s->book, c->spec, c->silos, c->silo_count, &found, e));
    sim_book_path(&s->book, "metrics.jsonl", path);
    int64_t step = (int64_t)s->book.round * s->spec->federation.local_steps;
    TRY(metrics_file_open(&s->metrics, path, found ? step : -1, e));
    if (found) {
        char text[80];
        (void)snprintf(text, sizeof(text), "goes on after round %" PRId32, s->book.round);
        say(s, text);
        return ST_OK;
    }
    struct checkpoint_files first;
    TRY(checkpoint_initial(s->blobs, s->spec, &first, e));
    take_head(s, 0, &first);
    TRY(evaluate(s, e));
    TRY(name_checkpoint(s, e));
    return sim_book_write(&s->book, c->silos, c->silo_count, e);
}

/* Steps that go by measured time are not the same twice; by stated speeds they are. */
static enum status check_speeds(const struct sim_config *c, struct err *e)
{
    bool by_speed = c->spec->federation.local_steps_policy != STEPS_FIXED;
    bool stated = c->silos[0].speed > 0.0;
    if (by_speed && !stated) {
        return err_set(e, ST_INVALID,
                       "local_steps_policy dylu goes by the silos' speeds, and this machine has "
                       "one; try --speeds 1000,400,... or local_steps_policy fixed");
    }
    return by_speed || !stated ? ST_OK
                               : err_set(e, ST_INVALID,
                                         "all silos take the same steps under local_steps_policy "
                                         "fixed; try dylu, or without --speeds");
}

static enum status check_config(const struct sim_config *c, struct err *e)
{
    if (c->silo_count < 1 || c->silo_count < c->spec->federation.min_silos) {
        return err_set(e, ST_INVALID, "%d silos, and a round needs %" PRId32, c->silo_count,
                       c->spec->federation.min_silos);
    }
    if (c->eval && c->spec->personal.count > 0) {
        return err_set(e, ST_INVALID,
                       "each silo has personal tensors of its own; try without --eval: each is "
                       "evaluated on its own text");
    }
    if (c->spec->codec.up_auto) {
        return err_set(
            e, ST_INVALID,
            "codec.up auto goes by each silo's link, and here is none; try the rung that "
            "it would take");
    }
    TRY(check_speeds(c, e));
    for (int i = 0; i < c->silo_count; i++) {
        TRY(data_fits(c->silos[i].data, c->spec->tokenizer_sha256, c->spec->model.vocab_size, e));
    }
    return c->eval ? data_fits(c->eval, c->spec->tokenizer_sha256, c->spec->model.vocab_size, e)
                   : ST_OK;
}

static enum status run(struct sim *s, struct err *e)
{
    const struct sim_config *c = s->c;
    char path[SIM_PATH_MAX];
    char text[200];
    char device[96];
    TRY(check_config(c, e));
    TRY(sim_book_open(&s->book, c->dir, c->spec, c->silos, c->silo_count, c->drop, e));
    sim_book_path(&s->book, "store", path);
    TRY(blob_store_open(&s->blobs, path, e));
    struct sim_desk_config desk = {c->spec, c->dir, c->device, c->dtype, c->threads, c->stopping};
    TRY(sim_desk_open(&s->desk, &desk, e));
    trainer_describe(s->desk.trainer, device);
    (void)snprintf(text, sizeof(text), "%s; %.3g parameters, %d silos, %" PRId32 " in a round",
                   device, (double)trainer_params(s->desk.trainer)->total, c->silo_count,
                   c->spec->federation.silos_per_round);
    say(s, text);
    TRY(begin(s, e));
    while (s->book.round < c->spec->federation.rounds) {
        TRY(play_round(s, e));
    }
    return ST_OK;
}

enum status sim_run(const struct sim_config *c, struct sim_report *out, struct err *e)
{
    size_t n = (size_t)c->silo_count + 1;
    struct sim s = {.c = c, .spec = c->spec};
    s.seats = mem_alloc(n * sizeof(*s.seats));
    s.drawn = mem_alloc(n * sizeof(*s.drawn));
    progress_init(&s.progress, stderr);
    enum status st = run(&s, e);
    progress_end(&s.progress);
    metrics_file_close(&s.metrics);
    sim_desk_close(&s.desk);
    if (s.blobs) {
        blob_store_close(s.blobs);
    }
    mem_free(s.seats);
    mem_free(s.drawn);
    if (!st) {
        *out = (struct sim_report){.round = s.book.round,
                                   .tokens = s.book.tokens,
                                   .upload_bytes = s.book.upload_bytes,
                                   .download_bytes = s.book.download_bytes,
                                   .eval_loss = s.book.eval_loss};
        digest_hex(&s.book.weights, out->sha256);
    }
    return st;
}
