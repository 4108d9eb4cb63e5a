/* Updates coded by a backend, to the bit of the reference. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"
#include "tests/support/check.h"
#include "tests/support/op_kit.h"

/* Outputs of one backend, in its own memory, and what of them the host reads. */
struct coded {
    struct codec_parts parts;
    int64_t size[CODEC_PARTS]; /* bytes of all groups */
    uint8_t *got[CODEC_PARTS];
    struct codec_result *results, *got_results;
    float *left, *got_left;
};

static int64_t groups_of(int64_t n)
{
    return (n + CODEC_GROUP - 1) / CODEC_GROUP;
}

static int64_t up4(int64_t n)
{
    return (n + 3) / 4 * 4;
}

static struct coded run_encode(struct backend *be, const struct codec_rule *rule, const float *u,
                               int64_t n)
{
    struct coded c = {0};
    int64_t one[CODEC_PARTS];
    size_t results = (size_t)groups_of(n) * sizeof(*c.results);
    codec_sizes(rule, n % CODEC_GROUP ? n % CODEC_GROUP : CODEC_GROUP, one);
    codec_sizes(rule, CODEC_GROUP, c.size);
    c.parts.gap_stride = up4(c.size[CODEC_GAP]);
    for (int p = 0; p < CODEC_PARTS; p++) {
        c.size[p] = c.size[p] * (groups_of(n) - 1) + one[p];
        c.size[p] = p == CODEC_GAP ? groups_of(n) * c.parts.gap_stride : c.size[p];
        c.parts.part[p] = be->ops->alloc(be, (size_t)up4(c.size[p]));
        c.got[p] = mem_alloc((size_t)c.size[p] + 1);
    }
    c.results = be->ops->alloc(be, results);
    c.got_results = mem_alloc(results);
    c.left = be->ops->alloc(be, (size_t)n * sizeof(float));
    c.got_left = mem_alloc((size_t)n * sizeof(float));
    be->ops->encode(be, rule, &c.parts, c.results, c.left, u, n);
    for (int p = 0; p < CODEC_PARTS; p++) {
        be->ops->get(be, c.got[p], c.parts.part[p], (size_t)c.size[p]);
    }
    be->ops->get(be, c.got_results, c.results, results);
    be->ops->get(be, c.got_left, c.left, (size_t)n * sizeof(float));
    return c;
}

static void forget_coded(struct backend *be, struct coded *c)
{
    for (int p = 0; p < CODEC_PARTS; p++) {
        be->ops->release(be, c->parts.part[p]);
        mem_free(c->got[p]);
    }
    be->ops->release(be, c->results);
    be->ops->release(be, c->left);
    mem_free(c->got_results);
    mem_free(c->got_left);
}

/* Numbers over many orders of magnitude, with zeros, equals, and blocks of nothing among them. */
static void fill(float *u, int64_t n, uint64_t key)
{
    for (int64_t i = 0; i < n; i++) {
        double v = normal(key, i) * exp2((double)(rng_u64(key, (uint64_t)(i / 300)) % 40) - 30.0);
        v = i / 512 % 11 == 3 ? 0.0 : v;
        v = i / 256 % 13 == 5 ? 1e-32 * v : v;
        v = i % 7 == 2 ? (v < 0 ? -0x1p-8 : 0x1p-8) : v;
        u[i] = (float)v;
    }
    u[n / 2] = -0.0F;
}

static bool same_codes(const struct codec_rule *rule, const float *u, int64_t n)
{
    float *dev = to_device(u, (size_t)n * sizeof(*u));
    struct coded a = run_encode(op_be, rule, dev, n);
    struct coded b = run_encode(op_ref, rule, u, n);
    bool same = memcmp(a.got_left, b.got_left, (size_t)n * sizeof(float)) == 0;
    for (int p = 0; p < CODEC_GAP; p++) {
        same = same && memcmp(a.got[p], b.got[p], (size_t)a.size[p]) == 0;
    }
    for (int64_t g = 0; g < groups_of(n); g++) {
        const struct codec_result *x = &a.got_results[g];
        const struct codec_result *y = &b.got_results[g];
        int64_t at = g * a.parts.gap_stride;
        same = same && memcmp(&x->sums, &y->sums, sizeof(x->sums)) == 0 && x->most == y->most &&
               x->gap_size == y->gap_size &&
               memcmp(a.got[CODEC_GAP] + at, b.got[CODEC_GAP] + at, (size_t)x->gap_size) == 0;
    }
    if (!same) {
        (void)fprintf(stderr, "%s k %d n %lld: not the reference's bits\n", codec_name(rule->codec),
                      (int)rule->k, (long long)n);
    }
    forget_coded(op_be, &a);
    forget_coded(op_ref, &b);
    release(dev);
    return same;
}

static void codes_have_the_bits_of_the_codecs(void)
{
    static const int64_t sizes[] = {1, 7, 255, 257, 4096, 9001, CODEC_GROUP, 2 * CODEC_GROUP + 777};
    static const int32_t keep[] = {4, CODEC_K, CODEC_K_DOWN, CODEC_K_MAX};
    bool same = true;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        float *u = mem_alloc((size_t)sizes[i] * sizeof(*u));
        fill(u, sizes[i], 40 + i);
        for (int c = 0; c < CODEC_COUNT; c++) {
            for (int k = 0; k < (c == CODEC_TOPK ? 4 : 1); k++) {
                struct codec_rule rule = codec_rule((enum codec)c, keep[k]);
                same = same_codes(&rule, u, sizes[i]) && same;
            }
        }
        struct codec_rule learnt = codec_rule(CODEC_Q2, 0);
        codec_learn(&learnt, u, sizes[i]);
        same = same_codes(&learnt, u, sizes[i]) && same;
        mem_free(u);
    }
    CHECK(same);
    CHECK(op_be->ops->sync(op_be) == NULL);
}

/* All alike, and nothing at all: the median is everything, a scale is zero. */
static void codes_of_flat_groups_are_right_too(void)
{
    enum { N = 5000 };
    static float u[N];
    const float values[] = {0.0F, -0.25F, 1e-33F, 0x1p100F};
    bool same = true;
    for (size_t v = 0; v < sizeof(values) / sizeof(values[0]); v++) {
        for (int i = 0; i < N; i++) {
            u[i] = values[v];
        }
        for (int c = 0; c < CODEC_COUNT; c++) {
            struct codec_rule rule = codec_rule((enum codec)c, CODEC_K);
            same = same_codes(&rule, u, N) && same;
        }
    }
    CHECK(same);
}

/* Whatever cannot be coded shows in `most`, of its group alone. */
static void what_is_not_finite_or_too_large_is_told(void)
{
    enum { N = CODEC_GROUP + 300 };
    float *u = mem_alloc(N * sizeof(*u));
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY, 0x1.2p100F, -0x1.2p100F};
    for (size_t b = 0; b < sizeof(bad) / sizeof(bad[0]); b++) {
        for (int c = 0; c < CODEC_COUNT; c++) {
            struct codec_rule rule = codec_rule((enum codec)c, CODEC_K);
            fill(u, N, 3);
            u[CODEC_GROUP + 123] = bad[b];
            float *dev = to_device(u, N * sizeof(*u));
            struct coded a = run_encode(op_be, &rule, dev, N);
            CHECK(a.got_results[0].most <= CODEC_BITS_MAX);
            CHECK(a.got_results[1].most > CODEC_BITS_MAX);
            forget_coded(op_be, &a);
            release(dev);
        }
    }
    mem_free(u);
}

static bool delta_agrees(bool split, bool with_residual, int64_t n)
{
    size_t size = (size_t)n * sizeof(float);
    size_t results = (size_t)groups_of(n) * sizeof(struct codec_result);
    struct pair w = draw(DTYPE_F32, n, 0, 1, 1);
    struct pair base = draw(DTYPE_F32, n, 0, 1, 2);
    struct pair residual = draw(DTYPE_F32, n, 0, 0.01, 3);
    uint16_t *high = mem_alloc((size_t)n * sizeof(*high));
    uint16_t *rest = mem_alloc((size_t)n * sizeof(*rest));
    for (int64_t i = 0; i < n; i++) {
        master_split(((const float *)w.a)[i], &high[i], &rest[i]);
    }
    uint16_t *dev_high = to_device(high, size / 2);
    uint16_t *dev_rest = to_device(rest, size / 2);
    struct result u = expect(DTYPE_F32, n, NULL);
    struct codec_result *ours = mem_alloc(results);
    struct codec_result *theirs = mem_alloc(results);
    struct codec_result *dev = to_device(ours, results);
    op_be->ops->delta(op_be, u.dev, dev, split ? (void *)dev_high : w.dev, split ? dev_rest : NULL,
                      base.dev, with_residual ? residual.dev : NULL, 0.9025F, n);
    op_be->ops->get(op_be, ours, dev, results);
    op_ref->ops->delta(op_ref, u.ref, theirs, w.a, NULL, base.a, with_residual ? residual.a : NULL,
                       0.9025F, n);
    fetch(&u);
    bool same = memcmp(u.got, u.ref, size) == 0;
    for (int64_t g = 0; g < groups_of(n); g++) {
        same = same && memcmp(&ours[g].fresh, &theirs[g].fresh, sizeof(double)) == 0;
    }
    drop(&w);
    drop(&base);
    drop(&residual);
    release(dev_high);
    release(dev_rest);
    release(dev);
    forget(&u);
    mem_free(high);
    mem_free(rest);
    mem_free(ours);
    mem_free(theirs);
    return same;
}

static void what_an_update_is_made_of_has_the_bits_of_the_reference(void)
{
    const int64_t sizes[] = {1, 300, CODEC_GROUP + 11};
    bool same = true;
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 4; k++) {
            same = delta_agrees(k & 1, k & 2, sizes[i]) && same;
        }
    }
    CHECK(same);
}

void op_parity_code(void)
{
    RUN(what_an_update_is_made_of_has_the_bits_of_the_reference);
    RUN(codes_have_the_bits_of_the_codecs);
    RUN(codes_of_flat_groups_are_right_too);
    RUN(what_is_not_finite_or_too_large_is_told);
}
