/* test_steps.c - steps begun before the last one is reported, and recorded where a device can. */
#include "tests/support/steps.h"

static void what_is_asked_in_between_waits_and_counts(void)
{
    struct trainer_config c = ragged();
    c.ahead = true;
    struct trainer *t = opened(&c);
    struct trainer *calm = opened(&c);
    trainer_run_until(t, 3);
    (void)step(t, 0);
    CHECK(trainer_begun(t) && !trainer_begun(calm));
    (void)step(calm, 0);
    (void)step(calm, 1);
    check_same_weights(t, calm); // of step 1, whose report is lost
    CHECK(!trainer_begun(t));
    (void)step(t, 2);
    (void)step(calm, 2);
    CHECK(!trainer_begun(t)); // nobody said that step 3 follows
    check_same_weights(t, calm);
    trainer_close(t);
    trainer_close(calm);
}

static void a_step_that_fails_ahead_fails_where_it_is_asked_for(void)
{
    struct trainer_config c = ragged();
    c.ahead = true;
    struct trainer *t = opened(&c);
    struct step_report r;
    trainer_run_until(t, 10);
    text.bad = -1;
    (void)step(t, 0);
    text.bad = 1 << 20; // step 1 is begun already
    (void)step(t, 1);
    CHECK(!trainer_begun(t));
    CHECK_INT(trainer_step(t, 2, &r, NULL), ST_INVALID);
    text.bad = -1;
    (void)step(t, 2);
    trainer_close(t);
}

/* Only a device records; make check-gpu runs this on one. */
static void recorded_steps_have_the_same_bits(void)
{
    struct trainer_config c = ragged();
    struct backend_caps caps;
    (void)setenv("PHOTON_CUDA_GRAPHS", "1", 1);
    struct backend *be = tiny_backend(engine.device, engine.dtype);
    be->ops->caps(be, &caps);
    backend_close(be);
    if (!caps.records) {
        (void)unsetenv("PHOTON_CUDA_GRAPHS");
        SKIP("this engine records nothing");
    }
    struct trainer *recorded = opened(&c);
    (void)unsetenv("PHOTON_CUDA_GRAPHS");
    struct trainer *plain = opened(&c);
    for (int64_t at = 0; at < 6; at++) {
        struct step_report a = step(recorded, at);
        struct step_report b = step(plain, at);
        CHECK(a.loss == b.loss && a.grad_norm == b.grad_norm);
    }
    check_same_weights(recorded, plain);
    trainer_close(recorded);
    trainer_close(plain);
}

static void on_this_engine(void)
{
    RUN_HERE(steps_begun_ahead_have_the_same_bits);
    RUN_HERE(what_is_asked_in_between_waits_and_counts);
    RUN_HERE(a_step_that_fails_ahead_fails_where_it_is_asked_for);
    if (strcmp(engine.device, "cuda") == 0) {
        RUN_HERE(recorded_steps_have_the_same_bits);
    }
}

int main(void)
{
    folder_make();
    on_every_engine(on_this_engine);
    folder_remove();
    return check_end();
}
