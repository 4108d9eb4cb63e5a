/*
 * run_spec.h - the immutable description of a run: parsed, checked, filled in.
 *
 * The document is the JSON that POST /api/v1/runs takes (docs/API.md, "Run spec"). `model`,
 * federation.{rounds, silos_per_round, local_steps} and inner.batch are required; unknown keys
 * are errors that name the nearest known one; run_spec_json() prints the spec with every default
 * written out, and that text is what the store keeps and what silos receive.
 */
#ifndef COMMON_RUN_SPEC_H
#define COMMON_RUN_SPEC_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/codec.h"
#include "common/inner.h"
#include "common/json.h"
#include "common/outer.h"
#include "common/params.h"
#include "common/patterns.h"
#include "common/spec_reader.h"
#include "common/status.h"

enum weights_rule { WEIGHTS_TOKENS = 0, WEIGHTS_UNIFORM, WEIGHTS_COUNT };
enum steps_policy { STEPS_FIXED = 0, STEPS_DYLU, STEPS_COUNT };
enum inner_state {
    INNER_STATE_KEEP = 0, /* moments belong to the silo */
    INNER_STATE_RESET,    /* every round starts with none */
    INNER_STATE_AVERAGE,  /* every round starts with the mean of the last one's */
    INNER_STATE_COUNT
};

struct run_spec {
    char name[64];       /* [a-z0-9][a-z0-9._-]*; default: drawn by the server */
    char experiment[64]; /* may be empty */
    uint64_t seed;       /* < 2^53 */
    struct model_spec model;
    struct patterns freeze;    /* tensors that no optimizer moves, and no update holds */
    struct patterns personal;  /* tensors that each silo trains and keeps for itself */
    char preset[16];           /* "" or 125m, 1b, 3b, 7b: defaults of model and inner */
    char tokenizer_sha256[65]; /* digest of tokenizer.json; "" = the byte tokenizer */
    struct {
        int32_t rounds;
        int32_t silos_per_round;
        int32_t min_silos; /* quorum; default ceil(2/3 silos_per_round), at least 2 unless 1 silo */
        int32_t oversample;
        int32_t local_steps;                  /* tau */
        enum steps_policy local_steps_policy; /* dylu: slow silos take fewer, by speed */
        int32_t local_steps_min; /* dylu's floor; default an eighth of tau; fixed: tau */
        int32_t overlap_steps;   /* of a round, taken while the former one's update travels */
        int32_t fragments;       /* parts of the model that rounds synchronise in turn; 1: whole */
        int32_t deadline_s;      /* cap, default 86400 */
        double deadline_k;       /* 5 */
    } federation;
    struct inner_spec inner; /* schedule_steps defaults to rounds * local_steps */
    struct outer_spec outer; /* lr 1, 0.7 or 0.01; momentum 0.9; betas 0.9, 0.99; eps 1e-3 */
    enum weights_rule weights;
    enum inner_state inner_state;
    struct {
        bool up_auto;    /* each silo takes the rung its link needs; up is f32 then */
        enum codec up;   /* updates; a silo may choose its own */
        enum codec down; /* checkpoints' steps; f32: whole weights */
        int32_t up_k;    /* topk: kept of 4096, default 64 */
        int32_t down_k;  /* default 256 */
        double share;    /* auto: transfer time per compute time, default 0.05 */
    } codec;
    struct {
        int32_t every;   /* evaluate every n-th round (and the last); default 1 */
        int32_t windows; /* sequences per silo and evaluation; default 16 */
    } eval;
    int32_t keep_checkpoints; /* newest to keep, default 3; 0 = all */
};

/*
 * ST_INVALID with problems[0..*count) filled (count may be 1 or more); *out is untouched then.
 * Presets, defaults and cross-field rules (quorum <= silos, tau >= 1, finite
 * rates) are applied here.
 */
enum status run_spec_parse(struct run_spec *out, const struct json *doc,
                           struct spec_problem *problems, int *count, struct err *e) MUST_CHECK;

/* The whole spec as JSON, every default written out; parse(print(s)) == s. In the arena. */
char *run_spec_json(struct arena *a, const struct run_spec *s);

#endif
