#include "common/run_spec.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/limits.h"
#include "common/nearest.h"

static const int64_t SEED_MAX = ((int64_t)1 << 53) - 1;
enum {
    SPEC_TEXT_MAX = 8 * 1024,
    DEADLINE_MAX_S = 30 * 24 * 3600,
    WINDOWS_MAX = 1 << 20,
    WARMUP_DEFAULT = 100,
    BYTE_IDS = 258, // what the byte tokenizer emits: two special tokens and the 256 bytes
};

// clang-format off
static const char *const OPTIMIZERS[INNER_COUNT + 1]        = {"adamw", "adopt", NULL};
static const char *const OUTERS[OUTER_COUNT + 1]            = {"fedavg", "fednesterov", NULL};
static const char *const POSITIONS[POSITION_COUNT + 1]      = {"learned", "alibi", NULL};
static const char *const WEIGHTS[WEIGHTS_COUNT + 1]         = {"tokens", "uniform", NULL};
static const char *const INNER_STATES[INNER_STATE_COUNT + 1] = {"keep", "reset", NULL};
static const char *const CODECS[]                           = {"f32", NULL};

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

enum { KEYS_MAX = 14 };
static const struct section {
    const char *name;
    const char *keys[KEYS_MAX];
} SECTIONS[] = {
    {"", {"name", "experiment", "seed", "model", "tokenizer", "federation", "inner", "outer",
          "weights", "inner_state", "codec", "eval", "keep_checkpoints", NULL}},
    {"model", {"preset", "d_model", "n_heads", "n_layers", "vocab_size", "seq_len", "position",
               "bias", NULL}},
    {"tokenizer", {"sha256", NULL}},
    {"federation", {"rounds", "silos_per_round", "min_silos", "oversample", "local_steps",
                    "deadline_s", "deadline_k", NULL}},
    {"inner", {"optimizer", "lr", "betas", "eps", "weight_decay", "clip_norm", "batch",
               "micro_batch", "warmup", "schedule_steps", "min_lr_ratio", NULL}},
    {"outer", {"name", "lr", "momentum", NULL}},
    {"codec", {"up", "down", NULL}},
    {"eval", {"every", "windows", NULL}},
};
// clang-format on
enum { SECTION_COUNT = sizeof(SECTIONS) / sizeof(SECTIONS[0]) };

/* Where problems gather. More than the list holds are counted, not stored. */
struct reader {
    struct spec_problem *problems;
    int count;
    int total;
};

/* One object of the document; o is NULL when it was left out. */
struct part {
    struct reader *r;
    const char *name; // "" for the document itself
    const struct json *o;
};

static void PRINTF_LIKE(3, 4) complain(const struct part *p, const char *key, const char *fmt, ...)
{
    struct reader *r = p->r;
    r->total++;
    if (r->count == SPEC_PROBLEMS_MAX) {
        return;
    }
    struct spec_problem *out = &r->problems[r->count++];
    (void)snprintf(out->pointer, sizeof(out->pointer), "%s%s%s%s", *p->name ? "/" : "", p->name,
                   *key ? "/" : "", key);
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(out->detail, sizeof(out->detail), fmt, ap);
    va_end(ap);
}

/* A stranger's text as it may stand in a message: short, printable ASCII. */
static const char *shown(const char *text, char out[41])
{
    int n = 0;
    for (; n < 40 && text[n]; n++) {
        out[n] = text[n] >= 0x20 && text[n] < 0x7f ? text[n] : '?';
    }
    out[n] = '\0';
    return out;
}

/* The same with '~' and '/' escaped, as a JSON pointer wants them (RFC 6901). */
static const char *pointer_part(const char *key, char out[81])
{
    char clean[41];
    int n = 0;
    for (const char *c = shown(key, clean); *c; c++) {
        if (*c == '~' || *c == '/') {
            out[n++] = '~';
            out[n++] = *c == '~' ? '0' : '1';
        } else {
            out[n++] = *c;
        }
    }
    out[n] = '\0';
    return out;
}

static const char *joined(const char *const *list, char out[160])
{
    int n = 0;
    out[0] = '\0';
    for (const char *const *w = list; *w; w++) {
        n += snprintf(out + n, 160 - (size_t)n, "%s%s", n > 0 ? ", " : "", *w);
        assert(n < 160);
    }
    return out;
}

/* A key that is right elsewhere is named there; else the nearest of this part, else of all. */
static void unknown_key(const struct part *p, const struct section *here, const char *key)
{
    char clean[41];
    char at[81];
    const char *near = nearest(key, here->keys);
    shown(key, clean);
    pointer_part(key, at);
    for (int i = 0; i < SECTION_COUNT; i++) {
        for (const char *const *k = SECTIONS[i].keys; *k; k++) {
            if (strcmp(*k, key) == 0) {
                complain(p, at, "unknown key '%s' here; it belongs %s%s", clean,
                         *SECTIONS[i].name ? "under " : "at the top of the spec", SECTIONS[i].name);
                return;
            }
        }
    }
    if (near) {
        complain(p, at, "unknown key '%s'; did you mean '%s'?", clean, near);
        return;
    }
    for (int i = 0; i < SECTION_COUNT && !near; i++) {
        near = nearest(key, SECTIONS[i].keys);
        if (near) {
            complain(p, at, "unknown key '%s'; did you mean '%s%s%s'?", clean, SECTIONS[i].name,
                     *SECTIONS[i].name ? "." : "", near);
            return;
        }
    }
    char all[160];
    complain(p, at, "unknown key '%s'; known here: %s", clean, joined(here->keys, all));
}

/* The object of that name with its unknown keys complained of. */
static struct part part_of(struct reader *r, const struct json *doc, const char *name)
{
    struct part p = {.r = r, .name = name, .o = *name ? json_get(doc, name) : doc};
    if (!p.o) {
        return p;
    }
    if (json_kind(p.o) != JSON_OBJECT) {
        complain(&p, "", "must be a JSON object");
        p.o = NULL;
        return p;
    }
    const struct section *s = SECTIONS;
    while (strcmp(s->name, name) != 0) {
        s++;
    }
    for (const struct json *v = json_first(p.o); v; v = json_next(v)) {
        bool known = false;
        for (const char *const *k = s->keys; *k && !known; k++) {
            known = strcmp(*k, json_key(v)) == 0;
        }
        if (!known) {
            unknown_key(&p, s, json_key(v));
        }
    }
    return p;
}

static const struct json *get(const struct part *p, const char *key)
{
    return p->o ? json_get(p->o, key) : NULL;
}

static void must_have(const struct part *p, const char *key, const char *remedy)
{
    if (!get(p, key)) {
        complain(p, key, "is missing; %s", remedy);
    }
}

/* Absent keys leave what the caller put there: the default. */
static void read_int(const struct part *p, const char *key, int64_t min, int64_t max, int64_t *io)
{
    const struct json *v = get(p, key);
    if (!v) {
        return;
    }
    if (json_is_int(v, min, max)) {
        *io = json_int(v);
        return;
    }
    char got[40] = "";
    if (json_kind(v) == JSON_NUMBER) {
        (void)snprintf(got, sizeof(got), ", not %.15g", json_num(v));
    }
    complain(p, key, "must be a whole number from %" PRId64 " to %" PRId64 "%s", min, max, got);
}

static void read_i32(const struct part *p, const char *key, int32_t min, int32_t max, int32_t *io)
{
    int64_t wide = *io;
    read_int(p, key, min, max, &wide);
    *io = (int32_t)wide;
}

/* Bounds of a rate; `open` excludes them. JSON has no NaN, and json_parse() refuses infinities. */
struct range {
    double min;
    bool min_open;
    double max;
    bool max_open;
};

static bool in_range(double v, struct range a)
{
    return (a.min_open ? v > a.min : v >= a.min) && (a.max_open ? v < a.max : v <= a.max);
}

static void read_num(const struct part *p, const char *key, const struct json *v, struct range a,
                     double *io)
{
    if (!v) {
        return;
    }
    if (json_kind(v) == JSON_NUMBER && in_range(json_num(v), a)) {
        *io = json_num(v) + 0.0; // -0 prints as 0
        return;
    }
    char got[40] = "";
    if (json_kind(v) == JSON_NUMBER) {
        (void)snprintf(got, sizeof(got), ", not %.6g", json_num(v));
    }
    complain(p, key, "must be a number %s %g and %s %g%s", a.min_open ? "above" : "of at least",
             a.min, a.max_open ? "below" : "at most", a.max, got);
}

static void read_rate(const struct part *p, const char *key, struct range a, double *io)
{
    read_num(p, key, get(p, key), a, io);
}

static void read_bool(const struct part *p, const char *key, bool *io)
{
    const struct json *v = get(p, key);
    if (v && json_kind(v) == JSON_BOOL) {
        *io = json_bool(v);
    } else if (v) {
        complain(p, key, "must be true or false");
    }
}

/* The index of one of the words, or -1: absent, or complained of. */
static int read_word(const struct part *p, const char *key, const char *const *words)
{
    const struct json *v = get(p, key);
    char all[160];
    if (!v) {
        return -1;
    }
    const char *text = json_str(v);
    if (!text) {
        complain(p, key, "must be one of: %s", joined(words, all));
        return -1;
    }
    for (int i = 0; words[i]; i++) {
        if (strcmp(words[i], text) == 0) {
            return i;
        }
    }
    char clean[41];
    const char *near = nearest(text, words);
    if (near) {
        complain(p, key, "'%s' is not known; did you mean '%s'? (all: %s)", shown(text, clean),
                 near, joined(words, all));
    } else {
        complain(p, key, "'%s' is not known; use one of: %s", shown(text, clean),
                 joined(words, all));
    }
    return -1;
}

static bool name_ok(const char *s)
{
    static const char WORD[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    static const char REST[] = "abcdefghijklmnopqrstuvwxyz0123456789._-";
    return *s && strchr(WORD, *s) && s[strspn(s, REST)] == '\0';
}

static void read_name(const struct part *p, const char *key, char out[64])
{
    const struct json *v = get(p, key);
    if (!v) {
        return;
    }
    const char *text = json_str(v);
    if (text && (*text == '\0' || (name_ok(text) && strlen(text) < 64))) {
        (void)snprintf(out, 64, "%s", text);
        return;
    }
    complain(p, key,
             "must be at most 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or "
             "digit, for example \"tiny-1\"");
}

/* ---- the parts ---- */

static int read_preset(const struct part *p, struct run_spec *s)
{
    int i = read_word(p, "preset", PRESET_NAMES);
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

static void check_model(const struct part *p, const struct model_spec *m)
{
    if (m->d_model % m->n_heads != 0 || m->d_model / m->n_heads % 2 != 0) {
        int32_t heads = fitting_heads(m->d_model, m->n_heads);
        int32_t unit = 2 * m->n_heads;
        int32_t d = (m->d_model + unit - 1) / unit * unit;
        if (heads > 0) {
            complain(p, "d_model",
                     "%d does not split into %d heads of even size; try n_heads %d, or d_model %d",
                     m->d_model, m->n_heads, heads, d);
        } else {
            complain(p, "d_model", "%d does not split into %d heads of even size; try d_model %d",
                     m->d_model, m->n_heads, d);
        }
        return;
    }
    struct err e = {0};
    if (model_spec_check(m, &e)) {
        complain(p, "", "%s", e.msg);
    }
}

static void read_model(struct reader *r, const struct json *doc, struct run_spec *s, int *preset)
{
    struct part p = part_of(r, doc, "model");
    int before = r->total;
    struct model_spec *m = &s->model;
    *m = (struct model_spec){.position = POSITION_LEARNED, .bias = true};
    *preset = -1;
    if (!json_get(doc, "model")) {
        complain(&p, "", "is missing; give {\"preset\": \"125m\"} or the sizes");
    }
    if (!p.o) {
        return;
    }
    *preset = read_preset(&p, s);
    if (!get(&p, "preset")) {
        static const char *const SIZES[] = {"d_model",    "n_heads", "n_layers",
                                            "vocab_size", "seq_len", NULL};
        for (const char *const *k = SIZES; *k; k++) {
            must_have(&p, *k, "give all sizes, or a preset: 125m, 1b, 3b, 7b");
        }
    }
    read_i32(&p, "d_model", 2, LIMIT_D_MODEL, &m->d_model);
    read_i32(&p, "n_heads", 1, LIMIT_HEADS, &m->n_heads);
    read_i32(&p, "n_layers", 1, LIMIT_LAYERS, &m->n_layers);
    read_i32(&p, "vocab_size", 2, LIMIT_VOCAB, &m->vocab_size);
    read_i32(&p, "seq_len", 1, LIMIT_SEQ_LEN, &m->seq_len);
    int position = read_word(&p, "position", POSITIONS);
    m->position = position < 0 ? m->position : (enum position)position;
    read_bool(&p, "bias", &m->bias);
    if (r->total == before) {
        check_model(&p, m);
    }
}

static void read_tokenizer(struct reader *r, const struct json *doc, struct run_spec *s)
{
    struct part p = part_of(r, doc, "tokenizer");
    const struct json *v = get(&p, "sha256");
    if (v) {
        const char *hex = json_str(v);
        size_t len = hex ? strlen(hex) : 1;
        if ((len != 0 && len != 64) || hex[strspn(hex, "0123456789abcdef")] != '\0') {
            complain(&p, "sha256",
                     "must be the 64 lower-case hex digits that sha256sum prints "
                     "for tokenizer.json, or \"\" for the byte tokenizer");
            return;
        }
        (void)snprintf(s->tokenizer_sha256, sizeof(s->tokenizer_sha256), "%s", hex);
    }
    if (!*s->tokenizer_sha256 && s->model.vocab_size > 1 && s->model.vocab_size < BYTE_IDS) {
        struct part model = {.r = r, .name = "model"};
        complain(&model, "vocab_size", "%d is too small: the byte tokenizer has %d ids; try 320",
                 s->model.vocab_size, BYTE_IDS);
    }
}

static void read_federation(struct reader *r, const struct json *doc, struct run_spec *s)
{
    struct part p = part_of(r, doc, "federation");
    int before = r->total;
    s->federation.deadline_s = 86400;
    s->federation.deadline_k = 5.0;
    must_have(&p, "rounds", "say how many rounds the run takes");
    must_have(&p, "silos_per_round", "say how many silos train in a round");
    must_have(&p, "local_steps", "say how many steps a silo takes per round; 64 to 512 are usual");
    read_i32(&p, "rounds", 1, LIMIT_ROUNDS, &s->federation.rounds);
    read_i32(&p, "silos_per_round", 1, LIMIT_SILOS, &s->federation.silos_per_round);
    read_i32(&p, "min_silos", 1, LIMIT_SILOS, &s->federation.min_silos);
    read_i32(&p, "oversample", 0, LIMIT_SILOS, &s->federation.oversample);
    read_i32(&p, "local_steps", 1, LIMIT_STEPS, &s->federation.local_steps);
    read_i32(&p, "deadline_s", 1, DEADLINE_MAX_S, &s->federation.deadline_s);
    read_rate(&p, "deadline_k", (struct range){1.0, false, 1000.0, false},
              &s->federation.deadline_k);
    if (r->total > before) {
        return;
    }
    int32_t n = s->federation.silos_per_round;
    if (!get(&p, "min_silos")) {
        int32_t quorum = (2 * n + 2) / 3;
        s->federation.min_silos = quorum < 2 && n > 1 ? 2 : quorum;
    } else if (s->federation.min_silos > n) {
        complain(&p, "min_silos",
                 "%d is more than silos_per_round %d, so no round could ever close; try %d",
                 s->federation.min_silos, n, n);
    }
    if (s->federation.oversample > LIMIT_SILOS - n) {
        complain(&p, "oversample", "%d and silos_per_round %d are together over %d; try %d",
                 s->federation.oversample, n, LIMIT_SILOS, LIMIT_SILOS - n);
    }
}

static void read_betas(const struct part *p, struct inner_spec *i)
{
    const struct json *v = get(p, "betas");
    if (!v) {
        return;
    }
    if (json_kind(v) != JSON_ARRAY || json_len(v) != 2) {
        complain(p, "betas", "must be two numbers, for example [0.9, 0.95]");
        return;
    }
    static const struct range MEAN = {0.0, false, 1.0, true};
    read_num(p, "betas/0", json_at(v, 0), MEAN, &i->beta1);
    read_num(p, "betas/1", json_at(v, 1), MEAN, &i->beta2);
}

static void check_inner(const struct part *p, const struct inner_spec *i)
{
    if (i->warmup > i->schedule_steps) {
        complain(p, "warmup",
                 "%d steps of warm-up are more than the schedule's %" PRId64 "; try %" PRId64
                 ", or a larger schedule_steps",
                 i->warmup, i->schedule_steps, i->schedule_steps / 10);
    }
    if (i->micro_batch > i->batch || (i->micro_batch > 0 && i->batch % i->micro_batch != 0)) {
        int32_t fit = i->micro_batch < i->batch ? i->micro_batch : i->batch;
        while (i->batch % fit != 0) {
            fit--;
        }
        complain(p, "micro_batch", "%d does not divide batch %d; try %d, or 0: the silo chooses",
                 i->micro_batch, i->batch, fit);
    }
}

static void read_inner(struct reader *r, const struct json *doc, struct run_spec *s, int preset)
{
    struct part p = part_of(r, doc, "inner");
    struct inner_spec *i = &s->inner;
    int before = r->total;
    int word = read_word(&p, "optimizer", OPTIMIZERS);
    i->optimizer = word >= 0     ? (enum inner_optimizer)word
                   : preset >= 0 ? PRESETS[preset].optimizer
                                 : INNER_ADAMW;
    i->lr = preset >= 0 ? PRESETS[preset].lr : 1e-3;
    i->beta1 = 0.9;
    i->beta2 = i->optimizer == INNER_ADOPT ? 0.9999 : 0.95;
    i->eps = i->optimizer == INNER_ADOPT ? 1e-6 : 1e-8;
    i->clip_norm = 1.0;
    i->min_lr_ratio = 0.1;
    must_have(&p, "batch", "say how many sequences a silo takes per step; 32 is Photon's choice");
    read_rate(&p, "lr", (struct range){0.0, true, 10.0, false}, &i->lr);
    read_betas(&p, i);
    read_rate(&p, "eps", (struct range){0.0, true, 1.0, false}, &i->eps);
    read_rate(&p, "weight_decay", (struct range){0.0, false, 1.0, true}, &i->weight_decay);
    read_rate(&p, "clip_norm", (struct range){0.0, true, 1e9, false}, &i->clip_norm);
    read_rate(&p, "min_lr_ratio", (struct range){0.0, false, 1.0, false}, &i->min_lr_ratio);
    read_i32(&p, "batch", 1, LIMIT_BATCH, &i->batch);
    read_i32(&p, "micro_batch", 0, LIMIT_BATCH, &i->micro_batch);
    i->schedule_steps = (int64_t)s->federation.rounds * s->federation.local_steps;
    read_int(&p, "schedule_steps", 1, (int64_t)LIMIT_ROUNDS * LIMIT_STEPS, &i->schedule_steps);
    // A default must never be an error: short runs warm up for a tenth of their steps.
    int64_t tenth = i->schedule_steps / 10;
    i->warmup = tenth < WARMUP_DEFAULT ? (int32_t)tenth : WARMUP_DEFAULT;
    read_i32(&p, "warmup", 0, INT32_MAX, &i->warmup);
    if (r->total == before && i->schedule_steps > 0) {
        check_inner(&p, i);
    }
}

static void read_outer(struct reader *r, const struct json *doc, struct run_spec *s)
{
    struct part p = part_of(r, doc, "outer");
    int word = read_word(&p, "name", OUTERS);
    s->outer.name = word >= 0 ? (enum outer_optimizer)word : OUTER_FEDAVG;
    s->outer.lr = s->outer.name == OUTER_FEDNESTEROV ? 0.7 : 1.0;
    s->outer.momentum = s->outer.name == OUTER_FEDNESTEROV ? 0.9 : 0.0;
    read_rate(&p, "lr", (struct range){0.0, true, 10.0, false}, &s->outer.lr);
    read_rate(&p, "momentum", (struct range){0.0, false, 1.0, true}, &s->outer.momentum);
    if (s->outer.name == OUTER_FEDAVG && s->outer.momentum > 0.0) {
        complain(&p, "momentum", "fedavg has none; try \"name\": \"fednesterov\", or 0");
    }
}

static void read_rest(struct reader *r, const struct json *doc, struct run_spec *s)
{
    struct part top = {.r = r, .name = "", .o = doc};
    int word = read_word(&top, "weights", WEIGHTS);
    s->weights = word >= 0 ? (enum weights_rule)word : WEIGHTS_TOKENS;
    word = read_word(&top, "inner_state", INNER_STATES);
    s->inner_state = word >= 0 ? (enum inner_state)word : INNER_STATE_KEEP;
    s->keep_checkpoints = 3;
    read_i32(&top, "keep_checkpoints", 0, LIMIT_ROUNDS, &s->keep_checkpoints);

    struct part codec = part_of(r, doc, "codec");
    (void)read_word(&codec, "up", CODECS);
    (void)read_word(&codec, "down", CODECS);

    struct part eval = part_of(r, doc, "eval");
    s->eval.every = 1;
    s->eval.windows = 16;
    read_i32(&eval, "every", 1, LIMIT_ROUNDS, &s->eval.every);
    read_i32(&eval, "windows", 1, WINDOWS_MAX, &s->eval.windows);
}

enum status run_spec_parse(struct run_spec *out, const struct json *doc,
                           struct spec_problem *problems, int *count, struct err *e)
{
    struct run_spec s;
    memset(&s, 0, sizeof(s)); // padding too, so that equal specs are equal bytes
    s.seed = 17;
    struct reader r = {.problems = problems};
    struct part top = part_of(&r, doc, "");
    if (top.o) {
        int preset = -1;
        int64_t seed = (int64_t)s.seed;
        read_name(&top, "name", s.name);
        read_name(&top, "experiment", s.experiment);
        read_int(&top, "seed", 0, SEED_MAX, &seed);
        s.seed = (uint64_t)seed;
        read_model(&r, doc, &s, &preset);
        read_tokenizer(&r, doc, &s);
        read_federation(&r, doc, &s);
        read_inner(&r, doc, &s, preset);
        read_outer(&r, doc, &s);
        read_rest(&r, doc, &s);
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

/* ---- printing ---- */

static void print_model(struct buf *b, const struct run_spec *s)
{
    jw_object(b, "model");
    if (*s->preset) {
        jw_str(b, "preset", s->preset);
    }
    jw_int(b, "d_model", s->model.d_model);
    jw_int(b, "n_heads", s->model.n_heads);
    jw_int(b, "n_layers", s->model.n_layers);
    jw_int(b, "vocab_size", s->model.vocab_size);
    jw_int(b, "seq_len", s->model.seq_len);
    jw_str(b, "position", POSITIONS[s->model.position]);
    jw_bool(b, "bias", s->model.bias);
    jw_end_object(b);
    jw_object(b, "tokenizer");
    jw_str(b, "sha256", s->tokenizer_sha256);
    jw_end_object(b);
}

static void print_federation(struct buf *b, const struct run_spec *s)
{
    jw_object(b, "federation");
    jw_int(b, "rounds", s->federation.rounds);
    jw_int(b, "silos_per_round", s->federation.silos_per_round);
    jw_int(b, "min_silos", s->federation.min_silos);
    jw_int(b, "oversample", s->federation.oversample);
    jw_int(b, "local_steps", s->federation.local_steps);
    jw_int(b, "deadline_s", s->federation.deadline_s);
    jw_num(b, "deadline_k", s->federation.deadline_k);
    jw_end_object(b);
}

static void print_inner(struct buf *b, const struct inner_spec *i)
{
    jw_object(b, "inner");
    jw_str(b, "optimizer", OPTIMIZERS[i->optimizer]);
    jw_num(b, "lr", i->lr);
    jw_array(b, "betas");
    jw_num(b, NULL, i->beta1);
    jw_num(b, NULL, i->beta2);
    jw_end_array(b);
    jw_num(b, "eps", i->eps);
    jw_num(b, "weight_decay", i->weight_decay);
    jw_num(b, "clip_norm", i->clip_norm);
    jw_int(b, "batch", i->batch);
    jw_int(b, "micro_batch", i->micro_batch);
    jw_int(b, "warmup", i->warmup);
    jw_int(b, "schedule_steps", i->schedule_steps);
    jw_num(b, "min_lr_ratio", i->min_lr_ratio);
    jw_end_object(b);
}

char *run_spec_json(struct arena *a, const struct run_spec *s)
{
    struct buf b;
    buf_init(&b, SPEC_TEXT_MAX);
    jw_object(&b, NULL);
    if (*s->name) {
        jw_str(&b, "name", s->name);
    }
    jw_str(&b, "experiment", s->experiment);
    jw_int(&b, "seed", (int64_t)s->seed);
    print_model(&b, s);
    print_federation(&b, s);
    print_inner(&b, &s->inner);
    jw_object(&b, "outer");
    jw_str(&b, "name", OUTERS[s->outer.name]);
    jw_num(&b, "lr", s->outer.lr);
    jw_num(&b, "momentum", s->outer.momentum);
    jw_end_object(&b);
    jw_str(&b, "weights", WEIGHTS[s->weights]);
    jw_str(&b, "inner_state", INNER_STATES[s->inner_state]);
    jw_object(&b, "codec");
    jw_str(&b, "up", CODECS[0]);
    jw_str(&b, "down", CODECS[0]);
    jw_end_object(&b);
    jw_object(&b, "eval");
    jw_int(&b, "every", s->eval.every);
    jw_int(&b, "windows", s->eval.windows);
    jw_end_object(&b);
    jw_int(&b, "keep_checkpoints", s->keep_checkpoints);
    jw_end_object(&b);
    assert(!b.full);
    char *text = arena_fmt(a, "%s", b.data);
    buf_release(&b);
    return text;
}
