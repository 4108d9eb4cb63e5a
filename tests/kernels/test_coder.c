/* test_coder.c - pieces of an update, coded where the weights are, against the codecs here. */
#include "client/trainer_code.h"

#include "tests/support/training.h"

/* What the coder is asked for, and what this machine makes of it. */
struct wanted {
    int64_t first, n;
    float *u, *v;
    uint8_t bytes[CODEC_PARTS][4 * CODEC_GROUP];
    struct codec_bytes codes;
};

static float base_at(int64_t i)
{
    return (float)(0.05 * rng_normal(9, (uint64_t)i));
}

static float residual_at(int64_t i)
{
    return (float)(1e-3 * rng_normal(8, (uint64_t)i));
}

static const float BETA = 0.9025F;

static void ask(struct trainer_coder *c, const struct codec_rule *rule, const struct wanted *w)
{
    float *base = trainer_coder_base(c);
    float *residual = trainer_coder_residual(c);
    for (int64_t i = 0; i < w->n; i++) {
        base[i] = base_at(w->first + i);
        residual[i] = residual_at(w->first + i);
    }
    trainer_coder_begin(c, rule, w->first, w->n, true, BETA);
}

static void want(struct trainer *t, const struct codec_rule *rule, struct wanted *w)
{
    float *base = mem_alloc((size_t)w->n * sizeof(*base));
    for (int64_t i = 0; i < w->n; i++) {
        base[i] = base_at(w->first + i);
    }
    CHECK_INT(trainer_delta(t, w->first, w->n, base, w->u, NULL), ST_OK);
    for (int64_t i = 0; i < w->n; i++) {
        w->u[i] += BETA * residual_at(w->first + i);
    }
    for (int p = 0; p < CODEC_PARTS; p++) {
        w->codes.part[p] = w->bytes[p];
    }
    CHECK_INT(codec_encode(rule, w->u, w->n, &w->codes, NULL), ST_OK);
    CHECK_INT(codec_decode(rule, &w->codes, w->n, w->v, NULL), ST_OK);
    mem_free(base);
}

static void check_piece(const struct coder_piece *p, const struct wanted *w)
{
    CHECK_INT(p->n, w->n);
    CHECK_MEM(p->u, w->u, (size_t)w->n * sizeof(float));
    for (int64_t i = 0; i < w->n; i++) {
        if (p->left[i] != w->u[i] - w->v[i]) {
            CHECK_NEAR(p->left[i], w->u[i] - w->v[i], 0.0);
        }
    }
    for (int part = 0; part < CODEC_PARTS; part++) {
        if (w->codes.size[part] > 0) {
            CHECK_MEM(p->parts.part[part], w->codes.part[part], (size_t)w->codes.size[part]);
        }
    }
    struct codec_sums sums = codec_sums(w->u, w->v, w->n);
    CHECK_MEM(&p->results[0].sums, &sums, sizeof(sums));
    CHECK_INT(p->results[0].gap_size, w->codes.size[CODEC_GAP]);
}

/* Every tensor on every rung, with the next one begun before one is ended. */
static void pieces_have_the_bits_of_the_codecs(void)
{
    struct trainer_config config_ = config();
    struct trainer *t = opened(&config_);
    const struct param_table *table = trainer_params(t);
    struct trainer_coder *c = NULL;
    CHECK_INT(trainer_coder_open(&c, t, NULL), ST_OK);
    struct wanted *w = mem_alloc(2 * sizeof(*w));
    for (int i = 0; i < 2; i++) {
        w[i].u = mem_alloc(2 * CODEC_GROUP * sizeof(float));
        w[i].v = w[i].u + CODEC_GROUP;
    }
    for (int codec = 0; codec < CODEC_COUNT; codec++) {
        struct codec_rule rule = codec_rule((enum codec)codec, CODEC_K);
        for (int32_t i = 0; i <= table->count; i++) {
            if (i < table->count) {
                CHECK(table->items[i].count <= CODEC_GROUP);
                w[i % 2].first = table->items[i].offset;
                w[i % 2].n = table->items[i].count;
                want(t, &rule, &w[i % 2]); // before: weights are read with nothing under way
                ask(c, &rule, &w[i % 2]);
            }
            if (i > 0) {
                struct coder_piece p;
                CHECK_INT(trainer_coder_end(c, &p, NULL), ST_OK);
                check_piece(&p, &w[(i - 1) % 2]);
            }
        }
    }
    for (int i = 0; i < 2; i++) {
        mem_free(w[i].u);
    }
    mem_free(w);
    trainer_coder_close(c);
    trainer_close(t);
}

static void on_this_engine(void)
{
    RUN_HERE(pieces_have_the_bits_of_the_codecs);
}

int main(void)
{
    on_every_engine(on_this_engine);
    return check_end();
}
