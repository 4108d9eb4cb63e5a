#include "client/feedback.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/state.h"
#include "common/mem.h"
#include "common/rng.h"
#include "tests/support/check.h"

#define RUN_ID "r_01J0000000000000000000000A"

/* A silo whose deltas are drawn, with its run's folder. */
struct bed {
    char dir[64];
    struct arena *a;
    struct param_table table;
    struct run_state rs;
    int64_t round;
    int32_t fragments;
    struct feedback_result r;
    struct err e;
};

static float drawn(int64_t round, int64_t i)
{
    return (float)(1e-3 * rng_normal((uint64_t)round, (uint64_t)i));
}

static enum status draw(void *ctx, int64_t first, int64_t n, float *out, struct err *e)
{
    const struct bed *b = ctx;
    (void)e;
    for (int64_t i = 0; i < n; i++) {
        out[i] = drawn(b->round, first + i);
    }
    return ST_OK;
}

static struct bed *bed_new(void)
{
    struct bed *b = mem_alloc(sizeof(*b));
    (void)snprintf(b->dir, sizeof(b->dir), "/tmp/test_feedback_XXXXXX");
    CHECK(mkdtemp(b->dir) != NULL);
    b->a = arena_new(64 << 20);
    b->fragments = 1;
    struct model_spec m = {
        .d_model = 32, .n_heads = 2, .n_layers = 1, .vocab_size = 400, .seq_len = 8};
    b->table = params_table(b->a, &m);
    CHECK_INT(run_state_open(&b->rs, b->dir, RUN_ID, &b->e), ST_OK);
    return b;
}

static void bed_free(struct bed *b)
{
    char cmd[96];
    (void)snprintf(cmd, sizeof(cmd), "rm -rf %s", b->dir);
    CHECK_INT(system(cmd), 0);
    arena_free(b->a);
    mem_free(b);
}

/* Begin a round, code its update, note it as whole. */
static enum status code(struct bed *b, int64_t round, enum codec codec, struct err *e)
{
    static const char *const NAMES[] = {STATE_RESIDUAL, STATE_UPDATE, STATE_RESIDUAL_NEXT,
                                        STATE_RESIDUAL_LATE};
    char path[4][STATE_PATH_MAX];
    struct round_key key = {.round = round, .base = "b", .local_steps = 1};
    key.fragment = b->fragments > 1 ? (round - 1) % b->fragments : 0;
    b->round = round;
    if (!round_key_equal(&key, &b->rs.j.key) || b->rs.j.phase != JOURNAL_TRAIN) {
        TRY(run_state_begin(&b->rs, &key, e));
    }
    run_state_residual(&b->rs, key.fragment, path[0]);
    for (int i = 1; i < 4; i++) {
        run_state_path(&b->rs, NAMES[i], path[i]);
    }
    struct feedback_job j = {.delta = draw,
                             .ctx = b,
                             .table = &b->table,
                             .codec = codec,
                             .k = CODEC_K,
                             .run_name = "r",
                             .round = round,
                             .period = b->fragments,
                             .base_sha256 = "b",
                             .silo_name = "s",
                             .tokens = 64,
                             .steps = 1,
                             .residual = path[0],
                             .update = path[1],
                             .next = path[2],
                             .late = path[3]};
    TRY(feedback_encode(&j, &b->r, e));
    return run_state_trained(&b->rs, e);
}

/* Values of a file of F32 tensors; NULL when it is not there. */
static const float *values(const struct bed *b, const char *name)
{
    char path[STATE_PATH_MAX];
    struct st_header h;
    run_state_path(&b->rs, name, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return NULL;
    }
    CHECK_INT(st_read(&h, b->a, fd, NULL), ST_OK);
    CHECK_INT(h.data_bytes, 4 * b->table.total);
    float *v = arena_alloc(b->a, (size_t)h.data_bytes);
    CHECK_INT(pread(fd, v, (size_t)h.data_bytes, h.data_offset), h.data_bytes);
    CHECK_INT(close(fd), 0);
    return v;
}

/* What the server reads of the update. */
static float *sent(struct bed *b, enum codec codec)
{
    char path[STATE_PATH_MAX];
    char round[16];
    (void)snprintf(round, sizeof(round), "%08d", (int)b->round);
    const struct st_meta before[] = {
        {"kind", "update"}, {"run", "r"}, {"round", round}, {"base", "b"}};
    const struct st_meta after[] = {{"silo", "s"}, {"tokens", NULL}, {"steps", NULL}};
    const struct coded_meta meta = {before, 4, after, 3};
    struct coded_file f;
    run_state_path(&b->rs, STATE_UPDATE, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK_INT(coded_open(&f, b->a, fd, &b->table, codec, CODEC_K, &meta, &b->e), ST_OK);
    float *v = arena_alloc(b->a, (size_t)b->table.total * sizeof(*v));
    uint8_t *scratch = arena_alloc(b->a, CODED_SCRATCH);
    for (int32_t i = 0; i < b->table.count; i++) {
        int64_t first = 0;
        int64_t n = 0;
        coded_group(&b->table, i, 0, &first, &n); // every tensor is one group
        CHECK_INT(coded_read(&f, fd, i, 0, scratch, v + first, &b->e), ST_OK);
    }
    CHECK_INT(close(fd), 0);
    return v;
}

static void what_is_not_sent_stays_and_nothing_is_lost(void)
{
    enum { ROUNDS = 6 };
    static const enum codec CODECS[] = {CODEC_INT8, CODEC_Q4, CODEC_Q2, CODEC_F32};
    for (size_t c = 0; c < sizeof(CODECS) / sizeof(CODECS[0]); c++) {
        struct bed *b = bed_new();
        double *all = arena_alloc(b->a, (size_t)b->table.total * sizeof(*all)); // fresh - sent
        for (int64_t t = 1; t <= ROUNDS; t++) {
            // f32 comes after a coarse rung here: it sends what that left.
            enum codec codec = CODECS[c] == CODEC_F32 && t < ROUNDS ? CODEC_Q2 : CODECS[c];
            CHECK_INT(code(b, t, codec, &b->e), ST_OK);
            const float *v = sent(b, codec);
            for (int64_t i = 0; i < b->table.total; i++) {
                all[i] += (double)drawn(t, i) - (double)v[i];
            }
            CHECK_INT(run_state_settle(&b->rs, OUTCOME_COUNTED, &b->e), ST_OK);
        }
        const float *e = values(b, STATE_RESIDUAL);
        CHECK(e != NULL && values(b, STATE_RESIDUAL_NEXT) == NULL);
        CHECK(values(b, STATE_RESIDUAL_LATE) == NULL);
        double worst = 0.0;
        double norm = 0.0;
        for (int64_t i = 0; i < b->table.total; i++) {
            worst = fmax(worst, fabs(all[i] - (double)e[i]));
            norm += fabs((double)e[i]);
        }
        CHECK(worst < 1e-8);
        CHECK((norm == 0.0) == (CODECS[c] == CODEC_F32));
        bed_free(b);
    }
}

static void a_residual_fades_with_the_rounds_that_were_missed(void)
{
    for (int32_t fragments = 1; fragments <= 2; fragments++) {
        struct bed *b = bed_new();
        b->fragments = fragments;
        int64_t later = 1 + 3 * fragments; // not in the two of this fragment between
        CHECK_INT(code(b, 1, CODEC_TOPK, &b->e), ST_OK);
        CHECK_INT(run_state_settle(&b->rs, OUTCOME_COUNTED, &b->e), ST_OK);
        const float *e = values(b, STATE_RESIDUAL);
        CHECK_INT(code(b, later, CODEC_TOPK, &b->e), ST_OK);
        const float *u = values(b, STATE_RESIDUAL_LATE);
        float beta = (float)pow(0.95, 3.0);
        for (int64_t i = 0; i < b->table.total; i++) {
            if (u[i] != drawn(later, i) + beta * e[i]) {
                CHECK_NEAR(u[i], drawn(later, i) + beta * e[i], 0.0);
            }
        }
        bed_free(b);
    }
}

static void a_late_update_rides_in_the_next_one(void)
{
    struct bed *b = bed_new();
    CHECK_INT(code(b, 1, CODEC_Q4, &b->e), ST_OK);
    CHECK_INT(run_state_settle(&b->rs, OUTCOME_LATE, &b->e), ST_OK);
    CHECK(values(b, STATE_RESIDUAL) == NULL); // the same round may be asked for again
    CHECK_INT(code(b, 2, CODEC_Q4, &b->e), ST_OK);
    const float *u = values(b, STATE_RESIDUAL_LATE);
    for (int64_t i = 0; i < b->table.total; i++) {
        if (u[i] != drawn(2, i) + drawn(1, i)) {
            CHECK_NEAR(u[i], drawn(2, i) + drawn(1, i), 0.0);
        }
    }
    CHECK_INT(run_state_settle(&b->rs, OUTCOME_LATE, &b->e), ST_OK);
    // Asked for again after all, and counted: then only what it left out rides along.
    const float *left = values(b, STATE_RESIDUAL_NEXT);
    CHECK_INT(run_state_settle(&b->rs, OUTCOME_COUNTED, &b->e), ST_OK);
    CHECK(values(b, STATE_RESIDUAL_LATE) == NULL);
    CHECK_MEM(values(b, STATE_RESIDUAL), left, (size_t)b->table.total * sizeof(float));
    bed_free(b);
}

/* Of two fragments each has a residual of its own, which its own updates alone go on from. */
static void a_late_update_rides_in_the_next_of_its_fragment(void)
{
    struct bed *b = bed_new();
    b->fragments = 2;
    CHECK_INT(code(b, 1, CODEC_Q2, &b->e), ST_OK);
    CHECK_INT(run_state_settle(&b->rs, OUTCOME_COUNTED, &b->e), ST_OK);
    size_t size = (size_t)b->table.total * sizeof(float);
    const float *first = values(b, STATE_RESIDUAL);
    CHECK_INT(code(b, 2, CODEC_Q2, &b->e), ST_OK);
    const float *u = values(b, STATE_RESIDUAL_LATE);
    CHECK_INT(run_state_settle(&b->rs, OUTCOME_LATE, &b->e), ST_OK);
    CHECK(values(b, "residual-1.safetensors") == NULL);
    CHECK_INT(code(b, 3, CODEC_Q2, &b->e), ST_OK);
    CHECK_MEM(values(b, "residual-1.safetensors"), u, size);
    CHECK_MEM(values(b, STATE_RESIDUAL), first, size);
    CHECK_INT(run_state_settle(&b->rs, OUTCOME_COUNTED, &b->e), ST_OK);
    CHECK(memcmp(values(b, STATE_RESIDUAL), first, size) != 0);
    CHECK_MEM(values(b, "residual-1.safetensors"), u, size);
    CHECK_INT(b->rs.j.kept, 3);
    bed_free(b);
}

static void a_refused_update_leaves_the_residual_as_it_was(void)
{
    struct bed *b = bed_new();
    CHECK_INT(code(b, 1, CODEC_Q4, &b->e), ST_OK);
    CHECK_INT(run_state_settle(&b->rs, OUTCOME_COUNTED, &b->e), ST_OK);
    const float *before = values(b, STATE_RESIDUAL);
    CHECK_INT(code(b, 2, CODEC_Q4, &b->e), ST_OK);
    CHECK_INT(run_state_settle(&b->rs, OUTCOME_REFUSED, &b->e), ST_OK);
    CHECK_MEM(values(b, STATE_RESIDUAL), before, (size_t)b->table.total * sizeof(float));
    CHECK(values(b, STATE_RESIDUAL_NEXT) == NULL && values(b, STATE_RESIDUAL_LATE) == NULL);
    bed_free(b);
}

/* Rounds 1 counted, 2 late, 3 counted; a crash at any durable step, then the rest again, gives the
 * residual of an undisturbed silo. */
static enum status three_rounds(struct bed *b, struct err *e)
{
    static const enum outcome WHAT[] = {OUTCOME_COUNTED, OUTCOME_LATE, OUTCOME_COUNTED};
    TRY(run_state_open(&b->rs, b->dir, RUN_ID, e));
    for (int64_t t = b->rs.j.key.round > 0 ? b->rs.j.key.round : 1; t <= 3; t++) {
        bool there = b->rs.j.key.round == t && b->rs.j.phase >= JOURNAL_TRAINED;
        if (!there) {
            TRY(code(b, t, CODEC_TOPK, e));
        }
        if (b->rs.j.phase == JOURNAL_TRAINED) {
            TRY(run_state_settle(&b->rs, WHAT[t - 1], e));
        }
    }
    return ST_OK;
}

static void a_crash_at_any_step_loses_and_doubles_nothing(void)
{
    struct bed *good = bed_new();
    CHECK_INT(three_rounds(good, &good->e), ST_OK);
    const float *want = values(good, STATE_RESIDUAL);
    CHECK(want != NULL);
    int crashes = 0;
    for (bool fired = true; fired; crashes++) {
        struct bed *b = bed_new();
        durable_fail_after(crashes);
        enum status st = three_rounds(b, &b->e);
        fired = durable_fail_fired();
        CHECK(fired ? st != ST_OK : st == ST_OK);
        durable_fail_after(-1);
        CHECK_INT(three_rounds(b, &b->e), ST_OK);
        CHECK_MEM(values(b, STATE_RESIDUAL), want, (size_t)good->table.total * sizeof(float));
        CHECK(values(b, STATE_RESIDUAL_NEXT) == NULL && values(b, STATE_RESIDUAL_LATE) == NULL);
        bed_free(b);
    }
    CHECK(crashes > 15);
    bed_free(good);
}

static void a_damaged_residual_is_left_out(void)
{
    struct bed *b = bed_new();
    char path[STATE_PATH_MAX];
    CHECK_INT(code(b, 1, CODEC_Q4, &b->e), ST_OK);
    CHECK_INT(run_state_settle(&b->rs, OUTCOME_COUNTED, &b->e), ST_OK);
    run_state_path(&b->rs, STATE_RESIDUAL, path);
    CHECK_INT(truncate(path, 100), 0);
    CHECK_INT(code(b, 2, CODEC_Q4, &b->e), ST_OK);
    const float *u = values(b, STATE_RESIDUAL_LATE);
    for (int64_t i = 0; i < b->table.total; i++) {
        CHECK(u[i] == drawn(2, i));
    }
    bed_free(b);
}

static void auto_takes_the_first_rung_that_the_link_carries(void)
{
    // 10^9 parameters in 60 s of a round of 1200 s: megabit per second, and the rung.
    static const struct {
        double mbps;
        enum codec want;
    } ROWS[] = {{600, CODEC_F32}, {300, CODEC_BF16}, {150, CODEC_INT8},
                {70, CODEC_Q4},   {36, CODEC_Q2},    {3, CODEC_TOPK}};
    for (size_t i = 0; i < sizeof(ROWS) / sizeof(ROWS[0]); i++) {
        CHECK_INT(feedback_auto(1000000000, ROWS[i].mbps * 1e6 / 8.0, 1200.0, 0.05), ROWS[i].want);
    }
    CHECK_INT(feedback_auto(1000000000, 0.0, 1200.0, 0.05), CODEC_INT8);
    CHECK_INT(feedback_auto(1000000000, 1e9, 0.0, 0.05), CODEC_INT8);
}

int main(void)
{
    RUN(what_is_not_sent_stays_and_nothing_is_lost);
    RUN(a_residual_fades_with_the_rounds_that_were_missed);
    RUN(a_late_update_rides_in_the_next_one);
    RUN(a_late_update_rides_in_the_next_of_its_fragment);
    RUN(a_refused_update_leaves_the_residual_as_it_was);
    RUN(a_crash_at_any_step_loses_and_doubles_nothing);
    RUN(a_damaged_residual_is_left_out);
    RUN(auto_takes_the_first_rung_that_the_link_carries);
    return check_end();
}
