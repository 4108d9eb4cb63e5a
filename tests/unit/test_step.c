/* The way down, on both sides: what the aggregator codes (server/downlink.h, checkpoint.h) and what
 * a silo makes of it (common/step.h). */
#include "common/step.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/mem.h"
#include "common/safetensors.h"
#include "server/checkpoint.h"
#include "server/downlink.h"
#include "tests/support/check.h"
#include "tests/support/files.h"

enum { SILOS = 3, ROUNDS = 4 }; // rounds as files_spec() has them

static const char *const names[SILOS] = {"alpha", "beta", "gamma"};

/* A run played from checkpoint 0 to its last. */
struct bed {
    struct files files;
    struct arena *a;
    struct run_spec spec;
    struct param_table table; // of the model
    struct layout update;     // of an update of the newest round
    struct checkpoint_files at[ROUNDS + 1];
    struct checkpoint_update updates[ROUNDS + 1][SILOS];
    bool loud; // round 1 has values far beyond the rest
    struct err e;
};

static struct bed *bed_of(struct run_spec spec)
{
    struct bed *b = mem_alloc(sizeof(*b));
    files_open(&b->files);
    b->a = arena_new(256 << 20);
    b->spec = spec;
    b->table = params_table(b->a, &b->spec.model);
    CHECK_INT(checkpoint_initial(b->files.blobs, &b->spec, &b->at[0], &b->e), ST_OK);
    return b;
}

static struct bed *bed_new(const char *more)
{
    return bed_of(files_spec(more));
}

static void bed_free(struct bed *b)
{
    files_close(&b->files);
    arena_free(b->a);
    mem_free(b);
}

/* One value in each block of the embedding is far beyond the rest, which int8 makes zeros of. */
static void outliers(const struct bed *b, unsigned char *data)
{
    const struct param *p = &b->update.table.items[b->update.table.count - 1];
    CHECK(strstr(p->name, "wte") != NULL);
    for (int64_t i = 0; i < p->count; i++) {
        float v = i % CODEC_BLOCK == 77 ? 1.0F : 3e-3F;
        memcpy(data + (p->offset + i) * 4, &v, 4);
    }
}

/* Values are functions of round, silo and place alone, so that runs of other codecs have the same.
 */
static void bed_updates(struct bed *b, int32_t round)
{
    b->update = layout_update(b->a, &b->spec, round);
    for (int k = 0; k < SILOS; k++) {
        struct update_expected u = {.run_name = b->spec.name,
                                    .round = round,
                                    .base = b->at[round - 1].weights,
                                    .silo_name = names[k],
                                    .tokens = 64,
                                    .steps = 2};
        int64_t len = 0;
        unsigned char *file =
            files_update(b->a, &b->update.table, &u, (uint64_t)(100 * round + k), 0.01, &len);
        if (b->loud && round == 1) {
            outliers(b, file + len - b->update.table.total * 4);
        }
        b->updates[round][k] = (struct checkpoint_update){
            .sha256 = files_put(&b->files, file, len), .silo_name = names[k], .tokens = 64};
    }
}

static struct checkpoint_job job_of(const struct bed *b, int32_t round, int threads)
{
    const struct checkpoint_files *base = &b->at[round - 1];
    return (struct checkpoint_job){.blobs = b->files.blobs,
                                   .spec = &b->spec,
                                   .round = round,
                                   .base = base->weights,
                                   .state = base->has_state ? &base->state : NULL,
                                   .updates = b->updates[round],
                                   .update_count = SILOS,
                                   .down = b->spec.codec.down,
                                   .threads = threads};
}

static void play(struct bed *b, int32_t rounds)
{
    for (int32_t t = 1; t <= rounds; t++) {
        bed_updates(b, t);
        struct checkpoint_job job = job_of(b, t, 2);
        struct aggregate_stats stats = {0};
        int corrupt = -1;
        enum status st = checkpoint_next(&job, &b->at[t], &stats, &corrupt, &b->e);
        if (st) {
            (void)printf("%s\n", b->e.msg);
        }
        CHECK_INT(st, ST_OK);
    }
}

static int open_blob(const struct bed *b, const struct digest *d)
{
    int fd = -1;
    int64_t bytes = 0;
    CHECK_INT(blob_open(b->files.blobs, d, &fd, &bytes, NULL), ST_OK);
    return fd;
}

static const float *values(struct bed *b, const struct digest *d)
{
    struct st_header h;
    int fd = open_blob(b, d);
    CHECK_INT(st_read(&h, b->a, fd, NULL), ST_OK);
    float *v = arena_alloc(b->a, (size_t)h.data_bytes);
    CHECK_INT(pread(fd, v, (size_t)h.data_bytes, h.data_offset), h.data_bytes);
    CHECK_INT(close(fd), 0);
    return v;
}

/* y lies behind the outer optimizer's arrays. */
static const float *ideal(struct bed *b, int32_t round)
{
    CHECK(b->at[round].has_state);
    return values(b, &b->at[round].state) + outer_arrays(b->spec.outer.name) * b->table.total;
}

static struct step_id id_of(const struct bed *b, int32_t round)
{
    return (struct step_id){.run_name = b->spec.name,
                            .round = round,
                            .base = b->at[round - 1].weights,
                            .to = b->at[round].weights,
                            .codec = b->at[round].step_codec,
                            .k = b->spec.codec.down_k};
}

/* What a silo does that holds checkpoint `from`. */
static enum status silo_takes(struct bed *b, int32_t from, int32_t to, struct digest *made)
{
    struct layout layouts[ROUNDS];
    struct step_file steps[ROUNDS];
    enum status st = ST_OK;
    int n = 0;
    for (int32_t t = from + 1; t <= to && !st; t++, n++) {
        struct step_id id = id_of(b, t);
        steps[n].fd = open_blob(b, &b->at[t].step);
        layouts[n] = layout_step(b->a, &b->spec, t);
        st = step_open(&steps[n].coded, b->a, steps[n].fd, &layouts[n].table, &id, &b->e);
    }
    int base = open_blob(b, &b->at[from].weights);
    int out = files_temp("", 0);
    struct step_job job = {
        .spec = &b->spec, .base_fd = base, .steps = steps, .count = n, .round = to, .out_fd = out};
    st = st ? st : step_apply(&job, made, &b->e);
    CHECK_INT(close(base) | close(out), 0);
    for (int i = 0; i < n; i++) {
        CHECK_INT(close(steps[i].fd), 0);
    }
    return st;
}

static const char *const RUNGS[] = {"bf16", "int8", "q4", "q2", "topk"};

static struct bed *bed_of_rung(const char *rung, const char *more)
{
    char text[300];
    (void)snprintf(text, sizeof(text), ",\"codec\":{\"down\":\"%s\"}%s", rung, more);
    return bed_new(text);
}

static void a_silo_makes_every_checkpoint_by_its_steps(void)
{
    for (size_t i = 0; i < sizeof(RUNGS) / sizeof(RUNGS[0]); i++) {
        struct bed *b = bed_of_rung(RUNGS[i], ",\"outer\":{\"name\":\"fednesterov\"}");
        struct digest made;
        play(b, ROUNDS);
        for (int32_t from = 0; from < ROUNDS - 1; from++) {
            for (int32_t to = from + 1; to < ROUNDS; to++) {
                CHECK_INT(silo_takes(b, from, to, &made), ST_OK);
                CHECK(digest_equal(&made, &b->at[to].weights));
            }
        }
        CHECK(b->at[1].step_bytes < b->at[1].weights_bytes);
        bed_free(b);
    }
}

static void the_optimizer_moves_as_if_nothing_were_coded(void)
{
    static const char *const OUTERS[] = {"fedavg", "fednesterov", "fedmom", "fedadam"};
    for (size_t i = 0; i < sizeof(OUTERS) / sizeof(OUTERS[0]); i++) {
        char outer[80];
        (void)snprintf(outer, sizeof(outer), ",\"outer\":{\"name\":\"%s\"}", OUTERS[i]);
        struct bed *plain = bed_new(outer);
        struct bed *b = bed_of_rung("q4", outer);
        size_t size = (size_t)b->table.total * sizeof(float);
        play(plain, ROUNDS);
        play(b, ROUNDS);
        for (int32_t t = 1; t <= ROUNDS; t++) {
            const float *y = ideal(b, t);
            CHECK_MEM(y, values(plain, &plain->at[t].weights), size);
            CHECK_MEM(y - outer_arrays(b->spec.outer.name) * b->table.total,
                      plain->at[t].has_state ? (const void *)values(plain, &plain->at[t].state)
                                             : (const void *)y,
                      (size_t)outer_arrays(b->spec.outer.name) * size);
        }
        bed_free(plain);
        bed_free(b);
    }
}

/* What a rung leaves out goes with the next step, so that it does not add up. */
static void what_is_left_out_goes_with_later_steps(void)
{
    static const double LEAST[] = {0.0, 0.0, 0.0, 0.0, 0.0};
    static const double MOST[] = {.004, .02, .2, .8, 8.0}; // of one outer step's norm
    for (size_t i = 0; i < sizeof(RUNGS) / sizeof(RUNGS[0]); i++) {
        struct bed *b = bed_of_rung(RUNGS[i], "");
        play(b, ROUNDS);
        for (int32_t t = 1; t < ROUNDS; t++) {
            const float *x = values(b, &b->at[t].weights);
            const float *y = ideal(b, t);
            const float *before = t == 1 ? values(b, &b->at[0].weights) : ideal(b, t - 1);
            double left = 0.0;
            double moved = 0.0;
            for (int64_t p = 0; p < b->table.total; p++) {
                left += ((double)x[p] - (double)y[p]) * ((double)x[p] - (double)y[p]);
                moved += ((double)y[p] - (double)before[p]) * ((double)y[p] - (double)before[p]);
            }
            double ratio = sqrt(left / moved);
            CHECK(ratio > LEAST[i] && ratio < MOST[i]);
            CHECK_NEAR(b->at[t].step_report.residual_ratio, ratio, 1e-3 * ratio);
        }
        bed_free(b);
    }
}

static void the_last_checkpoint_is_what_the_optimizer_has(void)
{
    struct bed *b = bed_of_rung("q2", "");
    play(b, ROUNDS);
    CHECK(b->at[ROUNDS - 1].has_step);
    CHECK(!b->at[0].has_step && !b->at[ROUNDS].has_step);
    CHECK_MEM(values(b, &b->at[ROUNDS].weights), ideal(b, ROUNDS),
              (size_t)b->table.total * sizeof(float));
    CHECK(!downlink_steps(&b->spec, 0) && downlink_steps(&b->spec, ROUNDS - 1));
    CHECK(!downlink_steps(&b->spec, ROUNDS));
    bed_free(b);
}

static void threads_and_repetition_give_the_same_files(void)
{
    struct bed *b = bed_of_rung("topk", "");
    play(b, 2);
    for (int threads = 1; threads <= 4; threads += 3) {
        struct checkpoint_job job = job_of(b, 2, threads);
        struct checkpoint_files f;
        struct aggregate_stats stats = {0};
        int corrupt = -1;
        job.again = threads == 4 ? &b->at[2] : NULL;
        CHECK_INT(checkpoint_next(&job, &f, &stats, &corrupt, &b->e), ST_OK);
        CHECK(digest_equal(&f.weights, &b->at[2].weights));
        CHECK(digest_equal(&f.state, &b->at[2].state));
        CHECK(digest_equal(&f.step, &b->at[2].step));
        CHECK_INT(f.step_bytes, b->at[2].step_bytes);
    }
    bed_free(b);
}

static void tensors_that_stay_are_in_no_step(void)
{
    struct arena *a = arena_new(1 << 20);
    struct run_spec spec = files_spec(",\"codec\":{\"down\":\"q4\"}");
    (void)snprintf(spec.freeze.text[0], PATTERN_SIZE, "wte.*");
    (void)snprintf(spec.personal.text[0], PATTERN_SIZE, "blocks.1.*");
    spec.freeze.count = spec.personal.count = 1;
    struct bed *b = bed_of(spec);
    struct layout step = layout_step(a, &b->spec, 2);
    struct digest made;
    play(b, 2);
    CHECK(step.table.count < b->table.count);
    CHECK_INT(silo_takes(b, 0, 2, &made), ST_OK);
    CHECK(digest_equal(&made, &b->at[2].weights));
    const float *zero = values(b, &b->at[0].weights);
    const float *two = values(b, &b->at[2].weights);
    for (int32_t i = 0; i < b->table.count; i++) {
        const struct param *p = &b->table.items[i];
        bool same = memcmp(zero + p->offset, two + p->offset, (size_t)p->count * 4) == 0;
        CHECK_INT(same, step.index[LAYOUT_WEIGHTS][i] < 0);
    }
    arena_free(a);
    bed_free(b);
}

static struct run_spec fragments_spec(const char *rung, int32_t fragments)
{
    char more[120];
    (void)snprintf(more, sizeof(more),
                   ",\"codec\":{\"down\":\"%s\"},\"outer\":{\"name\":\"fednesterov\"}", rung);
    struct run_spec spec = files_spec(more);
    spec.federation.fragments = fragments;
    return spec;
}

/* A round's step has the fragment that it synchronised; the rest of the checkpoint stays. */
static void a_step_moves_the_fragment_of_its_round(void)
{
    struct bed *b = bed_of(fragments_spec("q4", 2));
    play(b, ROUNDS - 1);
    for (int32_t t = 1; t < ROUNDS; t++) {
        struct layout step = layout_step(b->a, &b->spec, t);
        const float *before = values(b, &b->at[t - 1].weights);
        const float *after = values(b, &b->at[t].weights);
        CHECK(step.table.count > 0 && step.table.count < b->table.count);
        for (int32_t i = 0; i < b->table.count; i++) {
            const struct param *p = &b->table.items[i];
            bool same = memcmp(before + p->offset, after + p->offset, (size_t)p->count * 4) == 0;
            CHECK_INT(same, step.index[LAYOUT_WEIGHTS][i] < 0);
        }
    }
    bed_free(b);
}

static void a_silo_makes_every_checkpoint_by_steps_of_fragments(void)
{
    static const char *const SOME[] = {"int8", "topk"};
    for (int32_t fragments = 2; fragments <= 4; fragments++) {
        struct bed *b = bed_of(fragments_spec(SOME[fragments % 2], fragments));
        struct bed *plain = bed_of(fragments_spec("f32", fragments));
        size_t size = (size_t)b->table.total * sizeof(float);
        struct digest made;
        play(b, ROUNDS);
        play(plain, ROUNDS);
        for (int32_t from = 0; from < ROUNDS - 1; from++) {
            for (int32_t to = from + 1; to < ROUNDS; to++) {
                CHECK_INT(silo_takes(b, from, to, &made), ST_OK);
                CHECK(digest_equal(&made, &b->at[to].weights));
            }
        }
        for (int32_t t = 1; t <= ROUNDS; t++) { // y moves as if nothing were coded
            CHECK_MEM(ideal(b, t), values(plain, &plain->at[t].weights), size);
        }
        CHECK_MEM(values(b, &b->at[ROUNDS].weights), ideal(b, ROUNDS), size);
        bed_free(plain);
        bed_free(b);
    }
}

static void damage_path(const struct bed *b, const struct digest *d, char out[200])
{
    char hex[DIGEST_HEX + 1];
    digest_hex(d, hex);
    (void)snprintf(out, 200, "%s/blobs/%.2s/%.2s/%s", b->files.dir, hex, hex + 2, hex);
}

static void flip(const struct bed *b, const struct digest *d, int64_t from_end)
{
    char path[200];
    damage_path(b, d, path);
    CHECK_INT(chmod(path, 0600), 0);
    FILE *f = fopen(path, "r+b");
    CHECK(f != NULL);
    CHECK_INT(fseek(f, -(long)from_end, SEEK_END), 0);
    int c = fgetc(f);
    CHECK_INT(fseek(f, -(long)from_end, SEEK_END), 0);
    CHECK(fputc(c ^ 4, f) != EOF);
    CHECK_INT(fclose(f), 0);
}

static void damage_gives_no_checkpoint(void)
{
    struct digest made;
    struct bed *b = bed_of_rung("int8", "");
    play(b, 3);
    flip(b, &b->at[1].weights, 40); // the silo's own copy of the base
    CHECK_INT(silo_takes(b, 1, 2, &made), ST_OK);
    CHECK(!digest_equal(&made, &b->at[2].weights));
    flip(b, &b->at[3].step, 1); // a code of the last tensor
    CHECK_INT(silo_takes(b, 2, 3, &made), ST_OK);
    CHECK(!digest_equal(&made, &b->at[3].weights));
    bed_free(b);
}

static void steps_of_others_are_refused(void)
{
    struct digest made;
    struct bed *b = bed_of_rung("int8", "");
    play(b, 3);
    struct checkpoint_files two = b->at[2];
    b->at[2].step = b->at[1].step; // another round's
    CHECK_INT(silo_takes(b, 1, 2, &made), ST_CORRUPT);
    b->at[2] = two;
    b->at[2].step_codec = CODEC_Q4;
    CHECK_INT(silo_takes(b, 1, 2, &made), ST_CORRUPT);
    b->at[2] = two;
    b->at[1].weights = b->at[0].weights; // it begins elsewhere
    CHECK_INT(silo_takes(b, 1, 2, &made), ST_CORRUPT);
    b->at[2] = two;

    struct run_spec less = files_spec("");
    less.model.n_layers = 1;
    struct bed *small = bed_of(less);
    struct step_job job = {.spec = &b->spec,
                           .base_fd = open_blob(small, &small->at[0].weights),
                           .round = 1,
                           .out_fd = files_temp("", 0)};
    CHECK_INT(step_apply(&job, &made, &b->e), ST_CORRUPT);
    CHECK_INT(close(job.base_fd) | close(job.out_fd), 0);
    bed_free(small);
    bed_free(b);
}

/* One value far beyond the rest: its tensor goes one rung up, and while that holds all of them. */
static void an_outlier_trips_the_guard(void)
{
    struct digest made;
    struct bed *b = bed_of_rung("int8", "");
    b->loud = true;
    play(b, 2);
    CHECK_INT(b->at[1].step_report.fallbacks, 1);
    CHECK(b->at[1].step_report.fallback_share > CODED_FALLBACK_MAX);
    CHECK_INT(b->at[2].step_report.fallbacks, 0);
    CHECK_INT(silo_takes(b, 0, 2, &made), ST_OK);
    CHECK(digest_equal(&made, &b->at[2].weights));
    bed_free(b);

    struct run_spec s = files_spec(",\"codec\":{\"down\":\"topk\"}");
    CHECK_INT(downlink_rung(&s, 5, 0), CODEC_TOPK);
    CHECK_INT(downlink_rung(&s, 5, 4), CODEC_Q2);
    CHECK_INT(downlink_rung(&s, 14, 4), CODEC_Q2);
    CHECK_INT(downlink_rung(&s, 15, 4), CODEC_TOPK);
}

/* The child's y is what the parent's optimizer moved, or its weights; and the other way round. */
static void a_fork_may_change_the_way_down(void)
{
    static const char *const OUTER = ",\"outer\":{\"name\":\"fednesterov\"}";
    struct bed *b = bed_of_rung("q2", OUTER);
    size_t size = (size_t)b->table.total * sizeof(float);
    struct checkpoint_files f;
    play(b, 2);
    struct checkpoint_source from = {b->at[2].weights, true, b->at[2].state};
    CHECK_INT(checkpoint_fork(b->files.blobs, &b->spec, &from, NULL, &f, &b->e), ST_OK);
    CHECK(digest_equal(&f.weights_digest, &b->at[2].weights_digest));
    CHECK_MEM(values(b, &f.state), values(b, &b->at[2].state), 2 * size);

    struct run_spec whole = files_spec(OUTER);
    CHECK_INT(checkpoint_fork(b->files.blobs, &whole, &from, NULL, &f, &b->e), ST_OK);
    CHECK_INT(f.state_bytes < b->at[2].state_bytes, 1);
    CHECK_MEM(values(b, &f.state), values(b, &b->at[2].state), size);

    struct checkpoint_source back = {f.weights, true, f.state};
    CHECK_INT(checkpoint_fork(b->files.blobs, &b->spec, &back, NULL, &f, &b->e), ST_OK);
    CHECK_MEM(values(b, &f.state), values(b, &b->at[2].state), size);
    CHECK_MEM(values(b, &f.state) + b->table.total, values(b, &b->at[2].weights), size);
    bed_free(b);
}

int main(void)
{
    RUN(a_silo_makes_every_checkpoint_by_its_steps);
    RUN(the_optimizer_moves_as_if_nothing_were_coded);
    RUN(what_is_left_out_goes_with_later_steps);
    RUN(the_last_checkpoint_is_what_the_optimizer_has);
    RUN(threads_and_repetition_give_the_same_files);
    RUN(tensors_that_stay_are_in_no_step);
    RUN(a_step_moves_the_fragment_of_its_round);
    RUN(a_silo_makes_every_checkpoint_by_steps_of_fragments);
    RUN(damage_gives_no_checkpoint);
    RUN(steps_of_others_are_refused);
    RUN(an_outlier_trips_the_guard);
    RUN(a_fork_may_change_the_way_down);
    return check_end();
}
