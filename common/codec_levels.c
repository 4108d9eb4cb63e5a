/*
 * codec_levels.c - q4 and q2: a sign and one of a few magnitudes, times a scale per block.
 *
 * s = max|u| rounded up to BF16. The code's low bits are the level nearest to |u| / s (on a
 * midpoint the lower one), the bit above them is the sign. Levels travel with the tensor, so
 * encoders may choose them and decoders need not care.
 */
#include <assert.h>
#include <string.h>

#include "common/codec_int.h"
#include "common/wide.h"

enum { SWEEPS = 30 };

/* Midpoints of neighbours; the ones that are not there are beyond every value. */
static void midpoints(const struct codec_rule *r, float mid[CODEC_LEVELS_MAX - 1])
{
    int32_t count = codec_level_count(r->codec);
    for (int32_t j = 0; j < CODEC_LEVELS_MAX - 1; j++) {
        mid[j] = j + 1 < count ? (r->level[j] + r->level[j + 1]) * 0.5F : 2.0F;
    }
}

static WIDE void codes_q4(const float *u, float s, const float *mid, uint8_t *c)
{
    float m0 = mid[0];
    float m1 = mid[1];
    float m2 = mid[2];
    float m3 = mid[3];
    float m4 = mid[4];
    float m5 = mid[5];
    float m6 = mid[6];
    for (int i = 0; i < CODEC_BLOCK; i++) {
        uint32_t b = f32_bits(u[i]);
        float v = f32_from_bits(b & 0x7fffffffU) / s;
        int32_t j = (v > m0) + (v > m1) + (v > m2) + (v > m3) + (v > m4) + (v > m5) + (v > m6);
        c[i] = (uint8_t)((int32_t)(b >> 28 & 8U) | j);
    }
}

static WIDE void codes_q2(const float *u, float s, float mid, uint8_t *c)
{
    for (int i = 0; i < CODEC_BLOCK; i++) {
        uint32_t b = f32_bits(u[i]);
        float v = f32_from_bits(b & 0x7fffffffU) / s;
        c[i] = (uint8_t)((int32_t)(b >> 30 & 2U) | (v > mid));
    }
}

/* A whole block always; what lies behind the last value is zero in the packed bytes. */
static void pack(enum codec c, uint8_t code[CODEC_BLOCK], int64_t m, uint8_t *out)
{
    memset(code + m, 0, (size_t)(CODEC_BLOCK - m));
    if (c == CODEC_Q4) {
        uint8_t bytes[CODEC_BLOCK / 2];
        for (int i = 0; i < CODEC_BLOCK / 2; i++) {
            bytes[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
        }
        memcpy(out, bytes, (size_t)(m + 1) / 2);
        return;
    }
    uint8_t bytes[CODEC_BLOCK / 4];
    for (int i = 0; i < CODEC_BLOCK / 4; i++) {
        bytes[i] = (uint8_t)(code[4 * i] | code[4 * i + 1] << 2 | code[4 * i + 2] << 4 |
                             code[4 * i + 3] << 6);
    }
    memcpy(out, bytes, (size_t)(m + 3) / 4);
}

enum status levels_encode(const struct codec_rule *r, const float *u, int64_t n,
                          struct codec_bytes *out, struct err *e)
{
    float mid[CODEC_LEVELS_MAX - 1];
    midpoints(r, mid);
    int per_byte = r->codec == CODEC_Q4 ? 2 : 4;
    for (int64_t at = 0; at < n; at += CODEC_BLOCK) {
        int64_t m = n - at < CODEC_BLOCK ? n - at : CODEC_BLOCK;
        float short_block[CODEC_BLOCK];
        const float *v = u + at;
        if (m < CODEC_BLOCK) {
            memset(short_block, 0, sizeof(short_block));
            memcpy(short_block, v, (size_t)m * sizeof(*v));
            v = short_block;
        }
        int32_t most = codec_amax_bits(v, CODEC_BLOCK);
        if (most > CODEC_BITS_MAX) {
            return codec_refuse(most, e);
        }
        uint8_t code[CODEC_BLOCK] = {0};
        uint16_t bits = most < BITS_LEAST ? 0 : bf16_up(f32_from_bits((uint32_t)most));
        if (bits && r->codec == CODEC_Q4) {
            codes_q4(v, bf16_value(bits), mid, code);
        } else if (bits) {
            codes_q2(v, bf16_value(bits), mid[0], code);
        }
        store_u16(out->part[CODEC_SIDE] + 2 * (at / CODEC_BLOCK), bits);
        pack(r->codec, code, m, out->part[CODEC_MAIN] + at / per_byte);
    }
    return ST_OK;
}

/* What every byte of a block stands for: two values of q4 or four of q2. Made per block from the 16
 * or 4 products, so that the loop over bytes is loads and stores. */
static WIDE void unpack_q4(const uint8_t *in, int64_t bytes, const float value[16], float *out)
{
    for (int64_t i = 0; i < bytes; i++) {
        out[2 * i] = value[in[i] & 15];
        out[2 * i + 1] = value[in[i] >> 4];
    }
}

static WIDE void unpack_q2(const uint8_t *in, int64_t bytes, const float value[4], float *out)
{
    for (int64_t i = 0; i < bytes; i++) {
        out[4 * i] = value[in[i] & 3];
        out[4 * i + 1] = value[in[i] >> 2 & 3];
        out[4 * i + 2] = value[in[i] >> 4 & 3];
        out[4 * i + 3] = value[in[i] >> 6];
    }
}

static void unpack(enum codec c, const uint8_t *in, int64_t bytes, const float *value, float *out)
{
    if (c == CODEC_Q4) {
        unpack_q4(in, bytes, value, out);
    } else {
        unpack_q2(in, bytes, value, out);
    }
}

enum status levels_decode(const struct codec_rule *r, const struct codec_bytes *in, int64_t n,
                          float *out, struct err *e)
{
    int32_t count = codec_level_count(r->codec);
    int per_byte = r->codec == CODEC_Q4 ? 2 : 4;
    for (int64_t at = 0; at < n; at += CODEC_BLOCK) {
        int64_t m = n - at < CODEC_BLOCK ? n - at : CODEC_BLOCK;
        uint16_t bits = load_u16(in->part[CODEC_SIDE] + 2 * (at / CODEC_BLOCK));
        TRY(codec_check_scale(bits, e));
        float s = bf16_value(bits);
        float value[2 * CODEC_LEVELS_MAX];
        for (int32_t j = 0; j < count; j++) {
            value[j] = r->level[j] * s;
            value[count + j] = -value[j];
        }
        const uint8_t *bytes = in->part[CODEC_MAIN] + at / per_byte;
        unpack(r->codec, bytes, m / per_byte, value, out + at);
        int64_t rest = m % per_byte;
        if (rest > 0) {
            uint8_t last = bytes[m / per_byte];
            float tail[4];
            unpack(r->codec, &last, 1, value, tail);
            memcpy(out + at + m - rest, tail, (size_t)rest * sizeof(*tail));
            if (last >> (8 / per_byte * rest)) {
                return err_set(e, ST_CORRUPT, "the padding after the last value is not zero");
            }
        }
    }
    return ST_OK;
}

/* ---- learning levels ---- */

/* One sweep: every level becomes the weighted mean of the values nearest to it. */
static void sweep(float *level, int32_t count, const float *u, int64_t n)
{
    double sum[CODEC_LEVELS_MAX] = {0};
    double weight[CODEC_LEVELS_MAX] = {0};
    float mid[CODEC_LEVELS_MAX];
    for (int32_t j = 0; j + 1 < count; j++) {
        mid[j] = (level[j] + level[j + 1]) * 0.5F;
    }
    for (int64_t at = 0; at + CODEC_BLOCK <= n; at += CODEC_BLOCK) {
        int32_t most = codec_amax_bits(u + at, CODEC_BLOCK);
        if (most < BITS_LEAST || most > CODEC_BITS_MAX) {
            continue;
        }
        float s = bf16_value(bf16_up(f32_from_bits((uint32_t)most)));
        double w = (double)s * (double)s;
        for (int64_t i = at; i < at + CODEC_BLOCK; i++) {
            float v = f32_from_bits(f32_bits(u[i]) & 0x7fffffffU) / s;
            int32_t j = 0;
            for (int32_t t = 0; t + 1 < count; t++) {
                j += v > mid[t];
            }
            sum[j] += w * (double)v;
            weight[j] += w;
        }
    }
    for (int32_t j = 0; j < count; j++) {
        if (weight[j] > 0.0) {
            level[j] = (float)(sum[j] / weight[j]);
        }
    }
}

void codec_learn(struct codec_rule *r, const float *u, int64_t n)
{
    int32_t count = codec_level_count(r->codec);
    assert(count > 0);
    float level[CODEC_LEVELS_MAX];
    memcpy(level, r->level, sizeof(level));
    for (int i = 0; i < SWEEPS; i++) {
        sweep(level, count, u, n);
    }
    for (int32_t j = 0; j < count; j++) {
        float v = bf16_value(bf16_nearest(level[j]));
        v = v < 0x1p-16F ? 0.0F : v;
        r->level[j] = v > 1.0F ? 1.0F : v;
    }
}
