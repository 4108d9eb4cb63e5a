/* test_ranks.c - several devices in one silo, here ranks of the engine under test. */
#include "tests/support/training.h"

static bool two_devices;

/* Two ranks of the engine under test. */
static struct trainer_config two_ranks(int sync_every)
{
    static char devices[16];
    (void)snprintf(devices, sizeof(devices), "%s:0,1", engine.device);
    struct trainer_config c = config();
    c.device = devices;
    c.sync_every = sync_every;
    return c;
}

/* Relative distance of the gradients that the last step left behind. */
static double gradient_distance(struct trainer *a, struct trainer *b)
{
    int64_t total = trainer_params(a)->total;
    float *ga = mem_alloc((size_t)total * sizeof(float));
    float *gb = mem_alloc((size_t)total * sizeof(float));
    model_get(trainer_model(a), ga, model_flat(trainer_model(a)).grads, 0, total);
    model_get(trainer_model(b), gb, model_flat(trainer_model(b)).grads, 0, total);
    double diff = 0.0;
    double size = 0.0;
    for (int64_t i = 0; i < total; i++) {
        diff += pow((double)ga[i] - (double)gb[i], 2);
        size += pow((double)gb[i], 2);
    }
    mem_free(ga);
    mem_free(gb);
    return sqrt(diff / size);
}

static void two_ranks_on_halves_of_a_batch_are_one_on_the_whole(void)
{
    struct trainer_config c = two_ranks(0);
    struct trainer *two = opened(&c);
    struct trainer *again = opened(&c);
    c.device = engine.device;
    struct trainer *one = opened(&c);
    char text_of[96];
    trainer_describe(two, text_of);
    CHECK(strncmp(text_of, "2 x ", 4) == 0);
    bool bf16 = engine.dtype == DTYPE_BF16;
    for (int64_t at = 0; at < 4; at++) {
        struct step_report a = step(two, at);
        struct step_report b = step(one, at);
        (void)step(again, at);
        CHECK_INT(a.tokens, b.tokens);
        CHECK_NEAR(a.loss, b.loss, bf16 ? 1e-2 : 1e-4);
        CHECK(at > 0 || gradient_distance(two, one) < (bf16 ? 1e-2 : 1e-5));
    }
    check_same_weights(two, again);
    trainer_close(two);
    trainer_close(again);
    trainer_close(one);
}

/* Rows of the first rank, or of the second, as a training by itself would get them. */
static enum status half_rows(void *ctx, int64_t at, int32_t rows, int32_t seq_len, int32_t *out,
                             struct err *e)
{
    static int32_t both[64 * 64];
    const int *which = ctx;
    CHECK(2 * rows * (seq_len + 1) <= 64 * 64);
    TRY(train_rows(&text, at, 2 * rows, seq_len, both, e));
    memcpy(out, both + *which * rows * (seq_len + 1),
           (size_t)(rows * (seq_len + 1)) * sizeof(*out));
    return ST_OK;
}

static void ranks_apart_are_trainings_of_their_own_that_are_averaged(void)
{
    struct trainer_config c = two_ranks(3);
    struct trainer *two = opened(&c);
    struct trainer *half[2];
    int which[2] = {0, 1};
    c.device = engine.device;
    c.threads = 1;
    c.sync_every = 0;
    c.inner.batch /= 2;
    c.inner.micro_batch = 0;
    for (int i = 0; i < 2; i++) {
        c.rows = (struct row_source){.ctx = &which[i], .train = half_rows};
        half[i] = opened(&c);
    }
    for (int64_t at = 0; at < 3; at++) {
        struct step_report both = step(two, at);
        struct step_report a = step(half[0], at);
        struct step_report b = step(half[1], at);
        CHECK_INT(both.tokens, a.tokens + b.tokens);
        CHECK_NEAR(both.loss, (a.loss + b.loss) / 2, 1e-12);
    }
    float *got = weights(two);
    float *w0 = weights(half[0]);
    float *w1 = weights(half[1]);
    int wrong = 0;
    for (int64_t i = 0; i < trainer_params(two)->total; i++) {
        wrong += got[i] != (float)(((double)w0[i] + (double)w1[i]) / 2);
    }
    CHECK_INT(wrong, 0);
    mem_free(got);
    mem_free(w0);
    mem_free(w1);
    trainer_close(two);
    trainer_close(half[0]);
    trainer_close(half[1]);
}

static void ranks_resume_with_the_bits_of_an_undisturbed_training(void)
{
    for (int sync_every = 0; sync_every <= 3; sync_every += 3) {
        struct trainer_config c = two_ranks(sync_every);
        struct trainer *calm = opened(&c);
        struct trainer *t = opened(&c);
        for (int64_t at = 0; at < 4; at++) {
            (void)step(calm, at);
            (void)step(t, at);
        }
        CHECK_INT(trainer_save_state(t, in_folder("ranks"), true, NULL), ST_OK);
        trainer_close(t);
        t = opened(&c);
        CHECK_INT(trainer_load_state(t, in_folder("ranks"), NULL), ST_OK);
        for (int64_t at = 4; at < 8; at++) {
            (void)step(calm, at);
            (void)step(t, at);
        }
        check_same_weights(calm, t);
        trainer_close(t);
        trainer_close(calm);
        // Of ranks apart there are two sets, which one training has no use for, nor ranks together.
        c.sync_every = 0;
        t = opened(&c);
        CHECK_INT(trainer_load_state(t, in_folder("ranks"), NULL),
                  sync_every ? ST_CONFLICT : ST_OK);
        trainer_close(t);
    }
}

/* Of several chunks, so that ranks have something to share: three pieces for two ranks, or three.
 */
static struct trainer_config shared(int ranks, bool whole)
{
    static char devices[2][16];
    (void)snprintf(devices[ranks - 2], sizeof(devices[0]), "%s:0,1%s", engine.device,
                   ranks > 2 ? ",2" : "");
    struct trainer_config c = config();
    c.device = devices[ranks - 2];
    c.model = (struct model_spec){
        .d_model = 64, .n_heads = 2, .n_layers = 2, .vocab_size = 1000, .seq_len = 12};
    c.inner.batch = 6;
    c.whole = whole;
    return c;
}

static void check_moments(struct trainer *a, struct trainer *b)
{
    int64_t total = trainer_params(a)->total;
    float *ma = mem_alloc((size_t)total * sizeof(float));
    float *mb = mem_alloc((size_t)total * sizeof(float));
    for (int part = 0; part < LAYOUT_PARTS; part++) {
        if (part != LAYOUT_WEIGHTS) {
            CHECK_INT(trainer_moments(a, (enum layout_part)part, 0, total, ma, NULL), ST_OK);
            CHECK_INT(trainer_moments(b, (enum layout_part)part, 0, total, mb, NULL), ST_OK);
            CHECK_MEM(ma, mb, (size_t)total * sizeof(float));
        }
    }
    mem_free(ma);
    mem_free(mb);
}

/* Sharing changes where things are, and no bit of them. On GPUs the sums of all and of shares may
 * be added in other orders where there are more than two. */
static void a_shared_state_has_the_bits_of_a_whole_one(void)
{
    for (int ranks = 2; ranks <= (strcmp(engine.device, "cuda") == 0 ? 2 : 3); ranks++) {
        struct trainer_config c = shared(ranks, false);
        struct trainer_config w = shared(ranks, true);
        c.inner.optimizer = w.inner.optimizer = ranks == 2 ? INNER_ADAMW : INNER_ADOPT;
        if (ranks == 3) {
            c.freeze = w.freeze = (struct patterns){1, {"blocks.0.*"}};
        }
        struct trainer *sharing = opened(&c);
        struct trainer *whole = opened(&w);
        const struct memory_plan *ps = model_plan(trainer_model(sharing));
        const struct memory_plan *pw = model_plan(trainer_model(whole));
        CHECK(ps->moments < pw->moments && ps->total < pw->total && ps->shards.ranks == ranks);
        for (int64_t at = 0; at < 4; at++) {
            struct step_report a = step(sharing, at);
            struct step_report b = step(whole, at);
            CHECK(a.loss == b.loss && a.grad_norm == b.grad_norm && a.finite && b.finite);
        }
        check_same_weights(sharing, whole);
        check_moments(sharing, whole);
        // One file of state, whoever keeps what.
        CHECK_INT(trainer_save_state(sharing, in_folder("ranks"), true, NULL), ST_OK);
        trainer_close(whole);
        whole = opened(&w);
        CHECK_INT(trainer_load_state(whole, in_folder("ranks"), NULL), ST_OK);
        CHECK_INT(trainer_save_state(whole, in_folder("ranks"), true, NULL), ST_OK);
        trainer_close(sharing);
        sharing = opened(&c);
        CHECK_INT(trainer_load_state(sharing, in_folder("ranks"), NULL), ST_OK);
        (void)step(sharing, 4);
        (void)step(whole, 4);
        check_same_weights(sharing, whole);
        trainer_close(sharing);
        trainer_close(whole);
    }
}

static void devices_that_cannot_share_the_batch_are_refused(void)
{
    struct trainer *t = NULL;
    struct err e = {0};
    struct trainer_config c = two_ranks(0);
    c.inner.batch = 3;
    CHECK_INT(trainer_open(&t, &c, &e), ST_INVALID);
    CHECK(strstr(e.msg, "divide") != NULL);
    c = two_ranks(-1);
    CHECK_INT(trainer_open(&t, &c, &e), ST_INVALID);
    static const char *const names[] = {"ref:",     "ref:x",  "ref:0,",
                                        "ref:0,,1", "ref:-1", "ref:0,1x"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        c = two_ranks(0);
        c.device = names[i];
        CHECK_INT(trainer_open(&t, &c, &e), ST_INVALID);
    }
}

static void there_are_two_devices(void)
{
    char second[16];
    (void)snprintf(second, sizeof(second), "%s:1", engine.device);
    struct backend *be = NULL;
    struct err e = {0};
    two_devices = backend_open(&be, second, 1, &e) == ST_OK;
    backend_close(be);
    if (!two_devices) {
        SKIP(e.msg);
    }
}

static void on_this_engine(void)
{
    RUN_HERE(there_are_two_devices);
    if (!two_devices) {
        return;
    }
    RUN_HERE(two_ranks_on_halves_of_a_batch_are_one_on_the_whole);
    RUN_HERE(a_shared_state_has_the_bits_of_a_whole_one);
    RUN_HERE(ranks_apart_are_trainings_of_their_own_that_are_averaged);
    RUN_HERE(ranks_resume_with_the_bits_of_an_undisturbed_training);
}

int main(void)
{
    folder_make();
    on_every_engine(on_this_engine);
    engine = ENGINES[0];
    RUN(devices_that_cannot_share_the_batch_are_refused);
    folder_remove();
    return check_end();
}
