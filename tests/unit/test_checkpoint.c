#include "server/checkpoint.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/mem.h"
#include "common/run_header.h"
#include "common/safetensors.h"
#include "tests/support/check.h"
#include "tests/support/files.h"

enum { SILOS = 3 };

static const char *const names[SILOS] = {"alpha", "beta", "gamma"};
static const int64_t tokens[SILOS] = {64, 48, 64};

struct bed {
    struct files files;
    struct arena *a;
    struct run_spec spec;
    struct param_table table;
    struct checkpoint_files zero;
    struct checkpoint_update updates[SILOS];
    unsigned char *raw[SILOS]; // values only
    struct checkpoint_files out;
    struct aggregate_stats stats;
    double norms[SILOS], cosines[SILOS];
    int corrupt;
    struct err e;
};

/* The updates of a round, each silo's from its own seed. */
static void bed_updates(struct bed *b, int32_t round, const struct digest *base)
{
    for (int k = 0; k < SILOS; k++) {
        struct update_expected u = {.run_name = b->spec.name,
                                    .round = round,
                                    .base = *base,
                                    .silo_name = names[k],
                                    .tokens = tokens[k],
                                    .steps = 2};
        int64_t len = 0;
        unsigned char *file =
            files_update(b->a, &b->table, &u, (uint64_t)(100 * round + k), 0.01, &len);
        b->raw[k] = file + len - b->table.total * 4;
        b->updates[k] = (struct checkpoint_update){
            .sha256 = files_put(&b->files, file, len), .silo_name = names[k], .tokens = tokens[k]};
    }
}

static struct bed *bed_new(const char *more)
{
    struct bed *b = mem_alloc(sizeof(*b));
    files_open(&b->files);
    b->a = arena_new(64 << 20);
    b->spec = files_spec(more);
    b->table = params_table(b->a, &b->spec.model);
    b->stats.update_norms = b->norms;
    b->stats.update_cosines = b->cosines;
    CHECK_INT(checkpoint_initial(b->files.blobs, &b->spec, &b->zero, &b->e), ST_OK);
    bed_updates(b, 1, &b->zero.weights);
    return b;
}

static void bed_free(struct bed *b)
{
    files_close(&b->files);
    arena_free(b->a);
    mem_free(b);
}

static enum status next(struct bed *b, int32_t round, const struct checkpoint_files *base,
                        int threads)
{
    struct checkpoint_job job = {.blobs = b->files.blobs,
                                 .spec = &b->spec,
                                 .round = round,
                                 .base = base->weights,
                                 .state = base->has_state ? &base->state : NULL,
                                 .updates = b->updates,
                                 .update_count = SILOS,
                                 .threads = threads};
    return checkpoint_next(&job, &b->out, &b->stats, &b->corrupt, &b->e);
}

static float *values(struct bed *b, const struct digest *d)
{
    int fd = -1;
    int64_t bytes = 0;
    CHECK_INT(blob_open(b->files.blobs, d, &fd, &bytes, NULL), ST_OK);
    struct st_header h;
    CHECK_INT(st_read(&h, b->a, fd, NULL), ST_OK);
    CHECK_INT(h.data_offset + h.data_bytes, bytes);
    float *v = arena_alloc(b->a, (size_t)h.data_bytes);
    CHECK_INT(pread(fd, v, (size_t)h.data_bytes, h.data_offset), h.data_bytes);
    CHECK_INT(close(fd), 0);
    return v;
}

static double mean_delta(const struct bed *b, int64_t i)
{
    double d = 0.0;
    for (int k = 0; k < SILOS; k++) {
        float v;
        memcpy(&v, b->raw[k] + i * 4, 4);
        d += (double)tokens[k] / (64.0 + 48.0 + 64.0) * (double)v;
    }
    return d;
}

static void checkpoint_0_is_a_function_of_the_spec(void)
{
    struct bed *b = bed_new("");
    struct checkpoint_files again;
    CHECK_INT(checkpoint_initial(b->files.blobs, &b->spec, &again, NULL), ST_OK);
    CHECK(digest_equal(&again.weights, &b->zero.weights));
    CHECK(digest_equal(&again.weights_digest, &b->zero.weights_digest));
    CHECK_INT(again.weights_bytes, checkpoint_weights_bytes(&b->spec));
    CHECK_INT(again.params, b->table.total);
    CHECK(!again.has_state);

    float *want = arena_alloc(b->a, (size_t)b->table.total * 4);
    params_init(&b->table, b->spec.seed, 0, b->table.total, want);
    CHECK_MEM(values(b, &again.weights), want, (size_t)b->table.total * 4);
    struct digest data;
    sha256_of(want, (size_t)b->table.total * 4, &data);
    CHECK(digest_equal(&data, &again.weights_digest));

    struct run_spec other = files_spec(",\"seed\":18");
    CHECK_INT(checkpoint_initial(b->files.blobs, &other, &again, NULL), ST_OK);
    CHECK(!digest_equal(&again.weights_digest, &b->zero.weights_digest));
    bed_free(b);
}

/* Means of moments stand around the weights: a fork takes these alone, and begins with none. */
static void a_fork_takes_the_weights_wherever_they_stand(void)
{
    static const char *const MORE[] = {"", ",\"inner_state\":\"average\""};
    for (int from = 0; from < 2; from++) {
        for (int to = 0; to < 2; to++) {
            struct bed *b = bed_new("");
            struct run_spec parent = files_spec(MORE[from]);
            struct run_spec child = files_spec(MORE[to]);
            struct checkpoint_files old;
            struct checkpoint_files made;
            CHECK_INT(checkpoint_initial(b->files.blobs, &parent, &old, &b->e), ST_OK);
            struct checkpoint_source source = {.weights = old.weights};
            CHECK_INT(checkpoint_fork(b->files.blobs, &child, &source, NULL, &made, &b->e), ST_OK);
            CHECK(digest_equal(&made.weights_digest, &b->zero.weights_digest));
            CHECK_INT(made.weights_bytes, checkpoint_weights_bytes(&child));
            struct checkpoint_files fresh; // of the same seed: the same file, moments and all
            CHECK_INT(checkpoint_initial(b->files.blobs, &child, &fresh, &b->e), ST_OK);
            CHECK(digest_equal(&made.weights, &fresh.weights));
            bed_free(b);
        }
    }
}

static void the_metadata_say_what_a_file_is(void)
{
    struct bed *b = bed_new("");
    CHECK_INT(next(b, 1, &b->zero, 1), ST_OK);
    int fd = -1;
    int64_t bytes = 0;
    CHECK_INT(blob_open(b->files.blobs, &b->out.weights, &fd, &bytes, NULL), ST_OK);
    CHECK_INT(bytes, b->out.weights_bytes);
    struct st_header h;
    CHECK_INT(st_read(&h, b->a, fd, &b->e), ST_OK);
    CHECK_INT(st_check_params(&h, &b->table, &b->e), ST_OK);
    CHECK_STR(st_meta_get(&h, "kind"), "checkpoint");
    CHECK_STR(st_meta_get(&h, "run"), "tiny");
    CHECK_STR(st_meta_get(&h, "round"), "00000001");
    struct digest spec;
    char hex[DIGEST_HEX + 1];
    run_spec_digest(&b->spec, &spec);
    digest_hex(&spec, hex);
    CHECK_STR(st_meta_get(&h, "spec_sha256"), hex);
    CHECK_INT(close(fd), 0);
    bed_free(b);
}

static void the_next_checkpoint_is_the_base_less_the_weighted_mean(void)
{
    struct bed *b = bed_new("");
    CHECK_INT(next(b, 1, &b->zero, 2), ST_OK);
    const float *base = values(b, &b->zero.weights);
    const float *got = values(b, &b->out.weights);
    for (int64_t i = 0; i < b->table.total; i++) {
        float want = (float)((double)base[i] - mean_delta(b, i));
        if (got[i] != want) {
            CHECK_NEAR(got[i], want, 0.0);
        }
    }
    CHECK(!b->out.has_state);
    CHECK(b->norms[2] > 0.0 && b->cosines[2] > 0.0);
    bed_free(b);
}

static void codecs_may_differ_from_silo_to_silo(void)
{
    static const enum codec MIX[][SILOS] = {{CODEC_Q4, CODEC_TOPK, CODEC_F32},
                                            {CODEC_INT8, CODEC_Q2, CODEC_BF16}};
    struct bed *b = bed_new("");
    const float *base = values(b, &b->zero.weights);
    for (int m = 0; m < 2; m++) {
        float *seen[SILOS];
        for (int k = 0; k < SILOS; k++) {
            struct update_expected u = {.run_name = b->spec.name,
                                        .round = 1,
                                        .base = b->zero.weights,
                                        .silo_name = names[k],
                                        .tokens = tokens[k],
                                        .steps = 2,
                                        .codec = MIX[m][k],
                                        .k = b->spec.codec.up_k};
            seen[k] = arena_alloc(b->a, (size_t)b->table.total * sizeof(float));
            struct files_values v = {(uint64_t)k + 7, 0.01, seen[k]};
            int64_t len = 0;
            unsigned char *file = files_coded_update(b->a, &b->table, &u, &v, &len);
            b->updates[k].sha256 = files_put(&b->files, file, len);
            b->updates[k].codec = u.codec;
        }
        CHECK_INT(next(b, 1, &b->zero, 1), ST_OK);
        struct digest one = b->out.weights;
        CHECK_INT(next(b, 1, &b->zero, 3), ST_OK);
        CHECK(digest_equal(&one, &b->out.weights));
        const float *got = values(b, &b->out.weights);
        for (int64_t i = 0; i < b->table.total; i++) {
            double d = 0.0;
            for (int k = 0; k < SILOS; k++) {
                d += (double)tokens[k] / (64.0 + 48.0 + 64.0) * (double)seen[k][i];
            }
            if (got[i] != (float)((double)base[i] - d)) {
                CHECK_NEAR(got[i], (double)base[i] - d, 0.0);
            }
        }
    }
    b->updates[0].codec = CODEC_Q4; // not what the file is
    CHECK_INT(next(b, 1, &b->zero, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, 0);
    bed_free(b);
}

static void momentum_travels_from_round_to_round(void)
{
    struct bed *b = bed_new(",\"outer\":{\"name\":\"fednesterov\",\"lr\":0.7,\"momentum\":0.9}");
    CHECK_INT(next(b, 1, &b->zero, 2), ST_OK);
    CHECK(b->out.has_state);
    const float *m1 = values(b, &b->out.state);
    CHECK_NEAR(m1[5], (float)mean_delta(b, 5), 0.0);
    struct checkpoint_files one = b->out;

    bed_updates(b, 2, &one.weights);
    CHECK_INT(next(b, 2, &one, 2), ST_OK);
    const float *m2 = values(b, &b->out.state);
    double d = mean_delta(b, 5);
    double m = 0.9 * (double)m1[5] + d;
    CHECK_NEAR(m2[5], (float)m, 0.0);
    CHECK_NEAR(values(b, &b->out.weights)[5],
               (float)((double)values(b, &one.weights)[5] - 0.7 * (d + 0.9 * m)), 0.0);
    bed_free(b);
}

static void both_moments_travel_from_round_to_round(void)
{
    struct bed *b = bed_new(",\"outer\":{\"name\":\"fedadam\"}");
    CHECK_INT(next(b, 1, &b->zero, 2), ST_OK);
    const float *one_state = values(b, &b->out.state); // m, then v
    const struct checkpoint_files one = b->out;
    double d = mean_delta(b, 5);
    double x = (double)values(b, &b->zero.weights)[5];
    double m = 0.0;
    double v = 0.0;
    double *arrays[] = {&m, &v};
    outer_step(&b->spec.outer, 1, &x, arrays, &d, 1);
    CHECK_NEAR(one_state[5], (float)m, 0.0);
    CHECK_NEAR(one_state[b->table.total + 5], (float)v, 0.0);

    bed_updates(b, 2, &one.weights);
    CHECK_INT(next(b, 2, &one, 2), ST_OK);
    d = mean_delta(b, 5);
    x = (double)values(b, &one.weights)[5];
    m = (double)one_state[5];
    v = (double)one_state[b->table.total + 5];
    outer_step(&b->spec.outer, 2, &x, arrays, &d, 1); // corrected for two rounds
    CHECK_NEAR(values(b, &b->out.weights)[5], (float)x, 0.0);
    bed_free(b);
}

static void a_state_of_another_optimizer_is_refused(void)
{
    struct bed *b = bed_new(",\"outer\":{\"name\":\"fednesterov\"}");
    CHECK_INT(next(b, 1, &b->zero, 2), ST_OK);
    struct checkpoint_files one = b->out;
    bed_updates(b, 2, &one.weights);
    b->spec.outer.name = OUTER_FEDMOM;
    CHECK_INT(next(b, 2, &one, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, -1);
    bed_free(b);
}

static void doing_it_again_gives_the_same_files(void)
{
    struct bed *b = bed_new(",\"outer\":{\"name\":\"fednesterov\"}");
    CHECK_INT(next(b, 1, &b->zero, 1), ST_OK);
    struct checkpoint_files once = b->out;
    for (int threads = 1; threads <= 4; threads *= 2) {
        CHECK_INT(next(b, 1, &b->zero, threads), ST_OK);
        CHECK(digest_equal(&b->out.weights, &once.weights));
        CHECK(digest_equal(&b->out.state, &once.state));
        CHECK(digest_equal(&b->out.weights_digest, &once.weights_digest));
    }
    bed_free(b);
}

static void blob_path(const struct bed *b, const struct digest *d, char *out, size_t size)
{
    char hex[DIGEST_HEX + 1];
    digest_hex(d, hex);
    (void)snprintf(out, size, "%s/blobs/%.2s/%.2s/%s", b->files.dir, hex, hex + 2, hex);
}

static void flip_a_byte(const struct bed *b, const struct digest *d)
{
    char path[200];
    blob_path(b, d, path, sizeof(path));
    CHECK_INT(chmod(path, 0600), 0);
    FILE *f = fopen(path, "r+b");
    CHECK(f != NULL);
    CHECK_INT(fseek(f, -2, SEEK_END), 0);
    int c = fgetc(f);
    CHECK_INT(fseek(f, -1, SEEK_CUR), 0);
    CHECK(fputc(c ^ 1, f) != EOF);
    CHECK_INT(fclose(f), 0);
}

static bool tmp_is_empty(const struct bed *b)
{
    char path[100];
    (void)snprintf(path, sizeof(path), "%s/tmp", b->files.dir);
    return rmdir(path) == 0; // only an empty folder goes
}

static enum status again(struct bed *b, const struct checkpoint_files *base,
                         const struct checkpoint_files *want)
{
    struct checkpoint_job job = {.blobs = b->files.blobs,
                                 .spec = &b->spec,
                                 .round = 1,
                                 .base = base->weights,
                                 .updates = b->updates,
                                 .update_count = SILOS,
                                 .threads = 2,
                                 .again = want};
    struct aggregate_stats stats = {0};
    struct checkpoint_files made;
    return checkpoint_next(&job, &made, &stats, &b->corrupt, &b->e);
}

static bool sound(const struct bed *b, const struct digest *d)
{
    int64_t bytes = 0;
    return blob_verify(b->files.blobs, d, &bytes, NULL) == ST_OK;
}

static void a_damaged_checkpoint_is_made_again_in_its_place(void)
{
    struct bed *b = bed_new(",\"outer\":{\"name\":\"fednesterov\"}");
    CHECK_INT(next(b, 1, &b->zero, 1), ST_OK);
    struct checkpoint_files once = b->out;
    flip_a_byte(b, &once.weights);
    flip_a_byte(b, &once.state);
    CHECK(!sound(b, &once.weights) && !sound(b, &once.state));
    CHECK_INT(again(b, &b->zero, &once), ST_OK);
    CHECK(sound(b, &once.weights) && sound(b, &once.state));

    flip_a_byte(b, &b->zero.weights);
    CHECK(!sound(b, &b->zero.weights));
    CHECK_INT(checkpoint_initial_again(b->files.blobs, &b->spec, &b->zero, &b->e), ST_OK);
    CHECK(sound(b, &b->zero.weights));
    bed_free(b);
}

static void what_gives_another_file_replaces_nothing(void)
{
    struct bed *b = bed_new("");
    CHECK_INT(next(b, 1, &b->zero, 1), ST_OK);
    struct checkpoint_files once = b->out;
    flip_a_byte(b, &once.weights);
    b->updates[0].tokens = 48; // the header of the file says 64
    CHECK_INT(again(b, &b->zero, &once), ST_CORRUPT);
    CHECK_INT(b->corrupt, 0);
    b->updates[0].tokens = 64;
    b->spec.outer.lr = 0.5;
    CHECK_INT(again(b, &b->zero, &once), ST_CORRUPT);
    CHECK_INT(b->corrupt, -1);
    CHECK(!sound(b, &once.weights));
    struct run_spec other = files_spec(",\"seed\":18");
    CHECK_INT(checkpoint_initial_again(b->files.blobs, &other, &b->zero, &b->e), ST_CORRUPT);
    CHECK(sound(b, &b->zero.weights));
    bed_free(b);
}

static void a_damaged_update_is_named_and_nothing_is_made(void)
{
    struct bed *b = bed_new("");
    flip_a_byte(b, &b->updates[1].sha256);
    CHECK_INT(next(b, 1, &b->zero, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, 1);
    CHECK(tmp_is_empty(b));
    bed_free(b);
}

static void a_missing_update_is_named(void)
{
    struct bed *b = bed_new("");
    char path[200];
    blob_path(b, &b->updates[2].sha256, path, sizeof(path));
    CHECK_INT(unlink(path), 0);
    CHECK_INT(next(b, 1, &b->zero, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, 2);
    bed_free(b);
}

static void a_damaged_base_is_nobodys_update(void)
{
    struct bed *b = bed_new("");
    flip_a_byte(b, &b->zero.weights);
    CHECK_INT(next(b, 1, &b->zero, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, -1);
    bed_free(b);
}

static void updates_of_another_round_or_silo_are_refused(void)
{
    struct bed *b = bed_new("");
    bed_updates(b, 2, &b->zero.weights);
    CHECK_INT(next(b, 1, &b->zero, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, 0);
    bed_updates(b, 1, &b->zero.weights);
    b->updates[1].silo_name = "delta";
    CHECK_INT(next(b, 1, &b->zero, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, 1);
    b->updates[1].silo_name = names[1];
    b->updates[1].tokens++;
    CHECK_INT(next(b, 1, &b->zero, 2), ST_CORRUPT);
    CHECK_INT(b->corrupt, 1);
    b->updates[1].tokens--;
    CHECK_INT(next(b, 1, &b->zero, 2), ST_OK);
    bed_free(b);
}

static void a_base_of_another_round_is_refused(void)
{
    struct bed *b = bed_new("");
    CHECK_INT(next(b, 2, &b->zero, 1), ST_CORRUPT);
    CHECK_INT(b->corrupt, -1);
    bed_free(b);
}

static void weights_that_are_not_finite_are_never_made(void)
{
    struct bed *b = bed_new(",\"outer\":{\"name\":\"fedavg\",\"lr\":10}");
    struct update_expected u = {.run_name = "tiny",
                                .round = 1,
                                .base = b->zero.weights,
                                .silo_name = names[0],
                                .tokens = tokens[0],
                                .steps = 2};
    int64_t len = 0;
    unsigned char *file = files_update(b->a, &b->table, &u, 1, 3e37, &len);
    b->updates[0].sha256 = files_put(&b->files, file, len);
    CHECK_INT(next(b, 1, &b->zero, 2), ST_INVALID);
    CHECK(tmp_is_empty(b));
    bed_free(b);
}

static void sizes_are_known_before_a_file_is_made(void)
{
    struct bed *b = bed_new("");
    struct update_expected u = {.run_name = "tiny", .round = 1, .silo_name = "alpha", .tokens = 1};
    int64_t len = 0;
    (void)files_update(b->a, &b->table, &u, 1, 1.0, &len);
    CHECK_INT(checkpoint_update_bytes(&b->spec, "alpha", CODEC_F32, 1), len);
    bed_free(b);
}

int main(void)
{
    RUN(checkpoint_0_is_a_function_of_the_spec);
    RUN(a_fork_takes_the_weights_wherever_they_stand);
    RUN(the_metadata_say_what_a_file_is);
    RUN(the_next_checkpoint_is_the_base_less_the_weighted_mean);
    RUN(codecs_may_differ_from_silo_to_silo);
    RUN(momentum_travels_from_round_to_round);
    RUN(both_moments_travel_from_round_to_round);
    RUN(a_state_of_another_optimizer_is_refused);
    RUN(doing_it_again_gives_the_same_files);
    RUN(a_damaged_update_is_named_and_nothing_is_made);
    RUN(a_damaged_checkpoint_is_made_again_in_its_place);
    RUN(what_gives_another_file_replaces_nothing);
    RUN(a_missing_update_is_named);
    RUN(a_damaged_base_is_nobodys_update);
    RUN(updates_of_another_round_or_silo_are_refused);
    RUN(a_base_of_another_round_is_refused);
    RUN(weights_that_are_not_finite_are_never_made);
    RUN(sizes_are_known_before_a_file_is_made);
    return check_end();
}
