#include "client/gpu_plan.h"

enum status gpu_plan(struct memory_plan *out, const struct run_spec *s, int32_t gpus,
                     enum dtype dtype, int64_t memory, struct err *e)
{
    if (gpus > BACKEND_RANKS_MAX) {
        return err_set(e, ST_INVALID, "a silo has at most %d GPUs", (int)BACKEND_RANKS_MAX);
    }
    if (s->inner.batch % gpus) {
        return err_set(e, ST_INVALID, "a batch of %d does not divide over %d GPUs", s->inner.batch,
                       gpus);
    }
    int32_t batch = s->inner.batch / gpus;
    struct plan_request r = {
        .model = s->model,
        .batch = batch,
        .micro_batch = s->inner.micro_batch < batch ? s->inner.micro_batch : batch,
        .a_size = (int32_t)dtype_size(dtype),
        .g_size = (int32_t)sizeof(float),
        .ranks = gpus > 1 ? gpus : 0,
    };
    return memory_plan_choose(out, &r, memory, GPU_PASS_TOKENS, e);
}

const char *recompute_text(enum recompute level)
{
    static const char *const texts[RECOMPUTE_COUNT] = {"nothing recomputed", "GELU recomputed",
                                                       "norms and GELU recomputed",
                                                       "whole blocks recomputed"};
    return texts[level];
}
