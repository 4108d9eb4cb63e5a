/*
 * tiny.h - models small enough to be judged element by element, and the engines to judge them on.
 *
 * An engine is a backend with a dtype. A test that takes one is run on each by RUN_ON_ENGINES, and
 * is skipped, with the reason, where the machine does not have it.
 */
#ifndef TESTS_SUPPORT_TINY_H
#define TESTS_SUPPORT_TINY_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/model.h"
#include "client/trainer.h"
#include "common/mem.h"
#include "common/rng.h"
#include "tests/support/check.h"

struct engine {
    const char *device;
    const char *dtype_name;
    enum dtype dtype;
};

static const struct engine ENGINES[] = {
    {"ref", "f32", DTYPE_F32},  {"cpu", "f32", DTYPE_F32},    {"cpu", "bf16", DTYPE_BF16},
    {"cuda", "f32", DTYPE_F32}, {"cuda", "bf16", DTYPE_BF16},
};

/* The engine that the running test is for. */
static struct engine engine;

#define RUN_HERE(fn) run_here((fn), #fn)

/* Run a test under a name that says which engine it was for. */
static inline void run_here(void (*fn)(void), const char *name)
{
    char full[160];
    (void)snprintf(full, sizeof(full), "%s (%s %s)", name, engine.device, engine.dtype_name);
    check_run(fn, full);
}

/* A backend, or the test is skipped. Two threads, so that splitting the work is tried as well. */
static inline struct backend *tiny_backend(const char *device, enum dtype dtype)
{
    struct backend *be = NULL;
    struct err e = {0};
    enum status st = backend_open(&be, device, 2, &e);
    // make check-gpu wants a device, not an excuse.
    bool required = strcmp(device, "cuda") == 0 && getenv("PHOTON_REQUIRE_CUDA");
    if (st == ST_NOT_FOUND && !required) {
        SKIP(e.msg);
    }
    CHECK_INT(st, ST_OK);
    CHECK(be->ops->supports(be, dtype));
    return be;
}

static bool engine_found;

static inline void the_engine_is_here(void)
{
    engine_found = false;
    backend_close(tiny_backend(engine.device, engine.dtype));
    engine_found = true;
}

static inline void on_every_engine(void (*tests)(void))
{
    for (size_t i = 0; i < sizeof(ENGINES) / sizeof(ENGINES[0]); i++) {
        engine = ENGINES[i];
        RUN_HERE(the_engine_is_here);
        if (engine_found) {
            tests();
        }
    }
}

/* The four combinations of the spec's switches. */
static inline struct model_spec tiny_spec(int switches)
{
    return (struct model_spec){.d_model = 32,
                               .n_heads = 4,
                               .n_layers = 2,
                               .vocab_size = 53,
                               .seq_len = 12,
                               .position = switches & 1 ? POSITION_ALIBI : POSITION_LEARNED,
                               .bias = !(switches & 2)};
}

/* First values, and noise on norms and biases so that no gradient is tested at a special point. */
static inline float *tiny_weights(const struct param_table *t)
{
    float *w = mem_alloc((size_t)t->total * sizeof(float));
    params_init(t, 5, 0, t->total, w);
    for (int32_t i = 0; i < t->count; i++) {
        const struct param *p = &t->items[i];
        for (int64_t k = 0; p->rank == 1 && k < p->count; k++) {
            w[p->offset + k] += 0.1F * (float)rng_normal(17, (uint64_t)(p->offset + k));
        }
    }
    return w;
}

/* Text with something to learn: a walk with few successors per token. */
static inline void tiny_row(uint64_t key, int32_t vocab, int32_t count, int32_t *out)
{
    out[0] = (int32_t)(rng_u64(key, 0) % (uint64_t)vocab);
    for (int32_t i = 1; i < count; i++) {
        out[i] = (out[i - 1] * 3 + (int32_t)(rng_u64(key, (uint64_t)i) % 3)) % vocab;
    }
}

#endif
