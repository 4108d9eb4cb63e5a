/*
 * How fast updates are folded into a checkpoint, from files on a real disk.
 *
 *     bench_aggregate [--updates 8] [--codec f32] [--outer NAME] [--threads N] [--layers 12]
 *
 * A model of the 125m shape, each update a file of its own with values that look like a training's,
 * coded once before the clock starts. Without --outer and --threads: several of both. One JSON line
 * per case.
 */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "common/arena.h"
#include "common/clock.h"
#include "common/codec_file.h"
#include "common/mem.h"
#include "common/outer.h"
#include "common/rng.h"
#include "server/aggregate.h"

enum { UPDATES_MAX = 64, REPEATS = 3, PIECE = 1 << 20 };

static int scratch_file(void)
{
    const char *dir = getenv("TMPDIR");
    char path[512];
    (void)snprintf(path, sizeof(path), "%s/bench_aggregate_XXXXXX", dir ? dir : "/tmp");
    int fd = mkstemp(path);
    if (fd < 0) {
        perror(path);
        exit(1);
    }
    (void)unlink(path);
    return fd;
}

static int drawn_file(uint64_t seed, int64_t count, double scale)
{
    int fd = scratch_file();
    float *v = mem_alloc(PIECE * sizeof(*v));
    for (int64_t i = 0; i < PIECE; i++) {
        v[i] = (float)(scale * rng_normal(seed, (uint64_t)i));
    }
    for (int64_t at = 0; at < count; at += PIECE) {
        int64_t n = count - at < PIECE ? count - at : PIECE;
        v[at / PIECE % PIECE] += 1e-6F; // no two pieces alike
        if (pwrite(fd, v, (size_t)n * sizeof(*v), at * 4) != n * 4) {
            perror("cannot write the bench's files");
            exit(1);
        }
    }
    mem_free(v);
    return fd;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static void stop(const char *what, const struct err *e)
{
    (void)fprintf(stderr, "bench_aggregate: %s: %s\n", what, e->msg);
    exit(1);
}

struct drawn {
    uint64_t seed;
    float *values; /* [PIECE] */
};

static enum status read_drawn(void *ctx, int64_t first, int64_t n, float *u, double *fresh,
                              struct err *e)
{
    (void)e;
    const struct drawn *d = ctx;
    for (int64_t i = 0; i < n; i++) {
        u[i] = d->values[(first + i + (int64_t)d->seed * 4099) % PIECE];
        *fresh += (double)u[i] * (double)u[i];
    }
    return ST_OK;
}

/* An update of normal values on a rung of the ladder, as a silo would send it. */
static struct coded_file *coded_update(struct arena *a, uint64_t seed, const struct param_table *t,
                                       enum codec codec, float *values, int *fd)
{
    struct err e = {0};
    struct drawn d = {.seed = seed, .values = values};
    struct coded_source source = {.ctx = &d, .read = read_drawn};
    struct coding c;
    struct coded_meta meta = {0};
    struct digest digest;
    int64_t bytes = 0;
    int scratch = scratch_file();
    *fd = scratch_file();
    struct coded_file *f = arena_alloc(a, sizeof(*f));
    if (coding_run(&c, a, scratch, t, codec, CODEC_K, &source, &e) ||
        coding_place(&c, a, *fd, &meta, &digest, &bytes, &e) ||
        coded_open(f, a, *fd, t, codec, CODEC_K, &meta, &e)) {
        stop("coding an update", &e);
    }
    (void)close(scratch);
    return f;
}

/* Of this program alone: getrusage() also knows what was there before exec. */
static long peak_rss_mib(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long kib = 0;
    while (f && fgets(line, sizeof(line), f)) {
        if (strncmp(line, "VmHWM:", 6) == 0) {
            kib = strtol(line + 6, NULL, 10);
        }
    }
    if (f) {
        (void)fclose(f);
    }
    return kib / 1024;
}

static double cpu_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void measure(struct aggregate_job *job, const char *name, const char *codec)
{
    double seconds[REPEATS];
    double cpu[REPEATS];
    struct aggregate_stats stats = {.update_cosines = mem_alloc(UPDATES_MAX * sizeof(double))};
    for (int i = 0; i < REPEATS; i++) {
        int corrupt = 0;
        struct err e = {0};
        double began = cpu_s();
        job->out_hash = sha256_new();
        if (aggregate_run(job, &stats, &corrupt, &e)) {
            (void)fprintf(stderr, "aggregation failed: %s\n", e.msg);
            exit(1);
        }
        sha256_free(job->out_hash);
        seconds[i] = stats.seconds;
        cpu[i] = cpu_s() - began;
    }
    qsort(seconds, REPEATS, sizeof(seconds[0]), by_value);
    qsort(cpu, REPEATS, sizeof(cpu[0]), by_value);
    (void)printf(
        "{\"bench\":\"aggregate\",\"outer\":\"%s\",\"codec\":\"%s\",\"params\":%lld,\"updates\":%d,"
        "\"threads\":%d,\"seconds\":%.3f,\"min\":%.3f,\"max\":%.3f,\"cpu_s\":%.3f,\"read_gb_s\":%."
        "2f,"
        "\"peak_rss_mib\":%ld}\n",
        name, codec, (long long)job->table->total, job->input_count, job->threads,
        seconds[REPEATS / 2], seconds[0], seconds[REPEATS - 1], cpu[REPEATS / 2],
        (double)stats.bytes_read / seconds[REPEATS / 2] / 1e9, peak_rss_mib());
    (void)fflush(stdout);
    mem_free(stats.update_cosines);
}

enum { OUTERS = 4 };

static const struct {
    const char *name;
    struct outer_spec spec;
} OUTER[OUTERS] = {
    {"fedavg", {.name = OUTER_FEDAVG, .lr = 1.0}},
    {"fedavg, norms bounded", {.name = OUTER_FEDAVG, .lr = 1.0, .clip_median = 3.0}},
    {"fednesterov", {.name = OUTER_FEDNESTEROV, .lr = 0.7, .momentum = 0.9}},
    {"fedadam", {.name = OUTER_FEDADAM, .lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-3}},
};

struct wanted {
    int updates;
    enum codec codec;
    const char *outer; /* NULL: each */
    int threads;       /* 0: 1, 2, 4 ... */
    int32_t layers;
};

static int usage(void)
{
    (void)fprintf(
        stderr,
        "usage: bench_aggregate [--updates 8] [--codec f32|bf16|int8|q4|q2|topk] [--outer fedavg] "
        "[--threads N] [--layers 12]\n");
    return 64;
}

static bool parse(struct wanted *w, int argc, char **argv)
{
    static const struct option OPTIONS[] = {
        {"updates", required_argument, NULL, 'u'}, {"codec", required_argument, NULL, 'c'},
        {"outer", required_argument, NULL, 'o'},   {"threads", required_argument, NULL, 't'},
        {"layers", required_argument, NULL, 'l'},  {0}};
    struct err e = {0};
    for (int c; (c = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1;) {
        long n = strchr("utl", c) ? strtol(optarg, NULL, 10) : 0;
        switch (c) {
        case 'u':
            w->updates = (int)n;
            break;
        case 't':
            w->threads = (int)n;
            break;
        case 'l':
            w->layers = (int32_t)n;
            break;
        case 'o':
            w->outer = optarg;
            break;
        case 'c':
            if (codec_parse(&w->codec, optarg, &e)) {
                return false;
            }
            break;
        default:
            return false;
        }
    }
    return optind == argc && w->updates >= 1 && w->updates <= UPDATES_MAX && w->threads >= 0 &&
           w->threads <= 16 && w->layers >= 1 && w->layers <= 96;
}

/* Whether the files fit; this disk may be a small one. */
static bool room_for(double bytes)
{
    const char *dir = getenv("TMPDIR");
    struct statvfs disk;
    return statvfs(dir ? dir : "/tmp", &disk) != 0 ||
           (double)disk.f_bavail * (double)disk.f_frsize > bytes * 1.1;
}

int main(int argc, char **argv)
{
    struct wanted w = {.updates = 8, .codec = CODEC_F32, .layers = 12};
    if (!parse(&w, argc, argv)) {
        return usage();
    }
    struct arena *a = arena_new((size_t)64 << 20);
    struct model_spec model = {.d_model = 768,
                               .n_heads = 12,
                               .n_layers = w.layers,
                               .vocab_size = 50368,
                               .seq_len = 2048,
                               .position = POSITION_ALIBI};
    struct param_table table = params_table(a, &model);
    double need = (double)table.total * 4.0 * ((double)w.updates + 7.0);
    if (!room_for(need)) {
        (void)printf(
            "skipped: aggregate needs %.1f GB in TMPDIR (/tmp); try another, or fewer --updates\n",
            need / 1e9);
        return 0;
    }

    struct run_spec spec = {0};
    struct aggregate_input inputs[UPDATES_MAX];
    float *values = mem_alloc(PIECE * sizeof(*values));
    for (int64_t i = 0; i < PIECE; i++) {
        values[i] = (float)(1e-3 * rng_normal(1, (uint64_t)i));
    }
    for (int k = 0; k < w.updates; k++) {
        uint64_t seed = 100 + (uint64_t)k;
        inputs[k] = (struct aggregate_input){.weight = 1.0 + (double)k};
        if (w.codec == CODEC_F32) {
            inputs[k].fd = drawn_file(seed, table.total, 1e-3);
        } else {
            inputs[k].coded = coded_update(a, seed, &table, w.codec, values, &inputs[k].fd);
        }
    }
    struct aggregate_job job = {.spec = &spec,
                                .table = &table,
                                .round = 2,
                                .base_fd = drawn_file(1, table.total, 0.02),
                                .state_fd = drawn_file(2, OUTER_ARRAYS_MAX * table.total, 1e-3),
                                .inputs = inputs,
                                .input_count = w.updates,
                                .out_fd = scratch_file(),
                                .out_state_fd = scratch_file()};
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (int threads = w.threads ? w.threads : 1;
         threads <= (w.threads ? w.threads : cpus) && threads <= 16; threads *= 2) {
        job.threads = threads;
        for (int i = 0; i < OUTERS; i++) {
            if (!w.outer || strcmp(w.outer, OUTER[i].name) == 0) {
                spec.outer = OUTER[i].spec;
                measure(&job, OUTER[i].name, codec_name(w.codec));
            }
        }
    }
    mem_free(values);
    arena_free(a);
    return 0;
}
