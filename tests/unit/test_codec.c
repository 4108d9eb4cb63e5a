#include "common/codec.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/hash.h"
#include "common/mem.h"
#include "common/rng.h"
#include "tests/support/check.h"

enum { WHOLE = CODEC_GROUP };

/* One group's bytes with guards behind every part. */
struct box {
    struct codec_bytes b;
    int64_t room[CODEC_PARTS];
};

static void box_init(struct box *x, const struct codec_rule *r, int64_t n)
{
    codec_sizes(r, n, x->room);
    for (int p = 0; p < CODEC_PARTS; p++) {
        x->b.part[p] = mem_alloc((size_t)x->room[p] + 8);
        memset(x->b.part[p], 0xa5, (size_t)x->room[p] + 8);
    }
}

static bool box_guards_stand(const struct box *x)
{
    bool stand = true;
    for (int p = 0; p < CODEC_PARTS; p++) {
        for (int i = 0; i < 8; i++) {
            stand = stand && x->b.part[p][x->room[p] + i] == 0xa5;
        }
    }
    return stand;
}

static void box_release(struct box *x)
{
    for (int p = 0; p < CODEC_PARTS; p++) {
        mem_free(x->b.part[p]);
    }
}

/* The values of golden_codec.py. */
static float golden_value(uint32_t i)
{
    uint32_t h = i * 2654435761U + 12345U;
    h ^= h >> 13;
    h *= 2246822519U;
    int32_t whole = (int32_t)(h >> 8) - (1 << 23);
    return ldexpf((float)whole, -(int)(30 + i / 256 % 3 + (h & 7)));
}

static void every_rung_gives_the_golden_bytes(void)
{
    static const struct {
        enum codec codec;
        int64_t n;
        const char *sha256;
    } GOLDEN[] = {
        // clang-format off
        {CODEC_BF16, 9001, "62c42a5a2309c8273fce7d3c31f8dfee"}, // 18002 + 0 + 0 bytes
        {CODEC_BF16, 7, "0f788532271a38f6874aeab061bc0c66"}, // 14 + 0 + 0 bytes
        {CODEC_INT8, 9001, "993b373275c46b0ab17367e43726eab3"}, // 9001 + 72 + 0 bytes
        {CODEC_INT8, 7, "b95bfaf10270319cb0c6ad0b688154f5"}, // 7 + 2 + 0 bytes
        {CODEC_Q4, 9001, "3c089ab86143ee8660a3f8413fc673cd"}, // 4501 + 72 + 0 bytes
        {CODEC_Q4, 7, "5ffc50d31a9ead36162b21f308724924"}, // 4 + 2 + 0 bytes
        {CODEC_Q2, 9001, "e6f1c0cb1a4c81561bf18f7d94ab6712"}, // 2251 + 72 + 0 bytes
        {CODEC_Q2, 7, "81fda90b8f238fa708e6ab34984bbd94"}, // 2 + 2 + 0 bytes
        {CODEC_TOPK, 9001, "2ce585f073ab166a7509773ab4e94ca6"}, // 36 + 4 + 132 bytes
        {CODEC_TOPK, 7, "76a21bb0a03640def5e154c74efe04eb"}, // 1 + 4 + 1 bytes
        // clang-format on
    };
    for (size_t g = 0; g < sizeof(GOLDEN) / sizeof(GOLDEN[0]); g++) {
        struct codec_rule r = codec_rule(GOLDEN[g].codec, CODEC_K);
        int64_t n = GOLDEN[g].n;
        float *u = mem_alloc((size_t)n * sizeof(*u));
        for (int64_t i = 0; i < n; i++) {
            u[i] = golden_value((uint32_t)i);
        }
        struct box x;
        box_init(&x, &r, n);
        struct err e = {0};
        CHECK_INT(codec_encode(&r, u, n, &x.b, &e), ST_OK);
        CHECK(box_guards_stand(&x));
        struct sha256 *h = sha256_new();
        for (int p = 0; p < CODEC_PARTS; p++) {
            sha256_add(h, x.b.part[p], (size_t)x.b.size[p]);
        }
        struct digest d;
        char hex[DIGEST_HEX + 1];
        sha256_end(h, &d);
        digest_hex(&d, hex);
        hex[32] = '\0';
        CHECK_STR(hex, GOLDEN[g].sha256);
        sha256_free(h);
        box_release(&x);
        mem_free(u);
    }
}

static float laplace(uint64_t seed, uint64_t i)
{
    double v = rng_unit(seed, i) - 0.5;
    return (float)(1e-3 * copysign(log(1.0 - 2.0 * fabs(v) + 1e-300), v));
}

/* Relative error of a group, and the cosine between it and what is decoded. */
static void measure(const struct codec_rule *r, const float *u, int64_t n, double *error,
                    double *cosine)
{
    struct box x;
    box_init(&x, r, n);
    float *v = mem_alloc((size_t)n * sizeof(*v));
    struct err e = {0};
    CHECK_INT(codec_encode(r, u, n, &x.b, &e), ST_OK);
    CHECK_INT(codec_decode(r, &x.b, n, v, &e), ST_OK);
    CHECK(box_guards_stand(&x));
    double diff = 0.0;
    double uu = 0.0;
    double vv = 0.0;
    double uv = 0.0;
    for (int64_t i = 0; i < n; i++) {
        diff += ((double)u[i] - (double)v[i]) * ((double)u[i] - (double)v[i]);
        uu += (double)u[i] * (double)u[i];
        vv += (double)v[i] * (double)v[i];
        uv += (double)u[i] * (double)v[i];
    }
    *error = sqrt(diff / uu);
    *cosine = uv / sqrt(uu * vv);
    box_release(&x);
    mem_free(v);
}

static void the_error_of_every_rung_is_what_is_published(void)
{
    static const struct {
        enum codec codec;
        double normal, laplace; // relative error; topk: cosine
    } WANT[] = {{CODEC_F32, 0, 0},      {CODEC_BF16, .0017, .0017}, {CODEC_INT8, .007, .010},
                {CODEC_Q4, .095, .123}, {CODEC_Q2, .348, .44},      {CODEC_TOPK, .345, .461}};
    float *u = mem_alloc(WHOLE * sizeof(*u));
    for (size_t c = 0; c < sizeof(WANT) / sizeof(WANT[0]); c++) {
        for (int shape = 0; shape < 2; shape++) {
            for (int i = 0; i < WHOLE; i++) {
                u[i] = shape ? laplace(5, (uint64_t)i) : (float)(1e-3 * rng_normal(5, (uint64_t)i));
            }
            struct codec_rule r = codec_rule(WANT[c].codec, CODEC_K);
            if (WANT[c].codec == CODEC_Q2) {
                codec_learn(&r, u, WHOLE);
            }
            double error = 0.0;
            double cosine = 0.0;
            measure(&r, u, WHOLE, &error, &cosine);
            double got = WANT[c].codec == CODEC_TOPK ? cosine : error;
            double want = shape ? WANT[c].laplace : WANT[c].normal;
            CHECK(fabs(got - want) <= 0.08 * want);
        }
    }
    mem_free(u);
}

static void learnt_levels_fit_long_tails_better(void)
{
    float *u = mem_alloc(WHOLE * sizeof(*u));
    for (int i = 0; i < WHOLE; i++) {
        u[i] = laplace(9, (uint64_t)i);
    }
    struct codec_rule r = codec_rule(CODEC_Q4, 0);
    double fixed = 0.0;
    double learnt = 0.0;
    double unused = 0.0;
    measure(&r, u, WHOLE, &fixed, &unused);
    codec_learn(&r, u, WHOLE);
    struct err e = {0};
    CHECK_INT(codec_check_levels(&r, &e), ST_OK);
    measure(&r, u, WHOLE, &learnt, &unused);
    CHECK(learnt < 0.97 * fixed && learnt > 0.10);
    mem_free(u);
}

static void every_length_comes_back_with_its_zeros_and_signs(void)
{
    static const int64_t LENGTH[] = {1, 2, 3, 4, 5, 255, 256, 257, 4095, 4096, 4097, 4160, WHOLE};
    float *u = mem_alloc(WHOLE * sizeof(*u));
    float *v = mem_alloc(WHOLE * sizeof(*v));
    for (int i = 0; i < WHOLE; i++) {
        u[i] = (i / 256) % 3 == 1 ? 0.0F : (float)rng_normal(3, (uint64_t)i);
    }
    for (int c = 0; c < CODEC_COUNT; c++) {
        struct codec_rule r = codec_rule((enum codec)c, 32);
        for (size_t l = 0; l < sizeof(LENGTH) / sizeof(LENGTH[0]); l++) {
            struct box x;
            struct err e = {0};
            box_init(&x, &r, LENGTH[l]);
            CHECK_INT(codec_encode(&r, u, LENGTH[l], &x.b, &e), ST_OK);
            CHECK_INT(codec_decode(&r, &x.b, LENGTH[l], v, &e), ST_OK);
            CHECK(box_guards_stand(&x));
            int64_t kept = 0;
            for (int64_t i = 0; i < LENGTH[l]; i++) {
                kept += v[i] != 0.0F;
                // What is not zero on either side has its sign, and is no larger than the scale.
                CHECK(u[i] * v[i] >= 0.0F && fabsf(v[i]) <= 6.0F);
                CHECK(c == CODEC_TOPK || u[i] != 0.0F || v[i] == 0.0F);
            }
            CHECK(c != CODEC_TOPK || kept <= codec_kept(32, LENGTH[l]));
            box_release(&x);
        }
    }
    mem_free(u);
    mem_free(v);
}

static void what_is_not_finite_or_absurd_is_not_encoded(void)
{
    static const float BAD[] = {NAN, -INFINITY, INFINITY, 0x1.1p100F, -0x1p101F};
    float u[600];
    for (int c = 0; c < CODEC_COUNT; c++) {
        struct codec_rule r = codec_rule((enum codec)c, CODEC_K);
        for (size_t b = 0; b <= sizeof(BAD) / sizeof(BAD[0]); b++) {
            for (int i = 0; i < 600; i++) {
                u[i] = 0.25F;
            }
            bool good = b == sizeof(BAD) / sizeof(BAD[0]);
            u[599] = good ? 0x1p100F : BAD[b];
            struct box x;
            struct err e = {0};
            box_init(&x, &r, 600);
            CHECK_INT(codec_encode(&r, u, 600, &x.b, &e), good ? ST_OK : ST_INVALID);
            box_release(&x);
        }
    }
}

static void tiny_blocks_become_zeros(void)
{
    float u[300];
    float v[300];
    for (int i = 0; i < 300; i++) {
        u[i] = i < 256 ? 0x1p-101F : -0x1p-99F;
    }
    for (int c = CODEC_INT8; c < CODEC_COUNT; c++) {
        struct codec_rule r = codec_rule((enum codec)c, 4096 / 4);
        struct box x;
        struct err e = {0};
        box_init(&x, &r, 300);
        CHECK_INT(codec_encode(&r, u, 300, &x.b, &e), ST_OK);
        CHECK_INT(codec_decode(&r, &x.b, 300, v, &e), ST_OK);
        CHECK(c == CODEC_TOPK || (v[0] == 0.0F && v[255] == 0.0F && v[299] < 0.0F));
        box_release(&x);
    }
}

/* A group of every rung, for the hostile tests. */
static void filled(struct box *x, const struct codec_rule *r, int64_t n)
{
    float *u = mem_alloc((size_t)n * sizeof(*u));
    for (int64_t i = 0; i < n; i++) {
        u[i] = (float)rng_normal(11, (uint64_t)i);
    }
    struct err e = {0};
    box_init(x, r, n);
    CHECK_INT(codec_encode(r, u, n, &x->b, &e), ST_OK);
    mem_free(u);
}

static void refuses(const struct codec_rule *r, const struct box *x, int64_t n)
{
    float *v = mem_alloc((size_t)n * sizeof(*v));
    struct err e = {0};
    CHECK_INT(codec_decode(r, &x->b, n, v, &e), ST_CORRUPT);
    CHECK(e.msg[0] != '\0');
    mem_free(v);
}

static void scales_out_of_range_are_refused(void)
{
    static const uint16_t BAD[] = {0x7f80, 0x7fc0, 0xff80, 0x8000, 0xbf80, 0x0001, 0x0080, 0x7f00};
    for (int c = CODEC_INT8; c < CODEC_COUNT; c++) {
        struct codec_rule r = codec_rule((enum codec)c, CODEC_K);
        for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++) {
            struct box x;
            filled(&x, &r, 1000);
            x.b.part[CODEC_SIDE][2] = (uint8_t)(BAD[i] & 0xff);
            x.b.part[CODEC_SIDE][3] = (uint8_t)(BAD[i] >> 8);
            refuses(&r, &x, 1000);
            box_release(&x);
        }
    }
}

static void sizes_that_do_not_fit_are_refused(void)
{
    for (int c = 0; c < CODEC_COUNT; c++) {
        struct codec_rule r = codec_rule((enum codec)c, CODEC_K);
        for (int p = 0; p < CODEC_PARTS; p++) {
            struct box x;
            filled(&x, &r, 1000);
            x.b.size[p]--;
            refuses(&r, &x, 1000);
            x.b.size[p] += x.room[p] + 2;
            refuses(&r, &x, 1000);
            box_release(&x);
        }
    }
}

static void codes_that_cannot_be_are_refused(void)
{
    struct box x;
    struct codec_rule r = codec_rule(CODEC_INT8, 0);
    filled(&x, &r, 1000);
    x.b.part[CODEC_MAIN][999] = 0x80;
    refuses(&r, &x, 1000);
    box_release(&x);

    r = codec_rule(CODEC_Q4, 0); // 1001 values: the last nibble is padding
    filled(&x, &r, 1001);
    x.b.part[CODEC_MAIN][500] |= 0x10;
    refuses(&r, &x, 1001);
    box_release(&x);

    r = codec_rule(CODEC_Q2, 0);
    filled(&x, &r, 1001);
    x.b.part[CODEC_MAIN][250] |= 0x04;
    refuses(&r, &x, 1001);
    box_release(&x);

    r = codec_rule(CODEC_TOPK, 64); // 1000 of 4096: 16 kept, so no padding; of 1050 17 are
    filled(&x, &r, 1050);
    x.b.part[CODEC_MAIN][4] |= 0x04;
    refuses(&r, &x, 1050);
    box_release(&x);

    filled(&x, &r, 8);                   // one kept: a one, then five bits of its place
    x.b.part[CODEC_GAP][0] = 1 | 7 << 1; // the last place there is
    float v[8];
    struct err e = {0};
    CHECK_INT(codec_decode(&r, &x.b, 8, v, &e), ST_OK);
    CHECK(v[7] != 0.0F);
    x.b.part[CODEC_GAP][0] = 1 | 8 << 1;
    refuses(&r, &x, 8);
    box_release(&x);

    filled(&x, &r, CODEC_GROUP); // unary runs that never end
    memset(x.b.part[CODEC_GAP], 0, (size_t)x.b.size[CODEC_GAP]);
    refuses(&r, &x, CODEC_GROUP);
    memset(x.b.part[CODEC_GAP], 0xff, (size_t)x.b.size[CODEC_GAP]); // too many, too near
    refuses(&r, &x, CODEC_GROUP);
    x.b.size[CODEC_GAP] = 0;
    refuses(&r, &x, CODEC_GROUP);
    box_release(&x);
}

static void a_tile_as_spread_as_can_be_stays_within_the_bound(void)
{
    float *u = mem_alloc(WHOLE * sizeof(*u));
    for (int32_t k = 4; k <= CODEC_K_MAX; k *= 2) {
        for (int last = 0; last < 2; last++) { // all at the end, or evenly spread
            struct codec_rule r = codec_rule(CODEC_TOPK, k);
            for (int i = 0; i < WHOLE; i++) {
                int in = i % CODEC_TILE;
                bool kept = last ? in >= CODEC_TILE - k : in % (CODEC_TILE / k) == 0;
                u[i] = kept ? 1.0F : 0.0F;
            }
            struct box x;
            struct err e = {0};
            box_init(&x, &r, WHOLE);
            CHECK_INT(codec_encode(&r, u, WHOLE, &x.b, &e), ST_OK);
            CHECK(box_guards_stand(&x) && x.b.size[CODEC_GAP] <= x.room[CODEC_GAP]);
            float *v = mem_alloc(WHOLE * sizeof(*v));
            CHECK_INT(codec_decode(&r, &x.b, WHOLE, v, &e), ST_OK);
            CHECK_MEM(v, u, WHOLE * sizeof(*v));
            mem_free(v);
            box_release(&x);
        }
    }
    mem_free(u);
}

static void levels_out_of_order_are_refused(void)
{
    struct err e = {0};
    static const float BAD[] = {-0.5F, NAN, 1.5F, 0x1p-17F, 0.1F, 0.125F, -0.0F};
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++) {
        struct codec_rule r = codec_rule(CODEC_Q4, 0);
        CHECK_INT(codec_check_levels(&r, &e), ST_OK);
        r.level[3] = BAD[i]; // 0.1F is no BF16 value; 0.125F is lower than the one before
        CHECK_INT(codec_check_levels(&r, &e), ST_CORRUPT);
    }
}

/* x moves to the optimum of |x - goal|^2 / 2 by steps of which only a part arrives. */
static double distance_after(bool feedback)
{
    enum { N = 4096, ROUNDS = 400 };
    static float x[N];
    static float e[N];
    static float u[N];
    static float v[N];
    struct codec_rule r = codec_rule(CODEC_TOPK, 32);
    memset(x, 0, sizeof(x));
    memset(e, 0, sizeof(e));
    struct box b;
    box_init(&b, &r, N);
    double sum = 0.0;
    for (int t = 0; t < ROUNDS; t++) {
        for (int i = 0; i < N; i++) {
            float goal = i % 2 ? 1.0F : 4.0F;
            u[i] = (feedback ? 0.95F * e[i] : 0.0F) + 0.05F * (x[i] - goal);
            // A silo's noise: without feedback it decides what is sent.
            u[i] += i % 64 == t % 64 ? 0.3F * (t / 64 % 2 ? 1.0F : -1.0F) : 0.0F;
        }
        struct err err = {0};
        CHECK_INT(codec_encode(&r, u, N, &b.b, &err), ST_OK);
        CHECK_INT(codec_decode(&r, &b.b, N, v, &err), ST_OK);
        sum = 0.0;
        for (int i = 0; i < N; i++) {
            e[i] = u[i] - v[i];
            x[i] -= v[i];
            double d = (double)(x[i] - (i % 2 ? 1.0F : 4.0F));
            sum += d * d;
        }
    }
    box_release(&b);
    return sqrt(sum / N);
}

static void top_k_reaches_the_optimum_with_feedback_alone(void)
{
    double with = distance_after(true);
    double without = distance_after(false);
    CHECK(with < 0.25);
    CHECK(without > 2.0 * with);
}

static void the_ladder_has_its_order_and_names(void)
{
    struct err e = {0};
    for (int c = 0; c < CODEC_COUNT; c++) {
        enum codec got = CODEC_COUNT;
        CHECK_INT(codec_parse(&got, codec_name((enum codec)c), &e), ST_OK);
        CHECK_INT(got, c);
        CHECK_INT(codec_up(got), c > 0 ? c - 1 : 0);
        CHECK_INT(codec_for_rank(got, 1), c < CODEC_INT8 ? c : CODEC_INT8);
        CHECK_INT(codec_for_rank(got, 2), c);
    }
    enum codec got = CODEC_COUNT;
    CHECK_INT(codec_parse(&got, "q3", &e), ST_INVALID);
    CHECK_INT(codec_parse(&got, NULL, &e), ST_INVALID);
    CHECK_INT(got, CODEC_COUNT);
}

int main(void)
{
    RUN(every_rung_gives_the_golden_bytes);
    RUN(the_error_of_every_rung_is_what_is_published);
    RUN(learnt_levels_fit_long_tails_better);
    RUN(every_length_comes_back_with_its_zeros_and_signs);
    RUN(what_is_not_finite_or_absurd_is_not_encoded);
    RUN(tiny_blocks_become_zeros);
    RUN(scales_out_of_range_are_refused);
    RUN(sizes_that_do_not_fit_are_refused);
    RUN(codes_that_cannot_be_are_refused);
    RUN(a_tile_as_spread_as_can_be_stays_within_the_bound);
    RUN(levels_out_of_order_are_refused);
    RUN(top_k_reaches_the_optimum_with_feedback_alone);
    RUN(the_ladder_has_its_order_and_names);
    return check_end();
}
