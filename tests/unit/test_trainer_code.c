/* test_trainer_code.c - an update coded where the weights are is the update coded here, byte for
 * byte, and so is what it leaves out. */
#include "client/trainer_code.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/feedback.h"
#include "common/mem.h"
#include "common/rng.h"
#include "tests/support/check.h"

/* A silo with weights of its own, a base, and a coder. */
struct bed {
    struct trainer *t;
    struct trainer_coder *coder;
    const struct param_table *table;
    float *base;
    int64_t at[2], begun, ended;
    char dir[64];
    float bad; /* in place of a base value, unless it is 0 */
};

static enum status no_rows(void *ctx, int64_t step, int32_t rows, int32_t seq_len, int32_t *out,
                           struct err *e)
{
    (void)ctx;
    (void)step;
    (void)rows;
    (void)seq_len;
    (void)out;
    return err_set(e, ST_NOT_FOUND, "nobody trains here");
}

static void load(struct bed *b)
{
    int64_t size = b->table->total * (int64_t)sizeof(float);
    float *w = mem_alloc((size_t)size);
    b->base = mem_alloc((size_t)size);
    for (int64_t i = 0; i < b->table->total; i++) {
        b->base[i] = (float)(0.02 * rng_normal(5, (uint64_t)(i % 99991)));
        w[i] = b->base[i] + (float)(1e-3 * rng_normal(6, (uint64_t)(i % 65537)));
    }
    int fd = memfd_create("weights", 0);
    CHECK_INT(write(fd, w, (size_t)size), size);
    CHECK_INT(trainer_load_weights(b->t, fd, 0, NULL), ST_OK);
    (void)close(fd);
    mem_free(w);
}

/* Tensors of less than a group, of several, and one of two pieces and a bit. */
static struct bed *bed_new(const char *device, const char *dtype)
{
    struct trainer_config c = {
        .model = {.d_model = 64, .n_heads = 2, .n_layers = 1, .vocab_size = 33000, .seq_len = 8},
        .inner = {.optimizer = INNER_ADAMW, .lr = 1e-3, .batch = 1, .schedule_steps = 10},
        .rows = {.train = no_rows},
        .device = device,
        .dtype = dtype,
        .threads = 2,
    };
    struct err e = {0};
    struct bed *b = mem_alloc(sizeof(*b));
    if (trainer_open(&b->t, &c, &e)) {
        mem_free(b);
        SKIP(e.msg);
    }
    b->table = trainer_params(b->t);
    (void)snprintf(b->dir, sizeof(b->dir), "/tmp/test_trainer_code_XXXXXX");
    CHECK(mkdtemp(b->dir) != NULL);
    load(b);
    CHECK_INT(trainer_coder_open(&b->coder, b->t, &e), ST_OK);
    return b;
}

static void bed_free(struct bed *b)
{
    char cmd[96];
    (void)snprintf(cmd, sizeof(cmd), "rm -rf %s", b->dir);
    CHECK_INT(system(cmd), 0);
    trainer_coder_close(b->coder);
    trainer_close(b->t);
    mem_free(b->base);
    mem_free(b);
}

static void read_base(const struct bed *b, int64_t first, int64_t n, float *out)
{
    enum { BAD_AT = 1500000 };
    memcpy(out, b->base + first, (size_t)n * sizeof(*out));
    if (b->bad != 0.0F && first <= BAD_AT && BAD_AT < first + n) {
        out[BAD_AT - first] = b->bad;
    }
}

static enum status delta(void *ctx, int64_t first, int64_t n, float *out, struct err *e)
{
    struct bed *b = ctx;
    float *base = mem_alloc((size_t)n * sizeof(*base));
    read_base(b, first, n, base);
    enum status st = trainer_delta(b->t, first, n, base, out, e);
    mem_free(base);
    return st;
}

static enum status begin(void *ctx, const struct codec_rule *r, int64_t first, int64_t n,
                         const float *residual, float beta, struct err *e)
{
    struct bed *b = ctx;
    (void)e;
    read_base(b, first, n, trainer_coder_base(b->coder));
    if (residual) {
        memcpy(trainer_coder_residual(b->coder), residual, (size_t)n * sizeof(*residual));
    }
    trainer_coder_begin(b->coder, r, first, n, residual != NULL, beta);
    b->at[b->begun++ % 2] = first;
    return ST_OK;
}

static enum status end(void *ctx, struct coded_piece *out, const float **u, const float **left,
                       struct err *e)
{
    struct bed *b = ctx;
    struct coder_piece p;
    TRY(trainer_coder_end(b->coder, &p, e));
    *out = (struct coded_piece){b->at[b->ended++ % 2], p.n, p.parts, p.results};
    *u = p.u;
    *left = p.left;
    return ST_OK;
}

static const struct feedback_coder THERE = {CODER_GROUPS, begin, end};

static const char *in_dir(const struct bed *b, const char *name, const char *who)
{
    static char path[8][128];
    static int turn;
    turn = (turn + 1) % 8;
    (void)snprintf(path[turn], sizeof(path[turn]), "%s/%s.%s", b->dir, name, who);
    return path[turn];
}

static enum status code(struct bed *b, enum codec codec, int64_t round, bool there,
                        struct feedback_result *r, struct err *e)
{
    const char *who = there ? "there" : "here";
    struct feedback_job j = {.delta = delta,
                             .ctx = b,
                             .coder = there ? &THERE : NULL,
                             .table = b->table,
                             .codec = codec,
                             .k = CODEC_K,
                             .run_name = "r",
                             .round = round,
                             .base_sha256 = "b",
                             .silo_name = "s",
                             .tokens = 64,
                             .steps = 1,
                             .residual = in_dir(b, "residual", who),
                             .update = in_dir(b, "update", who),
                             .next = in_dir(b, "next", who),
                             .late = in_dir(b, "late", who)};
    return feedback_encode(&j, r, e);
}

static bool same_file(const struct bed *b, const char *name)
{
    char cmd[320];
    (void)snprintf(cmd, sizeof(cmd), "cmp %s %s", in_dir(b, name, "here"),
                   in_dir(b, name, "there"));
    return system(cmd) == 0;
}

static void two_rounds(struct bed *b, enum codec codec)
{
    for (int64_t round = 1; round <= 2; round++) {
        struct feedback_result here;
        struct feedback_result there;
        struct err e = {0};
        CHECK_INT(code(b, codec, round, false, &here, &e), ST_OK);
        CHECK_INT(code(b, codec, round, true, &there, &e), ST_OK);
        CHECK_MEM(&here, &there, sizeof(here));
        CHECK(same_file(b, "update") && same_file(b, "next") && same_file(b, "late"));
        for (int i = 0; i < 2; i++) {
            const char *who = i ? "there" : "here";
            CHECK_INT(rename(in_dir(b, "next", who), in_dir(b, "residual", who)), 0);
        }
    }
    for (int i = 0; i < 2; i++) {
        CHECK_INT(unlink(in_dir(b, "residual", i ? "there" : "here")), 0);
    }
}

static void every_rung(const char *device, const char *dtype)
{
    struct bed *b = bed_new(device, dtype);
    for (int c = CODEC_BF16; c < CODEC_COUNT; c++) {
        two_rounds(b, (enum codec)c);
    }
    bed_free(b);
}

static void an_update_coded_there_is_the_one_coded_here(void)
{
    every_rung("cpu", "f32");
}

static void also_of_a_split_master(void)
{
    every_rung("cpu", "bf16");
}

static void a_value_beyond_bounds_is_refused_there_as_here(void)
{
    struct bed *b = bed_new("cpu", "f32");
    struct feedback_result r;
    struct err here = {0};
    struct err there = {0};
    b->bad = 0x1p120F;
    for (int c = CODEC_BF16; c < CODEC_COUNT; c++) {
        CHECK_INT(code(b, (enum codec)c, 1, false, &r, &here), ST_INVALID);
        CHECK_INT(code(b, (enum codec)c, 1, true, &r, &there), ST_INVALID);
        CHECK_STR(there.msg, here.msg);
        // The coder is as good as new for whoever asks next.
        trainer_coder_close(b->coder);
        CHECK_INT(trainer_coder_open(&b->coder, b->t, NULL), ST_OK);
    }
    bed_free(b);
}

int main(void)
{
    RUN(an_update_coded_there_is_the_one_coded_here);
    RUN(also_of_a_split_master);
    RUN(a_value_beyond_bounds_is_refused_there_as_here);
    return check_end();
}
