#include "client/state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "common/arena.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/id.h"
#include "common/json.h"

enum {
    JSON_MAX = 16384,
    LOOK_MS = 1000 // how long somebody may look who keeps an agent from its folder
};

/* ---- the silo ---- */

static void copy_member(const struct json *o, const char *key, char *out, size_t size)
{
    const char *s = json_str(json_get(o, key));
    (void)snprintf(out, size, "%s", s ? s : "");
}

static enum status read_object(struct arena *a, const char *path, const struct json **out,
                               struct err *e)
{
    char *text = arena_alloc(a, JSON_MAX);
    TRY(file_read(path, text, JSON_MAX, e));
    struct err inner = {0};
    if (json_parse(out, a, text, strlen(text), &inner) || json_kind(*out) != JSON_OBJECT) {
        return err_set(e, ST_CORRUPT, "%s is damaged: %.100s", path, inner.msg);
    }
    return ST_OK;
}

static void name_in(const char *dir, const char *name, char *out)
{
    (void)snprintf(out, STATE_PATH_MAX, "%.*s/%.70s", STATE_PATH_MAX - 80, dir, name);
}

enum status identity_read(const char *state_dir, struct silo_identity *out, struct err *e)
{
    char path[STATE_PATH_MAX];
    name_in(state_dir, "silo.json", path);
    struct arena *a = arena_new(1 << 20);
    const struct json *o = NULL;
    enum status st = read_object(a, path, &o, e);
    if (!st) {
        memset(out, 0, sizeof(*out));
        copy_member(o, "url", out->url, sizeof(out->url));
        copy_member(o, "silo", out->silo, sizeof(out->silo));
        copy_member(o, "name", out->name, sizeof(out->name));
        copy_member(o, "token", out->token, sizeof(out->token));
        copy_member(o, "ca_file", out->ca_file, sizeof(out->ca_file));
        copy_member(o, "pin", out->pin, sizeof(out->pin));
        if (!out->url[0] || !out->token[0]) {
            st = err_set(e, ST_CORRUPT, "%s lacks url or token; try photon-client join", path);
        }
    }
    arena_free(a);
    return st;
}

enum status identity_write(const char *state_dir, const struct silo_identity *id, struct err *e)
{
    char path[STATE_PATH_MAX];
    name_in(state_dir, "silo.json", path);
    struct buf b;
    buf_init(&b, JSON_MAX);
    jw_object(&b, NULL);
    jw_str(&b, "url", id->url);
    jw_str(&b, "silo", id->silo);
    jw_str(&b, "name", id->name);
    jw_str(&b, "token", id->token);
    jw_str(&b, "ca_file", id->ca_file);
    jw_str(&b, "pin", id->pin);
    jw_end_object(&b);
    enum status st = file_write(path, b.data, b.len, e);
    buf_release(&b);
    return st;
}

enum status state_lock(const char *state_dir, int *fd, struct err *e)
{
    char path[STATE_PATH_MAX];
    name_in(state_dir, "lock", path);
    int f = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (f < 0) {
        return err_set(e, ST_IO, "cannot open %s: %s", path, strerror(errno));
    }
    int rc = flock(f, LOCK_EX | LOCK_NB);
    for (int64_t until = clock_mono_ms() + LOOK_MS; rc != 0 && clock_mono_ms() < until;) {
        clock_sleep_ms(LOOK_MS / 20);
        rc = flock(f, LOCK_EX | LOCK_NB);
    }
    if (rc != 0) {
        (void)close(f);
        return err_set(e, ST_CONFLICT, "another program works in %s; stop it first", state_dir);
    }
    *fd = f;
    return ST_OK;
}

bool state_in_use(const char *state_dir)
{
    char path[STATE_PATH_MAX];
    name_in(state_dir, "lock", path);
    int f = open(path, O_RDONLY | O_CLOEXEC);
    bool held = f >= 0 && flock(f, LOCK_SH | LOCK_NB) != 0;
    if (f >= 0) {
        (void)close(f);
    }
    return held;
}

/* ---- journal ---- */

static const char *const phase_names[] = {"none", "train", "trained", "settled"};

void run_state_path(const struct run_state *s, const char *name, char *out)
{
    name_in(s->dir, name, out);
}

/* The first fragment's has the name that the residual of a run without fragments has. */
static void residual_name(int64_t fragment, char out[64])
{
    if (fragment > 0) {
        (void)snprintf(out, 64, "residual-%" PRId64 ".safetensors", fragment);
    } else {
        (void)snprintf(out, 64, "%s", STATE_RESIDUAL);
    }
}

void run_state_residual(const struct run_state *s, int64_t fragment, char *out)
{
    char name[64];
    residual_name(fragment, name);
    run_state_path(s, name, out);
}

bool round_key_equal(const struct round_key *a, const struct round_key *b)
{
    return a->round == b->round && strcmp(a->base, b->base) == 0 &&
           a->global_step == b->global_step && a->local_steps == b->local_steps &&
           a->silo_ordinal == b->silo_ordinal;
}

static enum status journal_write(const struct run_state *s, const struct journal *j, struct err *e)
{
    char path[STATE_PATH_MAX];
    run_state_path(s, "journal.json", path);
    struct buf b;
    buf_init(&b, JSON_MAX);
    jw_object(&b, NULL);
    jw_str(&b, "phase", phase_names[j->phase]);
    jw_bool(&b, "keep", j->keep);
    jw_bool(&b, "late", j->late);
    jw_bool(&b, "carry", j->carry);
    jw_int(&b, "carry_fragment", j->carry_fragment);
    jw_int(&b, "kept", j->kept);
    jw_bool(&b, "personal", j->personal);
    jw_str(&b, "spec_sha256", j->spec);
    jw_int(&b, "guard_until", j->guard_until);
    jw_int(&b, "round", j->key.round);
    jw_str(&b, "base", j->key.base);
    jw_int(&b, "global_step", j->key.global_step);
    jw_int(&b, "local_steps", j->key.local_steps);
    jw_int(&b, "silo_ordinal", j->key.silo_ordinal);
    jw_int(&b, "fragment", j->key.fragment);
    jw_str(&b, "sha256", j->sha256);
    jw_int(&b, "bytes", j->bytes);
    jw_int(&b, "tokens", j->tokens);
    jw_num(&b, "train_loss", j->train_loss);
    jw_num(&b, "download_s", j->download_s);
    jw_num(&b, "train_s", j->train_s);
    jw_num(&b, "encode_s", j->encode_s);
    jw_str(&b, "codec", j->codec);
    jw_num(&b, "codec_error", j->codec_error);
    jw_num(&b, "residual_ratio", j->residual_ratio);
    jw_num(&b, "fallback_share", j->fallback_share);
    jw_str(&b, "upload", j->upload);
    jw_end_object(&b);
    enum status st = file_write(path, b.data, b.len, e);
    buf_release(&b);
    return st;
}

static double number_or_zero(const struct json *o, const char *key)
{
    const struct json *v = json_get(o, key);
    return v && json_kind(v) == JSON_NUMBER ? json_num(v) : 0.0;
}

static int64_t count_or_zero(const struct json *o, const char *key)
{
    const struct json *v = json_get(o, key);
    return v && json_is_int(v, 0, (int64_t)1 << 53) ? json_int(v) : 0;
}

static bool flag(const struct json *o, const char *key)
{
    const struct json *v = json_get(o, key);
    return v && json_kind(v) == JSON_BOOL && json_bool(v);
}

static enum status journal_parse(const struct json *o, struct journal *j, struct err *e)
{
    static const int64_t most = (int64_t)1 << 53;
    char phase[16];
    copy_member(o, "phase", phase, sizeof(phase));
    for (int i = JOURNAL_TRAIN; i <= JOURNAL_SETTLED; i++) {
        if (strcmp(phase, phase_names[i]) == 0) {
            j->phase = (enum journal_phase)i;
        }
    }
    j->keep = flag(o, "keep");
    j->late = flag(o, "late");
    j->carry = flag(o, "carry");
    TRY(json_want_int(o, "round", 0, most, &j->key.round, e));
    TRY(json_want_int(o, "global_step", 0, most, &j->key.global_step, e));
    TRY(json_want_int(o, "local_steps", 0, most, &j->key.local_steps, e));
    TRY(json_want_int(o, "silo_ordinal", 0, most, &j->key.silo_ordinal, e));
    TRY(json_want_int(o, "bytes", 0, most, &j->bytes, e));
    TRY(json_want_int(o, "tokens", 0, most, &j->tokens, e));
    copy_member(o, "spec_sha256", j->spec, sizeof(j->spec));
    copy_member(o, "base", j->key.base, sizeof(j->key.base));
    copy_member(o, "sha256", j->sha256, sizeof(j->sha256));
    copy_member(o, "upload", j->upload, sizeof(j->upload));
    j->train_loss = number_or_zero(o, "train_loss");
    j->download_s = number_or_zero(o, "download_s");
    j->train_s = number_or_zero(o, "train_s");
    j->encode_s = number_or_zero(o, "encode_s");
    copy_member(o, "codec", j->codec, sizeof(j->codec));
    j->codec_error = number_or_zero(o, "codec_error");
    j->residual_ratio = number_or_zero(o, "residual_ratio");
    j->fallback_share = number_or_zero(o, "fallback_share");
    j->guard_until = count_or_zero(o, "guard_until");
    j->kept = count_or_zero(o, "kept");
    j->personal = !json_get(o, "personal") || flag(o, "personal"); // unknown: they are kept
    j->key.fragment = count_or_zero(o, "fragment");
    j->carry_fragment = count_or_zero(o, "carry_fragment");
    return ST_OK;
}

static enum status journal_read(const struct run_state *s, struct journal *out, struct err *e)
{
    char path[STATE_PATH_MAX];
    run_state_path(s, "journal.json", path);
    struct arena *a = arena_new(1 << 20);
    const struct json *o = NULL;
    struct journal j = {0};
    enum status st = read_object(a, path, &o, e);
    st = st ? st : journal_parse(o, &j, e);
    arena_free(a);
    if (st == ST_NOT_FOUND) { // a run's first round
        st = ST_OK;
    }
    if (!st) {
        *out = j;
    }
    return st;
}

static bool is_there(const struct run_state *s, const char *name, char path[STATE_PATH_MAX])
{
    run_state_path(s, name, path);
    return access(path, F_OK) == 0;
}

static enum status take(const struct run_state *s, const char *from, const char *to, struct err *e)
{
    char a[STATE_PATH_MAX];
    char b[STATE_PATH_MAX];
    run_state_path(s, to, b);
    return is_there(s, from, a) ? file_move(a, b, e) : ST_OK;
}

static enum status lose(const struct run_state *s, const char *name, struct err *e)
{
    char path[STATE_PATH_MAX];
    return is_there(s, name, path) ? file_drop(path, e) : ST_OK;
}

/* The residual that follows the update's outcome; done already where the file is gone. */
static enum status carry_out_residual(const struct run_state *s, struct err *e)
{
    bool settled = s->j.phase == JOURNAL_SETTLED;
    char residual[64];
    if (settled && s->j.late) {
        return ST_OK; // the next round's begin decides
    }
    if (settled && s->j.keep) {
        residual_name(s->j.key.fragment, residual);
        TRY(take(s, STATE_RESIDUAL_NEXT, residual, e));
        return lose(s, STATE_RESIDUAL_LATE, e);
    }
    if (s->j.phase == JOURNAL_TRAIN && s->j.carry) {
        residual_name(s->j.carry_fragment, residual);
        TRY(take(s, STATE_RESIDUAL_LATE, residual, e));
        return lose(s, STATE_RESIDUAL_NEXT, e);
    }
    TRY(lose(s, STATE_RESIDUAL_NEXT, e));
    return lose(s, STATE_RESIDUAL_LATE, e);
}

/* The step after the journal's word, done now or by whoever opens the folder next. */
static enum status carry_out(struct run_state *s, struct err *e)
{
    if (s->j.phase == JOURNAL_TRAINED) {
        return ST_OK;
    }
    TRY(carry_out_residual(s, e));
    if (s->j.phase == JOURNAL_SETTLED && s->j.keep) {
        return take(s, STATE_MOMENTS_NEXT, STATE_MOMENTS, e);
    }
    // Training, and not noted as whole: it is made again from a snapshot.
    TRY(lose(s, STATE_MOMENTS_NEXT, e));
    if (s->j.carry) { // what lies in LATE from now on is this round's
        struct journal j = s->j;
        j.carry = false;
        TRY(journal_write(s, &j, e));
        s->j = j;
    }
    return ST_OK;
}

enum status run_state_open(struct run_state *s, const char *state_dir, const char *run,
                           struct err *e)
{
    memset(s, 0, sizeof(*s));
    if (!id_valid('r', run)) {
        return err_set(e, ST_INVALID, "'%.40s' is no run id", run);
    }
    (void)snprintf(s->dir, sizeof(s->dir), "%.*s/runs/%s", STATE_PATH_MAX - 160, state_dir, run);
    TRY(dir_make(s->dir, e));
    TRY(journal_read(s, &s->j, e));
    return carry_out(s, e);
}

/* ---- snapshots ---- */

static int64_t snap_step(const char *name, const char *suffix)
{
    static const char lead[] = "snap-";
    if (strncmp(name, lead, sizeof(lead) - 1) != 0) {
        return -1;
    }
    char *end = NULL;
    long long n = strtoll(name + sizeof(lead) - 1, &end, 10);
    return n >= 0 && strcmp(end, suffix) == 0 ? n : -1;
}

/* Removes every snapshot but the one of step `except` (-1: every one), and half-written ones. */
static enum status drop_snaps(const struct run_state *s, int64_t except, struct err *e)
{
    DIR *d = opendir(s->dir);
    if (!d) {
        return err_set(e, ST_IO, "cannot list %s: %s", s->dir, strerror(errno));
    }
    enum status st = ST_OK;
    for (struct dirent *f = readdir(d); f && !st; f = readdir(d)) {
        int64_t a = snap_step(f->d_name, ".state");
        int64_t b = snap_step(f->d_name, ".json");
        if ((a >= 0 && a != except) || (b >= 0 && b != except)) {
            char path[STATE_PATH_MAX];
            run_state_path(s, f->d_name, path);
            st = file_drop(path, e);
        }
    }
    (void)closedir(d);
    return st;
}

enum status run_state_snap(struct run_state *s, const struct snap *snap, const char *tmp,
                           struct err *e)
{
    char name[64];
    char path[STATE_PATH_MAX];
    struct buf b;
    buf_init(&b, JSON_MAX);
    jw_object(&b, NULL);
    jw_int(&b, "step", snap->step);
    jw_int(&b, "tokens", snap->tokens);
    jw_num(&b, "loss_sum", snap->loss_sum);
    jw_num(&b, "train_s", snap->train_s);
    jw_end_object(&b);
    // The numbers first: once the state has its name, the snapshot is whole.
    (void)snprintf(name, sizeof(name), "snap-%" PRId64 ".json", snap->step);
    run_state_path(s, name, path);
    enum status st = file_write(path, b.data, b.len, e);
    buf_release(&b);
    TRY(st);
    (void)snprintf(name, sizeof(name), "snap-%" PRId64 ".state", snap->step);
    run_state_path(s, name, path);
    TRY(file_place(tmp, path, e));
    return drop_snaps(s, snap->step, e);
}

static bool read_snap(const struct run_state *s, int64_t step, struct snap *out)
{
    char name[64];
    char path[STATE_PATH_MAX];
    (void)snprintf(name, sizeof(name), "snap-%" PRId64 ".json", step);
    run_state_path(s, name, path);
    struct arena *a = arena_new(1 << 20);
    const struct json *o = NULL;
    struct err unused = {0};
    struct snap v = {.step = -1};
    static const int64_t most = (int64_t)1 << 53;
    bool ok = read_object(a, path, &o, &unused) == ST_OK &&
              json_want_int(o, "step", 0, most, &v.step, &unused) == ST_OK &&
              json_want_int(o, "tokens", 0, most, &v.tokens, &unused) == ST_OK && v.step == step;
    if (ok) {
        v.loss_sum = number_or_zero(o, "loss_sum");
        v.train_s = number_or_zero(o, "train_s");
        *out = v;
    }
    arena_free(a);
    return ok;
}

bool run_state_snap_best(const struct run_state *s, struct snap *out, char *path)
{
    DIR *d = opendir(s->dir);
    bool found = false;
    for (struct dirent *f = d ? readdir(d) : NULL; f; f = readdir(d)) {
        int64_t step = snap_step(f->d_name, ".state");
        if (step >= 0 && (!found || step > out->step) && read_snap(s, step, out)) {
            run_state_path(s, f->d_name, path);
            found = true;
        }
    }
    if (d) {
        (void)closedir(d);
    }
    return found;
}

enum status run_state_hold_spec(struct run_state *s, const char *sha256, struct err *e)
{
    if (s->j.spec[0] && strcmp(s->j.spec, sha256) != 0) {
        return err_set(e, ST_INVALID,
                       "this run began with another spec, and a run's spec never changes: ask its "
                       "operator; if it is meant, remove %s",
                       s->dir);
    }
    (void)snprintf(s->j.spec, sizeof(s->j.spec), "%s", sha256);
    return ST_OK;
}

/* ---- steps of a round ---- */

enum status run_state_begin(struct run_state *s, const struct round_key *key, struct err *e)
{
    if (s->j.phase == JOURNAL_TRAINED) {
        return err_set(e, ST_CONFLICT, "round %" PRId64 " is not settled", s->j.key.round);
    }
    char path[STATE_PATH_MAX];
    TRY(carry_out(s, e));
    TRY(drop_snaps(s, -1, e));
    run_state_path(s, STATE_UPDATE, path);
    TRY(file_drop(path, e));
    struct journal j = {.phase = JOURNAL_TRAIN,
                        .key = *key,
                        .carry = s->j.phase == JOURNAL_SETTLED && s->j.late,
                        .carry_fragment = s->j.key.fragment,
                        .kept = s->j.kept,
                        .personal = s->j.personal,
                        .guard_until = s->j.guard_until};
    (void)snprintf(j.spec, sizeof(j.spec), "%s", s->j.spec);
    FAULT("journal.begin");
    TRY(journal_write(s, &j, e));
    FAULT("journal.begun");
    s->j = j;
    return carry_out(s, e);
}

enum status run_state_trained(struct run_state *s, struct err *e)
{
    struct journal j = s->j;
    j.phase = JOURNAL_TRAINED;
    FAULT("journal.trained");
    TRY(journal_write(s, &j, e));
    FAULT("journal.trained.done");
    s->j = j;
    return drop_snaps(s, -1, e);
}

enum status run_state_upload(struct run_state *s, const char *upload, struct err *e)
{
    struct journal j = s->j;
    (void)snprintf(j.upload, sizeof(j.upload), "%s", upload);
    FAULT("journal.upload");
    TRY(journal_write(s, &j, e));
    FAULT("journal.upload.done");
    s->j = j;
    return ST_OK;
}

enum status run_state_settle(struct run_state *s, enum outcome o, struct err *e)
{
    struct journal j = s->j;
    j.phase = JOURNAL_SETTLED;
    j.keep = o != OUTCOME_REFUSED;
    j.late = o == OUTCOME_LATE;
    j.kept = j.keep ? j.key.round : j.kept;
    FAULT("journal.settle");
    TRY(journal_write(s, &j, e));
    FAULT("journal.settled");
    s->j = j;
    return carry_out(s, e);
}
