/*
 * Printing a run spec: run_spec_json(). What is at its default and was not there from the first is
 * left out, so that specs of before keep their digests.
 */
#include <assert.h>

#include "common/run_spec.h"
#include "common/schedule.h"
#include "common/spec_words.h"

enum { SPEC_TEXT_MAX = 8 * 1024 };

// clang-format off
const char *const SPEC_OPTIMIZERS[INNER_COUNT + 1]        = {"adamw", "adopt", NULL};
const char *const SPEC_OUTERS[OUTER_COUNT + 1]            = {"fedavg", "fednesterov", "fedmom", "fedadam",
                                                               "fedyogi", NULL};
const char *const SPEC_POSITIONS[POSITION_COUNT + 1]      = {"learned", "alibi", NULL};
const char *const SPEC_WEIGHTS[WEIGHTS_COUNT + 1]         = {"tokens", "uniform", NULL};
const char *const SPEC_STEPS[STEPS_COUNT + 1]             = {"fixed", "dylu", NULL};
const char *const SPEC_INNER_STATES[INNER_STATE_COUNT + 1] = {"keep", "reset", "average", NULL};
// In the order of enum codec; what follows the last is auto, and another word for f32.
const char *const SPEC_CODECS_UP[CODEC_COUNT + 2]         = {"f32", "bf16", "int8", "q4", "q2", "topk", "auto",
                                                               NULL};
const char *const SPEC_CODECS_DOWN[CODEC_COUNT + 2]       = {"f32", "bf16", "int8", "q4", "q2", "topk", "snapshot",
                                                               NULL};
// clang-format on

bool spec_outer_adaptive(enum outer_optimizer o)
{
    return o == OUTER_FEDADAM || o == OUTER_FEDYOGI;
}

static void print_patterns(struct buf *b, const char *key, const struct patterns *p)
{
    jw_array(b, key);
    for (int32_t i = 0; i < p->count; i++) {
        jw_str(b, NULL, p->text[i]);
    }
    jw_end_array(b);
}

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
    jw_str(b, "position", SPEC_POSITIONS[s->model.position]);
    jw_bool(b, "bias", s->model.bias);
    print_patterns(b, "freeze", &s->freeze);
    print_patterns(b, "personal", &s->personal);
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
    jw_str(b, "local_steps_policy", SPEC_STEPS[s->federation.local_steps_policy]);
    if (s->federation.local_steps_policy == STEPS_DYLU) {
        jw_int(b, "local_steps_min", s->federation.local_steps_min);
    }
    if (s->federation.overlap_steps > 0) { // at their defaults they are not printed, as in
        jw_int(b, "overlap_steps", s->federation.overlap_steps); // print_codec()
    }
    if (schedule_fragments(s) > 1) { // at its default it is not printed: specs keep their digests
        jw_int(b, "fragments", s->federation.fragments);
    }
    jw_end_object(b);
}

static void print_inner(struct buf *b, const struct inner_spec *i)
{
    jw_object(b, "inner");
    jw_str(b, "optimizer", SPEC_OPTIMIZERS[i->optimizer]);
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

static void print_outer(struct buf *b, const struct outer_spec *o)
{
    jw_object(b, "outer");
    jw_str(b, "name", SPEC_OUTERS[o->name]);
    jw_num(b, "lr", o->lr);
    jw_num(b, "momentum", o->momentum);
    if (spec_outer_adaptive(o->name)) {
        jw_array(b, "betas");
        jw_num(b, NULL, o->beta1);
        jw_num(b, NULL, o->beta2);
        jw_end_array(b);
        jw_num(b, "eps", o->eps);
    }
    jw_num(b, "clip_median", o->clip_median);
    jw_end_object(b);
}

/* What is at its default is not printed, so that the specs of before keep their digests. */
static void print_codec(struct buf *b, const struct run_spec *s)
{
    jw_object(b, "codec");
    jw_str(b, "up", s->codec.up_auto ? SPEC_CODECS_UP[CODEC_COUNT] : SPEC_CODECS_UP[s->codec.up]);
    jw_str(b, "down", SPEC_CODECS_DOWN[s->codec.down]);
    if (s->codec.up_k != CODEC_K) {
        jw_int(b, "up_k", s->codec.up_k);
    }
    if (s->codec.down_k != CODEC_K_DOWN) {
        jw_int(b, "down_k", s->codec.down_k);
    }
    if (s->codec.share < SPEC_LINK_SHARE || s->codec.share > SPEC_LINK_SHARE) {
        jw_num(b, "share", s->codec.share);
    }
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
    print_outer(&b, &s->outer);
    jw_str(&b, "weights", SPEC_WEIGHTS[s->weights]);
    jw_str(&b, "inner_state", SPEC_INNER_STATES[s->inner_state]);
    print_codec(&b, s);
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
