/* test_memory_plan.c - nothing overlaps, everything is aligned, the published table comes out. */
#include "common/memory_plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/arena.h"
#include "tests/support/check.h"

static const double GIB = 1024.0 * 1024.0 * 1024.0;

static struct model_spec preset(int32_t d, int32_t heads, int32_t layers)
{
    return (struct model_spec){.d_model = d,
                               .n_heads = heads,
                               .n_layers = layers,
                               .vocab_size = 50368,
                               .seq_len = 2048,
                               .bias = true};
}

static struct plan_request request(struct model_spec m, int32_t batch, int32_t micro)
{
    return (struct plan_request){.model = m,
                                 .batch = batch,
                                 .micro_batch = micro,
                                 .a_size = 2,
                                 .g_size = 4,
                                 .logits_max = (int64_t)1 << 30};
}

/* Where one layer's copy of a tensor lies. */
struct span {
    int64_t begin, end;
};

static void no_two_tensors_overlap_and_all_lie_inside(void)
{
    struct model_spec m = preset(96, 3, 3);
    m.seq_len = 77;
    for (int level = 0; level < RECOMPUTE_COUNT; level++) {
        struct plan_request r = request(m, 4, 3);
        r.recompute = (enum recompute)level;
        struct memory_plan p;
        memory_plan(&p, &r);
        struct span spans[ACT_COUNT * 3];
        int count = 0;
        for (int i = 0; i < ACT_COUNT; i++) {
            const struct plan_tensor *t = &p.act[i];
            CHECK(t->size > 0);
            for (int64_t layer = 0; layer < (t->stride ? 3 : 1); layer++) {
                int64_t at = t->offset + layer * t->stride;
                CHECK_INT(at % 256, 0);
                CHECK(at >= 0 && at + t->size <= p.activations);
                spans[count++] = (struct span){at, at + t->size};
            }
        }
        for (int i = 0; i < count; i++) {
            for (int k = 0; k < i; k++) {
                CHECK(spans[i].end <= spans[k].begin || spans[k].end <= spans[i].begin);
            }
        }
    }
}

static void a_layer_keeps_what_its_level_says(void)
{
    static const int multiples[RECOMPUTE_COUNT] = {32, 24, 20, 2};
    struct model_spec m = preset(768, 12, 12);
    for (int level = 0; level < RECOMPUTE_COUNT; level++) {
        struct plan_request r = request(m, 1, 1);
        r.recompute = (enum recompute)level;
        struct memory_plan one, two;
        memory_plan(&one, &r);
        r.model.n_layers++;
        memory_plan(&two, &r);
        // d bytes times the multiple, besides four statistics and one lse per head where kept.
        int64_t stats = level == RECOMPUTE_BLOCK ? 0 : 4 * 4 + 4 * 12;
        CHECK_INT(two.activations - one.activations,
                  (int64_t)2048 * (multiples[level] * 768 + stats));
    }
}

static void seven_billion_parameters_fit_on_one_h200(void)
{
    struct plan_request r = request(preset(4096, 32, 32), 1024, 0);
    struct memory_plan p;
    CHECK_INT(memory_plan_choose(&p, &r, (int64_t)(139.0 * GIB), 65536, NULL), ST_OK);
    CHECK_INT(p.request.recompute <= RECOMPUTE_NORMS, 1);
    CHECK_INT(1024 % p.request.micro_batch, 0);
    CHECK(p.total <= (int64_t)(139.0 * GIB));
    // fp32 master, gradient and two moments: 16 bytes per parameter.
    double state = (double)(p.weights + p.rest + p.grads + p.moments);
    CHECK_NEAR(state / GIB, 99.2, 1e-3);
}

static void parameters_lie_in_order_at_aligned_places(void)
{
    struct arena *a = arena_new(1 << 20);
    struct model_spec m = preset(48, 3, 2);
    struct param_table t = params_table(a, &m);
    int64_t offsets[64];
    memory_plan_offsets(&t, offsets);
    for (int32_t i = 0; i < t.count; i++) {
        CHECK_INT(offsets[i] % PLAN_ALIGN, 0);
        CHECK(i == 0 || offsets[i] >= offsets[i - 1] + t.items[i - 1].count);
    }
    struct memory_plan p;
    struct plan_request r = request(m, 1, 1);
    memory_plan(&p, &r);
    CHECK(p.flat_count >= offsets[t.count - 1] + t.items[t.count - 1].count);
    CHECK(p.flat_count < t.total + t.count * (int64_t)PLAN_ALIGN);

    // Where all sizes are multiples, as in every preset, there are no gaps at all.
    r = request(preset(768, 12, 12), 1, 1);
    memory_plan(&p, &r);
    CHECK_INT(p.flat_count, 125311488);
    arena_free(a);
}

static void chunks_of_logits_stay_under_their_bound_and_cover_all_rows(void)
{
    static const int64_t bounds[] = {1, 100736, 1 << 20, 64 << 20, (int64_t)1 << 40};
    struct plan_request r = request(preset(64, 1, 1), 3, 3);
    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        r.logits_max = bounds[i];
        struct memory_plan p;
        memory_plan(&p, &r);
        CHECK(p.chunk_rows >= 1 && p.chunk_rows <= 3 * 2048);
        CHECK(p.chunk_rows == 1 || p.chunk_rows * 50368 * 2 <= bounds[i]);
        CHECK(p.chunk_rows_eval == 1 || p.chunk_rows_eval * 50368 * 4 <= bounds[i]);
        CHECK(p.act[ACT_BIG].size >= p.chunk_rows * 50368 * 2);
        CHECK(p.act[ACT_BIG].size >= p.chunk_rows_eval * 50368 * 4);
    }
}

static void less_memory_means_more_recomputing_then_smaller_passes(void)
{
    struct plan_request r = request(preset(768, 12, 12), 32, 0);
    r.logits_max = 64 << 20;
    struct memory_plan p;
    struct memory_plan before = {.request = {.micro_batch = 32}};
    for (double gib = 64.0; gib > 2.4; gib *= 0.9) {
        CHECK_INT(memory_plan_choose(&p, &r, (int64_t)(gib * GIB), 1 << 20, NULL), ST_OK);
        CHECK(p.total <= (int64_t)(gib * GIB));
        CHECK_INT(32 % p.request.micro_batch, 0);
        CHECK(p.request.micro_batch <= before.request.micro_batch);
        CHECK(p.request.micro_batch < before.request.micro_batch ||
              p.request.recompute >= before.request.recompute);
        before = p;
    }
    CHECK_INT(before.request.micro_batch, 1);
    struct err e = {0};
    CHECK_INT(memory_plan_choose(&p, &r, (int64_t)(2.0 * GIB), 1 << 20, &e), ST_NOMEM);
    CHECK(strstr(e.msg, "GiB") != NULL);
}

static void passes_are_no_longer_than_useful_and_a_wish_is_kept(void)
{
    struct plan_request r = request(preset(768, 12, 12), 32, 0);
    struct memory_plan p;
    CHECK_INT(memory_plan_choose(&p, &r, (int64_t)(900.0 * GIB), 8192, NULL), ST_OK);
    CHECK_INT(p.request.micro_batch, 4);
    CHECK_INT(p.request.recompute, RECOMPUTE_NONE);
    CHECK_INT(memory_plan_choose(&p, &r, (int64_t)(900.0 * GIB), 100, NULL), ST_OK);
    CHECK_INT(p.request.micro_batch, 1);
    r.micro_batch = 5; // leaves a ragged pass of two
    CHECK_INT(memory_plan_choose(&p, &r, (int64_t)(900.0 * GIB), 100, NULL), ST_OK);
    CHECK_INT(p.request.micro_batch, 5);
    r.micro_batch = 100;
    CHECK_INT(memory_plan_choose(&p, &r, (int64_t)(900.0 * GIB), 100, NULL), ST_OK);
    CHECK_INT(p.request.micro_batch, 32);
    struct err e = {0};
    r.micro_batch = 16;
    CHECK_INT(memory_plan_choose(&p, &r, (int64_t)(2.6 * GIB), 100, &e), ST_NOMEM);
    const char *that = strstr(e.msg, "try a micro-batch of ");
    CHECK(that != NULL && strstr(e.msg, "activations") != NULL);
    r.micro_batch = (int32_t)strtol(that + strlen("try a micro-batch of "), NULL, 10);
    CHECK_INT(memory_plan_choose(&p, &r, (int64_t)(2.6 * GIB), 100, &e), ST_OK);
    r.micro_batch++;
    CHECK_INT(memory_plan_choose(&p, &r, (int64_t)(2.6 * GIB), 100, &e), ST_NOMEM);
}

static void what_a_silo_needs_grows_with_all_that_costs(void)
{
    struct model_spec m = preset(768, 12, 12);
    int64_t one = memory_plan_silo(&m, 32, 0);
    CHECK_INT(one, memory_plan_silo(&m, 32, 1));
    CHECK(one > 18 * model_param_count(&m));
    CHECK(memory_plan_silo(&m, 32, 4) > one);
    CHECK_INT(memory_plan_silo(&m, 2, 4), memory_plan_silo(&m, 2, 2));
    m.n_layers++;
    CHECK(memory_plan_silo(&m, 32, 1) > one);
}

int main(void)
{
    RUN(no_two_tensors_overlap_and_all_lie_inside);
    RUN(a_layer_keeps_what_its_level_says);
    RUN(seven_billion_parameters_fit_on_one_h200);
    RUN(parameters_lie_in_order_at_aligned_places);
    RUN(chunks_of_logits_stay_under_their_bound_and_cover_all_rows);
    RUN(less_memory_means_more_recomputing_then_smaller_passes);
    RUN(passes_are_no_longer_than_useful_and_a_wish_is_kept);
    RUN(what_a_silo_needs_grows_with_all_that_costs);
    return check_end();
}
