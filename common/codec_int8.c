/*
 * codec_int8.c - eight bits and a scale per block.
 *
 * s = max|u| / 127, rounded up to BF16 so that nothing clips; q = u / s to the nearest, ties to
 * even.
 */
#include <string.h>

#include "common/codec_int.h"
#include "common/wide.h"

/* To the nearest whole number, ties to even, for |v| < 2^22: adding 1.5 * 2^23 leaves no room for a
 * fraction, and the number stands in the lowest bits. */
static inline int32_t nearest(float v)
{
    return (int32_t)(f32_bits(v + 12582912.0F) - 0x4b400000U);
}

WIDE enum status int8_encode(const float *u, int64_t n, struct codec_bytes *out, struct err *e)
{
    int8_t *q = (int8_t *)out->part[CODEC_MAIN];
    for (int64_t at = 0; at < n; at += CODEC_BLOCK) {
        const float *v = u + at;
        int64_t m = n - at < CODEC_BLOCK ? n - at : CODEC_BLOCK;
        int32_t most = codec_amax_bits(v, m);
        uint8_t *side = out->part[CODEC_SIDE] + 2 * (at / CODEC_BLOCK);
        if (most > CODEC_BITS_MAX) {
            return codec_refuse(most, e);
        }
        if (most < BITS_LEAST) {
            store_u16(side, 0);
            memset(q + at, 0, (size_t)m);
            continue;
        }
        uint16_t bits = bf16_up(f32_from_bits((uint32_t)most) / 127.0F);
        float s = bf16_value(bits);
        store_u16(side, bits);
        for (int64_t i = 0; i < m; i++) {
            int32_t c = nearest(v[i] / s);
            c = c > 127 ? 127 : c;
            c = c < -127 ? -127 : c;
            q[at + i] = (int8_t)c;
        }
    }
    return ST_OK;
}

WIDE enum status int8_decode(const struct codec_bytes *in, int64_t n, float *out, struct err *e)
{
    const int8_t *q = (const int8_t *)in->part[CODEC_MAIN];
    for (int64_t at = 0; at < n; at += CODEC_BLOCK) {
        int64_t m = n - at < CODEC_BLOCK ? n - at : CODEC_BLOCK;
        uint16_t bits = load_u16(in->part[CODEC_SIDE] + 2 * (at / CODEC_BLOCK));
        TRY(codec_check_scale(bits, e));
        float s = bf16_value(bits);
        int32_t bad = 0;
        for (int64_t i = 0; i < m; i++) {
            int32_t c = q[at + i];
            bad |= c == -128; // no encoder gives it
            out[at + i] = (float)c * s;
        }
        if (bad) {
            return err_set(e, ST_CORRUPT, "the code -128 near value %lld", (long long)at);
        }
    }
    return ST_OK;
}
