/*
 * The CPU backend: every op against the reference, and what is its own: two ways to multiply,
 * several instruction sets, threads.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/mem.h"
#include "common/rng.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "tests/support/check.h"
#include "tests/support/op_kit.h"

static struct backend *cpu; /* two threads */
static struct backend *one; /* one thread  */
static const char *program;

/* op_parity() has seen the product that the backend chose, which may be this one. */
static void our_own_product_is_right_too(void)
{
    op_parity_gemms(cpu_gemm_blocked, "blocked", 1, 1, 1);
    op_parity_gemms(cpu_gemm_blocked, "blocked", 7, 13, 29);
    op_parity_gemms(cpu_gemm_blocked, "blocked", 130, 129, 600);
    op_parity_gemms(cpu_gemm_blocked, "blocked", 2, 50368, 8);
    op_parity_gemms(cpu_gemm_blocked, "blocked", 3, 768, 3072);
    op_parity_gemms(cpu_gemm_blocked, "blocked", 300, 160, 2 * GEMM_CHUNK + 451);
    op_parity_gemms(cpu_gemm_blocked, "blocked", 2 * GEMM_CHUNK + 451, 300, 140);
}

/* and where op_parity() has seen our own, oneDNN's */
static void the_other_product_is_right_too(void)
{
    struct cpu *c = (struct cpu *)cpu;
    bool own = c->own_bf16;
    c->own_bf16 = false;
    op_parity_gemms(cpu_gemm, cpu_gemm_name, 7, 13, 29);
    op_parity_gemms(cpu_gemm, cpu_gemm_name, 130, 129, 600);
    op_parity_gemms(cpu_gemm, cpu_gemm_name, 2, 50368, 8);
    op_parity_gemms(cpu_gemm, cpu_gemm_name, 8, 768, 3072);
    c->own_bf16 = own;
}

/* However many threads cut the output, and whatever of it is left to the last. */
static void our_own_product_has_the_same_bits_on_any_threads(void)
{
    enum { SHAPES = 5, LONG = 2 * GEMM_CHUNK + 11 };
    static const int64_t shapes[SHAPES][3] = {
        {1, 1, 1}, {33, 70, 9}, {300, 257, 131}, {140, 520, LONG}, {LONG, 140, 300}};
    static const int crowds[] = {2, 3, 7, 16};
    bool same = true;
    for (int i = 0; i < SHAPES * GEMM_USE_COUNT * OP_DTYPES; i++) {
        enum dtype t = op_dtypes[i / (SHAPES * GEMM_USE_COUNT)];
        const int64_t *n = shapes[i % SHAPES];
        struct gemm g = {
            (enum gemm_use)(i / SHAPES % GEMM_USE_COUNT), t, false, false, false, n[0], n[1], n[2]};
        int64_t most = n[0] * n[1] > n[1] * n[2] ? n[0] * n[1] : n[1] * n[2];
        most = most > n[0] * n[2] ? most : n[0] * n[2];
        struct pair x = draw(t, most, 0, 1, 1);
        struct pair y = draw(t, most, 0, 1, 2);
        char *want = mem_alloc((size_t)most * sizeof(float));
        char *got = mem_alloc((size_t)most * sizeof(float));
        cpu_gemm_blocked(one, &g, want, x.a, y.a, NULL);
        for (int k = 0; k < 4; k++) {
            struct backend *be = NULL;
            CHECK_INT(cpu_open(&be, crowds[k], NULL), ST_OK);
            memset(got, 0, (size_t)most * sizeof(float));
            cpu_gemm_blocked(be, &g, got, x.a, y.a, NULL);
            same = same && memcmp(got, want, (size_t)most * sizeof(float)) == 0;
            backend_close(be);
        }
        mem_free(want);
        mem_free(got);
        drop(&x);
        drop(&y);
    }
    CHECK(same);
}

#if defined(__x86_64__)
static const struct lanes *const ALL[] = {&lanes_base, &lanes_avx2, &lanes_avx512, &lanes_bf16};

static bool is_here(const struct lanes *l)
{
    return (l != &lanes_avx2 || __builtin_cpu_supports("avx2")) &&
           (l != &lanes_avx512 || __builtin_cpu_supports("avx512dq")) &&
           (l != &lanes_bf16 || __builtin_cpu_supports("avx512bf16"));
}
#endif

static void every_instruction_set_gives_a_right_product(void)
{
#if defined(__x86_64__)
    struct cpu *c = (struct cpu *)cpu;
    const struct lanes *best = c->lanes;
    for (size_t i = 0; i < sizeof(ALL) / sizeof(ALL[0]); i++) {
        if (is_here(ALL[i])) {
            c->lanes = ALL[i];
            op_parity_gemms(cpu_gemm_blocked, ALL[i]->name, 67, 45, 301);
            op_parity_gemms(cpu_gemm_blocked, ALL[i]->name, 19, 37, 2 * GEMM_CHUNK + 3);
            c->lanes = best;
        }
    }
#endif
}

#if defined(__x86_64__)
/* A word of the first processor's line of that key, as Linux has it. */
static bool processor_has(const char *key, const char *word)
{
    char line[8192];
    bool found = false;
    FILE *f = fopen("/proc/cpuinfo", "r");
    CHECK(f != NULL);
    while (!found && fgets(line, sizeof(line), f) && line[0] != '\n') {
        char *save = NULL;
        bool here = strncmp(line, key, strlen(key)) == 0;
        for (char *w = strtok_r(line, " \t\n:", &save); here && w;
             w = strtok_r(NULL, " \t\n", &save)) {
            found = found || strcmp(w, word) == 0;
        }
    }
    (void)fclose(f);
    return found;
}
#endif

/* Pairs of bf16 are multiplied in tiles, where Linux gives them (backend.c), or by those who are
 * fast at it; wide registers choose bf16. */
static void the_processor_decides_what_is_computed_in(void)
{
#if defined(__x86_64__)
    const struct lanes *want = &lanes_base;
    if (processor_has("flags", "amx_bf16") && syscall(SYS_arch_prctl, 0x1023, 18) == 0) {
        want = &lanes_amx;
    } else if (processor_has("flags", "avx512_bf16") &&
               !processor_has("vendor_id", "GenuineIntel")) {
        want = &lanes_bf16;
    } else if (processor_has("flags", "avx512dq")) {
        want = &lanes_avx512;
    } else if (processor_has("flags", "avx2")) {
        want = &lanes_avx2;
    }
    CHECK_STR(((struct cpu *)cpu)->lanes->name, want->name);
    CHECK_INT(lanes_avx512.best, DTYPE_BF16);
    CHECK_INT(lanes_bf16.best, DTYPE_BF16);
    CHECK_INT(lanes_amx.best, DTYPE_BF16);
    CHECK_INT(lanes_avx2.best, DTYPE_F32);
#endif
    CHECK_INT(lanes_base.best, DTYPE_F32);
    CHECK_INT(backend_dtype(cpu, "auto"), ((struct cpu *)cpu)->lanes->best);
    CHECK_INT(backend_dtype(cpu, "f32"), DTYPE_F32);
    CHECK_INT(backend_dtype(cpu, "bf16"), DTYPE_BF16);
}

/* and a right attention: op_parity() has seen that of the best */
static void every_instruction_set_attends_rightly(void)
{
#if defined(__x86_64__)
    struct cpu *c = (struct cpu *)cpu;
    const struct lanes *best = c->lanes;
    for (size_t i = 0; i < sizeof(ALL) / sizeof(ALL[0]); i++) {
        if (is_here(ALL[i]) && ALL[i] != best) {
            c->lanes = ALL[i];
            op_scale = OP_SMALL;
            op_parity_attention(true);
            op_scale = OP_MEDIUM;
            c->lanes = best;
        }
    }
#endif
}

static void every_instruction_set_steps_to_the_same_bits(void)
{
#if defined(__x86_64__)
    struct cpu *c = (struct cpu *)cpu;
    const struct lanes *best = c->lanes;
    const struct lanes *all[] = {&lanes_base, __builtin_cpu_supports("avx2") ? &lanes_avx2 : best};
    for (int i = 0; i < 2; i++) {
        c->lanes = all[i];
        bool adamw = op_parity_optim(OPTIM_ADAMW, 5, 1003);
        bool adopt = op_parity_optim(OPTIM_ADOPT, 5, 1003);
        c->lanes = best;
        CHECK(adamw);
        CHECK(adopt);
    }
#endif
}

enum { BT = 130, HEADS = 3, HD = 16, WIDTH = HEADS * HD, VOCAB = 300 };

/* Every threaded op once, its outputs in one row of bytes. */
static size_t run_all(struct backend *be, enum dtype t, char *out, size_t size)
{
    size_t e = dtype_size(t);
    int64_t n = (int64_t)BT * WIDTH;
    struct pair x = draw(t, 3 * n, 0, 1, 1);
    struct pair y = draw(t, 3 * n, 0, 1, 2);
    struct pair logits = draw(t, (int64_t)BT * VOCAB, 0, 2, 3);
    int32_t tokens[BT];
    for (int i = 0; i < BT; i++) {
        tokens[i] = (int32_t)(rng_u64(4, (uint64_t)i) % VOCAB);
    }
    char *p = out;
    memset(out, 0, size);
    float *mean = (float *)(void *)p;
    float *rstd = mean + BT;
    p += 2 * BT * sizeof(float);
    be->ops->norm_fwd(be, t, p, p + (size_t)n * e, mean, rstd, x.a, y.a, x.a, y.a, BT, WIDTH);
    float *dg = (float *)(void *)(p + 2 * (size_t)n * e);
    p = (char *)(dg + 2 * WIDTH);
    memcpy(p, y.a, (size_t)n * e);
    be->ops->norm_bwd(be, t, p, dg, dg + WIDTH, y.a, x.a, mean, rstd, x.a, BT, WIDTH);
    p += (size_t)n * e;
    float *lse = (float *)(void *)p;
    p += BT * HEADS * sizeof(float);
    be->ops->attn_fwd(be, t, p, lse, x.a, NULL, 1, BT, HEADS, HD);
    be->ops->attn_bwd(be, t, p + (size_t)n * e, x.a, p, y.a, lse, NULL, 1, BT, HEADS, HD);
    p += 4 * (size_t)n * e;
    float *sums = (float *)(void *)p;
    be->ops->embed_bwd(be, t, sums, NULL, tokens, x.a, 1, BT, WIDTH);
    be->ops->bias_bwd(be, t, sums + VOCAB * WIDTH, x.a, BT, WIDTH);
    p = (char *)(sums + VOCAB * WIDTH + WIDTH);
    be->ops->xent(be, t, logits.a, sums + VOCAB * WIDTH, tokens, 0.1, true, BT, VOCAB);
    memcpy(p, logits.a, (size_t)(BT * VOCAB) * e);
    p += (size_t)(BT * VOCAB) * e;
    struct gemm g = {GEMM_WGRAD, t, false, false, false, BT, 3 * WIDTH, WIDTH};
    cpu_gemm_blocked(be, &g, p, x.a, y.a, NULL);
    p += 3 * WIDTH * WIDTH * sizeof(float);
    drop(&x);
    drop(&y);
    drop(&logits);
    return (size_t)(p - out);
}

static void the_number_of_threads_does_not_change_a_bit(void)
{
    enum { SIZE = 4 << 20 };
    char *a = mem_alloc(SIZE);
    char *b = mem_alloc(SIZE);
    bool same = true;
    for (int i = 0; i < OP_DTYPES; i++) {
        size_t used = run_all(cpu, op_dtypes[i], a, SIZE);
        CHECK(used < SIZE);
        CHECK_INT(run_all(one, op_dtypes[i], b, SIZE), used);
        same = same && memcmp(a, b, used) == 0;
    }
    mem_free(a);
    mem_free(b);
    CHECK(same);
}

/* Gradients of attention over T tokens on this many threads. */
static void attend(const struct pair *x, const struct pair *dout, void *dqkv, enum dtype t,
                   const float *slopes, int64_t T, int64_t heads, int threads)
{
    struct backend *be = NULL;
    CHECK_INT(cpu_open(&be, threads, NULL), ST_OK);
    size_t size = (size_t)(T * heads * HD) * dtype_size(t);
    char *o = mem_alloc(size);
    float *lse = mem_alloc((size_t)(T * heads) * sizeof(float));
    be->ops->attn_fwd(be, t, o, lse, x->a, slopes, 1, T, heads, HD);
    be->ops->attn_bwd(be, t, dqkv, x->a, o, dout->a, lse, slopes, 1, T, heads, HD);
    CHECK_INT(backend_sync(be, NULL), ST_OK);
    mem_free(o);
    mem_free(lse);
    backend_close(be);
}

/* Fewer heads than threads: their tiles are shared, and each sum is still the same. */
static void threads_that_share_the_tiles_of_a_head_change_no_bit(void)
{
    static const int64_t lengths[] = {60, 129, 400};
    static const int crowds[] = {2, 3, 8};
    static const float slopes[] = {4.0f, 0.25f, 0.0f}; // the first skips far tiles
    bool same = true;
    for (int i = 0; i < 18 * OP_DTYPES; i++) {
        enum dtype t = op_dtypes[i / 18];
        int64_t heads = 1 + i % 3;
        int64_t T = lengths[i / 3 % 3];
        const float *biases = i / 9 % 2 ? slopes : NULL;
        struct pair x = draw(t, 3 * T * heads * HD, 0, 1, 1);
        struct pair dout = draw(t, T * heads * HD, 0, 1, 2);
        size_t size = (size_t)(3 * T * heads * HD) * dtype_size(t);
        char *want = mem_alloc(size);
        char *got = mem_alloc(size);
        attend(&x, &dout, want, t, biases, T, heads, 1);
        for (int k = 0; k < 3; k++) {
            memset(got, 0xff, size);
            attend(&x, &dout, got, t, biases, T, heads, crowds[k]);
            same = same && memcmp(got, want, size) == 0;
        }
        mem_free(want);
        mem_free(got);
        drop(&x);
        drop(&dout);
    }
    CHECK(same);
}

/* So many threads a backend has that is asked for as many as there are cores. */
static int all_threads(void)
{
    struct backend *be = NULL;
    CHECK_INT(cpu_open(&be, 0, NULL), ST_OK);
    int n = be->threads;
    backend_close(be);
    return n;
}

static int expected_threads;

static void every_core_is_counted(void)
{
    CHECK_INT(all_threads(), expected_threads);
}

/* With these in the environment OpenMP may give fewer threads than are asked for, or bind the one
 * that asks how many cores there are. */
static void a_smaller_team_multiplies_rightly(void)
{
    const int cores = all_threads();
    static const char *const settings[][2] = {
        {"OMP_THREAD_LIMIT", "1"}, {"OMP_DYNAMIC", "true"}, {"OMP_PROC_BIND", "true"}};
    for (int i = 0; i < 3; i++) {
        int status = -1;
        char threads[16];
        (void)snprintf(threads, sizeof(threads), "%d", i == 0 ? 1 : cores);
        pid_t child = fork();
        if (child == 0) {
            (void)setenv(settings[i][0], settings[i][1], 1);
            (void)execl("/proc/self/exe", program, "products", threads, (char *)NULL);
            _exit(127);
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        CHECK_INT(status, 0);
    }
}

static void too_many_threads_are_refused(void)
{
    struct backend *be = NULL;
    struct err e;
    CHECK_INT(cpu_open(&be, -1, &e), ST_INVALID);
    CHECK_INT(cpu_open(&be, CPU_THREADS_MAX + 1, &e), ST_INVALID);
    CHECK(be == NULL);
}

int main(int argc, char **argv)
{
    program = argv[0];
    struct err e;
    if (cpu_open(&cpu, 2, &e) || cpu_open(&one, 1, &e)) {
        (void)fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    op_parity_open(cpu, OP_MEDIUM);
    if (argc > 2) { // a child of a_smaller_team_multiplies_rightly()
        expected_threads = (int)strtol(argv[2], NULL, 10);
        RUN(every_core_is_counted);
        RUN(our_own_product_is_right_too);
        RUN(the_other_product_is_right_too);
        return check_end();
    }
    op_parity();
    every_instruction_set_attends_rightly();
    RUN(our_own_product_is_right_too);
    RUN(the_other_product_is_right_too);
    RUN(our_own_product_has_the_same_bits_on_any_threads);
    RUN(every_instruction_set_gives_a_right_product);
    RUN(every_instruction_set_steps_to_the_same_bits);
    RUN(the_processor_decides_what_is_computed_in);
    RUN(the_number_of_threads_does_not_change_a_bit);
    RUN(threads_that_share_the_tiles_of_a_head_change_no_bit);
    RUN(a_smaller_team_multiplies_rightly);
    RUN(too_many_threads_are_refused);
    op_parity_close();
    backend_close(cpu);
    backend_close(one);
    return check_end();
}
