#include "tests/bench/rates.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "kernels/cpu/cpu.h"

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

double quantile(struct times *t, double q)
{
    qsort(t->s, (size_t)t->n, sizeof(t->s[0]), by_value);
    return t->s[(int)(q * (t->n - 1) + 0.5)];
}

double cpu_now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double load_now(void)
{
    double l = 0;
    return getloadavg(&l, 1) == 1 ? l : -1;
}

struct copy_part {
    char *to;
    const char *from;
    size_t size;
};

static void *copy_run(void *arg)
{
    const struct copy_part *p = arg;
    memcpy(p->to, p->from, p->size);
    return NULL;
}

/* Bytes read plus written in a second by the op that computes least: ADOPT's first step. */
static double device_rate(struct backend *be)
{
    enum { ROUNDS = 20 };
    const int64_t n = 64 << 20;
    const struct optim_step first = {.kind = OPTIM_ADOPT, .t = 1};
    const struct clip_state finite = {.factor = 1, .finite = 1};
    void *a[4]; // w, m, v, g
    struct times t = {0};
    struct clip_state *clip = be->ops->alloc(be, sizeof(finite));
    struct optim_step *step = be->ops->alloc(be, sizeof(first));
    bool there = clip && step;
    for (int i = 0; i < 4; i++) {
        a[i] = be->ops->alloc(be, (size_t)n * sizeof(float));
        there = there && a[i];
    }
    if (there) {
        be->ops->put(be, clip, &finite, sizeof(finite));
        be->ops->put(be, step, &first, sizeof(first));
    }
    for (int round = 0; round < ROUNDS && there; round++) {
        double start = clock_mono_s();
        be->ops->optim(be, DTYPE_F32, step, clip, a[0], NULL, a[1], a[2], a[3], n);
        (void)be->ops->sync(be);
        t.s[t.n++] = clock_mono_s() - start;
    }
    for (int i = 0; i < 4; i++) {
        be->ops->release(be, a[i]);
    }
    be->ops->release(be, clip);
    be->ops->release(be, step);
    return t.n ? 7.0 * sizeof(float) * (double)n / quantile(&t, 0.5) : 0;
}

double copy_rate(struct backend *be)
{
    if (strcmp(be->ops->name, "cuda") == 0) {
        return device_rate(be);
    }
    enum { THREADS_MAX = 64, ROUNDS = 7 };
    size_t size = (size_t)256 << 20;
    char *a = be->ops->alloc(be, size);
    char *b = be->ops->alloc(be, size);
    struct times t = {0};
    int n = be->threads < THREADS_MAX ? be->threads : THREADS_MAX;
    if (a && b) {
        memset(a, 1, size);
        memset(b, 2, size);
    }
    for (int round = 0; round < ROUNDS && a && b; round++) {
        struct copy_part part[THREADS_MAX];
        pthread_t thread[THREADS_MAX];
        double start = clock_mono_s();
        for (int i = 0; i < n; i++) {
            size_t each = size / (size_t)n;
            part[i] = (struct copy_part){b + each * (size_t)i, a + each * (size_t)i, each};
            if (pthread_create(&thread[i], NULL, copy_run, &part[i])) {
                abort();
            }
        }
        for (int i = 0; i < n; i++) {
            (void)pthread_join(thread[i], NULL);
        }
        t.s[t.n++] = clock_mono_s() - start;
    }
    be->ops->release(be, a);
    be->ops->release(be, b);
    return t.n ? 2.0 * (double)size / quantile(&t, 0.5) : 0;
}

struct block_run {
    const struct lanes *l;
    bool bf16;
    double rate;
};

static void *block_run(void *arg)
{
    enum { UNITS = 128, SECONDS = 1, TURNS = 1000 };
    struct block_run *run = arg;
    const struct lanes *l = run->l;
    float *sums = mem_alloc((size_t)GEMM_SIDE * GEMM_SIDE * sizeof(float));
    uint32_t *operands = mem_alloc((size_t)(l->a_group + l->b_group) * UNITS * sizeof(*operands));
    for (int64_t i = 0; i < (l->a_group + l->b_group) * UNITS; i++) {
        uint32_t drawn = (uint32_t)rng_u64(1, (uint64_t)i);
        operands[i] = (drawn & 0x80ff80ffu) | 0x3f003f00u; // +-0.5 to 2, two or one of them
    }
    const struct gemm_task t = {.bf16 = run->bf16, .units = UNITS + 1, .pitch = UNITS + 1};
    const struct gemm_block b = {.rows = l->a_group,
                                 .cols = l->b_group,
                                 .end = UNITS, // of one more: sums are kept, and no output written
                                 .a = operands,
                                 .b = operands + l->a_group * UNITS,
                                 .sums = sums};
    double each = 2.0 * (run->bf16 && l->pairs ? 2 : 1) * UNITS * (double)(l->a_group * l->b_group);
    double end = clock_mono_s() + SECONDS;
    for (double start = clock_mono_s(); start < end;) {
        for (int i = 0; i < TURNS; i++) {
            l->gemm_block(&t, &b);
        }
        double now = clock_mono_s();
        double rate = TURNS * each / (now - start);
        run->rate = rate > run->rate ? rate : run->rate;
        start = now;
    }
    mem_free(sums);
    mem_free(operands);
    return NULL;
}

double block_rate(struct backend *be, enum dtype at)
{
    enum { THREADS_MAX = 64 };
    const struct cpu *c = strcmp(be->ops->name, "cpu") == 0 ? (const struct cpu *)be : NULL;
    if (!c || (strcmp(cpu_gemm_name, "own") != 0 && !(at == DTYPE_BF16 && c->own_bf16))) {
        return 0;
    }
    int n = be->threads < THREADS_MAX ? be->threads : THREADS_MAX;
    struct block_run runs[THREADS_MAX] = {{0}};
    pthread_t threads[THREADS_MAX];
    double sum = 0;
    for (int i = 0; i < n; i++) {
        runs[i] = (struct block_run){.l = c->lanes, .bf16 = at == DTYPE_BF16};
        if (pthread_create(&threads[i], NULL, block_run, &runs[i])) {
            abort();
        }
    }
    for (int i = 0; i < n; i++) {
        (void)pthread_join(threads[i], NULL);
        sum += runs[i].rate;
    }
    return sum * be->threads / n;
}
