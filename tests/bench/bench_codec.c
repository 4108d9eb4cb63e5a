/*
 * How fast deltas are coded and decoded, and what it costs them: one thread, groups of values that
 * look like a training's. One JSON line per rung; GB/s are F32 values per second of processor time.
 *
 *     bench_codec [GROUPS]      (64, which is 16 MiB)
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/codec.h"
#include "common/mem.h"
#include "common/rng.h"

enum { REPEATS = 5 };

struct coded {
    int64_t groups;
    float *u;
    struct codec_bytes *bytes;
    double *sum; // of one group, as an aggregation has it
    float *v;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double cpu_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void stop(const struct err *e)
{
    (void)fprintf(stderr, "bench_codec: %s\n", e->msg);
    exit(1);
}

static double encode_all(struct coded *c, const struct codec_rule *r)
{
    struct err e = {0};
    double begin = cpu_s();
    for (int64_t g = 0; g < c->groups; g++) {
        if (codec_encode(r, c->u + g * CODEC_GROUP, CODEC_GROUP, &c->bytes[g], &e)) {
            stop(&e);
        }
    }
    return cpu_s() - begin;
}

/* Decoded and added to a sum in double: what an update costs an aggregation. */
static double fold_all(struct coded *c, const struct codec_rule *r)
{
    struct err e = {0};
    double begin = cpu_s();
    for (int64_t g = 0; g < c->groups; g++) {
        if (codec_decode(r, &c->bytes[g], CODEC_GROUP, c->v, &e)) {
            stop(&e);
        }
        for (int i = 0; i < CODEC_GROUP; i++) {
            c->sum[i] += 0.125 * (double)c->v[i];
        }
    }
    return cpu_s() - begin;
}

static double relative_error(struct coded *c, const struct codec_rule *r)
{
    struct err e = {0};
    double diff = 0.0;
    double all = 0.0;
    for (int64_t g = 0; g < c->groups; g++) {
        if (codec_decode(r, &c->bytes[g], CODEC_GROUP, c->v, &e)) {
            stop(&e);
        }
        for (int i = 0; i < CODEC_GROUP; i++) {
            double u = (double)c->u[g * CODEC_GROUP + i];
            diff += (u - (double)c->v[i]) * (u - (double)c->v[i]);
            all += u * u;
        }
    }
    return sqrt(diff / all);
}

static void measure(struct coded *c, enum codec codec)
{
    struct codec_rule r = codec_rule(codec, CODEC_K);
    if (codec == CODEC_Q2) {
        codec_learn(&r, c->u, CODEC_GROUP / 4);
    }
    int64_t room[CODEC_PARTS];
    codec_sizes(&r, CODEC_GROUP, room);
    for (int64_t g = 0; g < c->groups; g++) {
        for (int p = 0; p < CODEC_PARTS; p++) {
            c->bytes[g].part[p] = mem_alloc((size_t)room[p] + 1);
        }
    }
    double encode[REPEATS];
    double fold[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        encode[i] = encode_all(c, &r);
        fold[i] = fold_all(c, &r);
    }
    qsort(encode, REPEATS, sizeof(encode[0]), by_value);
    qsort(fold, REPEATS, sizeof(fold[0]), by_value);
    double size = 0.0;
    for (int64_t g = 0; g < c->groups; g++) {
        for (int p = 0; p < CODEC_PARTS; p++) {
            size += (double)c->bytes[g].size[p];
        }
    }
    double values = 4.0 * (double)(c->groups * CODEC_GROUP);
    (void)printf("{\"bench\":\"codec\",\"codec\":\"%s\",\"encode_gb_s\":%.2f,\"encode_min\":%.2f,"
                 "\"fold_gb_s\":%.2f,\"fold_min\":%.2f,\"ratio\":%.2f,\"error\":%.4f}\n",
                 codec_name(codec), values / encode[REPEATS / 2] / 1e9,
                 values / encode[REPEATS - 1] / 1e9, values / fold[REPEATS / 2] / 1e9,
                 values / fold[REPEATS - 1] / 1e9, values / size, relative_error(c, &r));
    (void)fflush(stdout);
    for (int64_t g = 0; g < c->groups; g++) {
        for (int p = 0; p < CODEC_PARTS; p++) {
            mem_free(c->bytes[g].part[p]);
        }
    }
}

int main(int argc, char **argv)
{
    struct coded c = {.groups = argc > 1 ? strtol(argv[1], NULL, 10) : 64};
    if (c.groups < 1) {
        (void)fprintf(stderr, "usage: bench_codec [GROUPS]\n");
        return 2;
    }
    c.u = mem_alloc((size_t)c.groups * CODEC_GROUP * sizeof(*c.u));
    c.v = mem_alloc(CODEC_GROUP * sizeof(*c.v));
    c.sum = mem_alloc(CODEC_GROUP * sizeof(*c.sum));
    c.bytes = mem_alloc((size_t)c.groups * sizeof(*c.bytes));
    memset(c.sum, 0, CODEC_GROUP * sizeof(*c.sum));
    for (int64_t i = 0; i < c.groups * CODEC_GROUP; i++) {
        c.u[i] = (float)(1e-3 * rng_normal(1, (uint64_t)i));
    }
    for (int i = 0; i < CODEC_COUNT; i++) {
        measure(&c, (enum codec)i);
    }
    mem_free(c.u);
    mem_free(c.v);
    mem_free(c.sum);
    mem_free(c.bytes);
    return 0;
}
