#include "client/task.h"

#include <inttypes.h>
#include <string.h>

#include "common/id.h"
#include "common/limits.h"
#include "common/run_header.h"
#include "common/schedule.h"

static const int64_t COUNT_MAX = ((int64_t)1 << 53) - 1;

static enum status want_object(const struct json *o, const char *key, const struct json **out,
                               struct err *e)
{
    const struct json *v = json_get(o, key);
    if (!v || json_kind(v) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "'%s' is missing or no object", key);
    }
    *out = v;
    return ST_OK;
}

static enum status want_id(const struct json *o, const char *key, char prefix, char out[32],
                           struct err *e)
{
    const char *s = NULL;
    TRY(json_want_str(o, key, &s, e));
    if (!id_valid(prefix, s)) {
        return err_set(e, ST_INVALID, "'%s' is no id", key);
    }
    (void)snprintf(out, 32, "%s", s);
    return ST_OK;
}

static enum status read_head(struct task *t, const struct json *doc, struct err *e)
{
    const char *kind = NULL;
    const char *name = NULL;
    TRY(want_id(doc, "task", 't', t->id, e));
    TRY(want_id(doc, "run", 'r', t->run, e));
    TRY(json_want_str(doc, "kind", &kind, e));
    if (strcmp(kind, "train") != 0 && strcmp(kind, "evaluate") != 0) {
        return err_set(e, ST_INVALID, "kind '%.40s' is not known to this version", kind);
    }
    t->kind = strcmp(kind, "train") == 0 ? TASK_TRAIN : TASK_EVALUATE;
    TRY(json_want_str(doc, "run_name", &name, e));
    if (strlen(name) >= sizeof(t->run_name)) {
        return err_set(e, ST_INVALID, "'run_name' is too long");
    }
    (void)snprintf(t->run_name, sizeof(t->run_name), "%s", name);
    // Fragments, personal and frozen tensors are told apart by a round's number: training has one.
    TRY(json_want_int(doc, "round", t->kind == TASK_TRAIN ? 1 : 0, LIMIT_ROUNDS, &t->round, e));
    return json_want_int(doc, "rounds", 0, LIMIT_ROUNDS, &t->rounds, e);
}

static enum status read_digest(const struct json *o, const char *key, char hex[65],
                               struct digest *out, struct err *e)
{
    const char *text = NULL;
    TRY(json_want_str(o, key, &text, e));
    TRY(digest_parse(out, text, e));
    (void)snprintf(hex, 65, "%s", text);
    return ST_OK;
}

static enum status read_step(struct task_step *s, const struct json *o, int64_t number,
                             struct err *e)
{
    const char *codec = NULL;
    TRY(json_want_int(o, "number", number, number, &s->number, e));
    TRY(read_digest(o, "base", s->base_sha256, &s->base, e));
    TRY(read_digest(o, "sha256", s->sha256, &s->digest, e));
    TRY(json_want_int(o, "bytes", 8, LIMIT_BLOB, &s->bytes, e));
    TRY(json_want_str(o, "codec", &codec, e));
    return codec_parse(&s->codec, codec, e);
}

/* Without them the base is taken whole. */
static enum status read_steps(struct task *t, const struct json *base, struct err *e)
{
    const struct json *list = json_get(base, "steps");
    if (!list) {
        return ST_OK;
    }
    if (json_kind(list) != JSON_ARRAY || json_len(list) > STEP_CHAIN_MAX) {
        return err_set(e, ST_INVALID, "'steps' is no list of at most %d", STEP_CHAIN_MAX);
    }
    t->step_count = json_len(list);
    if (t->step_count > t->base_number) { // the first one leads to checkpoint 1
        return err_set(e, ST_INVALID, "%d steps do not lead to checkpoint %" PRId64, t->step_count,
                       t->base_number);
    }
    for (int i = 0; i < t->step_count; i++) {
        const struct json *o = json_at(list, i);
        if (json_kind(o) != JSON_OBJECT) {
            return err_set(e, ST_INVALID, "step %d is no object", i);
        }
        TRY(read_step(&t->steps[i], o, t->base_number - t->step_count + 1 + i, e));
    }
    return ST_OK;
}

static enum status read_base(struct task *t, const struct json *doc, struct err *e)
{
    const struct json *base = NULL;
    TRY(want_object(doc, "base", &base, e));
    TRY(json_want_int(base, "number", 0, LIMIT_ROUNDS, &t->base_number, e));
    TRY(read_digest(base, "sha256", t->base_sha256, &t->base, e));
    TRY(json_want_int(base, "bytes", 8, LIMIT_BLOB, &t->base_bytes, e));
    return read_steps(t, base, e);
}

static enum status read_lease(struct task *t, const struct json *doc, struct err *e)
{
    const struct json *lease = NULL;
    TRY(want_object(doc, "lease", &lease, e));
    TRY(json_want_int(lease, "epoch", 0, COUNT_MAX, &t->epoch, e));
    TRY(json_want_num(lease, "heartbeat_s", &t->heartbeat_s, e));
    if (t->heartbeat_s < 0.1 || t->heartbeat_s > 3600.0) {
        return err_set(e, ST_INVALID, "'heartbeat_s' is out of range");
    }
    return ST_OK;
}

static enum status read_plan(struct task *t, const struct json *doc, struct err *e)
{
    const struct json *plan = NULL;
    TRY(want_object(doc, "plan", &plan, e));
    if (t->kind == TASK_EVALUATE) {
        return json_want_int(plan, "windows", 1, COUNT_MAX, &t->windows, e);
    }
    const char *codec = NULL;
    TRY(json_want_int(plan, "global_step", 0, COUNT_MAX, &t->global_step, e));
    TRY(json_want_int(plan, "local_steps", 1, LIMIT_STEPS, &t->local_steps, e));
    TRY(json_want_int(plan, "silo_ordinal", 0, INT32_MAX, &t->silo_ordinal, e));
    TRY(json_want_int(plan, "update_bytes", 8, LIMIT_BLOB, &t->update_bytes, e));
    TRY(json_want_int(plan, "chunk_bytes", 1, LIMIT_CHUNK, &t->chunk_bytes, e));
    TRY(json_want_str(plan, "codec", &codec, e));
    enum codec known = CODEC_F32;
    t->codec_known = strcmp(codec, "auto") == 0 || codec_parse(&known, codec, NULL) == ST_OK;
    return ST_OK;
}

static enum status read_spec(struct task *t, const struct json *doc, struct err *e)
{
    const struct json *spec = NULL;
    TRY(want_object(doc, "spec", &spec, e));
    struct spec_problem problems[SPEC_PROBLEMS_MAX];
    int count = 0;
    enum status st = run_spec_parse(&t->spec, spec, problems, &count, e);
    if (st && count > 0) {
        return err_set(e, st, "the spec: %s: %s", problems[0].pointer, problems[0].detail);
    }
    if (!st) {
        struct digest d;
        run_spec_digest(&t->spec, &d);
        digest_hex(&d, t->spec_sha256);
    }
    return st;
}

enum status task_parse(struct task *out, const struct json *doc, struct err *e)
{
    struct task t = {0};
    if (json_kind(doc) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "a task is a JSON object");
    }
    TRY(read_head(&t, doc, e));
    TRY(read_lease(&t, doc, e));
    TRY(read_base(&t, doc, e));
    TRY(read_plan(&t, doc, e));
    TRY(read_spec(&t, doc, e));
    *out = t;
    return ST_OK;
}

enum status task_parse_lease(struct task *out, const struct json *doc, struct err *e)
{
    struct task t = {0};
    if (json_kind(doc) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "a task is a JSON object");
    }
    TRY(want_id(doc, "task", 't', t.id, e));
    TRY(read_lease(&t, doc, e));
    *out = t;
    return ST_OK;
}

struct round_key task_key(const struct task *t)
{
    struct round_key k = {.round = t->round,
                          .global_step = t->global_step,
                          .local_steps = t->local_steps,
                          .silo_ordinal = t->silo_ordinal,
                          .fragment = t->round > 0 ? schedule_fragment(&t->spec, t->round) : 0};
    (void)snprintf(k.base, sizeof(k.base), "%s", t->base_sha256);
    return k;
}
