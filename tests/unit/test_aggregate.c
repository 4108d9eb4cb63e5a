#include "server/aggregate.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/mem.h"
#include "common/rng.h"
#include "tests/support/check.h"

enum { HEADER = 64, SILOS = 5, ARRAYS = OUTER_ARRAYS_MAX, ROUND = 3 };

/* Three blocks, the last one short and no multiple of the lanes. */
static const int64_t TOTAL = 2 * AGGREGATE_BLOCK + 1237;

static int temp_file(void)
{
    char path[] = "/tmp/test_aggregate_XXXXXX";
    int fd = mkstemp(path);
    if (fd >= 0) {
        (void)unlink(path);
    }
    return fd;
}

static int file_of(const float *v, int64_t n)
{
    int fd = temp_file();
    CHECK(fd >= 0);
    CHECK_INT(pwrite(fd, v, (size_t)n * sizeof(*v), HEADER), n * (int64_t)sizeof(*v));
    return fd;
}

static float *drawn(uint64_t seed, int64_t n, double scale)
{
    float *v = mem_alloc((size_t)n * sizeof(*v));
    for (int64_t i = 0; i < n; i++) {
        v[i] = (float)(scale * rng_normal(seed, (uint64_t)i));
    }
    return v;
}

struct bed {
    struct run_spec spec;
    struct param_table table;
    float *base, *state; // state: OUTER_ARRAYS_MAX arrays of TOTAL
    float *updates[SILOS];
    double weights[SILOS];
    struct aggregate_input inputs[SILOS];
    struct aggregate_job job;
    double norms[SILOS], cosines[SILOS], factors[SILOS];
    struct aggregate_stats stats;
    struct digest out, out_state;
    float *got, *got_state;
    int corrupt;
    struct err e;
};

static struct bed *bed_new(enum outer_optimizer o)
{
    struct bed *b = mem_alloc(sizeof(*b));
    b->spec.outer = (struct outer_spec){.name = o,
                                        .lr = o == OUTER_FEDAVG ? 1.0 : 0.7,
                                        .momentum = outer_arrays(o) == 1 ? 0.9 : 0.0,
                                        .beta1 = 0.9,
                                        .beta2 = 0.99,
                                        .eps = 1e-3};
    b->table.total = TOTAL;
    b->base = drawn(1, TOTAL, 0.1);
    b->state = drawn(2, ARRAYS * TOTAL, 0.01);
    for (int64_t i = TOTAL; i < ARRAYS * TOTAL; i++) {
        b->state[i] *= b->state[i]; // second moments
    }
    for (int k = 0; k < SILOS; k++) {
        b->updates[k] = drawn(10 + (uint64_t)k, TOTAL, 0.003);
        b->weights[k] = 1000.0 * (k + 1);
        b->inputs[k] = (struct aggregate_input){
            .fd = file_of(b->updates[k], TOTAL), .data_offset = HEADER, .weight = b->weights[k]};
    }
    b->got = mem_alloc((size_t)TOTAL * sizeof(float));
    b->got_state = mem_alloc((size_t)(ARRAYS * TOTAL) * sizeof(float));
    b->stats.update_norms = b->norms;
    b->stats.update_cosines = b->cosines;
    b->stats.update_factors = b->factors;
    b->job = (struct aggregate_job){.spec = &b->spec,
                                    .table = &b->table,
                                    .round = ROUND,
                                    .base_fd = file_of(b->base, TOTAL),
                                    .base_offset = HEADER,
                                    .state_fd = -1,
                                    .state_offset = HEADER,
                                    .inputs = b->inputs,
                                    .input_count = SILOS,
                                    .out_fd = temp_file(),
                                    .out_offset = HEADER,
                                    .out_state_fd = -1,
                                    .out_state_offset = HEADER,
                                    .threads = 1};
    if (outer_arrays(o) > 0) {
        b->job.state_fd = file_of(b->state, outer_arrays(o) * TOTAL);
        b->job.out_state_fd = temp_file();
    }
    return b;
}

static void bed_free(struct bed *b)
{
    mem_free(b->base);
    mem_free(b->state);
    for (int k = 0; k < SILOS; k++) {
        mem_free(b->updates[k]);
        (void)close(b->inputs[k].fd);
    }
    (void)close(b->job.base_fd);
    (void)close(b->job.out_fd);
    if (b->job.state_fd >= 0) {
        (void)close(b->job.state_fd);
    }
    if (b->job.out_state_fd >= 0) {
        (void)close(b->job.out_state_fd);
    }
    mem_free(b->got);
    mem_free(b->got_state);
    mem_free(b);
}

static enum status bed_run(struct bed *b, int threads)
{
    b->job.threads = threads;
    b->job.out_hash = sha256_new();
    b->job.out_state_hash = sha256_new();
    enum status st = aggregate_run(&b->job, &b->stats, &b->corrupt, &b->e);
    sha256_end(b->job.out_hash, &b->out);
    sha256_end(b->job.out_state_hash, &b->out_state);
    sha256_free(b->job.out_hash);
    sha256_free(b->job.out_state_hash);
    if (!st) {
        size_t size = (size_t)TOTAL * sizeof(float);
        CHECK_INT(pread(b->job.out_fd, b->got, size, HEADER), size);
        if (b->job.out_state_fd >= 0) {
            size *= (size_t)outer_arrays(b->spec.outer.name);
            CHECK_INT(pread(b->job.out_state_fd, b->got_state, size, HEADER), size);
        }
    }
    return st;
}

/* The same arithmetic written the plain way: one element at a time, silos in order. */
static double mean_delta(const struct bed *b, int64_t i)
{
    double sum = 0.0;
    double d = 0.0;
    for (int k = 0; k < SILOS; k++) {
        sum += b->weights[k];
    }
    for (int k = 0; k < SILOS; k++) {
        d += b->weights[k] / sum * (double)b->updates[k][i];
    }
    return d;
}

static void fedavg_gives_what_plain_double_arithmetic_gives(void)
{
    struct bed *b = bed_new(OUTER_FEDAVG);
    CHECK_INT(bed_run(b, 2), ST_OK);
    double delta_sq = 0.0;
    double step_sq = 0.0;
    for (int64_t i = 0; i < TOTAL; i++) {
        double d = mean_delta(b, i);
        float want = (float)((double)b->base[i] - d);
        if (b->got[i] != want) {
            CHECK_NEAR(b->got[i], want, 0.0);
        }
        delta_sq += d * d;
        step_sq += pow((double)want - (double)b->base[i], 2.0);
    }
    CHECK_NEAR(b->stats.delta_norm, sqrt(delta_sq), 1e-12);
    CHECK_NEAR(b->stats.outer_step_norm, sqrt(step_sq), 1e-12);
    CHECK(b->stats.finite);
    CHECK_INT(b->stats.bytes_read, TOTAL * 4 * (SILOS + 1));
    bed_free(b);
}

static void fednesterov_gives_what_plain_double_arithmetic_gives(void)
{
    struct bed *b = bed_new(OUTER_FEDNESTEROV);
    CHECK_INT(bed_run(b, 2), ST_OK);
    for (int64_t i = 0; i < TOTAL; i++) {
        double d = mean_delta(b, i);
        double m = 0.9 * (double)b->state[i] + d;
        float want = (float)((double)b->base[i] - 0.7 * (d + 0.9 * m));
        if (b->got[i] != want || b->got_state[i] != (float)m) {
            CHECK_NEAR(b->got[i], want, 0.0);
            CHECK_NEAR(b->got_state[i], (float)m, 0.0);
        }
    }
    bed_free(b);
}

/* Files, blocks and arrays around the rule, whose own values test_outer.c knows. */
static void every_rule_is_applied_to_its_own_arrays(void)
{
    for (int o = 0; o < OUTER_COUNT; o++) {
        struct bed *b = bed_new((enum outer_optimizer)o);
        CHECK_INT(bed_run(b, 2), ST_OK);
        for (int64_t i = 0; i < TOTAL; i++) {
            double d = mean_delta(b, i);
            double x = (double)b->base[i];
            double state[ARRAYS] = {(double)b->state[i], (double)b->state[TOTAL + i]};
            double *arrays[ARRAYS] = {&state[0], &state[1]};
            outer_step(&b->spec.outer, ROUND, &x, arrays, &d, 1);
            bool same = b->got[i] == (float)x;
            for (int a = 0; a < outer_arrays((enum outer_optimizer)o); a++) {
                same = same && b->got_state[a * TOTAL + i] == (float)state[a];
            }
            if (!same) {
                CHECK_INT(i, -1); // names the element
            }
        }
        struct digest plain;
        sha256_of(b->got_state, (size_t)(outer_arrays((enum outer_optimizer)o) * TOTAL) * 4,
                  &plain);
        CHECK(digest_equal(&plain, &b->out_state));
        bed_free(b);
    }
}

/* Two tensors, of which this round's updates hold the second alone. */
static void what_updates_do_not_hold_keeps_weights_and_state(void)
{
    struct param items[] = {{.name = "a", .rank = 1, .shape = {77, 1}, .count = 77},
                            {.name = "b", .rank = 1, .shape = {TOTAL - 77, 1}, .offset = 77}};
    items[1].count = TOTAL - 77;
    int32_t index[] = {-1, 0};
    struct layout layout = {.part_at = {-1, 0, -1}, .index = {NULL, index, NULL}};
    for (int o = 0; o < OUTER_COUNT; o++) {
        struct bed *b = bed_new((enum outer_optimizer)o);
        b->table = (struct param_table){.count = 2, .total = TOTAL, .items = items};
        b->job.layout = &layout;
        CHECK_INT(bed_run(b, 2), ST_OK);
        CHECK_MEM(b->got, b->base, 77 * sizeof(float));
        CHECK(b->got[77] != b->base[77]);
        for (int a = 0; a < outer_arrays((enum outer_optimizer)o); a++) {
            CHECK_MEM(b->got_state + a * TOTAL, b->state + a * TOTAL, 77 * sizeof(float));
            CHECK(b->got_state[a * TOTAL + 77] != b->state[a * TOTAL + 77]);
        }
        bed_free(b);
    }
}

static void without_a_state_file_fedmom_starts_at_the_weights(void)
{
    struct bed *b = bed_new(OUTER_FEDMOM);
    (void)close(b->job.state_fd);
    b->job.state_fd = -1;
    CHECK_INT(bed_run(b, 1), ST_OK);
    double x = (double)b->base[77];
    double u = x - 0.7 * mean_delta(b, 77);
    CHECK_NEAR(b->got_state[77], (float)u, 0.0);
    CHECK_NEAR(b->got[77], (float)(1.9 * u - 0.9 * x), 1e-7);
    bed_free(b);
}

static void a_state_of_one_array_too_few_is_refused(void)
{
    struct bed *b = bed_new(OUTER_FEDADAM);
    CHECK_INT(ftruncate(b->job.state_fd, HEADER + TOTAL * 4), 0);
    CHECK_INT(bed_run(b, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, -1);
    bed_free(b);
}

static void one_loud_update_is_clipped_to_the_median(void)
{
    struct bed *b = bed_new(OUTER_FEDAVG);
    for (int64_t i = 0; i < TOTAL; i++) {
        b->updates[2][i] *= 1000.0F;
    }
    size_t size = (size_t)TOTAL * sizeof(float);
    CHECK_INT(pwrite(b->inputs[2].fd, b->updates[2], size, HEADER), size);
    b->spec.outer.clip_median = 2.0;
    CHECK_INT(bed_run(b, 3), ST_OK);
    CHECK(b->factors[0] == 1.0 && b->factors[4] == 1.0);
    CHECK_NEAR(b->factors[2], 0.002, 1e-4);
    for (int64_t i = 0; i < TOTAL; i++) {
        b->updates[2][i] *= (float)b->factors[2];
    }
    CHECK_NEAR(b->got[9], (double)b->base[9] - mean_delta(b, 9), 1e-7);
    CHECK_NEAR(b->got[TOTAL - 1], (double)b->base[TOTAL - 1] - mean_delta(b, TOTAL - 1), 1e-7);
    CHECK(b->norms[2] > 100.0 * b->norms[1]); // as it came
    struct digest want = b->out;
    CHECK_INT(bed_run(b, 1), ST_OK);
    CHECK(digest_equal(&b->out, &want));
    bed_free(b);
}

static void a_bound_that_nobody_reaches_changes_no_bit(void)
{
    struct bed *b = bed_new(OUTER_FEDADAM);
    CHECK_INT(bed_run(b, 2), ST_OK);
    struct digest want = b->out;
    b->spec.outer.clip_median = 3.0;
    CHECK_INT(bed_run(b, 2), ST_OK);
    CHECK(digest_equal(&b->out, &want));
    bed_free(b);
}

static void without_a_state_file_the_momentum_starts_at_zero(void)
{
    struct bed *b = bed_new(OUTER_FEDNESTEROV);
    (void)close(b->job.state_fd);
    b->job.state_fd = -1;
    CHECK_INT(bed_run(b, 1), ST_OK);
    CHECK_NEAR(b->got_state[77], (float)mean_delta(b, 77), 0.0);
    bed_free(b);
}

static void norms_and_cosines_are_those_of_the_updates(void)
{
    struct bed *b = bed_new(OUTER_FEDAVG);
    CHECK_INT(bed_run(b, 2), ST_OK);
    for (int k = 0; k < SILOS; k++) {
        double sq = 0.0;
        double dot = 0.0;
        for (int64_t i = 0; i < TOTAL; i++) {
            double v = (double)b->updates[k][i];
            sq += v * v;
            dot += v * mean_delta(b, i);
        }
        CHECK_NEAR(b->norms[k], sqrt(sq), 1e-12);
        CHECK_NEAR(b->cosines[k], dot / (sqrt(sq) * b->stats.delta_norm), 1e-12);
    }
    bed_free(b);
}

static void any_number_of_threads_gives_the_same_bits(void)
{
    struct bed *b = bed_new(OUTER_FEDNESTEROV);
    CHECK_INT(bed_run(b, 1), ST_OK);
    struct digest want = b->out;
    struct digest want_state = b->out_state;
    double cosine = b->cosines[3];
    double norm = b->stats.outer_step_norm;
    for (int threads = 2; threads <= 8; threads *= 2) {
        CHECK_INT(bed_run(b, threads), ST_OK);
        CHECK(digest_equal(&b->out, &want));
        CHECK(digest_equal(&b->out_state, &want_state));
        CHECK(b->cosines[3] == cosine && b->stats.outer_step_norm == norm);
    }
    struct digest plain;
    sha256_of(b->got, (size_t)TOTAL * sizeof(float), &plain);
    CHECK(digest_equal(&plain, &want));
    bed_free(b);
}

static int by_weight(const void *x, const void *y)
{
    const struct aggregate_input *a = x;
    const struct aggregate_input *b = y;
    return (a->weight > b->weight) - (a->weight < b->weight);
}

static void the_order_of_arrival_does_not_matter_once_sorted_by_slot(void)
{
    struct bed *b = bed_new(OUTER_FEDAVG);
    CHECK_INT(bed_run(b, 2), ST_OK);
    struct digest want = b->out;
    for (uint64_t round = 0; round < 4; round++) {
        struct aggregate_input shuffled[SILOS];
        for (uint64_t k = 0; k < SILOS; k++) {
            shuffled[k] = b->inputs[rng_permute(round, k, SILOS)];
        }
        memcpy(b->inputs, shuffled, sizeof(shuffled));
        qsort(b->inputs, SILOS, sizeof(b->inputs[0]), by_weight); // what the store's ORDER BY does
        CHECK_INT(bed_run(b, 4), ST_OK);
        CHECK(digest_equal(&b->out, &want));
    }
    bed_free(b);
}

static void more_updates_than_are_kept_in_memory_give_the_same_numbers(void)
{
    struct bed *b = bed_new(OUTER_FEDAVG);
    enum { MANY = 4 * SILOS };
    struct aggregate_input many[MANY];
    for (int k = 0; k < MANY; k++) {
        many[k] = b->inputs[k % SILOS];
    }
    double norms[MANY];
    double cosines[MANY];
    b->job.inputs = many;
    b->job.input_count = MANY;
    b->stats.update_norms = norms;
    b->stats.update_factors = NULL;
    b->stats.update_cosines = cosines;
    CHECK_INT(bed_run(b, 2), ST_OK);
    for (int k = SILOS; k < MANY; k++) { // from 16 on they are read twice
        CHECK(norms[k] == norms[k % SILOS] && cosines[k] == cosines[k % SILOS]);
    }
    bed_free(b);
}

static void a_value_that_is_not_finite_is_refused_and_its_update_named(void)
{
    const uint32_t bad[] = {0x7fc00000U, 0x7f800000U, 0xff800000U, 0x7f800001U};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct bed *b = bed_new(OUTER_FEDAVG);
        int64_t at = i % 2 ? TOTAL - 1 : AGGREGATE_BLOCK + 5;
        CHECK_INT(pwrite(b->inputs[3].fd, &bad[i], 4, HEADER + at * 4), 4);
        CHECK_INT(bed_run(b, 1 + (int)i), ST_CORRUPT);
        CHECK_INT(b->corrupt, 3);
        CHECK(strstr(b->e.msg, "not finite") != NULL);
        bed_free(b);
    }
}

static void the_first_trouble_in_block_order_is_the_one_reported(void)
{
    struct bed *b = bed_new(OUTER_FEDAVG);
    float nan_value = NAN;
    CHECK_INT(pwrite(b->inputs[4].fd, &nan_value, 4, HEADER), 4); // block 0
    CHECK_INT(pwrite(b->inputs[1].fd, &nan_value, 4, HEADER + 4 * AGGREGATE_BLOCK), 4);
    for (int i = 0; i < 10; i++) {
        CHECK_INT(bed_run(b, 4), ST_CORRUPT);
        CHECK_INT(b->corrupt, 4);
    }
    bed_free(b);
}

static void an_update_that_ends_early_is_refused_and_named(void)
{
    struct bed *b = bed_new(OUTER_FEDAVG);
    CHECK_INT(ftruncate(b->inputs[2].fd, HEADER + TOTAL * 4 - 1), 0);
    CHECK_INT(bed_run(b, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, 2);
    bed_free(b);
}

static void a_base_that_ends_early_is_nobodys_update(void)
{
    struct bed *b = bed_new(OUTER_FEDAVG);
    CHECK_INT(ftruncate(b->job.base_fd, HEADER + 100), 0);
    CHECK_INT(bed_run(b, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, -1);
    bed_free(b);
}

static void weights_must_add_up_to_more_than_zero(void)
{
    const double bad[][2] = {{0.0, 0.0}, {-1.0, 5.0}, {NAN, 1.0}, {INFINITY, 1.0}};
    struct bed *b = bed_new(OUTER_FEDAVG);
    b->job.input_count = 2;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        b->inputs[0].weight = bad[i][0];
        b->inputs[1].weight = bad[i][1];
        CHECK_INT(bed_run(b, 1), ST_INVALID);
    }
    b->job.input_count = 0;
    CHECK_INT(bed_run(b, 1), ST_INVALID);
    bed_free(b);
}

static void a_result_beyond_fp32_is_not_called_finite(void)
{
    struct bed *b = bed_new(OUTER_FEDAVG);
    float big = -3.0e38F;
    float x = 3.0e38F;
    for (int k = 0; k < SILOS; k++) {
        CHECK_INT(pwrite(b->inputs[k].fd, &big, 4, HEADER), 4);
    }
    CHECK_INT(pwrite(b->job.base_fd, &x, 4, HEADER), 4);
    CHECK_INT(bed_run(b, 2), ST_OK);
    CHECK(!b->stats.finite);
    bed_free(b);
}

/* The middle one of three tensors does not travel, moments lie around the weights: it keeps its
 * weights, whatever the rule, and everything else is a mean with the silos' shares. */
static void what_does_not_travel_stays_and_moments_are_averaged(void)
{
    enum { FIRST = 3 * AGGREGATE_BLOCK / 2, MIDDLE = 1000 };
    const int64_t last = TOTAL - FIRST - MIDDLE;
    const int64_t part = TOTAL - MIDDLE;
    const struct param model[] = {
        {.name = "a", .rank = 1, .shape = {FIRST, 1}, .count = FIRST},
        {.name = "b", .rank = 1, .shape = {MIDDLE, 1}, .offset = FIRST, .count = MIDDLE},
        {.name = "c", .rank = 1, .shape = {last, 1}, .offset = FIRST + MIDDLE, .count = last}};
    struct param sent_items[6];
    for (int i = 0; i < 6; i++) {
        sent_items[i] = model[i % 2 * 2];
        sent_items[i].offset = i / 2 * part + (i % 2 ? FIRST : 0);
    }
    const int32_t index[LAYOUT_PARTS][3] = {{0, -1, 1}, {2, -1, 3}, {4, -1, 5}};
    const struct layout layout = {.table = {.count = 6, .total = 3 * part, .items = sent_items},
                                  .part_at = {0, part, 2 * part},
                                  .part_count = part,
                                  .index = {index[0], index[1], index[2]}};
    for (int o = 0; o < OUTER_COUNT; o++) {
        struct bed *b = bed_new((enum outer_optimizer)o);
        float *sent[SILOS];
        struct coded_tensor tensors[6];
        struct coded_file coded = {
            .table = &layout.table, .codec = CODEC_F32, .tensors = tensors, .data_offset = HEADER};
        for (int i = 0; i < 6; i++) {
            tensors[i] = (struct coded_tensor){.rule = {.codec = CODEC_F32},
                                               .first = sent_items[i].offset,
                                               .count = sent_items[i].count,
                                               .at = {HEADER + sent_items[i].offset * 4},
                                               .size = {sent_items[i].count * 4}};
        }
        if (b->job.state_fd >= 0) { // a first round: what has momentum from before goes on moving
            (void)close(b->job.state_fd);
            b->job.state_fd = -1;
        }
        for (int k = 0; k < SILOS; k++) {
            (void)close(b->inputs[k].fd);
            sent[k] = drawn(50 + (uint64_t)k, 3 * part, 0.01);
            b->inputs[k].fd = file_of(sent[k], 3 * part);
            b->inputs[k].coded = &coded;
        }
        b->table = (struct param_table){.count = 3, .total = TOTAL, .items = model};
        b->job.layout = &layout;
        for (int i = 0; i < LAYOUT_PARTS; i++) {
            b->job.out_moments[i] = HEADER + i * TOTAL * 4;
        }
        b->job.out_offset = b->job.out_moments[LAYOUT_WEIGHTS];
        b->job.threads = 3;
        b->job.out_hash = sha256_new();
        CHECK_INT(aggregate_run(&b->job, &b->stats, &b->corrupt, &b->e), ST_OK);
        struct digest hash;
        sha256_end(b->job.out_hash, &hash);
        sha256_free(b->job.out_hash);
        float *got = mem_alloc((size_t)(3 * TOTAL) * sizeof(float));
        CHECK_INT(pread(b->job.out_fd, got, (size_t)TOTAL * 12, HEADER), TOTAL * 12);
        struct digest whole;
        sha256_of(got, (size_t)TOTAL * 12, &whole);
        CHECK(digest_equal(&hash, &whole));
        for (int64_t i = FIRST; i < FIRST + MIDDLE; i++) {
            CHECK(got[TOTAL + i] == b->base[i] && got[i] == 0.0F && got[2 * TOTAL + i] == 0.0F);
        }
        const int64_t places[][2] = {{FIRST - 1, FIRST - 1}, {FIRST + MIDDLE, FIRST}, {0, 0}};
        for (size_t p = 0; p < 3; p++) {
            for (int i = 0; i < LAYOUT_PARTS; i += 2) {
                double mean = 0.0;
                for (int k = 0; k < SILOS; k++) {
                    mean += (k + 1) / 15.0 * (double)sent[k][i * part + places[p][1]];
                }
                CHECK_NEAR(got[i * TOTAL + places[p][0]], mean, 1e-8);
            }
            CHECK(got[TOTAL + places[p][0]] != b->base[places[p][0]]);
        }
        for (int k = 0; k < SILOS; k++) {
            mem_free(sent[k]);
        }
        mem_free(got);
        bed_free(b);
    }
}

/* Peak memory of a process that aggregates n updates of a model of the 125m preset's size. */
static long peak_kib(int n)
{
    (void)fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        struct run_spec spec = {.outer = {.name = OUTER_FEDNESTEROV, .lr = 0.7, .momentum = 0.9}};
        struct param_table table = {.total = 125311488};
        struct aggregate_input in[8];
        double cosines[8];
        int sparse = temp_file(); // a hole reads as zeros and takes no room
        bool ok = ftruncate(sparse, table.total * 4) == 0;
        for (int k = 0; k < n; k++) {
            in[k] = (struct aggregate_input){.fd = sparse, .weight = 1.0};
        }
        struct aggregate_job job = {.spec = &spec,
                                    .table = &table,
                                    .round = 1,
                                    .base_fd = sparse,
                                    .state_fd = sparse,
                                    .inputs = in,
                                    .input_count = n,
                                    .out_fd = open("/dev/null", O_WRONLY),
                                    .out_state_fd = -1,
                                    .threads = 4};
        struct aggregate_stats stats = {.update_cosines = cosines};
        int corrupt = 0;
        ok = ok && aggregate_run(&job, &stats, &corrupt, NULL) == ST_OK;
        _exit(ok ? 0 : 1);
    }
    int how = 0;
    struct rusage usage;
    CHECK_INT(wait4(child, &how, 0, &usage), child);
    CHECK_INT(how, 0);
    return usage.ru_maxrss;
}

static void memory_does_not_grow_with_the_number_of_updates(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("a sanitizer's own memory is larger than what is measured");
#endif
    long two = peak_kib(2);
    long eight = peak_kib(8);
    (void)printf("peak with 2 updates %ld KiB, with 8 %ld KiB\n", two, eight);
    CHECK(eight < 300 * 1024);
    CHECK(eight - two < 16 * 1024); // six kept blocks in each of four threads are 6 MiB
}

int main(void)
{
    RUN(fedavg_gives_what_plain_double_arithmetic_gives);
    RUN(fednesterov_gives_what_plain_double_arithmetic_gives);
    RUN(without_a_state_file_the_momentum_starts_at_zero);
    RUN(every_rule_is_applied_to_its_own_arrays);
    RUN(what_updates_do_not_hold_keeps_weights_and_state);
    RUN(without_a_state_file_fedmom_starts_at_the_weights);
    RUN(a_state_of_one_array_too_few_is_refused);
    RUN(one_loud_update_is_clipped_to_the_median);
    RUN(a_bound_that_nobody_reaches_changes_no_bit);
    RUN(what_does_not_travel_stays_and_moments_are_averaged);
    RUN(norms_and_cosines_are_those_of_the_updates);
    RUN(any_number_of_threads_gives_the_same_bits);
    RUN(the_order_of_arrival_does_not_matter_once_sorted_by_slot);
    RUN(more_updates_than_are_kept_in_memory_give_the_same_numbers);
    RUN(a_value_that_is_not_finite_is_refused_and_its_update_named);
    RUN(the_first_trouble_in_block_order_is_the_one_reported);
    RUN(an_update_that_ends_early_is_refused_and_named);
    RUN(a_base_that_ends_early_is_nobodys_update);
    RUN(weights_must_add_up_to_more_than_zero);
    RUN(a_result_beyond_fp32_is_not_called_finite);
    RUN(memory_does_not_grow_with_the_number_of_updates);
    return check_end();
}
