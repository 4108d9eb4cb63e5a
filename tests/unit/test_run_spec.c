#include "common/run_spec.h"

#include <stdio.h>
#include <string.h>

#include "common/nearest.h"
#include "tests/support/check.h"

#define REST                                                                                       \
    "\"federation\":{\"rounds\":20,\"silos_per_round\":4,\"local_steps\":64},"                     \
    "\"inner\":{\"batch\":8}"
#define SIZES "\"d_model\":64,\"n_heads\":4,\"n_layers\":2,\"vocab_size\":320,\"seq_len\":128"

static struct spec_problem problems[SPEC_PROBLEMS_MAX];
static int problem_count;

static enum status parse(struct arena *a, const char *text, struct run_spec *out)
{
    const struct json *doc = NULL;
    struct err e = {0};
    if (json_parse(&doc, a, text, strlen(text), &e)) {
        return ST_CORRUPT;
    }
    return run_spec_parse(out, doc, problems, &problem_count, &e);
}

static void good(const char *text, struct run_spec *out)
{
    struct arena *a = arena_new(1 << 20);
    enum status st = parse(a, text, out);
    arena_free(a);
    CHECK_STR(st ? problems[0].detail : "", "");
    CHECK_INT(st, ST_OK);
}

/* One mistake: one problem, at that place, whose sentence holds that text. */
static void bad(const char *text, const char *pointer, const char *says)
{
    struct arena *a = arena_new(1 << 20);
    struct run_spec s;
    struct run_spec before;
    memset(&s, 0x5a, sizeof(s));
    memset(&before, 0x5a, sizeof(before));
    enum status st = parse(a, text, &s);
    arena_free(a);
    CHECK_INT(st, ST_INVALID);
    CHECK_STR(problems[0].pointer, pointer);
    if (!strstr(problems[0].detail, says)) {
        CHECK_STR(problems[0].detail, says);
    }
    CHECK_INT(problem_count, 1);
    CHECK_MEM(&s, &before, sizeof(s));
}

static void bad_with(const char *part, const char *pointer, const char *says)
{
    char text[1024];
    (void)snprintf(text, sizeof(text), "{\"model\":{" SIZES "},%s}", part);
    bad(text, pointer, says);
}

static void bad_federation(const char *more, const char *pointer, const char *says)
{
    char part[512];
    (void)snprintf(part, sizeof(part),
                   "\"federation\":{\"rounds\":2,\"silos_per_round\":4,\"local_steps\":8,%s},"
                   "\"inner\":{\"batch\":8}",
                   more);
    bad_with(part, pointer, says);
}

static void bad_inner(const char *more, const char *pointer, const char *says)
{
    char part[512];
    (void)snprintf(part, sizeof(part),
                   "\"federation\":{\"rounds\":2,\"silos_per_round\":4,\"local_steps\":8},"
                   "\"inner\":{\"batch\":8,%s}",
                   more);
    bad_with(part, pointer, says);
}

static void bad_model(const char *model, const char *pointer, const char *says)
{
    char text[512];
    (void)snprintf(text, sizeof(text), "{\"model\":%s," REST "}", model);
    bad(text, pointer, says);
}

static void bad_top(const char *more, const char *pointer, const char *says)
{
    char part[512];
    (void)snprintf(part, sizeof(part), REST ",%s", more);
    bad_with(part, pointer, says);
}

static void a_short_spec_gets_every_default(void)
{
    struct run_spec s;
    good("{\"model\":{" SIZES "}," REST "}", &s);
    CHECK_STR(s.name, "");
    CHECK_INT(s.model.position, POSITION_LEARNED);
    CHECK(s.model.bias);
    CHECK_INT(s.federation.min_silos, 3);
    CHECK_INT(s.federation.deadline_s, 86400);
    CHECK_INT(s.inner.optimizer, INNER_ADAMW);
    CHECK_NEAR(s.inner.beta2, 0.95, 0);
    CHECK_INT(s.inner.schedule_steps, 1280);
    CHECK_INT(s.inner.warmup, 100);
    CHECK_INT(s.outer.name, OUTER_FEDAVG);
    CHECK_NEAR(s.outer.lr, 1.0, 0);
    CHECK_INT(s.eval.windows, 16);
    CHECK_INT(s.keep_checkpoints, 3);
}

static void presets_bring_sizes_and_their_inner_optimizer(void)
{
    struct run_spec s;
    good("{\"model\":{\"preset\":\"125m\"}," REST "}", &s);
    CHECK_STR(s.preset, "125m");
    CHECK_INT(model_param_count(&s.model), 125311488);
    CHECK_INT(s.inner.optimizer, INNER_ADOPT);
    CHECK_NEAR(s.inner.lr, 6e-4, 0);
    CHECK_NEAR(s.inner.beta2, 0.9999, 0);
    CHECK_NEAR(s.inner.eps, 1e-6, 0);

    good("{\"model\":{\"preset\":\"7b\",\"vocab_size\":320}," REST "}", &s);
    CHECK_INT(s.model.d_model, 4096);
    CHECK_INT(s.model.vocab_size, 320);
    CHECK_INT(s.inner.optimizer, INNER_ADAMW);
    CHECK_NEAR(s.inner.lr, 1.2e-4, 0);
}

static void the_optimizer_chosen_brings_its_own_betas(void)
{
    struct run_spec s;
    good("{\"model\":{\"preset\":\"125m\"},"
         "\"federation\":{\"rounds\":20,\"silos_per_round\":4,\"local_steps\":64},"
         "\"inner\":{\"batch\":8,\"optimizer\":\"adamw\"},\"outer\":{\"name\":\"fednesterov\"}}",
         &s);
    CHECK_NEAR(s.inner.beta2, 0.95, 0);
    CHECK_NEAR(s.inner.eps, 1e-8, 0);
    CHECK_NEAR(s.outer.lr, 0.7, 0);
    CHECK_NEAR(s.outer.momentum, 0.9, 0);
}

static void every_outer_optimizer_has_its_own_defaults(void)
{
    static const struct {
        const char *name;
        double lr, momentum, beta1, beta2, eps;
    } want[OUTER_COUNT] = {{"fedavg", 1.0, 0, 0, 0, 0},
                           {"fednesterov", 0.7, 0.9, 0, 0, 0},
                           {"fedmom", 0.7, 0.9, 0, 0, 0},
                           {"fedadam", 0.01, 0, 0.9, 0.99, 1e-3},
                           {"fedyogi", 0.01, 0, 0.9, 0.99, 1e-3}};
    for (int o = 0; o < OUTER_COUNT; o++) {
        char text[512];
        (void)snprintf(text, sizeof(text),
                       "{\"model\":{" SIZES "}," REST ",\"outer\":{\"name\":\"%s\"}}",
                       want[o].name);
        struct run_spec s;
        good(text, &s);
        CHECK_INT(s.outer.name, o);
        CHECK(s.outer.lr == want[o].lr && s.outer.momentum == want[o].momentum);
        CHECK(s.outer.beta1 == want[o].beta1 && s.outer.beta2 == want[o].beta2);
        CHECK(s.outer.eps == want[o].eps && s.outer.clip_median == 0.0);
    }
}

static void slow_silos_may_take_fewer_steps(void)
{
    struct run_spec s;
    good("{\"model\":{" SIZES "},\"federation\":{\"rounds\":2,\"silos_per_round\":1,"
         "\"local_steps\":100,\"local_steps_policy\":\"dylu\"},\"inner\":{\"batch\":8}}",
         &s);
    CHECK_INT(s.federation.local_steps_policy, STEPS_DYLU);
    CHECK_INT(s.federation.local_steps_min, 12);
    bad_federation("\"local_steps_policy\":\"dylu\",\"local_steps_min\":9",
                   "/federation/local_steps_min", "more than local_steps 8; try 1");
    bad_federation("\"local_steps_min\":4", "/federation/local_steps_min",
                   "try local_steps_policy");
    bad_federation("\"local_steps_policy\":\"auto\"", "/federation/local_steps_policy",
                   "fixed, dylu");
}

static void fragments_must_fit_the_run(void)
{
    struct run_spec s;
    bad_federation("\"fragments\":0", "/federation/fragments", "from 1");
    bad_federation("\"fragments\":300", "/federation/fragments", "blocks and embeddings; try");
    bad_federation("\"fragments\":3", "/federation/fragments", "2 rounds never synchronise all");
    bad("{\"model\":{" SIZES "},\"federation\":{\"rounds\":2,\"silos_per_round\":1,"
        "\"local_steps\":8,\"fragments\":2},\"inner\":{\"batch\":8},"
        "\"inner_state\":\"average\"}",
        "/federation/fragments", "try inner_state keep");
    good("{\"model\":{" SIZES "},\"federation\":{\"rounds\":2,\"silos_per_round\":1,"
         "\"local_steps\":8,\"fragments\":2},\"inner\":{\"batch\":8},"
         "\"codec\":{\"up\":\"topk\",\"down\":\"q4\"}}",
         &s);
    CHECK_INT(s.federation.fragments, 2);
}

static void steps_ahead_must_fit_the_round(void)
{
    bad_federation("\"overlap_steps\":9", "/federation/overlap_steps", "has 8 steps; try 2");
    bad_federation("\"overlap_steps\":2,\"local_steps_policy\":\"dylu\"",
                   "/federation/overlap_steps", "try local_steps_policy fixed");
    bad("{\"model\":{" SIZES "},\"federation\":{\"rounds\":2,\"silos_per_round\":1,"
        "\"local_steps\":8,\"overlap_steps\":2},\"inner\":{\"batch\":8},"
        "\"inner_state\":\"average\"}",
        "/federation/overlap_steps", "try inner_state keep");
}

static void patterns_must_name_tensors_and_leave_some(void)
{
    struct run_spec s;
    good("{\"model\":{" SIZES ",\"freeze\":[\"wte.*\",\"wpe.*\"],\"personal\":[\"norm_f.*\"]}," REST
         "}",
         &s);
    CHECK_INT(s.freeze.count, 2);
    CHECK_STR(s.freeze.text[1], "wpe.*");
    CHECK_STR(s.personal.text[0], "norm_f.*");
    bad_model("{" SIZES ",\"freeze\":\"wte.*\"}", "/model/freeze", "at most 8 patterns");
    bad_model("{" SIZES ",\"freeze\":[7]}", "/model/freeze", "pattern 0 must be");
    bad_model("{" SIZES ",\"freeze\":[\"a b\"]}", "/model/freeze", "pattern 0 must be");
    bad_model("{" SIZES ",\"personal\":[\"head.*\"]}", "/model/personal",
              "'head.*' names no tensor");
    bad_model("{" SIZES ",\"freeze\":[\"*\"]}", "/model/freeze", "nothing would be left");
    bad_model("{" SIZES ",\"freeze\":[\"wte.*\"],\"personal\":[\"*te.weight\"]}", "/model/personal",
              "is frozen");
}

static void the_quorum_is_two_thirds_and_two_at_least(void)
{
    static const int want[][2] = {{1, 1}, {2, 2}, {3, 2}, {4, 3}, {5, 4}, {6, 4}, {9, 6}};
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        char text[512];
        (void)snprintf(text, sizeof(text),
                       "{\"model\":{" SIZES "},\"federation\":{\"rounds\":2,\"silos_per_round\":%d,"
                       "\"local_steps\":8},\"inner\":{\"batch\":8}}",
                       want[i][0]);
        struct run_spec s;
        good(text, &s);
        CHECK_INT(s.federation.min_silos, want[i][1]);
    }
}

static void a_short_run_warms_up_for_a_tenth(void)
{
    struct run_spec s;
    good("{\"model\":{" SIZES "},\"federation\":{\"rounds\":2,\"silos_per_round\":1,"
         "\"local_steps\":10},\"inner\":{\"batch\":8}}",
         &s);
    CHECK_INT(s.inner.warmup, 2);
}

static void what_is_printed_parses_to_the_same_spec(void)
{
    static const char *const texts[] = {
        "{\"model\":{" SIZES "}," REST "}",
        "{\"model\":{" SIZES "}," REST ",\"outer\":{\"name\":\"fedyogi\",\"betas\":[0.8,0.999],"
        "\"eps\":1e-7,\"clip_median\":2.5}}",
        "{\"model\":{\"preset\":\"3b\",\"seq_len\":512,\"bias\":false,\"position\":\"alibi\"}," REST
        ",\"name\":\"a.b-c_1\",\"experiment\":\"e\",\"seed\":9007199254740991,\"outer\":"
        "{\"name\":\"fednesterov\",\"lr\":0.1,\"momentum\":0.3333333333333333},\"weights\":"
        "\"uniform\",\"inner_state\":\"reset\",\"eval\":{\"every\":7,\"windows\":3},"
        "\"keep_checkpoints\":0,\"codec\":{\"up\":\"f32\"},\"tokenizer\":{\"sha256\":"
        "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"}}",
        "{\"model\":{" SIZES "}," REST ",\"codec\":{\"up\":\"auto\",\"down\":\"f32\",\"up_k\":32,"
        "\"down_k\":128,\"share\":0.25}}",
        "{\"model\":{" SIZES "}," REST ",\"codec\":{\"up\":\"q4\",\"down\":\"snapshot\"}}",
        "{\"model\":{" SIZES "},\"federation\":{\"rounds\":4,\"silos_per_round\":1,"
        "\"local_steps\":8,\"fragments\":3,\"overlap_steps\":8},\"inner\":{\"batch\":8}}",
        "{\"model\":{" SIZES "}," REST
        ",\"codec\":{\"up\":\"topk\",\"down\":\"topk\",\"down_k\":128}}",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct arena *a = arena_new(1 << 20);
        struct run_spec s;
        struct run_spec again;
        good(texts[i], &s);
        const char *first = run_spec_json(a, &s);
        good(first, &again);
        CHECK_MEM(&again, &s, sizeof(s));
        CHECK_STR(run_spec_json(a, &again), first);
        arena_free(a);
    }
}

static void unknown_keys_name_the_nearest_one(void)
{
    bad_top("\"wieghts\":\"tokens\"", "/wieghts", "did you mean 'weights'?");
    bad_top("\"local_steps\":3", "/local_steps", "it belongs under federation");
    bad_inner("\"learning_rate\":1", "/inner/learning_rate", "known here: optimizer, lr");
    bad_inner("\"warm_up\":1", "/inner/warm_up", "did you mean 'warmup'?");
    bad_inner("\"seed\":1", "/inner/seed", "it belongs at the top of the spec");
    bad_inner("\"a/b~c\":1", "/inner/a~1b~0c", "unknown key 'a/b~c'");
    bad_federation("\"deadlines\":1", "/federation/deadlines", "'deadline_s'");
    bad_federation("\"momentom\":1", "/federation/momentom", "'outer.momentum'");
}

static void wrong_sizes_say_what_would_do(void)
{
    bad_model("{\"preset\":\"125m\",\"n_heads\":7}", "/model/d_model",
              "try n_heads 6, or d_model 770");
    bad_model("{\"preset\":\"126m\"}", "/model/preset", "did you mean '125m'?");
    bad_model("{\"preset\":\"125m\",\"d_model\":0}", "/model/d_model", "from 2 to 16384, not 0");
    bad_model("{\"preset\":\"125m\",\"vocab_size\":100}", "/model/vocab_size", "try 320");
    bad_model("{\"preset\":\"125m\",\"bias\":1}", "/model/bias", "true or false");
    bad_model("{\"preset\":\"125m\",\"position\":\"rope\"}", "/model/position", "learned, alibi");
    bad_model("{\"d_model\":64,\"n_heads\":4,\"n_layers\":2,\"vocab_size\":320}", "/model/seq_len",
              "is missing; give all sizes, or a preset");
    bad_model("[]", "/model", "must be a JSON object");
    bad("{" REST "}", "/model", "is missing");
}

static void wrong_federations_say_what_would_do(void)
{
    bad_federation("\"min_silos\":5", "/federation/min_silos", "no round could ever close; try 4");
    bad_federation("\"oversample\":1021", "/federation/oversample", "try 1020");
    bad_federation("\"deadline_k\":0.5", "/federation/deadline_k", "of at least 1");
    bad_with("\"federation\":{\"rounds\":2,\"silos_per_round\":4,\"local_steps\":0},"
             "\"inner\":{\"batch\":8}",
             "/federation/local_steps", "from 1 to 1000000, not 0");
    bad_with("\"federation\":{\"rounds\":2.5,\"silos_per_round\":4,\"local_steps\":8},"
             "\"inner\":{\"batch\":8}",
             "/federation/rounds", "not 2.5");
    bad_with("\"federation\":{\"silos_per_round\":4,\"local_steps\":8},\"inner\":{\"batch\":8}",
             "/federation/rounds", "is missing");
}

static void wrong_rates_and_words_say_what_would_do(void)
{
    bad_inner("\"lr\":-1", "/inner/lr", "above 0 and at most 10, not -1");
    bad_inner("\"lr\":0", "/inner/lr", "above 0");
    bad_inner("\"lr\":\"fast\"", "/inner/lr", "must be a number");
    bad_inner("\"lr\":null", "/inner/lr", "must be a number");
    bad_inner("\"clip_norm\":0", "/inner/clip_norm", "above 0");
    bad_inner("\"betas\":[0.9]", "/inner/betas", "two numbers");
    bad_inner("\"betas\":[0.9,1]", "/inner/betas/1", "below 1, not 1");
    bad_inner("\"optimizer\":\"adam\"", "/inner/optimizer", "did you mean 'adamw'?");
    bad_inner("\"optimizer\":\"sgd\"", "/inner/optimizer", "use one of: adamw, adopt");
    bad_inner("\"warmup\":17", "/inner/warmup", "more than the schedule's 16; try 1");
    bad_inner("\"micro_batch\":3", "/inner/micro_batch", "does not divide batch 8; try 2");
    bad_inner("\"micro_batch\":9", "/inner/micro_batch", "try 8");
    bad_top("\"codec\":{\"up\":\"int9\"}", "/codec/up", "did you mean 'int8'?");
    bad_top("\"codec\":{\"down\":\"auto\"}", "/codec/down", "use one of: f32, bf16");
    bad_top("\"codec\":{\"up_k\":66}", "/codec/up_k", "try 64");
    bad_top("\"codec\":{\"down_k\":2048}", "/codec/down_k", "1024");
    bad_top("\"codec\":{\"down\":\"topk\",\"down_k\":512}", "/codec/down_k", "try 256");
    bad_top("\"codec\":{\"down\":\"q4\"},\"inner_state\":\"average\"", "/inner_state",
            "f32 both ways");
    bad_top("\"codec\":{\"share\":0}", "/codec/share", "above 0");
    bad_top("\"inner_state\":\"average\",\"codec\":{\"up\":\"int8\"}", "/inner_state", "codec f32");
    bad_top("\"inner_state\":\"mean\"", "/inner_state", "keep, reset, average");
    bad_top("\"outer\":{\"momentum\":0.5}", "/outer/momentum", "fednesterov");
    bad_top("\"outer\":{\"betas\":[0.9,0.99]}", "/outer/betas", "fedadam");
    bad_top("\"outer\":{\"name\":\"fedmom\",\"eps\":0.1}", "/outer/eps", "fedyogi");
    bad_top("\"outer\":{\"name\":\"fedadam\",\"momentum\":0.9}", "/outer/momentum", "fedadam");
    bad_top("\"outer\":{\"name\":\"fedyogi\",\"eps\":0}", "/outer/eps", "above 0");
    bad_top("\"outer\":{\"clip_median\":0.5}", "/outer/clip_median", "try 3");
    bad_top("\"name\":\"Tiny\"", "/name", "for example");
    bad_top("\"seed\":-1", "/seed", "from 0 to 9007199254740991");
    bad_top("\"tokenizer\":{\"sha256\":\"abc\"}", "/tokenizer/sha256", "sha256sum");
}

static void all_problems_are_reported_up_to_the_bound(void)
{
    struct arena *a = arena_new(1 << 20);
    struct run_spec s;
    CHECK_INT(parse(a, "{}", &s), ST_INVALID);
    CHECK_INT(problem_count, 5);
    CHECK_INT(parse(a, "[]", &s), ST_INVALID);
    CHECK_INT(problem_count, 1);

    char many[1024] = "{\"model\":{" SIZES "}," REST;
    size_t n = strlen(many);
    for (int i = 0; i < 20; i++) {
        n += (size_t)snprintf(many + n, sizeof(many) - n, ",\"zzzzzzz%c\":0", 'a' + i);
    }
    (void)snprintf(many + n, sizeof(many) - n, "}");
    CHECK_INT(parse(a, many, &s), ST_INVALID);
    CHECK_INT(problem_count, SPEC_PROBLEMS_MAX);
    arena_free(a);
}

static void the_nearest_word_counts_a_swap_as_one_edit(void)
{
    static const char *const words[] = {"alpha", "beta", "lr", NULL};
    CHECK_STR(nearest("alhpa", words), "alpha");
    CHECK_STR(nearest("beat", words), "beta");
    CHECK(nearest("gamma-ray", words) == NULL);
    CHECK(nearest("xy", words) == NULL);
    CHECK(nearest("", words) == NULL);
    CHECK(nearest("a-word-far-longer-than-any-key-that-a-spec-could-have", words) == NULL);
}

int main(void)
{
    RUN(a_short_spec_gets_every_default);
    RUN(presets_bring_sizes_and_their_inner_optimizer);
    RUN(the_optimizer_chosen_brings_its_own_betas);
    RUN(every_outer_optimizer_has_its_own_defaults);
    RUN(slow_silos_may_take_fewer_steps);
    RUN(fragments_must_fit_the_run);
    RUN(steps_ahead_must_fit_the_round);
    RUN(patterns_must_name_tensors_and_leave_some);
    RUN(the_quorum_is_two_thirds_and_two_at_least);
    RUN(a_short_run_warms_up_for_a_tenth);
    RUN(what_is_printed_parses_to_the_same_spec);
    RUN(unknown_keys_name_the_nearest_one);
    RUN(wrong_sizes_say_what_would_do);
    RUN(wrong_federations_say_what_would_do);
    RUN(wrong_rates_and_words_say_what_would_do);
    RUN(all_problems_are_reported_up_to_the_bound);
    RUN(the_nearest_word_counts_a_swap_as_one_edit);
    return check_end();
}
