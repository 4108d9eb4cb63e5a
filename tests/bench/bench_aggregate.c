/*
 * How fast updates are folded into a checkpoint, from files on a real disk.
 *
 *     bench_aggregate [MILLIONS OF PARAMETERS] [UPDATES]      (125.311488 and 8)
 *
 * Each update is a file of its own with values that look like a training's. One JSON line per case.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
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

static void measure(struct aggregate_job *job, const char *name)
{
    double seconds[REPEATS];
    struct aggregate_stats stats = {.update_cosines = mem_alloc(UPDATES_MAX * sizeof(double))};
    for (int i = 0; i < REPEATS; i++) {
        int corrupt = 0;
        struct err e = {0};
        job->out_hash = sha256_new();
        if (aggregate_run(job, &stats, &corrupt, &e)) {
            (void)fprintf(stderr, "aggregation failed: %s\n", e.msg);
            exit(1);
        }
        sha256_free(job->out_hash);
        seconds[i] = stats.seconds;
    }
    qsort(seconds, REPEATS, sizeof(seconds[0]), by_value);
    struct rusage usage;
    (void)getrusage(RUSAGE_SELF, &usage);
    (void)printf("{\"bench\":\"aggregate\",\"outer\":\"%s\",\"params\":%lld,\"updates\":%d,"
                 "\"threads\":%d,\"seconds\":%.3f,\"min\":%.3f,\"max\":%.3f,\"read_gb_s\":%.2f,"
                 "\"peak_rss_mib\":%ld}\n",
                 name, (long long)job->table->total, job->input_count, job->threads,
                 seconds[REPEATS / 2], seconds[0], seconds[REPEATS - 1],
                 (double)stats.bytes_read / seconds[REPEATS / 2] / 1e9, usage.ru_maxrss / 1024);
    (void)fflush(stdout);
    mem_free(stats.update_cosines);
}

int main(int argc, char **argv)
{
    double millions = argc > 1 ? strtod(argv[1], NULL) : 125.311488;
    long updates = argc > 2 ? strtol(argv[2], NULL, 10) : 8;
    if (!(millions > 0.0) || millions > 1e5 || updates < 1 || updates > UPDATES_MAX) {
        (void)fprintf(stderr, "usage: bench_aggregate [MILLIONS OF PARAMETERS] [UPDATES]\n");
        return 64;
    }
    struct param_table table = {.total = (int64_t)(millions * 1e6 + 0.5)};
    const char *dir = getenv("TMPDIR");
    struct statvfs disk;
    double need = (double)table.total * 4.0 * ((double)updates + 6.0);
    if (statvfs(dir ? dir : "/tmp", &disk) == 0 &&
        (double)disk.f_bavail * (double)disk.f_frsize < need * 1.1) {
        (void)printf("skipped: aggregate needs %.1f GB in %s; try TMPDIR or a smaller model\n",
                     need / 1e9, dir ? dir : "/tmp");
        return 0;
    }

    struct run_spec spec = {0};
    struct aggregate_input inputs[UPDATES_MAX];
    for (long k = 0; k < updates; k++) {
        inputs[k] = (struct aggregate_input){.fd = drawn_file(100 + (uint64_t)k, table.total, 1e-3),
                                             .weight = 1.0 + (double)k};
    }
    struct aggregate_job job = {.spec = &spec,
                                .table = &table,
                                .round = 2,
                                .base_fd = drawn_file(1, table.total, 0.02),
                                .state_fd = drawn_file(2, OUTER_ARRAYS_MAX * table.total, 1e-3),
                                .inputs = inputs,
                                .input_count = (int)updates,
                                .out_fd = scratch_file(),
                                .out_state_fd = scratch_file()};
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (int threads = 1; threads <= cpus && threads <= 16; threads *= 2) {
        job.threads = threads;
        spec.outer = (struct outer_spec){.name = OUTER_FEDAVG, .lr = 1.0};
        measure(&job, "fedavg");
        spec.outer.clip_median = 3.0;
        measure(&job, "fedavg, norms bounded");
        spec.outer = (struct outer_spec){.name = OUTER_FEDNESTEROV, .lr = 0.7, .momentum = 0.9};
        measure(&job, "fednesterov");
        spec.outer = (struct outer_spec){
            .name = OUTER_FEDADAM, .lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-3};
        measure(&job, "fedadam");
    }
    return 0;
}
