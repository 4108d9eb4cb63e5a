/* test_gpu_plan.c - the plan without a GPU is the one that a model on such a GPU makes. */
#include "client/gpu_plan.h"

#include <string.h>

#include "client/model.h"
#include "tests/support/check.h"

enum { MEMORY = 40 << 20 };

/* The reference, saying of itself what a small GPU would. */
static void small_gpu_caps(struct backend *be, struct backend_caps *out)
{
    (void)be;
    *out = (struct backend_caps){.memory = MEMORY, .pass_tokens = GPU_PASS_TOKENS};
}

static struct run_spec spec(int32_t batch, int32_t micro_batch)
{
    struct run_spec s = {0};
    s.model = (struct model_spec){.d_model = 64,
                                  .n_heads = 2,
                                  .n_layers = 2,
                                  .vocab_size = 320,
                                  .seq_len = 256,
                                  .bias = true};
    s.inner.batch = batch;
    s.inner.micro_batch = micro_batch;
    return s;
}

static void same_plan(const struct memory_plan *got, const struct memory_plan *want)
{
    char a[640];
    char b[640];
    memory_plan_table(got, a, sizeof(a));
    memory_plan_table(want, b, sizeof(b));
    CHECK_STR(a, b);
    CHECK_INT(got->request.micro_batch, want->request.micro_batch);
    CHECK_INT(got->request.recompute, want->request.recompute);
    CHECK_INT(got->chunk_rows, want->chunk_rows);
    CHECK_MEM(got->act, want->act, sizeof(got->act));
}

static void a_model_on_that_gpu_makes_the_same_plan(void)
{
    static const int32_t wishes[] = {0, 3, 64};
    struct backend *be = NULL;
    CHECK_INT(backend_open(&be, "ref", 1, NULL), ST_OK);
    const struct backend_ops *whole = be->ops;
    struct backend_ops small = *whole;
    small.caps = small_gpu_caps;
    be->ops = &small;
    int opened = 0;
    for (int i = 0; i < 3; i++) {
        struct run_spec s = spec(24, wishes[i]);
        struct model_config c = {.spec = s.model,
                                 .dtype = DTYPE_F32,
                                 .batch = 24,
                                 .micro_batch = wishes[i] < 24 ? wishes[i] : 24,
                                 .recompute = -1};
        struct model *m = NULL;
        struct memory_plan p;
        enum status st = gpu_plan(&p, &s, 1, DTYPE_F32, MEMORY, NULL);
        CHECK_INT(model_open(&m, be, &c, NULL), st);
        if (!st) {
            opened++;
            same_plan(model_plan(m), &p);
        }
        model_close(m);
    }
    be->ops = whole;
    backend_close(be);
    CHECK_INT(opened, 2); // 24 sequences at once do not fit, whatever is recomputed
}

static void several_gpus_share_the_batch_and_the_state(void)
{
    struct run_spec s = spec(24, 0);
    struct memory_plan one;
    struct memory_plan two;
    CHECK_INT(gpu_plan(&one, &s, 1, DTYPE_BF16, MEMORY, NULL), ST_OK);
    CHECK_INT(gpu_plan(&two, &s, 2, DTYPE_BF16, MEMORY, NULL), ST_OK);
    CHECK_INT(two.request.batch, 12);
    CHECK_INT(two.weights, one.weights);
    CHECK(two.moments < one.moments && two.rest < one.rest);
}

static void what_cannot_be_is_refused_with_a_reason(void)
{
    struct run_spec s = spec(24, 0);
    struct memory_plan p;
    struct err e = {0};
    CHECK_INT(gpu_plan(&p, &s, 5, DTYPE_BF16, MEMORY, &e), ST_INVALID);
    CHECK(strstr(e.msg, "does not divide") != NULL);
    CHECK_INT(gpu_plan(&p, &s, BACKEND_RANKS_MAX + 1, DTYPE_BF16, MEMORY, &e), ST_INVALID);
    CHECK_INT(gpu_plan(&p, &s, 1, DTYPE_BF16, 1 << 20, &e), ST_NOMEM);
    CHECK(strstr(e.msg, "; try ") != NULL);
}

static void a_gpu_keeps_some_memory_to_itself(void)
{
    const int64_t GIB = (int64_t)1 << 30;
    CHECK_INT(gpu_memory_usable(GIB), GIB / 2);
    CHECK_INT(gpu_memory_usable(80 * GIB), 80 * GIB - 80 * GIB / 32 - 768 * (GIB >> 10));
    for (int i = 0; i < RECOMPUTE_COUNT; i++) {
        CHECK(strstr(recompute_text((enum recompute)i), "recomputed") != NULL);
    }
}

int main(void)
{
    RUN(a_model_on_that_gpu_makes_the_same_plan);
    RUN(several_gpus_share_the_batch_and_the_state);
    RUN(what_cannot_be_is_refused_with_a_reason);
    RUN(a_gpu_keeps_some_memory_to_itself);
    return check_end();
}
