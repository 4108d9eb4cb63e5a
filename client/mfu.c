#include "client/mfu.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/rng.h"

enum { CPU_SIZE = 1024, GPU_SIZE = 8192, RUNS_LEAST = 3 };
static const double MEASURE_S = 0.25;

double mfu_token_flops(const struct model_spec *m)
{
    double positions = m->position == POSITION_LEARNED ? (double)m->seq_len * m->d_model : 0.0;
    double products = (double)model_param_count(m) - positions;
    return 6.0 * products + 6.0 * (double)m->n_layers * (double)m->d_model * (double)m->seq_len;
}

void mfu_fill(struct backend *be, void *p, enum dtype t, int64_t n)
{
    enum { POOL = 4194301 }; // prime, so that rows of a matrix begin at different places
    static float wide[POOL];
    static uint16_t narrow[POOL];
    for (int i = 0; i < POOL && wide[POOL - 1] == 0.0f; i++) {
        uint32_t bits;
        wide[i] = (float)rng_normal(7, (uint64_t)i);
        memcpy(&bits, &wide[i], sizeof(bits));
        narrow[i] = (uint16_t)(bits >> 16);
    }
    size_t size = dtype_size(t);
    const void *pool = t == DTYPE_F32 ? (const void *)wide : (const void *)narrow;
    for (int64_t i = 0; i < n; i += POOL) {
        int64_t count = n - i < POOL ? n - i : POOL;
        be->ops->put(be, (char *)p + (size_t)i * size, pool, (size_t)count * size);
    }
}

static enum status time_products(struct backend *be, const struct gemm *g, void *const *abc,
                                 double *best, struct err *e)
{
    const char *text = be->ops->plan_gemm(be, g);
    if (text) {
        return err_set(e, ST_DEVICE, "%s: %s", be->ops->name, text);
    }
    be->ops->gemm(be, g, abc[2], abc[0], abc[1], NULL); // what is slow once
    TRY(backend_sync(be, e));
    double begin = clock_mono_s();
    for (int i = 0; i < RUNS_LEAST || clock_mono_s() - begin < MEASURE_S; i++) {
        double start = clock_mono_s();
        be->ops->gemm(be, g, abc[2], abc[0], abc[1], NULL);
        TRY(backend_sync(be, e));
        double seconds = clock_mono_s() - start;
        *best = i == 0 || seconds < *best ? seconds : *best;
    }
    return ST_OK;
}

static enum status measure(struct backend *be, enum dtype dtype, int64_t n, double *out,
                           struct err *e)
{
    struct gemm g = {.use = GEMM_FWD, .a_type = dtype, .M = n, .N = n, .K = n};
    void *abc[3] = {NULL, NULL, NULL};
    enum status st = ST_OK;
    for (int i = 0; i < 3 && !st; i++) {
        abc[i] = be->ops->alloc(be, (size_t)(n * n) * dtype_size(dtype));
        st = abc[i] ? ST_OK : err_set(e, ST_NOMEM, "no memory to measure the device's rate");
        if (!st) {
            mfu_fill(be, abc[i], dtype, n * n);
        }
    }
    double best = 0.0;
    st = st ? st : time_products(be, &g, abc, &best, e);
    for (int i = 0; i < 3; i++) {
        if (abc[i]) {
            be->ops->release(be, abc[i]);
        }
    }
    if (!st) {
        *out = best > 0.0 ? 2.0 * (double)n * (double)n * (double)n / best : 0.0;
    }
    return st;
}

enum status mfu_peak(const char *device, int threads, const char *dtype, double *out, struct err *e)
{
    struct backend *be = NULL;
    char first[32];
    int many = 1;
    (void)snprintf(first, sizeof(first), "%.*s", (int)strcspn(device, ","), device);
    for (const char *p = device; *p; p++) {
        many += *p == ',';
    }
    TRY(backend_open(&be, first, threads, e));
    bool gpu = strcmp(be->ops->name, "cuda") == 0;
    enum status st = measure(be, backend_dtype(be, dtype), gpu ? GPU_SIZE : CPU_SIZE, out, e);
    backend_close(be);
    if (!st && gpu) {
        *out *= many;
    }
    return st;
}
