/*
 * test_trainer.c - local training: it learns, repeats to the bit, survives a
 * kill, refuses bad files.
 */
#include "client/trainer.h"

#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>

#include "tests/support/training.h"

/* ---- on every engine ---- */

static void one_batch_is_learned_by_heart(void)
{
    struct trainer_config c = config();
    c.inner.schedule_steps = 1000;
    text.same = true;
    struct trainer *t = opened(&c);
    double first = step(t, 0).loss;
    CHECK_NEAR(first, log(text.vocab), 0.5);
    double last = first;
    for (int64_t at = 1; at < 150 && last >= 0.1; at++) {
        last = step(t, at).loss;
    }
    CHECK(last < 0.1);
    trainer_close(t);
}

static void adopt_learns_too(void)
{
    struct trainer_config c = config();
    c.inner.optimizer = INNER_ADOPT;
    c.inner.beta2 = 0.9999;
    c.inner.eps = 1e-6;
    text.same = true;
    struct trainer *t = opened(&c);
    double first = step(t, 0).loss;
    CHECK_NEAR(step(t, 1).loss, first, 0.0); // the first step only measures
    double last = first;
    for (int64_t at = 2; at < 60; at++) {
        last = step(t, at).loss;
    }
    CHECK(last < 0.5 * first);
    trainer_close(t);
}

static void the_same_steps_twice_give_the_same_bits(void)
{
    struct trainer_config c = config();
    struct trainer *a = opened(&c);
    struct trainer *b = opened(&c);
    model_poison(trainer_model(b));
    for (int64_t at = 0; at < 5; at++) {
        struct step_report ra = step(a, at);
        struct step_report rb = step(b, at);
        CHECK(ra.loss == rb.loss && ra.grad_norm == rb.grad_norm);
        CHECK_INT(ra.step, at);
        CHECK_INT(ra.tokens, 4 * 12);
        CHECK(ra.finite && ra.grad_norm > 0.0 && ra.lr == inner_lr(&c.inner, at));
    }
    check_same_weights(a, b);
    trainer_close(a);
    trainer_close(b);
}

/* Against a training of everything: what is frozen keeps its bits and leaves the norm smaller. */
static void frozen_tensors_do_not_move_and_count_for_nothing(void)
{
    struct trainer_config c = config();
    struct trainer *all = opened(&c);
    c.freeze = (struct patterns){2, {"wte.*", "blocks.1.*"}};
    struct trainer *some = opened(&c);
    float *before = weights(some);
    double full = step(all, 0).grad_norm;
    double less = step(some, 0).grad_norm;
    CHECK(less > 0.0 && less < full);
    for (int64_t at = 1; at < 4; at++) {
        CHECK(step(some, at).finite);
    }
    float *after = weights(some);
    const struct param_table *p = trainer_params(some);
    for (int32_t i = 0; i < p->count; i++) {
        const struct param *q = &p->items[i];
        bool frozen = patterns_match(&c.freeze, q->name);
        bool same = memcmp(before + q->offset, after + q->offset, (size_t)q->count * 4) == 0;
        if (frozen != same) {
            CHECK_STR(q->name, frozen ? "is frozen, but moved" : "should have moved");
        }
    }
    mem_free(before);
    mem_free(after);
    trainer_close(all);
    trainer_close(some);
}

/* Moments out of one trainer and into another by way of a file, as a checkpoint carries them. */
static void moments_can_be_put_in_from_outside(void)
{
    struct trainer_config c = config();
    struct trainer *a = opened(&c);
    for (int64_t at = 0; at < 3; at++) {
        (void)step(a, at);
    }
    int64_t total = trainer_params(a)->total;
    float *v = mem_alloc((size_t)total * sizeof(float));
    int fd = memfd_create("moments", 0);
    for (int part = 0; part < LAYOUT_PARTS; part++) {
        CHECK_INT(part == LAYOUT_WEIGHTS
                      ? trainer_weights(a, 0, total, v, NULL)
                      : trainer_moments(a, (enum layout_part)part, 0, total, v, NULL),
                  ST_OK);
        CHECK_INT(write(fd, v, (size_t)total * 4), total * 4);
    }
    mem_free(v);
    struct trainer *b = opened(&c);
    // Two spans with a hole, then the hole: the same as all of it.
    const struct layout_span ends[] = {{0, 0, 100}, {500, 500, total - 500}};
    const struct layout_span hole = {100, 100, 400};
    CHECK_INT(trainer_load_moments(b, LAYOUT_M, fd, 0, ends, 2, NULL), ST_OK);
    CHECK_INT(trainer_load_moments(b, LAYOUT_M, fd, 0, &hole, 1, NULL), ST_OK);
    CHECK_INT(trainer_load_moments(b, LAYOUT_V, fd, total * 8, ends, 2, NULL), ST_OK);
    CHECK_INT(trainer_load_moments(b, LAYOUT_V, fd, total * 8, &hole, 1, NULL), ST_OK);
    CHECK_INT(trainer_load_spans(b, fd, total * 4, ends, 2, NULL), ST_OK);
    CHECK_INT(trainer_load_spans(b, fd, total * 4, &hole, 1, NULL), ST_OK);
    trainer_set_steps(b, 3);
    (void)step(a, 3);
    (void)step(b, 3);
    check_same_weights(a, b);
    (void)close(fd);
    trainer_close(a);
    trainer_close(b);
}

/* Within the spans base + (local - end), operation by operation; elsewhere the local weights. */
static void what_was_trained_since_the_end_goes_on_top_of_the_base(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    int64_t total = trainer_params(t)->total;
    const struct layout_span spans[] = {{0, 0, 100}, {500, 500, total - 500}};
    struct trainer_rebase r = {.base_offset = BEFORE, .spans = spans, .count = 2};
    r.base_fd = weights_file(trainer_params(t), total);
    float *base = weights(t);
    (void)step(t, 0);
    (void)step(t, 1);
    float *end = weights(t);
    CHECK_INT(trainer_save_state(t, in_folder("round"), true, NULL), ST_OK);
    (void)step(t, 2);
    float *local = weights(t);
    CHECK_INT(trainer_state_weights(t, in_folder("round"), &r.end_fd, &r.end_offset, NULL), ST_OK);
    CHECK_INT(trainer_rebase(t, &r, NULL), ST_OK);
    float *got = weights(t);
    for (int64_t i = 0; i < total; i++) {
        float work = local[i] - end[i];
        float want = i >= 100 && i < 500 ? local[i] : base[i] + work;
        if (got[i] != want) {
            CHECK_NEAR(got[i], want, 0.0);
        }
    }
    (void)step(t, 3); // and goes on

    (void)close(r.end_fd);
    CHECK_INT(trainer_save_state(t, in_folder("round"), false, NULL), ST_OK);
    CHECK_INT(trainer_state_weights(t, in_folder("round"), &r.end_fd, &r.end_offset, NULL),
              ST_CORRUPT);
    (void)close(r.base_fd);
    mem_free(base);
    mem_free(end);
    mem_free(local);
    mem_free(got);
    trainer_close(t);
}

static void a_kill_in_mid_round_changes_no_bit(void)
{
    for (int kind = 0; kind < INNER_COUNT; kind++) {
        struct trainer_config c = config();
        c.inner.optimizer = (enum inner_optimizer)kind;
        struct trainer *undisturbed = opened(&c);
        struct trainer *killed = opened(&c);
        for (int64_t at = 0; at < 6; at++) {
            (void)step(undisturbed, at);
            if (at < 3) {
                (void)step(killed, at);
            }
        }
        CHECK_INT(trainer_save_state(killed, in_folder("mid"), true, NULL), ST_OK);
        (void)step(killed, 3); // lost with the process
        trainer_close(killed);

        struct trainer *resumed = opened(&c);
        CHECK_INT(trainer_load_state(resumed, in_folder("mid"), NULL), ST_OK);
        for (int64_t at = 3; at < 6; at++) {
            (void)step(resumed, at);
        }
        check_same_weights(resumed, undisturbed);
        trainer_close(resumed);
        trainer_close(undisturbed);
    }
}

static void between_rounds_moments_stay_and_weights_are_the_servers(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    for (int64_t at = 0; at < 3; at++) {
        (void)step(t, at);
    }
    CHECK_INT(trainer_save_state(t, in_folder("round"), false, NULL), ST_OK);
    trainer_close(t);

    struct trainer *kept = opened(&c);
    float *before = weights(kept);
    CHECK_INT(trainer_load_state(kept, in_folder("round"), NULL), ST_OK);
    float *after = weights(kept);
    CHECK_MEM(after, before, (size_t)trainer_params(kept)->total * sizeof(float));
    mem_free(before);
    mem_free(after);

    // Moments that have seen three steps move the weights otherwise than new ones.
    struct trainer *fresh = opened(&c);
    (void)step(kept, 3);
    (void)step(fresh, 3);
    float *a = weights(kept);
    float *b = weights(fresh);
    CHECK(memcmp(a, b, (size_t)trainer_params(kept)->total * sizeof(float)) != 0);
    mem_free(a);
    mem_free(b);

    // And a reset makes them new again.
    trainer_reset_state(kept);
    int fd = weights_file(trainer_params(kept), trainer_params(kept)->total);
    CHECK_INT(trainer_load_weights(kept, fd, BEFORE, NULL), ST_OK);
    (void)close(fd);
    (void)step(kept, 3);
    check_same_weights(kept, fresh);
    trainer_close(kept);
    trainer_close(fresh);
}

static void a_gradient_that_is_not_finite_leaves_everything_as_it_was(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    struct trainer *calm = opened(&c);
    (void)step(t, 0);
    (void)step(calm, 0);

    // One weight turns to NaN behind the trainer's back, and with it the whole gradient.
    struct model *m = trainer_model(t);
    void *array = model_flat(m).weights;
    float good;
    float bad = NAN;
    model_get(m, &good, array, 5, 1);
    model_put(m, array, 5, 1, &bad);
    struct step_report r = step(t, 1);
    CHECK(!r.finite && !isfinite(r.grad_norm));
    model_put(m, array, 5, 1, &good);
    check_same_weights(t, calm);

    // Moments and their count are untouched as well: the next step is the one that was due.
    (void)step(t, 1);
    (void)step(calm, 1);
    check_same_weights(t, calm);
    trainer_close(t);
    trainer_close(calm);
}

/* A silo that was not sampled before, or lost its state, still trains at the run's rate. */
static void the_learning_rate_is_that_of_the_global_step(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    CHECK(inner_lr(&c.inner, 120) != inner_lr(&c.inner, 0));
    CHECK(step(t, 120).lr == inner_lr(&c.inner, 120));
    CHECK(step(t, 121).lr == inner_lr(&c.inner, 121));
    trainer_close(t);
}

/* Its first update is bounded by 1: t^(1/4) counts the steps before it, of which one measured. */
static void adopts_first_update_moves_no_weight_by_more_than_the_rate(void)
{
    struct trainer_config c = config();
    c.inner.optimizer = INNER_ADOPT;
    c.inner.beta2 = 0.9999;
    c.inner.eps = 1e-6;
    c.inner.weight_decay = 0.0;
    struct trainer *t = opened(&c);
    (void)step(t, 0);
    float *before = weights(t);
    double most = step(t, 1).lr * (1.0 - c.inner.beta1);
    float *after = weights(t);
    double moved = 0.0;
    for (int64_t i = 0; i < trainer_params(t)->total; i++) {
        moved = fmax(moved, fabs((double)after[i] - (double)before[i]));
    }
    CHECK_NEAR(moved / most, 1.0, 0.01); // some weight is at the bound, none is over it
    mem_free(before);
    mem_free(after);
    trainer_close(t);
}

/* The last token of a row is a target and nothing else, so the loss is all that can show it. */
static void what_is_learned_is_the_next_token(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    text.bad = 1;
    double one = step(t, 0).loss;
    trainer_close(t);
    t = opened(&c);
    text.bad = 2;
    CHECK(step(t, 0).loss != one);
    trainer_close(t);
}

static void a_delta_is_base_minus_local(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    int64_t total = trainer_params(t)->total;
    float *base = weights(t);
    (void)step(t, 0);
    float *local = weights(t);
    float delta[1001];
    bool moved = false;
    for (int64_t at = 0; at < total; at += 1001) {
        int64_t n = total - at < 1001 ? total - at : 1001;
        CHECK_INT(trainer_delta(t, at, n, base + at, delta, NULL), ST_OK);
        for (int64_t i = 0; i < n; i++) {
            CHECK(delta[i] == base[at + i] - local[at + i]);
            moved = moved || delta[i] != 0.0F;
        }
    }
    CHECK(moved);
    mem_free(base);
    mem_free(local);
    trainer_close(t);
}

static void an_evaluation_adds_up_from_its_parts(void)
{
    struct trainer_config c = config();
    c.inner.micro_batch = 3;
    struct trainer *t = opened(&c);
    struct eval_result all, part;
    CHECK_INT(trainer_eval(t, 0, 7, &all, NULL), ST_OK);
    CHECK_INT(all.tokens, 7 * 12);
    CHECK_INT(all.bytes, 7 * 36);
    CHECK_NEAR(all.nll / (double)all.tokens, log(text.vocab), 0.5);
    double sum = 0.0;
    for (int64_t i = 0; i < 7; i++) {
        CHECK_INT(trainer_eval(t, i, 1, &part, NULL), ST_OK);
        sum += part.nll;
    }
    CHECK_NEAR(sum, all.nll, 1e-6);
    CHECK_INT(trainer_eval(t, 5, 3, &part, NULL), ST_NOT_FOUND);

    // An evaluation leaves no trace in the training.
    struct trainer *other = opened(&c);
    (void)step(t, 0);
    (void)step(other, 0);
    check_same_weights(t, other);
    trainer_close(t);
    trainer_close(other);
}

static void the_loss_follows_the_references_curve(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    c.device = "ref";
    c.dtype = "f32";
    struct trainer *ref = opened(&c);
    double tolerance = engine.dtype == DTYPE_BF16 ? 1e-2 : 1e-4;
    double worst = 0.0;
    for (int64_t at = 0; at < 50; at++) {
        double got = step(t, at).loss;
        double want = step(ref, at).loss;
        worst = fmax(worst, fabs(got - want));
    }
    (void)printf("  largest difference of 50 losses: %.2e\n", worst);
    CHECK(worst <= tolerance);
    trainer_close(t);
    trainer_close(ref);
}

/* ---- once ---- */

static void a_token_outside_the_vocabulary_is_refused(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    struct step_report r;
    struct err e = {0};
    static const int32_t bad[] = {53, 1 << 30};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        text.bad = bad[i];
        CHECK_INT(trainer_step(t, 0, &r, &e), ST_INVALID);
        CHECK(strstr(e.msg, "vocabulary") != NULL);
    }
    text.bad = 52;
    CHECK_INT(trainer_step(t, 0, &r, &e), ST_OK);
    trainer_close(t);
}

static void weights_that_end_early_or_are_not_finite_are_refused(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    struct err e = {0};
    int64_t total = trainer_params(t)->total;
    int fd = weights_file(trainer_params(t), total - 1);
    CHECK_INT(trainer_load_weights(t, fd, BEFORE, &e), ST_CORRUPT);
    (void)close(fd);
    fd = weights_file(trainer_params(t), total);
    float bad = NAN;
    CHECK_INT(pwrite(fd, &bad, sizeof(bad), BEFORE + 100 * (off_t)sizeof(bad)), sizeof(bad));
    CHECK_INT(trainer_load_weights(t, fd, BEFORE, &e), ST_CORRUPT);
    CHECK(strstr(e.msg, "weight 100 ") != NULL);
    (void)close(fd);
    CHECK_INT(trainer_load_weights(t, -1, 0, &e), ST_IO);
    trainer_close(t);
}

static void put_byte(const char *path, int64_t at, int flip)
{
    int fd = open(path, O_RDWR);
    unsigned char byte;
    CHECK_INT(pread(fd, &byte, 1, at), 1);
    byte = (unsigned char)(byte ^ flip);
    CHECK_INT(pwrite(fd, &byte, 1, at), 1);
    (void)close(fd);
}

static void a_damaged_state_is_refused_and_changes_nothing(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    struct trainer *same = opened(&c);
    (void)step(t, 0);
    (void)step(same, 0);
    CHECK_INT(trainer_save_state(t, in_folder("whole"), true, NULL), ST_OK);
    (void)step(t, 1);
    (void)step(same, 1);
    struct stat s;
    CHECK_INT(stat(in_folder("whole"), &s), 0);

    struct err e = {0};
    for (int i = 0; i < 40; i++) { // a byte here and there, the head and the checksum included
        int64_t at = i < 12   ? i
                     : i < 16 ? s.st_size - 1 - (i - 12)
                              : (s.st_size - 1) * (i - 15) / 26;
        put_byte(in_folder("whole"), at, 1 << (i % 8));
        enum status st = trainer_load_state(t, in_folder("whole"), &e);
        CHECK(st == ST_CORRUPT || st == ST_CONFLICT);
        put_byte(in_folder("whole"), at, 1 << (i % 8));
    }
    static const int64_t cuts[] = {0, 1, 95, 96, 1000};
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        CHECK_INT(trainer_save_state(same, in_folder("cut"), true, NULL), ST_OK);
        CHECK_INT(truncate(in_folder("cut"), cuts[i]), 0);
        CHECK_INT(trainer_load_state(t, in_folder("cut"), &e), ST_CORRUPT);
    }
    CHECK_INT(trainer_save_state(same, in_folder("cut"), true, NULL), ST_OK);
    CHECK_INT(truncate(in_folder("cut"), s.st_size + 1), 0);
    CHECK_INT(trainer_load_state(t, in_folder("cut"), &e), ST_CORRUPT);
    CHECK_INT(trainer_load_state(t, in_folder("none"), &e), ST_NOT_FOUND);

    (void)step(t, 2);
    (void)step(same, 2);
    check_same_weights(t, same);
    trainer_close(t);
    trainer_close(same);
}

static void a_state_of_another_training_is_refused(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    CHECK_INT(trainer_save_state(t, in_folder("other"), false, NULL), ST_OK);
    trainer_close(t);
    struct err e = {0};
    for (int i = 0; i < 3; i++) {
        c = config();
        c.inner.optimizer = i == 0 ? INNER_ADOPT : INNER_ADAMW;
        c.model.n_heads = i == 1 ? 2 : 4;
        c.model.vocab_size = i == 2 ? 54 : 53;
        t = opened(&c);
        CHECK_INT(trainer_load_state(t, in_folder("other"), &e), ST_CONFLICT);
        CHECK(strstr(e.msg, i == 0 ? "optimizer" : "model") != NULL);
        trainer_close(t);
    }
}

static void a_state_that_cannot_be_written_leaves_the_old_one(void)
{
    struct trainer_config c = config();
    struct trainer *t = opened(&c);
    struct err e = {0};
    CHECK_INT(trainer_save_state(t, in_folder("no/such/folder"), false, &e), ST_IO);
    CHECK(strstr(e.msg, "no/such/folder") != NULL);
    CHECK_INT(trainer_save_state(t, in_folder("old"), false, &e), ST_OK);
    CHECK_INT(trainer_save_state(t, in_folder("old"), true, &e), ST_OK);
    CHECK(access(in_folder("old.tmp"), F_OK) != 0);
    CHECK_INT(mkdir(in_folder("old.tmp"), 0700), 0);
    CHECK_INT(trainer_save_state(t, in_folder("old"), false, &e), ST_IO);
    CHECK_INT(trainer_load_state(t, in_folder("old"), &e), ST_OK);
    CHECK_INT(rmdir(in_folder("old.tmp")), 0);

    // A full disk: every write to /dev/full ends so.
    CHECK_INT(symlink("/dev/full", in_folder("old.tmp")), 0);
    CHECK_INT(trainer_save_state(t, in_folder("old"), false, &e), ST_LIMIT);
    CHECK(access(in_folder("old.tmp"), F_OK) != 0); // what was half written is gone
    CHECK_INT(trainer_load_state(t, in_folder("old"), &e), ST_OK);
    trainer_close(t);
}

static void what_cannot_be_opened_says_why(void)
{
    struct trainer_config c = config();
    struct trainer *t = NULL;
    struct err e = {0};
    c.device = "abacus";
    CHECK_INT(trainer_open(&t, &c, &e), ST_INVALID);
    c = config();
    c.dtype = "f16";
    CHECK_INT(trainer_open(&t, &c, &e), ST_INVALID);
    CHECK(strstr(e.msg, "bf16") != NULL);
    c = config();
    c.inner.batch = 0;
    CHECK_INT(trainer_open(&t, &c, &e), ST_INVALID);
    c = config();
    c.threads = -1;
    CHECK_INT(trainer_open(&t, &c, &e), ST_INVALID);
    CHECK(t == NULL);

    c = config();
    c.rows.heldout = NULL;
    t = opened(&c);
    char text_of[96];
    trainer_describe(t, text_of);
    CHECK_STR(text_of, "ref, 1 thread, f32");
    struct eval_result r;
    CHECK_INT(trainer_eval(t, 0, 1, &r, &e), ST_NOT_FOUND);
    trainer_close(t);
}

static void memory_that_is_refused_anywhere_fails_the_open_alone(void)
{
    struct trainer_config c = config();
    for (int n = 0;; n++) {
        struct trainer *t = NULL;
        mem_fail_after(n);
        enum status st = trainer_open(&t, &c, NULL);
        bool fired = mem_fail_fired();
        mem_fail_after(-1);
        CHECK_INT(st, fired ? ST_NOMEM : ST_OK);
        trainer_close(t);
        if (!fired) {
            CHECK(n > 10);
            break;
        }
    }
}

static void on_this_engine(void)
{
    RUN_HERE(one_batch_is_learned_by_heart);
    RUN_HERE(adopt_learns_too);
    RUN_HERE(the_same_steps_twice_give_the_same_bits);
    RUN_HERE(frozen_tensors_do_not_move_and_count_for_nothing);
    RUN_HERE(moments_can_be_put_in_from_outside);
    RUN_HERE(what_was_trained_since_the_end_goes_on_top_of_the_base);
    RUN_HERE(a_kill_in_mid_round_changes_no_bit);
    RUN_HERE(between_rounds_moments_stay_and_weights_are_the_servers);
    RUN_HERE(a_gradient_that_is_not_finite_leaves_everything_as_it_was);
    RUN_HERE(the_learning_rate_is_that_of_the_global_step);
    RUN_HERE(adopts_first_update_moves_no_weight_by_more_than_the_rate);
    RUN_HERE(what_is_learned_is_the_next_token);
    RUN_HERE(a_delta_is_base_minus_local);
    RUN_HERE(an_evaluation_adds_up_from_its_parts);
    if (strcmp(engine.device, "ref") != 0) {
        RUN_HERE(the_loss_follows_the_references_curve);
    }
}

int main(void)
{
    folder_make();
    on_every_engine(on_this_engine);
    engine = ENGINES[0];
    RUN(a_token_outside_the_vocabulary_is_refused);
    RUN(weights_that_end_early_or_are_not_finite_are_refused);
    RUN(a_damaged_state_is_refused_and_changes_nothing);
    RUN(a_state_of_another_training_is_refused);
    RUN(a_state_that_cannot_be_written_leaves_the_old_one);
    RUN(what_cannot_be_opened_says_why);
    RUN(memory_that_is_refused_anywhere_fails_the_open_alone);

    folder_remove();
    return check_end();
}
