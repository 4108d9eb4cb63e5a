/* test_params.c - names, shapes, order and first values of a model's parameters. */
#include "common/params.h"

#include <math.h>
#include <string.h>

#include "common/limits.h"
#include "tests/support/check.h"

static const struct model_spec MPT_125M = {.d_model = 768,
                                           .n_heads = 12,
                                           .n_layers = 12,
                                           .vocab_size = 50368,
                                           .seq_len = 2048,
                                           .position = POSITION_LEARNED,
                                           .bias = true};

static const struct model_spec SMALL = {.d_model = 64,
                                        .n_heads = 4,
                                        .n_layers = 11,
                                        .vocab_size = 500,
                                        .seq_len = 32,
                                        .position = POSITION_LEARNED,
                                        .bias = true};

static struct arena *arena;

static void photons_presets_have_the_published_sizes(void)
{
    struct model_spec m = MPT_125M;
    CHECK_INT(model_param_count(&m), 125311488);
    m.position = POSITION_ALIBI;
    m.bias = false;
    CHECK_INT(model_param_count(&m), 50368 * 768 + 12 * (12 * 768 * 768 + 2 * 768) + 768);

    struct model_spec seven = {.d_model = 4096,
                               .n_heads = 32,
                               .n_layers = 32,
                               .vocab_size = 50368,
                               .seq_len = 2048,
                               .bias = true};
    CHECK_INT(model_param_count(&seven), 6658859008);
}

static void the_formula_agrees_with_the_table_under_every_switch(void)
{
    for (int i = 0; i < 4; i++) {
        struct model_spec m = SMALL;
        m.position = i & 1 ? POSITION_ALIBI : POSITION_LEARNED;
        m.bias = i & 2;
        struct param_table t = params_table(arena, &m);
        int64_t sum = 0;
        for (int32_t k = 0; k < t.count; k++) {
            const struct param *p = &t.items[k];
            CHECK_INT(p->offset, sum);
            CHECK_INT(p->count, p->shape[0] * p->shape[1]);
            CHECK(p->rank == 2 || p->shape[1] == 1);
            sum += p->count;
        }
        CHECK_INT(t.total, sum);
        CHECK_INT(t.total, model_param_count(&m));
        CHECK((params_find(&t, "transformer.wpe.weight") != NULL) == !(i & 1));
        CHECK((params_find(&t, "transformer.norm_f.bias") != NULL) == !!(i & 2));
    }
}

static void the_order_is_strcmps_and_every_name_is_found(void)
{
    struct param_table t = params_table(arena, &SMALL);
    for (int32_t i = 0; i < t.count; i++) {
        CHECK(i == 0 || strcmp(t.items[i - 1].name, t.items[i].name) < 0);
        CHECK(params_find(&t, t.items[i].name) == &t.items[i]);
        CHECK(params_at(&t, t.items[i].offset) == &t.items[i]);
        CHECK(params_at(&t, t.items[i].offset + t.items[i].count - 1) == &t.items[i]);
    }
    // Eleven layers: "10." sorts before "2.".
    CHECK(params_find(&t, "transformer.blocks.10.norm_1.bias")->offset <
          params_find(&t, "transformer.blocks.2.norm_1.bias")->offset);
    CHECK(params_find(&t, "transformer.blocks.11.norm_1.bias") == NULL);
    CHECK(params_find(&t, "lm_head.weight") == NULL);
}

static void shapes_are_those_of_hugging_faces_mpt(void)
{
    struct param_table t = params_table(arena, &MPT_125M);
    static const struct {
        const char *name;
        int32_t rank;
        int64_t shape[2];
    } want[] = {
        {"transformer.wte.weight", 2, {50368, 768}},
        {"transformer.wpe.weight", 2, {2048, 768}},
        {"transformer.blocks.0.norm_1.weight", 1, {768, 1}},
        {"transformer.blocks.0.attn.Wqkv.weight", 2, {2304, 768}},
        {"transformer.blocks.3.attn.out_proj.weight", 2, {768, 768}},
        {"transformer.blocks.11.ffn.up_proj.weight", 2, {3072, 768}},
        {"transformer.blocks.11.ffn.up_proj.bias", 1, {3072, 1}},
        {"transformer.blocks.11.ffn.down_proj.weight", 2, {768, 3072}},
        {"transformer.norm_f.weight", 1, {768, 1}},
    };
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        const struct param *p = params_find(&t, want[i].name);
        CHECK(p != NULL);
        CHECK_INT(p->rank, want[i].rank);
        CHECK_INT(p->shape[0], want[i].shape[0]);
        CHECK_INT(p->shape[1], want[i].shape[1]);
    }
}

static float *drawn(const struct param_table *t, uint64_t seed)
{
    float *all = arena_alloc(arena, (size_t)t->total * sizeof(float));
    params_init(t, seed, 0, t->total, all);
    return all;
}

static void check_moments(const struct param_table *t, const float *all, const char *name,
                          double std)
{
    const struct param *p = params_find(t, name);
    double sum = 0.0;
    double squares = 0.0;
    for (int64_t i = 0; i < p->count; i++) {
        double x = (double)all[p->offset + i];
        sum += x;
        squares += x * x;
    }
    double n = (double)p->count;
    CHECK(fabs(sum / n) < 5.0 * std / sqrt(n));
    CHECK(fabs(sqrt(squares / n) / std - 1.0) < 5.0 / sqrt(2.0 * n));
}

static void first_values_have_kaimings_spread(void)
{
    struct param_table t = params_table(arena, &SMALL);
    const float *all = drawn(&t, 7);
    double residual = sqrt(2.0 * 11.0);
    check_moments(&t, all, "transformer.wte.weight", sqrt(2.0 / 64));
    check_moments(&t, all, "transformer.blocks.4.attn.Wqkv.weight", sqrt(2.0 / 64));
    check_moments(&t, all, "transformer.blocks.4.ffn.up_proj.weight", sqrt(2.0 / 64));
    check_moments(&t, all, "transformer.blocks.4.attn.out_proj.weight", sqrt(2.0 / 64) / residual);
    check_moments(&t, all, "transformer.blocks.4.ffn.down_proj.weight", sqrt(2.0 / 256) / residual);
    for (int32_t i = 0; i < t.count; i++) {
        const struct param *p = &t.items[i];
        if (p->init_std > 0.0) {
            continue;
        }
        for (int64_t k = 0; k < p->count; k++) {
            CHECK(all[p->offset + k] == (strstr(p->name, "norm") && strstr(p->name, "weight")));
        }
    }
}

static void any_part_of_the_draw_equals_the_whole(void)
{
    struct param_table t = params_table(arena, &SMALL);
    const float *all = drawn(&t, 9);
    float part[5000];
    static const int64_t starts[] = {0, 1, 63, 64, 4095, 100000, 250001};
    for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) {
        params_init(&t, 9, starts[i], 5000, part);
        CHECK_MEM(part, all + starts[i], sizeof(part));
    }
    params_init(&t, 9, t.total - 3, 3, part);
    CHECK_MEM(part, all + t.total - 3, 3 * sizeof(float));
    params_init(&t, 9, t.total, 0, part);
}

static void another_seed_and_another_tensor_draw_other_numbers(void)
{
    struct param_table t = params_table(arena, &SMALL);
    const float *one = drawn(&t, 1);
    const float *two = drawn(&t, 2);
    const struct param *a = params_find(&t, "transformer.blocks.0.attn.Wqkv.weight");
    const struct param *b = params_find(&t, "transformer.blocks.1.attn.Wqkv.weight");
    int same = 0;
    for (int64_t i = 0; i < a->count; i++) {
        same += one[a->offset + i] == two[a->offset + i];
        same += one[a->offset + i] == one[b->offset + i];
    }
    CHECK(same < 5);
}

static void a_spec_that_cannot_be_built_is_refused_by_field(void)
{
    static const struct {
        struct model_spec m;
        const char *field;
    } bad[] = {
        {{0, 4, 2, 100, 16, POSITION_LEARNED, true}, "d_model"},
        {{LIMIT_D_MODEL + 2, 4, 2, 100, 16, POSITION_LEARNED, true}, "d_model"},
        {{32, 0, 2, 100, 16, POSITION_LEARNED, true}, "n_heads"},
        {{32, 3, 2, 100, 16, POSITION_LEARNED, true}, "n_heads"},
        {{28, 4, 2, 100, 16, POSITION_LEARNED, true}, "even head size"},
        {{32, 4, 0, 100, 16, POSITION_LEARNED, true}, "n_layers"},
        {{32, 4, LIMIT_LAYERS + 1, 100, 16, POSITION_LEARNED, true}, "n_layers"},
        {{32, 4, 2, -5, 16, POSITION_LEARNED, true}, "vocab_size"},
        {{32, 4, 2, LIMIT_VOCAB + 1, 16, POSITION_LEARNED, true}, "vocab_size"},
        {{32, 4, 2, 100, 0, POSITION_LEARNED, true}, "seq_len"},
        {{32, 4, 2, 100, LIMIT_SEQ_LEN + 1, POSITION_LEARNED, true}, "seq_len"},
        {{32, 4, 2, 100, 16, POSITION_COUNT, true}, "position"},
    };
    struct err e = {0};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(model_spec_check(&bad[i].m, &e), ST_INVALID);
        CHECK(strstr(e.msg, bad[i].field) != NULL);
    }
    struct model_spec least = {2, 1, 1, 1, 1, POSITION_ALIBI, false};
    struct model_spec most = {LIMIT_D_MODEL, LIMIT_HEADS,      LIMIT_LAYERS, LIMIT_VOCAB,
                              LIMIT_SEQ_LEN, POSITION_LEARNED, true};
    CHECK_INT(model_spec_check(&least, &e), ST_OK);
    CHECK_INT(model_spec_check(&most, &e), ST_OK);
}

static void positions_have_names_and_back(void)
{
    enum position p = POSITION_COUNT;
    CHECK_INT(position_parse(&p, "alibi", NULL), ST_OK);
    CHECK_INT(p, POSITION_ALIBI);
    CHECK_STR(position_name(p), "alibi");
    CHECK_INT(position_parse(&p, position_name(POSITION_LEARNED), NULL), ST_OK);
    CHECK_INT(p, POSITION_LEARNED);
    struct err e = {0};
    CHECK_INT(position_parse(&p, "rotary", &e), ST_INVALID);
    CHECK(strstr(e.msg, "rotary") != NULL);
    CHECK_INT(p, POSITION_LEARNED);
}

int main(void)
{
    arena = arena_new((size_t)256 << 20);
    RUN(photons_presets_have_the_published_sizes);
    RUN(the_formula_agrees_with_the_table_under_every_switch);
    RUN(the_order_is_strcmps_and_every_name_is_found);
    RUN(shapes_are_those_of_hugging_faces_mpt);
    RUN(first_values_have_kaimings_spread);
    RUN(any_part_of_the_draw_equals_the_whole);
    RUN(another_seed_and_another_tensor_draw_other_numbers);
    RUN(a_spec_that_cannot_be_built_is_refused_by_field);
    RUN(positions_have_names_and_back);
    arena_free(arena);
    return check_end();
}
