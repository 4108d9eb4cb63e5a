/*
 * codec_int.h - what the rungs' own files share.
 */
#ifndef COMMON_CODEC_INT_H
#define COMMON_CODEC_INT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/codec.h"

enum {
    BITS_LEAST = 0x0d800000 // of 2^-100: a block whose largest value is below it is all zeros
};

/* The largest |u| as bits, which order like the values; Inf and NaN are above everything. */
int32_t codec_amax_bits(const float *u, int64_t n);
enum status codec_refuse(int32_t amax_bits, struct err *e) MUST_CHECK;

static inline uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline void store_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v & 0xff);
    p[1] = (uint8_t)(v >> 8);
}

/* A scale or a magnitude: 0, or from 2^-110 to 2^101, so that products with codes stay exact. */
enum status codec_check_scale(uint16_t bits, struct err *e) MUST_CHECK;

enum status int8_encode(const float *u, int64_t n, struct codec_bytes *out,
                        struct err *e) MUST_CHECK;
enum status int8_decode(const struct codec_bytes *in, int64_t n, float *out,
                        struct err *e) MUST_CHECK;
enum status levels_encode(const struct codec_rule *r, const float *u, int64_t n,
                          struct codec_bytes *out, struct err *e) MUST_CHECK;
enum status levels_decode(const struct codec_rule *r, const struct codec_bytes *in, int64_t n,
                          float *out, struct err *e) MUST_CHECK;
enum status topk_encode(const struct codec_rule *r, const float *u, int64_t n,
                        struct codec_bytes *out, struct err *e) MUST_CHECK;
enum status topk_decode(const struct codec_rule *r, const struct codec_bytes *in, int64_t n,
                        float *out, struct err *e) MUST_CHECK;
int64_t topk_gap_bound(int32_t k, int64_t n);

#endif
