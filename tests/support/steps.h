/*
 * steps.h - steps taken one by one against steps begun ahead of the last report, or recorded and
 * replayed. For test_steps.c, on every engine, and test_steps_emulated.c, on the emulated device.
 */
#ifndef TESTS_SUPPORT_STEPS_H
#define TESTS_SUPPORT_STEPS_H

#include "tests/support/training.h"

/* Rows of a training in whose step 2 one weight is NaN. */
struct spoiler {
    struct trainer *t;
    float good;
};

static inline void weight_put(struct trainer *t, float v)
{
    struct model *m = trainer_model(t);
    model_put(m, model_flat(m).weights, 5, 1, &v);
}

static inline enum status spoiled_rows(void *ctx, int64_t at, int32_t rows, int32_t seq_len,
                                       int32_t *out, struct err *e)
{
    struct spoiler *s = ctx;
    if (at == 2) {
        struct model *m = trainer_model(s->t);
        model_get(m, &s->good, model_flat(m).weights, 5, 1);
        weight_put(s->t, NAN);
    } else if (at == 3) {
        weight_put(s->t, s->good);
    }
    return train_rows(&text, at, rows, seq_len, out, e);
}

static inline struct trainer *opened_spoiled(struct trainer_config c, struct spoiler *s)
{
    c.rows.ctx = s;
    c.rows.train = spoiled_rows;
    s->t = opened(&c);
    return s->t;
}

/* `other` takes the same steps its own way; c is a batch with a ragged last pass. */
static inline void check_same_steps(struct trainer_config c, struct trainer_config other,
                                    int64_t until)
{
    enum { STEPS = 6 };
    struct spoiler s[2];
    struct trainer *a = opened_spoiled(c, &s[0]);
    struct trainer *b = opened_spoiled(other, &s[1]);
    trainer_run_until(b, until);
    for (int64_t at = 0; at < STEPS; at++) {
        struct step_report ra = step(a, at);
        struct step_report rb = step(b, at);
        CHECK_INT(trainer_begun(b), at + 1 < until);
        CHECK_INT(ra.finite, at != 2);
        CHECK_INT(rb.finite, ra.finite);
        CHECK_INT(rb.step, at);
        CHECK_INT(rb.tokens, ra.tokens);
        if (ra.finite) { // else it is a NaN, of which there are many
            CHECK(ra.loss == rb.loss && ra.grad_norm == rb.grad_norm && ra.lr == rb.lr);
        }
    }
    check_same_weights(a, b);
    CHECK_INT(trainer_save_state(a, in_folder("whole"), true, NULL), ST_OK);
    CHECK_INT(trainer_save_state(b, in_folder("other"), true, NULL), ST_OK);
    char cmd[300];
    (void)snprintf(cmd, sizeof(cmd), "cmp %s %s", in_folder("whole"), in_folder("other"));
    CHECK_INT(system(cmd), 0);
    trainer_close(a);
    trainer_close(b);
}

static inline struct trainer_config ragged(void)
{
    struct trainer_config c = config();
    c.inner.batch = 3;
    c.inner.micro_batch = 2;
    return c;
}

static inline void steps_begun_ahead_have_the_same_bits(void)
{
    struct trainer_config c = ragged();
    struct trainer_config ahead = c;
    ahead.ahead = true;
    check_same_steps(c, ahead, 6);
    c.inner.optimizer = ahead.inner.optimizer = INNER_ADOPT;
    check_same_steps(c, ahead, 6);
}

#endif
