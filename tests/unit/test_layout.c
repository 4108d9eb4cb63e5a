#include "common/layout.h"

#include <string.h>

#include "tests/support/check.h"

static struct run_spec spec(const char *freeze, const char *personal, enum inner_state state)
{
    struct run_spec s = {.model = {.d_model = 8,
                                   .n_heads = 2,
                                   .n_layers = 2,
                                   .vocab_size = 11,
                                   .seq_len = 4,
                                   .bias = true},
                         .inner_state = state};
    if (freeze) {
        (void)snprintf(s.freeze.text[s.freeze.count++], PATTERN_SIZE, "%s", freeze);
    }
    if (personal) {
        (void)snprintf(s.personal.text[s.personal.count++], PATTERN_SIZE, "%s", personal);
    }
    return s;
}

static void a_pattern_matches_whole_names(void)
{
    static const struct {
        const char *pattern, *name;
        bool hit;
    } rows[] = {
        {"wte.*", "transformer.wte.weight", true},
        {"transformer.wte.weight", "transformer.wte.weight", true},
        {"wte.weight", "transformer.wte.weight", true},
        {"wte", "transformer.wte.weight", false},
        {"te.weight", "transformer.wte.weight", false},
        {"*", "transformer.norm_f.bias", true},
        {"*.bias", "transformer.blocks.0.attn.Wqkv.bias", true},
        {"*.bias", "transformer.blocks.0.attn.Wqkv.weight", false},
        {"blocks.1.*", "transformer.blocks.1.norm_1.weight", true},
        {"blocks.1.*", "transformer.blocks.11.norm_1.weight", false},
        {"blocks.*.attn.*.weight", "transformer.blocks.3.attn.out_proj.weight", true},
        {"*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaab", true},
        {"*a*a*c", "aaaaaaaaaaaaaaaaaaaaaaab", false},
        {"**", "x", true},
        {"x", "", false},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (pattern_match(rows[i].pattern, rows[i].name) != rows[i].hit) {
            CHECK_STR(rows[i].pattern, rows[i].name); // names the row
        }
    }
}

static void an_update_of_everything_is_the_model(void)
{
    struct arena *a = arena_new(1 << 20);
    struct run_spec s = spec(NULL, NULL, INNER_STATE_KEEP);
    struct param_table model = params_table(a, &s.model);
    struct layout l = layout_update(a, &s, 1);
    CHECK_INT(l.table.count, model.count);
    CHECK_INT(l.table.total, model.total);
    CHECK_INT(l.part_at[LAYOUT_WEIGHTS], 0);
    CHECK_INT(l.part_at[LAYOUT_M], -1);
    CHECK_INT(l.span_count, 1);
    CHECK(l.spans[0].model == 0 && l.spans[0].at == 0 && l.spans[0].count == model.total);
    arena_free(a);
}

static void what_is_frozen_or_personal_does_not_travel(void)
{
    struct arena *a = arena_new(1 << 20);
    struct run_spec s = spec("wte.*", "blocks.1.norm_1.*", INNER_STATE_KEEP);
    struct param_table model = params_table(a, &s.model);
    struct layout l = layout_update(a, &s, 1);
    CHECK_INT(l.table.count, model.count - 3);
    CHECK(params_find(&l.table, "transformer.wte.weight") == NULL);
    CHECK(params_find(&l.table, "transformer.blocks.1.norm_1.bias") == NULL);
    CHECK(params_find(&l.table, "transformer.blocks.0.norm_1.bias") != NULL);
    CHECK_INT(l.table.total, model.total - 11 * 8 - 2 * 8);
    CHECK_INT(l.part_count, l.table.total);

    int64_t at = 0;
    for (int32_t i = 0; i < l.span_count; i++) { // back to back here, apart and rising there
        CHECK_INT(l.spans[i].at, at);
        CHECK(i == 0 || l.spans[i].model > l.spans[i - 1].model + l.spans[i - 1].count);
        at += l.spans[i].count;
    }
    CHECK_INT(at, l.part_count);
    for (int32_t i = 0; i < l.table.count; i++) { // each tensor where its span says
        const struct param *here = &l.table.items[i];
        const struct param *there = params_find(&model, here->name);
        bool found = false;
        for (int32_t k = 0; k < l.span_count; k++) {
            const struct layout_span *sp = &l.spans[k];
            found = found || (there->offset >= sp->model &&
                              here->offset - sp->at == there->offset - sp->model &&
                              here->offset < sp->at + sp->count);
        }
        CHECK(found);
    }
    arena_free(a);
}

static void averaged_moments_lie_around_the_weights(void)
{
    struct arena *a = arena_new(1 << 20);
    struct run_spec s = spec("wte.*", NULL, INNER_STATE_AVERAGE);
    struct layout up = layout_update(a, &s, 1);
    struct layout down = layout_checkpoint(a, &s);
    int64_t total = params_table(a, &s.model).total;
    CHECK_INT(up.table.total, 3 * (total - 88));
    CHECK_INT(up.part_at[LAYOUT_V], 2 * (total - 88));
    CHECK_INT(down.table.total, 3 * total); // a checkpoint holds what does not travel too
    CHECK_INT(down.part_at[LAYOUT_WEIGHTS], total);
    for (int32_t i = 1; i < down.table.count; i++) { // in the order of names, as every file
        CHECK(strcmp(down.table.items[i - 1].name, down.table.items[i].name) < 0);
        CHECK_INT(down.table.items[i].offset,
                  down.table.items[i - 1].offset + down.table.items[i - 1].count);
    }
    arena_free(a);
}

static void a_silo_takes_all_but_its_own_tensors(void)
{
    struct arena *a = arena_new(1 << 20);
    struct run_spec s = spec("blocks.0.*", "norm_f.*", INNER_STATE_KEEP);
    struct layout l = layout_common(a, &s, 0, 1);
    int64_t sum = 0;
    for (int32_t i = 0; i < l.span_count; i++) {
        CHECK_INT(l.spans[i].at, l.spans[i].model);
        sum += l.spans[i].count;
    }
    CHECK_INT(sum, params_table(a, &s.model).total - 16);
    arena_free(a);
}

int main(void)
{
    RUN(a_pattern_matches_whole_names);
    RUN(an_update_of_everything_is_the_model);
    RUN(what_is_frozen_or_personal_does_not_travel);
    RUN(averaged_moments_lie_around_the_weights);
    RUN(a_silo_takes_all_but_its_own_tensors);
    return check_end();
}
