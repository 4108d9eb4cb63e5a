/*
 * The trainer on the emulated CUDA backend: copies beside ops, and whole steps recorded and
 * replayed, which a host backend has no need of.
 */
#include "kernels/backend.h"
#include "tests/support/steps.h"

extern backend_cuda_fn photon_backend;

enum status __real_backend_open(struct backend **out, const char *name, int threads, struct err *e);
enum status __wrap_backend_open(struct backend **out, const char *name, int threads, struct err *e);

/* The emulation's table with counters in it. */
static const struct backend_ops *real;
static struct backend_ops plain, recording;
static int recorded, replayed;

static void record(struct backend *be)
{
    recorded++;
    real->record(be);
}

static bool replay(struct backend *be, void *kept)
{
    replayed++;
    return real->replay(be, kept);
}

static void caps_recording(struct backend *be, struct backend_caps *out)
{
    real->caps(be, out);
    out->records = true;
}

/* The linker puts this in the other's place: "cuda" is the emulation, "cuda:1" one that records. */
enum status __wrap_backend_open(struct backend **out, const char *name, int threads, struct err *e)
{
    if (strncmp(name, "cuda", 4) != 0) {
        return __real_backend_open(out, name, threads, e);
    }
    const char *why = "";
    struct backend *be = photon_backend(0, &why);
    if (!be) {
        return err_set(e, ST_NOT_FOUND, "%s", why);
    }
    if (!real) {
        real = be->ops;
        plain = recording = *real;
        recording.record = record;
        recording.replay = replay;
        recording.caps = caps_recording;
    }
    be->ops = strcmp(name, "cuda:1") == 0 ? &recording : &plain;
    *out = be;
    return ST_OK;
}

static void recorded_steps_have_the_bits_of_steps_op_by_op(void)
{
    struct trainer_config c = ragged();
    c.device = "cuda";
    struct trainer_config other = c;
    other.device = "cuda:1";
    recorded = replayed = 0;
    check_same_steps(c, other, 6);
    // Of six steps the first runs op by op; then each of the two slots is recorded once, and that
    // and every later step is a replay. The one that was not finite is among them.
    CHECK_INT(recorded, 2);
    CHECK_INT(replayed, 5);
}

static void an_evaluation_in_between_makes_them_be_recorded_anew(void)
{
    struct trainer_config c = ragged();
    c.device = "cuda:1";
    struct trainer *t = opened(&c);
    c.device = "cuda";
    struct trainer *calm = opened(&c);
    recorded = 0;
    for (int64_t at = 0; at < 5; at++) {
        struct eval_result a;
        struct eval_result b;
        CHECK(step(t, at).loss == step(calm, at).loss);
        CHECK_INT(trainer_eval(t, at, 2, &a, NULL), ST_OK);
        CHECK_INT(trainer_eval(calm, at, 2, &b, NULL), ST_OK);
        CHECK(a.nll == b.nll);
    }
    CHECK(recorded >= 2);
    check_same_weights(t, calm);
    trainer_close(t);
    trainer_close(calm);
}

int main(void)
{
    folder_make();
    for (int i = 0; i < 2; i++) {
        engine = (struct engine){"cuda", i ? "bf16" : "f32", i ? DTYPE_BF16 : DTYPE_F32};
        RUN_HERE(recorded_steps_have_the_bits_of_steps_op_by_op);
    }
    RUN(an_evaluation_in_between_makes_them_be_recorded_anew);
    folder_remove();
    return check_end();
}
