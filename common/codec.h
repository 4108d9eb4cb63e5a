/*
 * codec.h - numbers on the wire: how a tensor of deltas becomes fewer bytes, and numbers again.
 *
 * A ladder of six rungs, from exact to smallest. The unit is the group of 65,536 values of one
 * tensor: random access, parallel work and aggregation go by groups, and none crosses a tensor.
 * Within it, scales are per block of 256 values, and top-k picks per tile of 4096.
 *
 *     rung   value bits  main part       side part              decoded value
 *     f32    32          F32             -                      itself
 *     bf16   16          BF16            -                      nearest, ties to even
 *     int8   8 + 1/16    I8 q            BF16 scale per block   q s,  s = max|u| / 127 rounded up
 *     q4     4 + 1/16    U8, 2 codes     BF16 scale per block   +-level[j] s,  8 levels per tensor
 *     q2     2 + 1/16    U8, 4 codes     BF16 scale per block   +-level[j] s,  2 levels per tensor
 *     topk   .15 (k 64)  U8, 4 values    BF16 lo, hi per group  +-lo or +-hi where kept, else 0;
 *                                                               the gap part says where (Rice code)
 *
 * Scales, levels and magnitudes are BF16, so a decoded product has at most 16 significant bits: it
 * is exact in F32, fused or not, on any machine. Encoders and decoders are pure functions of their
 * arguments, in F32 with division, rounding to nearest, and nothing fused: the same bits
 * everywhere.
 *
 * A decoder trusts nothing: it never reads past the sizes it is given, never writes past n values,
 * and what it gives is finite. Encoders refuse what is not finite or beyond 2^100.
 */
#ifndef COMMON_CODEC_H
#define COMMON_CODEC_H

#include <stdint.h>

#include "common/status.h"

enum codec {
    CODEC_F32 = 0,
    CODEC_BF16,
    CODEC_INT8,
    CODEC_Q4,
    CODEC_Q2,
    CODEC_TOPK,
    CODEC_COUNT,
};

enum {
    CODEC_BLOCK = 256,
    CODEC_TILE = 4096,
    CODEC_GROUP = 65536,
    CODEC_LEVELS_MAX = 8,
    CODEC_K = 64,       /* kept of a tile, unless the spec says otherwise; a multiple of 4 */
    CODEC_K_DOWN = 256, /* the same for steps that everybody downloads */
    CODEC_K_MAX = 1024,
};

/* How one tensor is coded. */
struct codec_rule {
    enum codec codec;
    int32_t k;                     /* topk: a multiple of 4 from 4 to CODEC_K_MAX */
    float level[CODEC_LEVELS_MAX]; /* q4: 8, q2: 2; rising, BF16 values from 0 to 1 */
};

enum codec_part { CODEC_MAIN = 0, CODEC_SIDE, CODEC_GAP, CODEC_PARTS };

/* Beyond the bits of 2^100 a value is no training result. */
enum { CODEC_BITS_MAX = 0x71800000 };

/* Sums over values u and what they decode to, v. */
struct codec_sums {
    double diff, uu, vv, uv; /* of (u - v)^2, u^2, v^2, u v */
};

/* The bytes of one group; little-endian, no alignment needed. */
struct codec_bytes {
    uint8_t *part[CODEC_PARTS];
    int64_t size[CODEC_PARTS];
};

/* What coding a group elsewhere gave (kernels/backend.h). */
struct codec_result {
    struct codec_sums sums;
    double fresh;     /* squares of what is new in u */
    int64_t gap_size; /* bytes of the gap part */
    int64_t most;     /* the largest |u| as bits; above CODEC_BITS_MAX all else is void */
};

/*
 * Where the parts of coded groups go: whole ones one behind the other, as they lie in a file, but
 * for the gap part, of which each group has `gap_stride` bytes, a multiple of 4.
 */
struct codec_parts {
    uint8_t *part[CODEC_PARTS];
    int64_t gap_stride;
};

/* "f32", "bf16", "int8", "q4", "q2", "topk". ST_INVALID otherwise. */
enum status codec_parse(enum codec *out, const char *name, struct err *e) MUST_CHECK;
const char *codec_name(enum codec c);

/* The next exacter rung; f32 has none above it and gives itself. */
enum codec codec_up(enum codec c);

/* What a tensor of this rank gets where `asked` is the run's rung: norms and biases never go below
 * int8. */
enum codec codec_for_rank(enum codec asked, int32_t rank);

/* The fixed levels of q4, the first ones of q2; nothing for other rungs. */
struct codec_rule codec_rule(enum codec c, int32_t k);

/* What share of e goes into the next update: .95 under topk, whose residual would outgrow the
 * deltas otherwise; 1 for the others. */
double codec_beta(enum codec c);

/* Sizes of a group of n values, 1 <= n <= CODEC_GROUP: main and side exactly, gap at most. */
void codec_sizes(const struct codec_rule *r, int64_t n, int64_t size[CODEC_PARTS]);

/* Values of n that topk keeps, over all tiles. */
int64_t codec_kept(int32_t k, int64_t n);

/*
 * out->part[] have room for codec_sizes(); sets out->size[]. ST_INVALID: a value is not finite or
 * its magnitude is over 2^100.
 */
enum status codec_encode(const struct codec_rule *r, const float *u, int64_t n,
                         struct codec_bytes *out, struct err *e) MUST_CHECK;

/*
 * out[0..n). ST_CORRUPT: sizes that do not fit n, a scale or magnitude out of range, a code that
 * cannot be, a gap past its tile, padding that is not zero.
 */
enum status codec_decode(const struct codec_rule *r, const struct codec_bytes *in, int64_t n,
                         float *out, struct err *e) MUST_CHECK;

/*
 * Sums over a group, n <= CODEC_GROUP: CODEC_BLOCK lanes, of which each adds every CODEC_BLOCK-th
 * value, then the upper half of the lanes to the lower one until one is left. So a device adds too.
 */
struct codec_sums codec_sums(const float *u, const float *v, int64_t n);
double codec_squares(const float *u, int64_t n);

/* ST_CORRUPT unless levels rise and lie in [0, 1], each 0 or at least 2^-16. */
enum status codec_check_levels(const struct codec_rule *r, struct err *e) MUST_CHECK;

/*
 * Better levels for a tensor: Lloyd-Max, 30 sweeps from r's levels, over |u|/s of whole blocks,
 * each value weighted by s^2, so that what is minimised is the error itself. q4 and q2 only.
 */
void codec_learn(struct codec_rule *r, const float *u, int64_t n);

int32_t codec_level_count(enum codec c); /* 8, 2 or 0 */

/* ---- BF16 ---- */

static inline uint32_t f32_bits(float v)
{
    union {
        float f;
        uint32_t u;
    } x = {.f = v};
    return x.u;
}

static inline float f32_from_bits(uint32_t bits)
{
    union {
        uint32_t u;
        float f;
    } x = {.u = bits};
    return x.f;
}

/* Nearest, ties to even; v is finite. */
static inline uint16_t bf16_nearest(float v)
{
    uint32_t b = f32_bits(v);
    return (uint16_t)((b + 0x7fffU + (b >> 16 & 1U)) >> 16);
}

/* The least that is no less; v is finite and not negative. */
static inline uint16_t bf16_up(float v)
{
    return (uint16_t)((f32_bits(v) + 0xffffU) >> 16);
}

static inline float bf16_value(uint16_t b)
{
    return f32_from_bits((uint32_t)b << 16);
}

#endif
