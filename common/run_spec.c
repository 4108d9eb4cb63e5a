#include "common/run_spec.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/limits.h"
#include "common/schedule.h"
#include "common/spec_schedule.h"
#include "common/spec_words.h"

static const int64_t SEED_MAX = ((int64_t)1 << 53) - 1;
enum {
    DEADLINE_MAX_S = 30 * 24 * 3600,
    WINDOWS_MAX = 1 << 20,
    WARMUP_DEFAULT = 100,
    BYTE_IDS = 258, // what the byte tokenizer emits: two special tokens and the 256 bytes
};

// clang-format off
/* Sizes and maximum learning rates of Photon's models; vocabulary 50368, 2048 positions, biases. */
static const struct preset {
    const char *name;
    int32_t d_model, n_heads, n_layers;
    double lr;
    enum inner_optimizer optimizer;
} PRESETS[] = {
    {"125m",  768, 12, 12, 6e-4,   INNER_ADOPT},
    {"1b",   2048, 16, 24, 2e-4,   INNER_ADAMW},
    {"3b",   2560, 20, 32, 1.6e-4, INNER_ADAMW},
    {"7b",   4096, 32, 32, 1.2e-4, INNER_ADAMW},
};
static const char *const PRESET_NAMES[] = {"125m", "1b", "3b", "7b", NULL};

static const struct spec_section SECTIONS[] = {
    {"", {"name", "experiment", "seed", "model", "tokenizer", "federation", "inner", "outer",
          "weights", "inner_state", "codec", "eval", "keep_checkpoints", NULL}},
    {"model", {"preset", "d_model", "n_heads", "n_layers", "vocab_size", "seq_len", "position",
               "bias", "freeze", "personal", NULL}},
    {"tokenizer", {"sha256", NULL}},
    {"federation", {"rounds", "silos_per_round", "min_silos", "oversample", "local_steps",
                    "local_steps_policy", "local_steps_min", "overlap_steps", "fragments", "deadline_s", "deadline_k",
                    NULL}},
    {"inner", {"optimizer", "lr", "betas", "eps", "weight_decay", "clip_norm", "batch",
               "micro_batch", "warmup", "schedule_steps", "min_lr_ratio", NULL}},
    {"outer", {"name", "lr", "momentum", "betas", "eps", "clip_median", NULL}},
    {"codec", {"up", "down", "up_k", "down_k", "share", NULL}},
    {"eval", {"every", "windows", NULL}},
    {NULL},
};
// clang-format on

/* ---- the parts ---- */

static int read_preset(const struct spec_part *p, struct run_spec *s)
{
    int i = spec_word(p, "preset", PRESET_NAMES);
    if (i >= 0) {
        const struct preset *t = &PRESETS[i];
        (void)snprintf(s->preset, sizeof(s->preset), "%s", t->name);
        s->model = (struct model_spec){.d_model = t->d_model,
                                       .n_heads = t->n_heads,
                                       .n_layers = t->n_layers,
                                       .vocab_size = 50368,
                                       .seq_len = 2048,
                                       .position = POSITION_LEARNED,
                                       .bias = true};
    }
    return i;
}

/* The largest count of heads below n that splits d into heads of even size; 0: none. */
static int32_t fitting_heads(int32_t d, int32_t n)
{
    for (int32_t h = n < d ? n : d; h > 0; h--) {
        if (d % h == 0 && d / h % 2 == 0) {
            return h;
        }
    }
    return 0;
}

static void check_model(const struct spec_part *p, const struct model_spec *m)
{
    if (m->d_model % m->n_heads != 0 || m->d_model / m->n_heads % 2 != 0) {
        int32_t heads = fitting_heads(m->d_model, m->n_heads);
        int32_t unit = 2 * m->n_heads;
        int32_t d = (m->d_model + unit - 1) / unit * unit;
        if (heads > 0) {
            spec_complain(
                p, "d_model",
                "%d does not split into %d heads of even size; try n_heads %d, or d_model %d",
                m->d_model, m->n_heads, heads, d);
        } else {
            spec_complain(p, "d_model",
                          "%d does not split into %d heads of even size; try d_model %d",
                          m->d_model, m->n_heads, d);
        }
        return;
    }
    struct err e = {0};
    if (model_spec_check(m, &e)) {
        spec_complain(p, "", "%s", e.msg);
    }
}

static bool pattern_ok(const char *s)
{
    static const char LETTERS[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.*";
    return *s && strlen(s) < PATTERN_SIZE && s[strspn(s, LETTERS)] == '\0';
}

static void read_patterns(const struct spec_part *p, const char *key, struct patterns *out)
{
    const struct json *v = spec_get(p, key);
    if (!v) {
        return;
    }
    if (json_kind(v) != JSON_ARRAY || json_len(v) > PATTERNS_MAX) {
        spec_complain(p, key,
                      "must be at most %d patterns of tensor names, for example [\"wte.*\"]",
                      PATTERNS_MAX);
        return;
    }
    for (int i = 0; i < json_len(v); i++) {
        const char *text = json_str(json_at(v, i));
        if (!text || !pattern_ok(text)) {
            spec_complain(p, key,
                          "pattern %d must be at most %d letters, digits, '.', '_' and '*', "
                          "for example \"wte.*\"",
                          i, PATTERN_SIZE - 1);
            return;
        }
        (void)snprintf(out->text[out->count++], PATTERN_SIZE, "%s", text);
    }
}

/* A pattern that names nothing is a mistake that would cost a whole run. */
static void check_patterns(const struct spec_part *p, const char *key, const struct patterns *which,
                           const struct param_table *t)
{
    for (int32_t i = 0; i < which->count; i++) {
        bool hit = false;
        for (int32_t k = 0; k < t->count && !hit; k++) {
            hit = pattern_match(which->text[i], t->items[k].name);
        }
        if (!hit) {
            spec_complain(p, key, "'%s' names no tensor of this model; try wte.* or blocks.0.*",
                          which->text[i]);
        }
    }
}

static void check_tensors(const struct spec_part *p, const struct run_spec *s)
{
    if (s->freeze.count + s->personal.count == 0) {
        return;
    }
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct param_table t = params_table(a, &s->model);
    check_patterns(p, "freeze", &s->freeze, &t);
    check_patterns(p, "personal", &s->personal, &t);
    bool travels = false;
    for (int32_t i = 0; i < t.count; i++) {
        bool frozen = patterns_match(&s->freeze, t.items[i].name);
        bool personal = patterns_match(&s->personal, t.items[i].name);
        travels = travels || (!frozen && !personal);
        if (frozen && personal) {
            spec_complain(p, "personal", "'%s' is frozen: it cannot be trained on the silo",
                          t.items[i].name);
            break;
        }
    }
    if (!travels) {
        spec_complain(p, "freeze", "nothing would be left to average; leave some tensors out");
    }
    arena_free(a);
}

static void read_model(struct spec_reader *r, const struct json *doc, struct run_spec *s,
                       int *preset)
{
    struct spec_part p = spec_part(r, doc, "model");
    int before = r->total;
    struct model_spec *m = &s->model;
    *m = (struct model_spec){.position = POSITION_LEARNED, .bias = true};
    *preset = -1;
    if (!json_get(doc, "model")) {
        spec_complain(&p, "", "is missing; give {\"preset\": \"125m\"} or the sizes");
    }
    if (!p.o) {
        return;
    }
    *preset = read_preset(&p, s);
    if (!spec_get(&p, "preset")) {
        static const char *const SIZES[] = {"d_model",    "n_heads", "n_layers",
                                            "vocab_size", "seq_len", NULL};
        for (const char *const *k = SIZES; *k; k++) {
            spec_need(&p, *k, "give all sizes, or a preset: 125m, 1b, 3b, 7b");
        }
    }
    spec_i32(&p, "d_model", 2, LIMIT_D_MODEL, &m->d_model);
    spec_i32(&p, "n_heads", 1, LIMIT_HEADS, &m->n_heads);
    spec_i32(&p, "n_layers", 1, LIMIT_LAYERS, &m->n_layers);
    spec_i32(&p, "vocab_size", 2, LIMIT_VOCAB, &m->vocab_size);
    spec_i32(&p, "seq_len", 1, LIMIT_SEQ_LEN, &m->seq_len);
    int position = spec_word(&p, "position", SPEC_POSITIONS);
    m->position = position < 0 ? m->position : (enum position)position;
    spec_bool(&p, "bias", &m->bias);
    read_patterns(&p, "freeze", &s->freeze);
    read_patterns(&p, "personal", &s->personal);
    if (r->total == before) {
        check_model(&p, m);
    }
    if (r->total == before) {
        check_tensors(&p, s);
    }
}

static void read_tokenizer(struct spec_reader *r, const struct json *doc, struct run_spec *s)
{
    struct spec_part p = spec_part(r, doc, "tokenizer");
    const struct json *v = spec_get(&p, "sha256");
    if (v) {
        const char *hex = json_str(v);
        size_t len = hex ? strlen(hex) : 1;
        if ((len != 0 && len != 64) || hex[strspn(hex, "0123456789abcdef")] != '\0') {
            spec_complain(&p, "sha256",
                          "must be the 64 lower-case hex digits that sha256sum prints "
                          "for tokenizer.json, or \"\" for the byte tokenizer");
            return;
        }
        (void)snprintf(s->tokenizer_sha256, sizeof(s->tokenizer_sha256), "%s", hex);
    }
    if (!*s->tokenizer_sha256 && s->model.vocab_size > 1 && s->model.vocab_size < BYTE_IDS) {
        struct spec_part model = {.r = r, .name = "model"};
        spec_complain(&model, "vocab_size",
                      "%d is too small: the byte tokenizer has %d ids; try 320",
                      s->model.vocab_size, BYTE_IDS);
    }
}

static void read_steps_policy(const struct spec_part *p, struct run_spec *s)
{
    int32_t tau = s->federation.local_steps;
    int word = spec_word(p, "local_steps_policy", SPEC_STEPS);
    s->federation.local_steps_policy = word >= 0 ? (enum steps_policy)word : STEPS_FIXED;
    bool dylu = s->federation.local_steps_policy == STEPS_DYLU;
    int32_t eighth = tau < 8 ? 1 : tau / 8;
    s->federation.local_steps_min = dylu ? eighth : tau;
    spec_i32(p, "local_steps_min", 1, LIMIT_STEPS, &s->federation.local_steps_min);
    if (s->federation.local_steps_min > tau || (!dylu && s->federation.local_steps_min < tau)) {
        spec_complain(p, "local_steps_min",
                      dylu ? "is more than local_steps %d; try %d"
                           : "is for dylu; leave it out of local_steps %d, "
                             "or try local_steps_policy dylu and %d",
                      tau, eighth);
    }
}

static void read_federation(struct spec_reader *r, const struct json *doc, struct run_spec *s)
{
    struct spec_part p = spec_part(r, doc, "federation");
    int before = r->total;
    s->federation.deadline_s = 86400;
    s->federation.deadline_k = 5.0;
    spec_need(&p, "rounds", "say how many rounds the run takes");
    spec_need(&p, "silos_per_round", "say how many silos train in a round");
    spec_need(&p, "local_steps", "say how many steps a silo takes per round; 64 to 512 are usual");
    spec_i32(&p, "rounds", 1, LIMIT_ROUNDS, &s->federation.rounds);
    spec_i32(&p, "silos_per_round", 1, LIMIT_SILOS, &s->federation.silos_per_round);
    spec_i32(&p, "min_silos", 1, LIMIT_SILOS, &s->federation.min_silos);
    spec_i32(&p, "oversample", 0, LIMIT_SILOS, &s->federation.oversample);
    spec_i32(&p, "local_steps", 1, LIMIT_STEPS, &s->federation.local_steps);
    read_steps_policy(&p, s);
    spec_i32(&p, "overlap_steps", 0, LIMIT_STEPS, &s->federation.overlap_steps);
    s->federation.fragments = 1;
    spec_i32(&p, "fragments", 1, LIMIT_ROUNDS, &s->federation.fragments);
    spec_i32(&p, "deadline_s", 1, DEADLINE_MAX_S, &s->federation.deadline_s);
    spec_rate(&p, "deadline_k", (struct spec_range){1.0, false, 1000.0, false},
              &s->federation.deadline_k);
    if (r->total > before) {
        return;
    }
    int32_t n = s->federation.silos_per_round;
    if (!spec_get(&p, "min_silos")) {
        int32_t quorum = (2 * n + 2) / 3;
        s->federation.min_silos = quorum < 2 && n > 1 ? 2 : quorum;
    } else if (s->federation.min_silos > n) {
        spec_complain(&p, "min_silos",
                      "%d is more than silos_per_round %d, so no round could ever close; try %d",
                      s->federation.min_silos, n, n);
    }
    if (s->federation.oversample > LIMIT_SILOS - n) {
        spec_complain(&p, "oversample", "%d and silos_per_round %d are together over %d; try %d",
                      s->federation.oversample, n, LIMIT_SILOS, LIMIT_SILOS - n);
    }
}

static void read_betas(const struct spec_part *p, double *beta1, double *beta2)
{
    const struct json *v = spec_get(p, "betas");
    if (!v) {
        return;
    }
    if (json_kind(v) != JSON_ARRAY || json_len(v) != 2) {
        spec_complain(p, "betas", "must be two numbers, for example [0.9, 0.95]");
        return;
    }
    static const struct spec_range MEAN = {0.0, false, 1.0, true};
    spec_num(p, "betas/0", json_at(v, 0), MEAN, beta1);
    spec_num(p, "betas/1", json_at(v, 1), MEAN, beta2);
}

static void check_inner(const struct spec_part *p, const struct inner_spec *i)
{
    if (i->warmup > i->schedule_steps) {
        spec_complain(p, "warmup",
                      "%d steps of warm-up are more than the schedule's %" PRId64 "; try %" PRId64
                      ", or a larger schedule_steps",
                      i->warmup, i->schedule_steps, i->schedule_steps / 10);
    }
    if (i->micro_batch > i->batch || (i->micro_batch > 0 && i->batch % i->micro_batch != 0)) {
        int32_t fit = i->micro_batch < i->batch ? i->micro_batch : i->batch;
        while (i->batch % fit != 0) {
            fit--;
        }
        spec_complain(p, "micro_batch",
                      "%d does not divide batch %d; try %d, or 0: the silo chooses", i->micro_batch,
                      i->batch, fit);
    }
}

static void read_inner(struct spec_reader *r, const struct json *doc, struct run_spec *s,
                       int preset)
{
    struct spec_part p = spec_part(r, doc, "inner");
    struct inner_spec *i = &s->inner;
    int before = r->total;
    int word = spec_word(&p, "optimizer", SPEC_OPTIMIZERS);
    i->optimizer = word >= 0     ? (enum inner_optimizer)word
                   : preset >= 0 ? PRESETS[preset].optimizer
                                 : INNER_ADAMW;
    i->lr = preset >= 0 ? PRESETS[preset].lr : 1e-3;
    i->beta1 = 0.9;
    i->beta2 = i->optimizer == INNER_ADOPT ? 0.9999 : 0.95;
    i->eps = i->optimizer == INNER_ADOPT ? 1e-6 : 1e-8;
    i->clip_norm = 1.0;
    i->min_lr_ratio = 0.1;
    spec_need(&p, "batch", "say how many sequences a silo takes per step; 32 is Photon's choice");
    spec_rate(&p, "lr", (struct spec_range){0.0, true, 10.0, false}, &i->lr);
    read_betas(&p, &i->beta1, &i->beta2);
    spec_rate(&p, "eps", (struct spec_range){0.0, true, 1.0, false}, &i->eps);
    spec_rate(&p, "weight_decay", (struct spec_range){0.0, false, 1.0, true}, &i->weight_decay);
    spec_rate(&p, "clip_norm", (struct spec_range){0.0, true, 1e9, false}, &i->clip_norm);
    spec_rate(&p, "min_lr_ratio", (struct spec_range){0.0, false, 1.0, false}, &i->min_lr_ratio);
    spec_i32(&p, "batch", 1, LIMIT_BATCH, &i->batch);
    spec_i32(&p, "micro_batch", 0, LIMIT_BATCH, &i->micro_batch);
    i->schedule_steps = (int64_t)s->federation.rounds * s->federation.local_steps;
    spec_int(&p, "schedule_steps", 1, (int64_t)LIMIT_ROUNDS * LIMIT_STEPS, &i->schedule_steps);
    // A default must never be an error: short runs warm up for a tenth of their steps.
    int64_t tenth = i->schedule_steps / 10;
    i->warmup = tenth < WARMUP_DEFAULT ? (int32_t)tenth : WARMUP_DEFAULT;
    spec_i32(&p, "warmup", 0, INT32_MAX, &i->warmup);
    if (r->total == before && i->schedule_steps > 0) {
        check_inner(&p, i);
    }
}

/* A setting that this optimizer does not have: left at 0, which is also what may be written. */
static void refuse_outer(const struct spec_part *p, const char *key, const char *try)
{
    if (spec_get(p, key)) {
        spec_complain(p, key, "this outer optimizer has none; leave it out, or try %s", try);
    }
}

static void read_outer(struct spec_reader *r, const struct json *doc, struct run_spec *s)
{
    struct spec_part p = spec_part(r, doc, "outer");
    struct outer_spec *o = &s->outer;
    int word = spec_word(&p, "name", SPEC_OUTERS);
    o->name = word >= 0 ? (enum outer_optimizer)word : OUTER_FEDAVG;
    bool momentum = o->name == OUTER_FEDNESTEROV || o->name == OUTER_FEDMOM;
    bool adaptive = spec_outer_adaptive(o->name);
    o->lr = momentum ? 0.7 : adaptive ? 0.01 : 1.0;
    o->momentum = momentum ? 0.9 : 0.0;
    o->beta1 = adaptive ? 0.9 : 0.0;
    o->beta2 = adaptive ? 0.99 : 0.0;
    o->eps = adaptive ? 1e-3 : 0.0;
    spec_rate(&p, "lr", (struct spec_range){0.0, true, 10.0, false}, &o->lr);
    spec_rate(&p, "momentum", (struct spec_range){0.0, false, 1.0, true}, &o->momentum);
    if (!momentum && o->momentum > 0.0) {
        spec_complain(&p, "momentum", "%s has none; try \"name\": \"fednesterov\", or 0",
                      SPEC_OUTERS[o->name]);
    }
    if (adaptive) {
        read_betas(&p, &o->beta1, &o->beta2);
        spec_rate(&p, "eps", (struct spec_range){0.0, true, 1.0, false}, &o->eps);
    } else {
        refuse_outer(&p, "betas", "fedadam or fedyogi");
        refuse_outer(&p, "eps", "fedadam or fedyogi");
    }
    spec_rate(&p, "clip_median", (struct spec_range){0.0, false, 1e9, false}, &o->clip_median);
    if (o->clip_median > 0.0 && o->clip_median < 1.0) {
        spec_complain(&p, "clip_median",
                      "below 1 every second update would be clipped; try 3, or 0: no bound");
    }
}

static void spec_k(const struct spec_part *p, const char *key, int32_t *out)
{
    spec_i32(p, key, 4, CODEC_K_MAX, out);
    if (*out % 4 != 0) {
        spec_complain(p, key, "must be a multiple of 4; try %d", *out - *out % 4);
    }
}

static void read_codec(struct spec_reader *r, const struct json *doc, struct run_spec *s)
{
    struct spec_part p = spec_part(r, doc, "codec");
    int up = spec_word(&p, "up", SPEC_CODECS_UP);
    int down = spec_word(&p, "down", SPEC_CODECS_DOWN);
    s->codec.up_auto = up == CODEC_COUNT;
    s->codec.up = up < 0 || up == CODEC_COUNT ? CODEC_F32 : (enum codec)up;
    s->codec.down = down < 0 || down == CODEC_COUNT ? CODEC_F32 : (enum codec)down;
    s->codec.up_k = CODEC_K;
    s->codec.down_k = CODEC_K_DOWN;
    s->codec.share = SPEC_LINK_SHARE;
    spec_k(&p, "up_k", &s->codec.up_k);
    spec_k(&p, "down_k", &s->codec.down_k);
    if (s->codec.down == CODEC_TOPK && s->codec.down_k > CODEC_K_DOWN) {
        spec_complain(&p, "down_k", "%d is more than q2 takes for less error; try %d, or down q2",
                      s->codec.down_k, CODEC_K_DOWN);
    }
    spec_rate(&p, "share", (struct spec_range){0.0, true, 100.0, false}, &s->codec.share);
}

static void read_rest(struct spec_reader *r, const struct json *doc, struct run_spec *s)
{
    struct spec_part top = {.r = r, .name = "", .o = doc};
    int word = spec_word(&top, "weights", SPEC_WEIGHTS);
    s->weights = word >= 0 ? (enum weights_rule)word : WEIGHTS_TOKENS;
    word = spec_word(&top, "inner_state", SPEC_INNER_STATES);
    s->inner_state = word >= 0 ? (enum inner_state)word : INNER_STATE_KEEP;
    s->keep_checkpoints = 3;
    spec_i32(&top, "keep_checkpoints", 0, LIMIT_ROUNDS, &s->keep_checkpoints);

    read_codec(r, doc, s);
    bool coded = s->codec.up_auto || s->codec.up != CODEC_F32 || s->codec.down != CODEC_F32;
    if (s->inner_state == INNER_STATE_AVERAGE && coded) {
        spec_complain(&top, "inner_state",
                      "moments are averaged in f32 alone; try codec f32 both ways, or keep");
    }

    struct spec_part eval = spec_part(r, doc, "eval");
    s->eval.every = 1;
    s->eval.windows = 16;
    spec_i32(&eval, "every", 1, LIMIT_ROUNDS, &s->eval.every);
    spec_i32(&eval, "windows", 1, WINDOWS_MAX, &s->eval.windows);
}

enum status run_spec_parse(struct run_spec *out, const struct json *doc,
                           struct spec_problem *problems, int *count, struct err *e)
{
    struct run_spec s;
    memset(&s, 0, sizeof(s)); // padding too, so that equal specs are equal bytes
    s.seed = 17;
    struct spec_reader r = {.sections = SECTIONS, .problems = problems};
    struct spec_part top = spec_part(&r, doc, "");
    if (top.o) {
        int preset = -1;
        int64_t seed = (int64_t)s.seed;
        spec_name(&top, "name", s.name);
        spec_name(&top, "experiment", s.experiment);
        spec_int(&top, "seed", 0, SEED_MAX, &seed);
        s.seed = (uint64_t)seed;
        read_model(&r, doc, &s, &preset);
        read_tokenizer(&r, doc, &s);
        read_federation(&r, doc, &s);
        read_inner(&r, doc, &s, preset);
        read_outer(&r, doc, &s);
        read_rest(&r, doc, &s);
        if (r.total == 0) {
            struct spec_part federation = spec_part(&r, doc, "federation");
            spec_schedule_check(&federation, &s);
        }
    }
    *count = r.count;
    if (r.total == 0) {
        *out = s;
        return ST_OK;
    }
    const char *where = *problems[0].pointer ? problems[0].pointer : "the run spec";
    if (r.total == 1) {
        return err_set(e, ST_INVALID, "%s: %s", where, problems[0].detail);
    }
    return err_set(e, ST_INVALID, "%s: %.150s (and %d more)", where, problems[0].detail,
                   r.total - 1);
}
