/*
 * The trainer on the emulated CUDA backend: what it does only where memory and host are apart. A
 * step begun ahead of the last report, and one that is recorded and replayed, have the bits of
 * steps taken one by one.
 */
#include "kernels/backend.h"

#include "tests/support/training.h"

extern backend_cuda_fn photon_backend;

enum status __real_backend_open(struct backend **out, const char *name, int threads, struct err *e);
enum status __wrap_backend_open(struct backend **out, const char *name, int threads, struct err *e);

/* The linker puts this in the other's place: "cuda" is the emulation. */
enum status __wrap_backend_open(struct backend **out, const char *name, int threads, struct err *e)
{
    if (strcmp(name, "cuda") != 0) {
        return __real_backend_open(out, name, threads, e);
    }
    const char *why = "";
    *out = photon_backend(0, &why);
    return *out ? ST_OK : err_set(e, ST_NOT_FOUND, "%s", why);
}

/* A batch in passes of one size and a ragged last one. */
static struct trainer_config emulated(const char *dtype, bool graphs)
{
    (void)setenv("PHOTON_CUDA_GRAPHS", graphs ? "1" : "0", 1);
    struct trainer_config c = config();
    c.device = "cuda";
    c.dtype = dtype;
    c.inner.batch = 3;
    c.inner.micro_batch = 2;
    return c;
}

static struct trainer *opened_emulated(const char *dtype, bool graphs)
{
    struct trainer_config c = emulated(dtype, graphs);
    return opened(&c);
}

static void check_same_steps(const char *dtype, bool graphs, int64_t until)
{
    enum { STEPS = 5 };
    struct trainer *a = opened_emulated(dtype, false);
    struct trainer *b = opened_emulated(dtype, graphs);
    trainer_run_until(b, until);
    for (int64_t at = 0; at < STEPS; at++) {
        struct step_report ra = step(a, at);
        struct step_report rb = step(b, at);
        CHECK_INT(trainer_begun(b), at + 1 < until && until > 0);
        ra.seconds = rb.seconds = 0.0;
        CHECK_MEM(&ra, &rb, sizeof(ra));
        if (at == 2) { // working space of other shapes, and what is recorded may be void
            struct eval_result ea;
            struct eval_result eb;
            CHECK_INT(trainer_eval(a, 0, 3, &ea, NULL), ST_OK);
            trainer_settle_at(b, until, &eb);
            CHECK(until > 0 || ea.nll == eb.nll);
        }
    }
    check_same_weights(a, b);
    trainer_close(a);
    trainer_close(b);
}
