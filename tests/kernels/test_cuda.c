/*
 * The CUDA backend on a device, op by op against the reference. Without a device the tests are
 * skipped, unless PHOTON_REQUIRE_CUDA is set (make check-gpu): then its absence is a failure.
 * PHOTON_QUICK leaves the large shapes out, for tools under which everything is slow. Where it has
 * Hopper's attention too, that is tried as an owner would have it tried, and tested again.
 */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/backend.h"
#include "tests/support/check.h"
#include "tests/support/op_parity.h"
#include "tests/support/tempdir.h"

static struct backend *gpu;

static void the_device_answers(void)
{
    struct err e = {0};
    enum status st = backend_open(&gpu, "cuda", 0, &e);
    if (st == ST_NOT_FOUND && !getenv("PHOTON_REQUIRE_CUDA")) {
        SKIP(e.msg);
    }
    if (st) {
        (void)fprintf(stderr, "%s\n", e.msg);
    }
    CHECK_INT(st, ST_OK);
}

/* The device again, with this attention; NULL where it is too old for it, or too new. */
static struct backend *reopen(const char *attention)
{
    struct err e = {0};
    backend_close(gpu);
    gpu = NULL;
    CHECK_INT(setenv("PHOTON_CUDA_ATTN", attention, 1), 0);
    if (backend_open(&gpu, "cuda", 0, &e) && !strstr(e.msg, "compute capability 9.0")) {
        (void)fprintf(stderr, "%s\n", e.msg);
        CHECK(false);
    }
    return gpu;
}

/* Does this GPU's file of choices say wgmma for heads of D after one call? */
static bool trial_passes(const char *file, int64_t D)
{
    enum { T = 64 };
    void *qkv = gpu->ops->alloc(gpu, 3 * T * (size_t)D * 2);
    void *o = gpu->ops->alloc(gpu, T * (size_t)D * 2);
    void *lse = gpu->ops->alloc(gpu, T * sizeof(float));
    gpu->ops->attn_fwd(gpu, DTYPE_BF16, o, lse, qkv, NULL, 1, T, 1, D);
    const char *why = gpu->ops->sync(gpu);
    if (why) {
        (void)fprintf(stderr, "%s\n", why);
    }
    gpu->ops->release(gpu, qkv);
    gpu->ops->release(gpu, o);
    gpu->ops->release(gpu, lse);
    char line[1024];
    char want[32];
    bool said = false;
    (void)snprintf(want, sizeof(want), ":%d wgmma\n", (int)D);
    FILE *f = fopen(file, "r");
    while (f && fgets(line, sizeof(line), f)) {
        said = said || strstr(line, want);
    }
    if (f) {
        (void)fclose(f);
    }
    return said && !why;
}

static void the_attention_of_hopper_passes_its_trial(void)
{
    struct tempdir dir;
    tempdir_make(&dir);
    const char *file = tempdir_at(&dir, "choices");
    CHECK_INT(setenv("PHOTON_CUDA_ALGOS", file, 1), 0);
    bool there = reopen("wgmma-untried") != NULL && reopen("wgmma") != NULL;
    bool small = there && trial_passes(file, 64);
    bool large = there && trial_passes(file, 128);
    CHECK_INT(unsetenv("PHOTON_CUDA_ALGOS"), 0);
    tempdir_remove(&dir);
    if (!there) {
        SKIP("no compute capability 9.0");
    }
    CHECK(small && large);
}

int main(void)
{
    (void)setenv("PHOTON_CUDA_GRAPHS", "1", 1); // what is off by default is tested all the more
    RUN(the_device_answers);
    if (gpu) {
        op_parity_open(gpu, getenv("PHOTON_QUICK") ? OP_SMALL : OP_LARGE);
        op_parity();
        op_parity_close();
        RUN(the_attention_of_hopper_passes_its_trial);
    }
    if (gpu && reopen("wgmma-untried")) {
        op_parity_open(gpu, getenv("PHOTON_QUICK") ? OP_SMALL : OP_LARGE);
        op_parity_attention();
        op_parity_close();
    }
    backend_close(gpu);
    return check_end();
}
