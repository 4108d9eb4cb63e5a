#include "common/schedule.h"

#include "common/layout.h"
#include "tests/support/check.h"

static struct run_spec spec(int32_t fragments)
{
    struct run_spec s = {.model = {.d_model = 8,
                                   .n_heads = 2,
                                   .n_layers = 6,
                                   .vocab_size = 300,
                                   .seq_len = 4,
                                   .bias = true}};
    s.federation.fragments = fragments;
    return s;
}

static void fragments_take_turns(void)
{
    struct run_spec s = spec(3);
    for (int32_t round = 1; round <= 12; round++) {
        CHECK_INT(schedule_fragment(&s, round), (round - 1) % 3);
        CHECK_INT(schedule_outer_step(&s, round), (round + 2) / 3);
    }
    s = spec(1);
    CHECK_INT(schedule_fragment(&s, 7), 0);
    CHECK_INT(schedule_outer_step(&s, 7), 7);
    CHECK(!schedule_keeps_weights(&s));
    s = spec(2);
    CHECK(schedule_keeps_weights(&s));
}

/* Against the definition: some round from `kept` on and before `round` synchronised it. */
static void what_was_synchronised_meanwhile_is_renewed(void)
{
    for (int32_t parts = 1; parts <= 5; parts++) {
        struct run_spec s = spec(parts);
        for (int64_t kept = 1; kept <= 12; kept++) {
            for (int64_t round = kept + 1; round <= 14; round++) {
                for (int32_t f = 0; f < parts; f++) {
                    bool want = false;
                    for (int64_t r = kept; r < round; r++) {
                        want = want || schedule_fragment(&s, r) == f;
                    }
                    CHECK_INT(schedule_renewed(&s, f, kept, round), want);
                }
            }
        }
        CHECK(schedule_renewed(&s, parts - 1, 0, 3)); // a newcomer has nothing of its own
        CHECK(schedule_renewed(&s, parts - 1, 3, 3)); // the run went back
    }
}

static void a_silo_goes_ahead_from_the_end_of_the_round_before_alone(void)
{
    struct run_spec s = spec(1);
    s.federation.overlap_steps = 5;
    CHECK(schedule_keeps_weights(&s));
    CHECK_INT(schedule_steps_ahead(&s, 3, 4), 5);
    CHECK_INT(schedule_steps_ahead(&s, 2, 4), 0); // it missed round 3
    CHECK_INT(schedule_steps_ahead(&s, 4, 4), 0); // the run went back
    CHECK_INT(schedule_steps_ahead(&s, 0, 1), 0); // a newcomer
    s.federation.overlap_steps = 0;
    CHECK_INT(schedule_steps_ahead(&s, 3, 4), 0);
}

static int32_t fragment_of(const struct run_spec *s, const char *tensor)
{
    struct arena *a = arena_new(1 << 20);
    struct param_table model = params_table(a, &s->model);
    int32_t f = layout_fragments(a, s, &model)[params_find(&model, tensor) - model.items];
    arena_free(a);
    return f;
}

/* wte is 2400 elements, a block 872: the embedding fills a fragment, the blocks stride the rest. */
static void whole_blocks_stride_the_fragments(void)
{
    struct run_spec s = spec(3);
    CHECK_INT(fragment_of(&s, "transformer.wte.weight"), 0);
    CHECK_INT(fragment_of(&s, "transformer.wpe.weight"), 1);
    CHECK_INT(fragment_of(&s, "transformer.norm_f.weight"), 2);
    CHECK_INT(fragment_of(&s, "transformer.norm_f.bias"), 2);
    CHECK_INT(fragment_of(&s, "transformer.blocks.0.norm_1.weight"), 2);
    CHECK_INT(fragment_of(&s, "transformer.blocks.0.ffn.down_proj.weight"), 2);
    CHECK_INT(fragment_of(&s, "transformer.blocks.1.ffn.down_proj.weight"), 1);
    CHECK_INT(fragment_of(&s, "transformer.blocks.2.ffn.down_proj.weight"), 2);
    CHECK_INT(fragment_of(&s, "transformer.blocks.3.ffn.down_proj.weight"), 1);
}

static void updates_of_a_cycle_are_the_model(void)
{
    static const char *const FROZEN[] = {NULL, "wpe.*", "blocks.2.*"};
    for (int32_t parts = 1; parts <= 8; parts++) {
        for (int i = 0; i < 3; i++) {
            struct arena *a = arena_new(1 << 22);
            struct run_spec s = spec(parts);
            if (FROZEN[i]) {
                (void)snprintf(s.freeze.text[s.freeze.count++], PATTERN_SIZE, "%s", FROZEN[i]);
            }
            struct run_spec whole = s;
            whole.federation.fragments = 1;
            struct layout all = layout_update(a, &whole, 1);
            int64_t sum = 0;
            int32_t count = 0;
            for (int32_t round = 1; round <= parts; round++) {
                struct layout l = layout_update(a, &s, round);
                CHECK(l.table.total > 0);
                sum += l.table.total;
                count += l.table.count;
                CHECK_INT(layout_update(a, &s, round + parts).table.total, l.table.total);
            }
            CHECK_INT(sum, all.table.total);
            CHECK_INT(count, all.table.count);
            arena_free(a);
        }
    }
    struct run_spec s = spec(1);
    CHECK_INT(layout_fragments_max(&s), 6 + 3);
}

static void a_silo_takes_the_fragments_that_were_renewed(void)
{
    struct arena *a = arena_new(1 << 20);
    struct run_spec s = spec(3);
    struct layout one = layout_update(a, &s, 4);
    struct layout l = layout_common(a, &s, 4, 5); // round 4 synchronised fragment 0
    CHECK_INT(l.table.total, one.table.total);
    CHECK_INT(l.span_count, one.span_count);
    for (int32_t i = 0; i < l.span_count; i++) {
        CHECK_INT(l.spans[i].at, l.spans[i].model);
        CHECK_INT(l.spans[i].model, one.spans[i].model);
    }
    CHECK_INT(layout_common(a, &s, 3, 5).table.total,
              one.table.total + layout_update(a, &s, 3).table.total);
    CHECK_INT(layout_common(a, &s, 0, 5).table.total, params_table(a, &s.model).total);
    arena_free(a);
}

int main(void)
{
    RUN(fragments_take_turns);
    RUN(what_was_synchronised_meanwhile_is_renewed);
    RUN(a_silo_goes_ahead_from_the_end_of_the_round_before_alone);
    RUN(whole_blocks_stride_the_fragments);
    RUN(updates_of_a_cycle_are_the_model);
    RUN(a_silo_takes_the_fragments_that_were_renewed);
    return check_end();
}
