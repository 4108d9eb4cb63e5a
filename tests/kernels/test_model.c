/*
 * test_model.c - the whole model: gradients against central differences, then what must not matter.
 *
 * The oracle is the reference in F64, where nothing is rounded: its gradients are held to the
 * differences of its own losses, and every other engine is held to it.
 */
#include "client/model.h"

#include <math.h>

#include "tests/support/tiny.h"

enum { BATCH = 4 };

/* A model with its weights and one batch, all in backend memory. */
struct fixture {
    struct backend *be;
    struct model *m;
    float *weights; /* host; what was put, which F64 weights equal exactly */
    int32_t *tokens, *targets;
    void *losses;
    int64_t tokens_count;
};

static struct model_config config(const struct model_spec *spec, enum dtype dtype)
{
    return (struct model_config){.spec = *spec,
                                 .dtype = dtype,
                                 .batch = BATCH,
                                 .micro_batch = BATCH,
                                 .recompute = RECOMPUTE_NONE};
}

static void put_batch(struct fixture *f, uint64_t seed)
{
    const struct model_spec *spec = &model_plan(f->m)->request.model;
    int32_t T = spec->seq_len;
    int32_t row[64];
    for (int32_t b = 0; b < BATCH; b++) {
        tiny_row(seed + (uint64_t)b, spec->vocab_size, T + 1, row);
        f->be->ops->put(f->be, f->tokens + b * T, row, (size_t)T * sizeof(row[0]));
        f->be->ops->put(f->be, f->targets + b * T, row + 1, (size_t)T * sizeof(row[0]));
    }
}

static struct fixture fixture_on(struct backend *be, const struct model_config *c)
{
    struct fixture f = {.be = be, .tokens_count = (int64_t)BATCH * c->spec.seq_len};
    struct err e = {0};
    CHECK_INT(model_open(&f.m, be, c, &e), ST_OK);
    f.weights = tiny_weights(model_params(f.m));
    model_put(f.m, model_flat(f.m).weights, 0, model_params(f.m)->total, f.weights);
    size_t ids = (size_t)f.tokens_count * sizeof(int32_t);
    f.tokens = be->ops->alloc(be, ids);
    f.targets = be->ops->alloc(be, ids);
    f.losses = be->ops->alloc(be, (size_t)f.tokens_count * sizeof(double));
    CHECK(f.tokens && f.targets && f.losses);
    put_batch(&f, 100);
    return f;
}

static struct fixture fixture(const struct model_spec *spec)
{
    struct model_config c = config(spec, engine.dtype);
    return fixture_on(tiny_backend(engine.device, engine.dtype), &c);
}

static void fixture_end(struct fixture *f)
{
    f->be->ops->release(f->be, f->tokens);
    f->be->ops->release(f->be, f->targets);
    f->be->ops->release(f->be, f->losses);
    model_close(f->m);
    backend_close(f->be);
    mem_free(f->weights);
}

static double inv_n(const struct fixture *f)
{
    return 1.0 / (double)f->tokens_count;
}

static double *host_losses(struct fixture *f)
{
    static double losses[1024];
    enum dtype gt = model_flat(f->m).type;
    float narrow[1024];
    CHECK(f->tokens_count <= 1024);
    CHECK_INT(backend_sync(f->be, NULL), ST_OK);
    if (gt == DTYPE_F64) {
        f->be->ops->get(f->be, losses, f->losses, (size_t)f->tokens_count * sizeof(double));
        return losses;
    }
    f->be->ops->get(f->be, narrow, f->losses, (size_t)f->tokens_count * sizeof(float));
    for (int64_t i = 0; i < f->tokens_count; i++) {
        losses[i] = (double)narrow[i];
    }
    return losses;
}

static double mean_loss(struct fixture *f)
{
    const double *losses = host_losses(f);
    double sum = 0.0;
    for (int64_t i = 0; i < f->tokens_count; i++) {
        sum += losses[i];
    }
    return sum * inv_n(f);
}

static double eval_loss(struct fixture *f)
{
    model_eval_pass(f->m, f->losses, f->tokens, f->targets, BATCH);
    return mean_loss(f);
}

static void train(struct fixture *f)
{
    model_train_pass(f->m, f->losses, f->tokens, f->targets, BATCH, inv_n(f), true);
    CHECK_INT(backend_sync(f->be, NULL), ST_OK);
}

/* All gradients in flat order; the caller frees them. */
static float *host_grads(struct fixture *f)
{
    int64_t total = model_params(f->m)->total;
    float *g = mem_alloc((size_t)total * sizeof(float));
    model_get(f->m, g, model_flat(f->m).grads, 0, total);
    CHECK_INT(backend_sync(f->be, NULL), ST_OK);
    return g;
}

/* ---- the oracle against calculus ---- */

/* Host memory is backend memory on the reference, so that doubles can be read
 * and moved in place. */
static double *in_place(void *array, const struct fixture *f, int32_t tensor)
{
    int64_t offsets[64];
    CHECK(model_params(f->m)->count <= 64);
    memory_plan_offsets(model_params(f->m), offsets);
    return (double *)array + offsets[tensor];
}

/* The slope of the loss along `direction` in one tensor, by central differences. */
static double slope(struct fixture *f, double *w, const double *direction, int64_t count)
{
    const double STEP = 1e-5;
    double loss[2];
    for (int side = 0; side < 2; side++) {
        double h = side ? STEP : -STEP;
        for (int64_t i = 0; i < count; i++) {
            w[i] += h * direction[i];
        }
        loss[side] = eval_loss(f);
        for (int64_t i = 0; i < count; i++) {
            w[i] -= h * direction[i];
        }
    }
    return (loss[1] - loss[0]) / (2.0 * STEP);
}

static void check_slope(struct fixture *f, int32_t tensor, const double *direction)
{
    int64_t count = model_params(f->m)->items[tensor].count;
    const double *g = in_place(model_flat(f->m).grads, f, tensor);
    double want = slope(f, in_place(model_flat(f->m).weights, f, tensor), direction, count);
    double got = 0.0;
    for (int64_t i = 0; i < count; i++) {
        got += g[i] * direction[i];
    }
    if (fabs(got - want) > 1e-6 * fabs(want) + 1e-9) {
        (void)printf("  %s\n", model_params(f->m)->items[tensor].name);
        CHECK_NEAR(got, want, 1e-9);
    }
}

/* Every tensor along one random direction, which sees all elements, and along a few axes. */
static void check_slopes(struct fixture *f)
{
    for (int32_t tensor = 0; tensor < model_params(f->m)->count; tensor++) {
        int64_t count = model_params(f->m)->items[tensor].count;
        double *direction = mem_alloc((size_t)count * sizeof(double));
        for (int64_t i = 0; i < count; i++) {
            direction[i] = rng_normal((uint64_t)tensor, (uint64_t)i) / sqrt((double)count);
        }
        check_slope(f, tensor, direction);
        for (uint64_t axis = 0; axis < 2; axis++) {
            memset(direction, 0, (size_t)count * sizeof(double));
            direction[rng_u64((uint64_t)tensor + 1000, axis) % (uint64_t)count] = 1.0;
            check_slope(f, tensor, direction);
        }
        mem_free(direction);
    }
}

static void gradients_are_the_slopes_of_the_loss_under_every_switch(void)
{
    for (int switches = 0; switches < 4; switches++) {
        struct model_spec spec = tiny_spec(switches);
        struct model_config c = config(&spec, DTYPE_F64);
        struct fixture f = fixture_on(tiny_backend("ref", DTYPE_F64), &c);
        train(&f);
        double loss = mean_loss(&f);
        CHECK_NEAR(eval_loss(&f), loss, 1e-14);
        check_slopes(&f);
        fixture_end(&f);
    }
}

static void losses_are_those_of_a_second_writing_of_the_model(void)
{
    // Printed by golden.py beside this file. With gradients held to slopes, a loss that agrees
    // under every switch leaves no freedom in the architecture.
    static const double want[4] = {
        4.937819171441694,
        5.442963981697939,
        4.845844439235887,
        5.162563391018177,
    };
    for (int switches = 0; switches < 4; switches++) {
        struct model_spec spec = tiny_spec(switches);
        struct model_config c = config(&spec, DTYPE_F64);
        struct fixture f = fixture_on(tiny_backend("ref", DTYPE_F64), &c);
        CHECK_NEAR(eval_loss(&f), want[switches], 1e-13);
        fixture_end(&f);
    }
}

/* ---- the engines against the oracle ---- */

static void compare_grads(const struct param_table *t, const float *got, const float *want,
                          double cosine_min, double error_max)
{
    for (int32_t i = 0; i < t->count; i++) {
        double dot = 0.0, gg = 0.0, ww = 0.0, dd = 0.0;
        for (int64_t k = t->items[i].offset; k < t->items[i].offset + t->items[i].count; k++) {
            double g = (double)got[k];
            double w = (double)want[k];
            dot += g * w;
            gg += g * g;
            ww += w * w;
            dd += (g - w) * (g - w);
        }
        double cosine = dot / sqrt(gg * ww);
        double error = sqrt(dd / ww);
        if (!(cosine >= cosine_min) || !(error <= error_max)) {
            (void)printf("  %s: cosine %.6f, relative error %.2e\n", t->items[i].name, cosine,
                         error);
            CHECK(cosine >= cosine_min);
            CHECK(error <= error_max);
        }
    }
}

static void gradients_agree_with_the_oracle(void)
{
    for (int switches = 0; switches < 4; switches++) {
        struct model_spec spec = tiny_spec(switches);
        struct fixture f = fixture(&spec);
        struct model_config c = config(&spec, DTYPE_F64);
        struct fixture oracle = fixture_on(tiny_backend("ref", DTYPE_F64), &c);
        train(&f);
        train(&oracle);
        bool narrow = engine.dtype == DTYPE_BF16;
        CHECK_NEAR(mean_loss(&f), mean_loss(&oracle), narrow ? 1e-2 : 1e-5);
        float *got = host_grads(&f);
        float *want = host_grads(&oracle);
        compare_grads(model_params(f.m), got, want, narrow ? 0.999 : 0.999999,
                      narrow ? 4e-2 : 1e-5);
        mem_free(got);
        mem_free(want);
        fixture_end(&f);
        fixture_end(&oracle);
    }
}

/* ---- what must not matter ---- */

/* Gradients of a fresh model under this plan; NULL spec fields are the tiny model's. */
static float *grads_under(enum recompute level, int64_t logits_max, int32_t micro, bool poisoned)
{
    struct model_spec spec = tiny_spec(1);
    struct model_config c = config(&spec, engine.dtype);
    c.recompute = (int)level;
    c.logits_max = logits_max;
    c.micro_batch = micro;
    struct fixture f = fixture_on(tiny_backend(engine.device, engine.dtype), &c);
    if (poisoned) {
        model_poison(f.m);
    }
    int32_t T = spec.seq_len;
    size_t loss_size = dtype_size(model_flat(f.m).type);
    for (int32_t b = 0; b < BATCH; b += micro) {
        int32_t B = BATCH - b < micro ? BATCH - b : micro;
        model_train_pass(f.m, (char *)f.losses + (size_t)(b * T) * loss_size, f.tokens + b * T,
                         f.targets + b * T, B, inv_n(&f), b == 0);
    }
    float *g = host_grads(&f);
    fixture_end(&f);
    return g;
}

static int64_t total_count(void)
{
    struct model_spec spec = tiny_spec(1);
    return model_param_count(&spec);
}

static void recomputing_gives_the_bits_of_keeping(void)
{
    float *want = grads_under(RECOMPUTE_NONE, 0, BATCH, false);
    for (int level = RECOMPUTE_GELU; level < RECOMPUTE_COUNT; level++) {
        float *got = grads_under((enum recompute)level, 0, BATCH, false);
        CHECK_MEM(got, want, (size_t)total_count() * sizeof(float));
        mem_free(got);
    }
    mem_free(want);
}

static void what_lies_in_memory_before_a_pass_has_no_influence(void)
{
    for (int level = RECOMPUTE_NONE; level < RECOMPUTE_COUNT; level++) {
        float *want = grads_under((enum recompute)level, 0, BATCH, false);
        float *got = grads_under((enum recompute)level, 0, BATCH, true);
        CHECK_MEM(got, want, (size_t)total_count() * sizeof(float));
        mem_free(got);
        mem_free(want);
    }
}

/* The same products in other numbers of rows: cuBLASLt may take another kernel, which rounds
 * otherwise. */
static void compare_passes(const struct param_table *t, const float *got, const float *want)
{
    bool may_round = engine.dtype == DTYPE_BF16 && strcmp(engine.device, "cuda") == 0;
    compare_grads(t, got, want, may_round ? 0.999 : 0.99999, may_round ? 4e-2 : 1e-4);
}

static void several_passes_mean_the_same_as_one(void)
{
    struct model_spec spec = tiny_spec(1);
    struct arena *a = arena_new(1 << 20);
    struct param_table t = params_table(a, &spec);
    float *want = grads_under(RECOMPUTE_NONE, 0, BATCH, false);
    static const int32_t micro[] = {1, 2, 3}; // three leaves a ragged last pass of one
    for (size_t i = 0; i < sizeof(micro) / sizeof(micro[0]); i++) {
        float *got = grads_under(RECOMPUTE_NONE, 0, micro[i], true);
        // In bf16 single gradients of logits round alike whatever the pass: only sums move.
        compare_passes(&t, got, want);
        mem_free(got);
    }
    mem_free(want);
    arena_free(a);
}

static void chunks_of_logits_mean_the_same_as_all_at_once(void)
{
    struct model_spec spec = tiny_spec(1);
    struct arena *a = arena_new(1 << 20);
    struct param_table t = params_table(a, &spec);
    float *want = grads_under(RECOMPUTE_NONE, 0, BATCH, false);
    static const int64_t rows[] = {1, 7, 20}; // one row, ragged, and a number that leaves a rest
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int64_t row_size = spec.vocab_size * (int64_t)dtype_size(engine.dtype);
        float *got = grads_under(RECOMPUTE_NONE, rows[i] * row_size, BATCH, true);
        compare_passes(&t, got, want);
        mem_free(got);
    }
    mem_free(want);
    arena_free(a);
}

static void a_token_changes_no_loss_before_it(void)
{
    for (int switches = 0; switches < 2; switches++) {
        struct model_spec spec = tiny_spec(switches);
        struct fixture f = fixture(&spec);
        double before[1024];
        (void)eval_loss(&f);
        memcpy(before, host_losses(&f), sizeof(before[0]) * (size_t)f.tokens_count);

        const int32_t changed = 7;
        int32_t token = 0;
        f.be->ops->get(f.be, &token, f.tokens + changed, sizeof(token));
        token = (token + 1) % spec.vocab_size;
        f.be->ops->put(f.be, f.tokens + changed, &token, sizeof(token));
        (void)eval_loss(&f);
        const double *after = host_losses(&f);
        CHECK_MEM(after, before, (size_t)changed * sizeof(double));
        CHECK(after[changed] != before[changed]);
        CHECK(after[spec.seq_len - 1] != before[spec.seq_len - 1]);
        // Nor in another sequence.
        CHECK_MEM(after + spec.seq_len, before + spec.seq_len,
                  (size_t)(f.tokens_count - spec.seq_len) * sizeof(double));
        fixture_end(&f);
    }
}

static void running_twice_gives_the_same_bits(void)
{
    struct model_spec spec = tiny_spec(0);
    struct fixture f = fixture(&spec);
    train(&f);
    float *first = host_grads(&f);
    model_poison(f.m);
    train(&f);
    float *second = host_grads(&f);
    CHECK_MEM(second, first, (size_t)model_params(f.m)->total * sizeof(float));
    mem_free(first);
    mem_free(second);
    fixture_end(&f);
}

static void any_range_of_weights_is_put_and_got(void)
{
    struct model_spec spec = tiny_spec(0);
    struct fixture f = fixture(&spec);
    void *weights = model_flat(f.m).weights;
    int64_t total = model_params(f.m)->total;
    float *all = mem_alloc((size_t)total * sizeof(float));
    for (int64_t at = 0; at < total; at += 777) {
        int64_t n = total - at < 777 ? total - at : 777;
        model_get(f.m, all + at, weights, at, n);
    }
    CHECK_MEM(all, f.weights, (size_t)total * sizeof(float));
    float few[3] = {1.0F, 2.0F, 3.0F};
    model_put(f.m, weights, total - 100, 3, few);
    model_get(f.m, all, weights, total - 101, 5);
    CHECK(all[0] == f.weights[total - 101] && all[4] == f.weights[total - 97]);
    CHECK_MEM(all + 1, few, sizeof(few));
    mem_free(all);
    fixture_end(&f);
}

/* ---- small things ---- */

static void alibis_slopes_are_those_of_mpt(void)
{
    float s[12];
    model_alibi_slopes(s, 8);
    for (int i = 0; i < 8; i++) {
        CHECK_NEAR(s[i], pow(2.0, -(i + 1)), 1e-7);
    }
    static const double exponents[12] = {1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5};
    model_alibi_slopes(s, 12);
    for (int i = 0; i < 12; i++) {
        CHECK_NEAR(s[i], pow(2.0, -exponents[i]), 1e-7);
    }
}

static void what_cannot_be_opened_is_refused_with_a_reason(void)
{
    struct backend *be = tiny_backend("ref", DTYPE_F32);
    struct model *m = NULL;
    struct err e = {0};
    struct model_spec spec = tiny_spec(0);
    struct model_config c = config(&spec, DTYPE_F32);
    c.batch = 0;
    CHECK_INT(model_open(&m, be, &c, &e), ST_INVALID);
    c = config(&spec, DTYPE_F32);
    c.spec.n_heads = 5;
    CHECK_INT(model_open(&m, be, &c, &e), ST_INVALID);
    c = config(&spec, DTYPE_F32);
    c.spec.d_model = 16384;
    c.spec.n_layers = 256;
    CHECK_INT(model_open(&m, be, &c, &e), ST_NOMEM);
    CHECK(strstr(e.msg, "GiB") != NULL);
    CHECK(m == NULL);
    backend_close(be);
}

static void memory_that_is_refused_anywhere_leaves_nothing_behind(void)
{
    struct model_spec spec = tiny_spec(1);
    struct model_config c = config(&spec, DTYPE_BF16);
    for (int n = 0;; n++) {
        struct backend *be = tiny_backend("ref", DTYPE_BF16);
        struct model *m = NULL;
        mem_fail_after(n);
        enum status st = model_open(&m, be, &c, NULL);
        bool fired = mem_fail_fired();
        mem_fail_after(-1);
        CHECK_INT(st, fired ? ST_NOMEM : ST_OK);
        model_close(m);
        backend_close(be);
        if (!fired) {
            CHECK_INT(n, 5); // weights, their rest, gradients, activations, slopes
            break;
        }
    }
}

static void on_this_engine(void)
{
    RUN_HERE(gradients_agree_with_the_oracle);
    RUN_HERE(recomputing_gives_the_bits_of_keeping);
    RUN_HERE(what_lies_in_memory_before_a_pass_has_no_influence);
    RUN_HERE(several_passes_mean_the_same_as_one);
    RUN_HERE(chunks_of_logits_mean_the_same_as_all_at_once);
    RUN_HERE(a_token_changes_no_loss_before_it);
    RUN_HERE(running_twice_gives_the_same_bits);
    RUN_HERE(any_range_of_weights_is_put_and_got);
}

/* ---- what passes ask of a backend ---- */

/* The reference, with an eye on what was asked for when. */
static struct {
    const struct backend_ops *ops;
    struct gemm planned[64];
    int count;
    int missed;
    int allocs;
} spy;

static bool was_planned(const struct gemm *g)
{
    for (int i = 0; i < spy.count; i++) {
        const struct gemm *p = &spy.planned[i];
        if (p->use == g->use && p->a_type == g->a_type && p->bias == g->bias &&
            p->accumulate == g->accumulate && p->out_f32 == g->out_f32 && p->M == g->M &&
            p->N == g->N && p->K == g->K) {
            return true;
        }
    }
    return false;
}

static const char *spy_plan_gemm(struct backend *be, const struct gemm *g)
{
    (void)be;
    CHECK(spy.count < 64);
    if (!was_planned(g)) {
        spy.planned[spy.count++] = *g;
    }
    return NULL;
}

static void spy_gemm(struct backend *be, const struct gemm *g, void *out, const void *a,
                     const void *b, const void *bias)
{
    spy.missed += !was_planned(g);
    spy.ops->gemm(be, g, out, a, b, bias);
}

static void *spy_alloc(struct backend *be, size_t size)
{
    spy.allocs++;
    return spy.ops->alloc(be, size);
}

static void a_pass_takes_no_memory_and_no_product_that_was_not_planned(void)
{
    for (int switches = 0; switches < 4; switches++) {
        struct backend *be = tiny_backend("ref", DTYPE_BF16);
        memset(&spy, 0, sizeof(spy));
        spy.ops = be->ops;
        struct backend_ops table = *be->ops;
        table.plan_gemm = spy_plan_gemm;
        table.gemm = spy_gemm;
        table.alloc = spy_alloc;
        be->ops = &table;

        struct model_spec spec = tiny_spec(switches);
        struct model_config c = config(&spec, DTYPE_BF16);
        c.micro_batch = 3; // and a ragged pass of one
        c.logits_max = 7 * spec.vocab_size * 2;
        c.recompute = switches;
        struct fixture f = fixture_on(be, &c);
        int allocs = spy.allocs;
        model_train_pass(f.m, f.losses, f.tokens, f.targets, 3, inv_n(&f), true);
        model_train_pass(f.m, f.losses, f.tokens, f.targets, 1, inv_n(&f), false);
        model_eval_pass(f.m, f.losses, f.tokens, f.targets, 3);
        CHECK_INT(spy.missed, 0);
        CHECK_INT(spy.allocs, allocs);
        fixture_end(&f);
    }
}

int main(void)
{
    RUN(alibis_slopes_are_those_of_mpt);
    RUN(what_cannot_be_opened_is_refused_with_a_reason);
    RUN(memory_that_is_refused_anywhere_leaves_nothing_behind);
    RUN(gradients_are_the_slopes_of_the_loss_under_every_switch);
    RUN(losses_are_those_of_a_second_writing_of_the_model);
    RUN(a_pass_takes_no_memory_and_no_product_that_was_not_planned);
    on_every_engine(on_this_engine);
    return check_end();
}
