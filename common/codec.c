#include "common/codec.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "common/codec_int.h"
#include "common/wide.h"

static const char *const NAMES[CODEC_COUNT] = {"f32", "bf16", "int8", "q4", "q2", "topk"};

/* Optimal for normal values divided by the largest of 256. */
static const float Q4_FIXED[8] = {0.0419921875F, 0.126953125F, 0.2158203125F, 0.30859375F,
                                  0.4140625F,    0.53125F,     0.6796875F,    0.890625F};
static const float Q2_FIRST[2] = {0.1474609375F, 0.49609375F};

enum status codec_parse(enum codec *out, const char *name, struct err *e)
{
    for (int i = 0; name && i < CODEC_COUNT; i++) {
        if (strcmp(NAMES[i], name) == 0) {
            *out = (enum codec)i;
            return ST_OK;
        }
    }
    return err_set(e, ST_INVALID, "'%.20s' is no codec; try f32, bf16, int8, q4, q2 or topk",
                   name ? name : "");
}

const char *codec_name(enum codec c)
{
    assert(c < CODEC_COUNT);
    return NAMES[c];
}

enum codec codec_up(enum codec c)
{
    return c == CODEC_F32 ? c : (enum codec)(c - 1);
}

enum codec codec_for_rank(enum codec asked, int32_t rank)
{
    return rank < 2 && asked > CODEC_INT8 ? CODEC_INT8 : asked;
}

int32_t codec_level_count(enum codec c)
{
    return c == CODEC_Q4 ? 8 : c == CODEC_Q2 ? 2 : 0;
}

struct codec_rule codec_rule(enum codec c, int32_t k)
{
    struct codec_rule r = {.codec = c, .k = k};
    if (c == CODEC_Q4) {
        memcpy(r.level, Q4_FIXED, sizeof(Q4_FIXED));
    } else if (c == CODEC_Q2) {
        memcpy(r.level, Q2_FIRST, sizeof(Q2_FIRST));
    }
    return r;
}

double codec_beta(enum codec c)
{
    return c == CODEC_TOPK ? 0.95 : 1.0;
}

int64_t codec_kept(int32_t k, int64_t n)
{
    int64_t tail = n % CODEC_TILE;
    return n / CODEC_TILE * k + (k * tail + CODEC_TILE - 1) / CODEC_TILE;
}

void codec_sizes(const struct codec_rule *r, int64_t n, int64_t size[CODEC_PARTS])
{
    int64_t blocks = (n + CODEC_BLOCK - 1) / CODEC_BLOCK;
    size[CODEC_MAIN] = size[CODEC_SIDE] = size[CODEC_GAP] = 0;
    switch (r->codec) {
    case CODEC_F32:
        size[CODEC_MAIN] = 4 * n;
        break;
    case CODEC_BF16:
        size[CODEC_MAIN] = 2 * n;
        break;
    case CODEC_INT8:
        size[CODEC_MAIN] = n;
        size[CODEC_SIDE] = 2 * blocks;
        break;
    case CODEC_Q4:
        size[CODEC_MAIN] = (n + 1) / 2;
        size[CODEC_SIDE] = 2 * blocks;
        break;
    case CODEC_Q2:
        size[CODEC_MAIN] = (n + 3) / 4;
        size[CODEC_SIDE] = 2 * blocks;
        break;
    case CODEC_TOPK:
        size[CODEC_MAIN] = (codec_kept(r->k, n) + 3) / 4;
        size[CODEC_SIDE] = 4;
        size[CODEC_GAP] = topk_gap_bound(r->k, n);
        break;
    case CODEC_COUNT:
    default:
        assert(0);
    }
}

/* Lanes into one, the upper half to the lower until one is left. */
static double fold(double lane[CODEC_BLOCK])
{
    for (int half = CODEC_BLOCK / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++) {
            lane[l] += lane[l + half];
        }
    }
    return lane[0];
}

WIDE struct codec_sums codec_sums(const float *u, const float *v, int64_t n)
{
    double diff[CODEC_BLOCK] = {0};
    double uu[CODEC_BLOCK] = {0};
    double vv[CODEC_BLOCK] = {0};
    double uv[CODEC_BLOCK] = {0};
    for (int64_t at = 0; at < n; at += CODEC_BLOCK) {
        int64_t m = n - at < CODEC_BLOCK ? n - at : CODEC_BLOCK;
        for (int64_t l = 0; l < m; l++) {
            double x = (double)u[at + l];
            double y = (double)v[at + l];
            diff[l] += (x - y) * (x - y);
            uu[l] += x * x;
            vv[l] += y * y;
            uv[l] += x * y;
        }
    }
    return (struct codec_sums){fold(diff), fold(uu), fold(vv), fold(uv)};
}

WIDE double codec_squares(const float *u, int64_t n)
{
    double sum[CODEC_BLOCK] = {0};
    for (int64_t at = 0; at < n; at += CODEC_BLOCK) {
        int64_t m = n - at < CODEC_BLOCK ? n - at : CODEC_BLOCK;
        for (int64_t l = 0; l < m; l++) {
            sum[l] += (double)u[at + l] * (double)u[at + l];
        }
    }
    return fold(sum);
}

WIDE int32_t codec_amax_bits(const float *u, int64_t n)
{
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t b = (int32_t)(f32_bits(u[i]) & 0x7fffffffU);
        most = b > most ? b : most;
    }
    return most;
}

enum status codec_refuse(int32_t amax_bits, struct err *e)
{
    return amax_bits >= 0x7f800000
               ? err_set(e, ST_INVALID, "a value is not finite")
               : err_set(e, ST_INVALID, "a value is beyond 2^100: training has diverged");
}

enum status codec_check_scale(uint16_t bits, struct err *e)
{
    // As bits: zero, or exponents from 127 - 110 to 127 + 101; a sign bit is above all of them.
    bool good = bits == 0 || (bits >= (127 - 110) << 7 && bits <= (127 + 101) << 7);
    return good ? ST_OK : err_set(e, ST_CORRUPT, "the scale 0x%04x is out of range", bits);
}

enum status codec_check_levels(const struct codec_rule *r, struct err *e)
{
    int32_t count = codec_level_count(r->codec);
    for (int32_t j = 0; j < count; j++) {
        float v = r->level[j];
        // Written so that a NaN fails.
        bool good = (f32_bits(v) == 0 || (v >= 0x1p-16F && v <= 1.0F)) &&
                    (f32_bits(v) & 0xffffU) == 0 && (j == 0 || v >= r->level[j - 1]);
        if (!good) {
            return err_set(e, ST_CORRUPT, "level %d is out of range or order", j);
        }
    }
    return ST_OK;
}

static enum status bf16_encode(const float *u, int64_t n, uint8_t *out, struct err *e)
{
    int32_t most = codec_amax_bits(u, n);
    if (most > CODEC_BITS_MAX) {
        return codec_refuse(most, e);
    }
    for (int64_t i = 0; i < n; i++) {
        store_u16(out + 2 * i, bf16_nearest(u[i]));
    }
    return ST_OK;
}

/* The upper half of an F32; exponents of all ones are Inf and NaN. */
static enum status bf16_decode(const uint8_t *in, int64_t n, float *out, struct err *e)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t b = load_u16(in + 2 * i);
        bad |= (b & 0x7f80U) == 0x7f80U;
        out[i] = bf16_value(b);
    }
    return bad ? err_set(e, ST_CORRUPT, "a value is not finite") : ST_OK;
}

static enum status f32_encode(const float *u, int64_t n, uint8_t *out, struct err *e)
{
    int32_t most = codec_amax_bits(u, n);
    if (most > CODEC_BITS_MAX) {
        return codec_refuse(most, e);
    }
    memcpy(out, u, (size_t)n * sizeof(*u));
    return ST_OK;
}

static enum status f32_decode(const uint8_t *in, int64_t n, float *out, struct err *e)
{
    memcpy(out, in, (size_t)n * sizeof(*out));
    return codec_amax_bits(out, n) >= 0x7f800000 ? err_set(e, ST_CORRUPT, "a value is not finite")
                                                 : ST_OK;
}

enum status codec_encode(const struct codec_rule *r, const float *u, int64_t n,
                         struct codec_bytes *out, struct err *e)
{
    assert(n > 0 && n <= CODEC_GROUP);
    codec_sizes(r, n, out->size);
    switch (r->codec) {
    case CODEC_F32:
        return f32_encode(u, n, out->part[CODEC_MAIN], e);
    case CODEC_BF16:
        return bf16_encode(u, n, out->part[CODEC_MAIN], e);
    case CODEC_INT8:
        return int8_encode(u, n, out, e);
    case CODEC_Q4:
    case CODEC_Q2:
        return levels_encode(r, u, n, out, e);
    case CODEC_TOPK:
        return topk_encode(r, u, n, out, e);
    case CODEC_COUNT:
    default:
        assert(0);
        return err_set(e, ST_INVALID, "no such codec");
    }
}

enum status codec_decode(const struct codec_rule *r, const struct codec_bytes *in, int64_t n,
                         float *out, struct err *e)
{
    assert(n > 0 && n <= CODEC_GROUP);
    int64_t want[CODEC_PARTS];
    codec_sizes(r, n, want);
    if (in->size[CODEC_MAIN] != want[CODEC_MAIN] || in->size[CODEC_SIDE] != want[CODEC_SIDE] ||
        in->size[CODEC_GAP] < 0 || in->size[CODEC_GAP] > want[CODEC_GAP]) {
        return err_set(e, ST_CORRUPT, "a group of %lld values has parts of other sizes",
                       (long long)n);
    }
    switch (r->codec) {
    case CODEC_F32:
        return f32_decode(in->part[CODEC_MAIN], n, out, e);
    case CODEC_BF16:
        return bf16_decode(in->part[CODEC_MAIN], n, out, e);
    case CODEC_INT8:
        return int8_decode(in, n, out, e);
    case CODEC_Q4:
    case CODEC_Q2:
        return levels_decode(r, in, n, out, e);
    case CODEC_TOPK:
        return topk_decode(r, in, n, out, e);
    case CODEC_COUNT:
    default:
        assert(0);
        return err_set(e, ST_CORRUPT, "no such codec");
    }
}
