/*
 * The CUDA backend on a device, op by op against the reference. Without a device the tests are
 * skipped, unless PHOTON_REQUIRE_CUDA is set (make check-gpu): then its absence is a failure.
 * PHOTON_QUICK leaves the large shapes and the timing of products out, for tools under which
 * everything is slow. Where it has Hopper's attention too, that is tried as an owner would have it
 * tried, and tested again:
 *
 *     test_cuda [all|hopper]
 *
 * `all` is all but Hopper's, `hopper` that alone; a kernel of theirs that faults ends the process.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* The products of a small model, by choices that are timed and noted, then by the notes. */
enum { M = 256, WIDTH = 192, PRODUCTS = 5 * GEMM_USE_COUNT };

static struct gemm product(int i)
{
    static const int64_t shapes[5][2] = {
        {3 * WIDTH, WIDTH}, {WIDTH, WIDTH}, {4 * WIDTH, WIDTH}, {WIDTH, 4 * WIDTH}, {512, WIDTH}};
    const int64_t *s = shapes[i / GEMM_USE_COUNT];
    enum gemm_use use = (enum gemm_use)(i % GEMM_USE_COUNT);
    return (struct gemm){
        .use = use, .a_type = DTYPE_BF16, .bias = use == GEMM_FWD, .M = M, .N = s[0], .K = s[1]};
}

/* What all of them give, one after the other, with a backend of its own. */
static void products(float *out)
{
    enum { SIZE = M * 4 * WIDTH };
    static uint16_t narrow[SIZE];
    struct err e = {0};
    CHECK_INT(backend_open(&gpu, "cuda", 0, &e), ST_OK);
    char *memory[4];
    for (int i = 0; i < 4; i++) {
        memory[i] = gpu->ops->alloc(gpu, SIZE * sizeof(float));
        CHECK(memory[i] != NULL);
        for (int k = 0; k < SIZE; k++) { // bf16 numbers of about one
            narrow[k] = (uint16_t)(0x3f00 + ((unsigned)k * 2654435761u + (unsigned)i) % 0x100);
        }
        gpu->ops->put(gpu, memory[i], narrow, sizeof(narrow));
    }
    for (int i = 0; i < PRODUCTS; i++) {
        struct gemm g = product(i);
        CHECK(gpu->ops->plan_gemm(gpu, &g) == NULL);
        gpu->ops->gemm(gpu, &g, memory[0], memory[1], memory[2], g.bias ? memory[3] : NULL);
        gpu->ops->get(gpu, out + (size_t)i * WIDTH, memory[0], WIDTH * sizeof(float));
        CHECK(gpu->ops->sync(gpu) == NULL);
    }
    for (int i = 0; i < 4; i++) {
        gpu->ops->release(gpu, memory[i]);
    }
    backend_close(gpu);
    gpu = NULL;
}

static int lines_of(const char *path)
{
    FILE *f = fopen(path, "r");
    int n = 0;
    for (int c = 0; f && (c = getc(f)) != EOF;) {
        n += c == '\n';
    }
    if (f) {
        (void)fclose(f);
    }
    return n;
}

static void algorithms_are_timed_noted_and_taken_again(void)
{
    static float once[PRODUCTS * WIDTH];
    static float twice[PRODUCTS * WIDTH];
    struct tempdir dir;
    tempdir_make(&dir);
    const char *file = tempdir_at(&dir, "choices");
    backend_close(gpu);
    gpu = NULL;
    CHECK_INT(setenv("PHOTON_CUDA_ALGOS", file, 1), 0);
    products(once);
    int noted = lines_of(file);
    products(twice);
    CHECK(noted >= PRODUCTS);
    CHECK_INT(lines_of(file), noted);
    CHECK(memcmp(once, twice, sizeof(once)) == 0);
    CHECK_INT(unsetenv("PHOTON_CUDA_ALGOS"), 0);
    tempdir_remove(&dir);
}

/* Of one rank each sum is what went in; all of NCCL's calls are made for it. */
static void a_rank_alone_sums_through_nccl(void)
{
    enum { N = 1000 };
    static const int64_t shares[] = {N, N + 3}; // one call, and a group
    struct backend *be = NULL;
    struct backend_meeting at;
    float want[N], got[N];
    CHECK_INT(backend_open(&be, "cuda", 0, NULL), ST_OK);
    const char *why = be->ops->meet(be, &at);
    if (why) {
        backend_close(be);
        SKIP(why);
    }
    why = be->ops->join(be, &at, 0, 1);
    float *x = be->ops->alloc(be, sizeof(want));
    for (int i = 0; i < N; i++) {
        want[i] = (float)i;
    }
    be->ops->put(be, x, want, sizeof(want));
    be->ops->all_reduce(be, DTYPE_F32, x, N);
    for (int i = 0; i < 2; i++) {
        CHECK(be->ops->sync(be) == NULL); // the queue of ranks does not follow the other by itself
        be->ops->reduce_scatter(be, x, N, shares[i]);
        be->ops->all_gather(be, x, (int64_t)sizeof(want), 4 * shares[i]);
    }
    CHECK(be->ops->sync(be) == NULL);
    be->ops->get(be, got, x, sizeof(got));
    be->ops->release(be, x);
    backend_close(be);
    if (why) {
        (void)fprintf(stderr, "%s\n", why);
    }
    CHECK(why == NULL);
    CHECK(memcmp(got, want, sizeof(want)) == 0);
}

static void hopper_is_opened(void)
{
    if (!reopen("wgmma-untried")) {
        SKIP("no compute capability 9.0");
    }
}

static void hopper(void)
{
    RUN(the_attention_of_hopper_passes_its_trial);
    RUN(hopper_is_opened);
    if (gpu) {
        op_parity_open(gpu, getenv("PHOTON_QUICK") ? OP_SMALL : OP_LARGE);
        op_parity_attention(false);
        op_parity_close();
    }
}

int main(int argc, char **argv)
{
    const char *part = argc > 1 ? argv[1] : "";
    (void)setenv("PHOTON_CUDA_GRAPHS", "1", 1); // what is off by default is tested all the more
    RUN(the_device_answers);
    if (gpu && strcmp(part, "hopper")) {
        op_parity_open(gpu, getenv("PHOTON_QUICK") ? OP_SMALL : OP_LARGE);
        op_parity();
        op_parity_close();
        if (!getenv("PHOTON_QUICK")) {
            RUN(algorithms_are_timed_noted_and_taken_again);
        }
        RUN(a_rank_alone_sums_through_nccl);
        RUN(the_device_answers);
    }
    if (gpu && strcmp(part, "all")) {
        hopper();
    }
    backend_close(gpu);
    return check_end();
}
