/*
 * test_optim.c - the two inner optimizers against their papers' own formulas, in double.
 *
 * The formulas below are written from the papers and share no line with the ops. In F64 the op has
 * to agree with them to rounding, in F32 to the bits of the operations that backend.h lists.
 */
#include <math.h>
#include <string.h>

#include "common/rng.h"
#include "kernels/backend.h"
#include "tests/support/check.h"

enum { N = 37, STEPS = 12 };

static const double LR = 3e-3, BETA1 = 0.9, EPS = 1e-6, DECAY = 2e-4;

static double gradient(int t, int i)
{
    // Some elements see nothing for a while: v = 0 is where a division by the root would blow up.
    return i % 5 == 0 && t < 4 ? 0.0 : rng_normal((uint64_t)t, (uint64_t)i) * pow(10.0, i % 7 - 3);
}

static struct optim_step settings(enum optim_kind kind, int t, double beta2)
{
    return (struct optim_step){.kind = kind,
                               .t = t,
                               .lr = LR,
                               .decay = DECAY,
                               .beta1 = BETA1,
                               .beta2 = beta2,
                               .eps = EPS,
                               .bias1 = 1.0 - pow(BETA1, t),
                               .bias2 = 1.0 - pow(beta2, t),
                               .clamp = pow(t - 1, 0.25)};
}

/* One element's history as the papers tell it. */
struct element {
    double w, m, v;
};

/* Kingma & Ba 2015, algorithm 1, with Loshchilov & Hutter's decay. */
static void adamw(struct element *x, double g, int t, double beta2)
{
    x->w -= DECAY * x->w;
    x->m = BETA1 * x->m + (1.0 - BETA1) * g;
    x->v = beta2 * x->v + (1.0 - beta2) * g * g;
    double m_hat = x->m / (1.0 - pow(BETA1, t));
    double v_hat = x->v / (1.0 - pow(beta2, t));
    x->w -= LR * m_hat / (sqrt(v_hat) + EPS);
}

/* Taniguchi et al. 2024, algorithm 2 with the clipping of its appendix; their t
 * is ours less one. */
static void adopt(struct element *x, double g, int t, double beta2)
{
    if (t == 1) {
        x->v = g * g;
        return;
    }
    double bound = pow(t - 1, 0.25);
    double step = g / fmax(sqrt(x->v), EPS);
    step = fmin(fmax(step, -bound), bound);
    x->w -= DECAY * x->w;
    x->m = BETA1 * x->m + (1.0 - BETA1) * step;
    x->w -= LR * x->m;
    x->v = beta2 * x->v + (1.0 - beta2) * g * g;
}

static void follow(enum optim_kind kind, double beta2)
{
    struct backend *be = NULL;
    CHECK_INT(backend_open(&be, "ref", 1, NULL), ST_OK);
    struct element want[N];
    double w[N], m[N] = {0}, v[N] = {0}, g[N];
    float wf[N], mf[N] = {0}, vf[N] = {0}, gf[N];
    float ms[N] = {0}, vs[N] = {0};
    uint16_t high[N], rest[N];
    const struct clip_state clip = {.norm = 2.0, .factor = 0.5, .finite = 1};
    for (int i = 0; i < N; i++) {
        w[i] = rng_normal(77, (uint64_t)i);
        wf[i] = (float)w[i];
        master_split(wf[i], &high[i], &rest[i]);
        want[i] = (struct element){w[i], 0.0, 0.0};
    }
    for (int t = 1; t <= STEPS; t++) {
        struct optim_step s = settings(kind, t, beta2);
        for (int i = 0; i < N; i++) {
            g[i] = gradient(t, i);
            gf[i] = (float)g[i];
            (kind == OPTIM_ADAMW ? adamw : adopt)(&want[i], 0.5 * g[i], t, beta2);
        }
        be->ops->optim(be, DTYPE_F64, &s, &clip, w, NULL, m, v, g, N);
        be->ops->optim(be, DTYPE_F32, &s, &clip, wf, NULL, mf, vf, gf, N);
        be->ops->optim(be, DTYPE_F32, &s, &clip, high, rest, ms, vs, gf, N);
        for (int i = 0; i < N; i++) {
            CHECK_NEAR(w[i], want[i].w, 1e-13);
            CHECK_NEAR(m[i], want[i].m, 1e-13);
            CHECK_NEAR(v[i], want[i].v, 1e-12);
            CHECK_NEAR(wf[i], want[i].w, 2e-6);
            uint32_t bits;
            memcpy(&bits, &wf[i], sizeof(bits));
            CHECK_INT(high[i], (bits + 0x8000U) >> 16);
            CHECK(master_join(high[i], rest[i]) == wf[i] && ms[i] == mf[i] && vs[i] == vf[i]);
        }
    }
    backend_close(be);
}

static void adamw_follows_its_papers(void)
{
    follow(OPTIM_ADAMW, 0.95);
    follow(OPTIM_ADAMW, 0.999);
}

static void adopt_follows_its_paper(void)
{
    follow(OPTIM_ADOPT, 0.9999);
}

/* One element by hand, so that nobody has to trust two programs of one mind. */
static void golden_values_by_hand(void)
{
    struct backend *be = NULL;
    CHECK_INT(backend_open(&be, "ref", 1, NULL), ST_OK);
    const struct clip_state clip = {.norm = 1.0, .factor = 1.0, .finite = 1};
    double w = 1.0, m = 0.0, v = 0.0, g = 0.5;

    // AdamW's first step moves by lr whatever the gradient: m / bias1 = g and v / bias2 = g^2.
    struct optim_step s = settings(OPTIM_ADAMW, 1, 0.95);
    s.decay = 0.0;
    be->ops->optim(be, DTYPE_F64, &s, &clip, &w, NULL, &m, &v, &g, 1);
    CHECK_NEAR(w, 1.0 - 3e-3 * 0.5 / (0.5 + 1e-6), 1e-15);
    CHECK_NEAR(m, 0.05, 1e-15);
    CHECK_NEAR(v, 0.0125, 1e-15);

    // ADOPT: step 1 measures; step 2 has n = 0.5 / 0.5 = 1, within the bound 1; step 3 with a
    // gradient of 5 has n = 10, cut to 2^(1/4).
    w = 1.0, m = 0.0, v = 0.0;
    s = settings(OPTIM_ADOPT, 1, 0.9999);
    be->ops->optim(be, DTYPE_F64, &s, &clip, &w, NULL, &m, &v, &g, 1);
    CHECK(w == 1.0 && m == 0.0 && v == 0.25);
    s = settings(OPTIM_ADOPT, 2, 0.9999);
    s.decay = 0.0;
    be->ops->optim(be, DTYPE_F64, &s, &clip, &w, NULL, &m, &v, &g, 1);
    CHECK_NEAR(w, 1.0 - 3e-3 * 0.1, 1e-15);
    CHECK_NEAR(m, 0.1, 1e-15);
    CHECK_NEAR(v, 0.25, 1e-15);
    g = 5.0;
    s = settings(OPTIM_ADOPT, 3, 0.9999);
    s.decay = 0.0;
    be->ops->optim(be, DTYPE_F64, &s, &clip, &w, NULL, &m, &v, &g, 1);
    CHECK_NEAR(m, 0.9 * 0.1 + 0.1 * 1.1892071150027210, 1e-15);
    CHECK_NEAR(v, 0.9999 * 0.25 + 0.0001 * 25.0, 1e-15);
    backend_close(be);
}

static void a_gradient_that_is_not_finite_moves_nothing(void)
{
    struct backend *be = NULL;
    CHECK_INT(backend_open(&be, "ref", 1, NULL), ST_OK);
    const struct clip_state clip = {.norm = NAN, .factor = NAN, .finite = 0};
    float w = 1.0F, m = 2.0F, v = 3.0F, g = NAN;
    uint16_t high = 7, rest = 8;
    for (int kind = 0; kind < OPTIM_COUNT; kind++) {
        struct optim_step s = settings((enum optim_kind)kind, 4, 0.95);
        be->ops->optim(be, DTYPE_F32, &s, &clip, &w, NULL, &m, &v, &g, 1);
        be->ops->optim(be, DTYPE_F32, &s, &clip, &high, &rest, &m, &v, &g, 1);
        CHECK(w == 1.0F && m == 2.0F && v == 3.0F && high == 7 && rest == 8);
    }
    backend_close(be);
}

int main(void)
{
    RUN(adamw_follows_its_papers);
    RUN(adopt_follows_its_paper);
    RUN(golden_values_by_hand);
    RUN(a_gradient_that_is_not_finite_moves_nothing);
    return check_end();
}
