/*
 * codec_topk.c - the largest few of every 4096 values: where they are, and two bits for each.
 *
 * Places are gaps between neighbours under a Rice code: g >> r zero bits, a one, the r low bits of
 * g, least significant first; the tiles of a group follow each other without padding. Values are a
 * sign and one of two magnitudes, found per group by 2-means over what is kept.
 */
#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "common/codec_int.h"
#include "common/mem.h"

enum { KEPT_MAX = CODEC_GROUP / CODEC_TILE * CODEC_K_MAX, MEANS = 8 };

/* floor(log2(.69 * 4096 / k)), in whole numbers: .69 * 4096 = 2826.24. */
static int32_t rice_bits(int32_t k)
{
    int32_t r = 0;
    while ((int64_t)k << (r + 1) <= 2826) {
        r++;
    }
    return r;
}

/* A tile of n takes at most kept (r + 1) + ((n - kept) >> r) bits. */
int64_t topk_gap_bound(int32_t k, int64_t n)
{
    int32_t r = rice_bits(k);
    int64_t bits = 0;
    for (int64_t at = 0; at < n; at += CODEC_TILE) {
        int64_t m = n - at < CODEC_TILE ? n - at : CODEC_TILE;
        int64_t kept = codec_kept(k, m);
        bits += kept * (r + 1) + ((m - kept) >> r);
    }
    return (bits + 7) / 8;
}

/* ---- choosing ---- */

/* The digit of the key at `rank` (from 0) when keys fall; *rank becomes its rank among those that
 * share the digit. */
static uint32_t rank_digit(const uint32_t *key, int64_t n, int shift, uint32_t most, int64_t *rank)
{
    uint16_t count[2048] = {0};
    for (int64_t i = 0; i < n; i++) {
        count[key[i] >> shift & most]++;
    }
    uint32_t digit = most;
    while (*rank >= count[digit]) {
        *rank -= count[digit--];
    }
    return digit;
}

/*
 * The key that stands at `rank` (from 0) when keys fall; *among is its rank among those equal to
 * it. By digits of 11, 10 and 10 bits from the top; after each only the keys that share it are
 * left. left has room for n. n < 65536.
 */
static uint32_t rank_key(const uint32_t *key, int64_t n, int64_t rank, uint32_t *left,
                         int64_t *among)
{
    static const int SHIFT[] = {20, 10, 0};
    static const uint32_t MOST[] = {2047, 1023, 1023};
    uint32_t found = 0;
    for (int pass = 0; pass < 3; pass++) {
        uint32_t digit = rank_digit(key, n, SHIFT[pass], MOST[pass], &rank);
        int64_t m = 0;
        for (int64_t i = 0; i < n; i++) {
            left[m] = key[i];
            m += (key[i] >> SHIFT[pass] & MOST[pass]) == digit;
        }
        found |= digit << SHIFT[pass];
        key = left;
        n = m;
    }
    *among = rank;
    return found;
}

/* Indices of the `kept` largest of a tile, rising; among equals the lower ones. */
static void choose(const uint32_t *key, int64_t n, int64_t kept, uint16_t *index)
{
    uint32_t left[CODEC_TILE];
    int64_t equal = 0;
    uint32_t last = rank_key(key, n, kept - 1, left, &equal);
    equal++; // so many equal to the last one are taken
    int64_t at = 0;
    for (int64_t i = 0; i < n && at < kept; i++) {
        if (key[i] > last) {
            index[at++] = (uint16_t)i;
        } else if (key[i] == last && equal > 0) {
            equal--;
            index[at++] = (uint16_t)i;
        }
    }
}

/* ---- bits ---- */

struct bits {
    uint8_t *bytes;
    int64_t at;    // whole bytes written
    uint64_t held; // the next ones, lowest first
    int count;
};

static void put(struct bits *b, uint32_t value, int count)
{
    b->held |= (uint64_t)value << b->count;
    b->count += count;
    while (b->count >= 8) {
        b->bytes[b->at++] = (uint8_t)(b->held & 0xff);
        b->held >>= 8;
        b->count -= 8;
    }
}

static void put_gap(struct bits *b, uint32_t gap, int32_t r)
{
    uint32_t zeros = gap >> r;
    while (zeros >= 24) {
        put(b, 0, 24);
        zeros -= 24;
    }
    put(b, 1U << zeros, (int)zeros + 1);
    put(b, gap & ((1U << r) - 1), r);
}

/* ---- magnitudes ---- */

struct means {
    float lo, hi, limit; // high is |u| >= limit
};

/* What is kept of a group, while it is coded. On the heap: too much for the stack of a thread that
 * serves a connection, and as thread-local data every thread would pay for it. */
struct kept {
    uint32_t value[KEPT_MAX]; // magnitudes, as bits
    uint32_t left[KEPT_MAX];  // scratch
    uint8_t negative[KEPT_MAX];
};

static struct means two_means(struct kept *k, int64_t n)
{
    const uint32_t *key = k->value;
    int64_t unused = 0;
    double t = (double)f32_from_bits(rank_key(key, n, n / 2, k->left, &unused));
    double lo = 0.0;
    double hi = 0.0;
    for (int i = 0; i < MEANS; i++) {
        double sum[2] = {0};
        int64_t count[2] = {0};
        for (int64_t j = 0; j < n; j++) {
            double v = (double)f32_from_bits(key[j]);
            int high = v >= t;
            sum[high] += v;
            count[high]++;
        }
        // An empty side takes the other's mean: all values are the same then.
        hi = count[1] > 0 ? sum[1] / (double)count[1] : sum[0] / (double)count[0];
        lo = count[0] > 0 ? sum[0] / (double)count[0] : hi;
        t = (lo + hi) / 2.0;
    }
    return (struct means){(float)lo, (float)hi, (float)t};
}

static uint16_t magnitude(float v)
{
    return f32_bits(v) < BITS_LEAST ? 0 : bf16_nearest(v);
}

enum status topk_encode(const struct codec_rule *r, const float *u, int64_t n,
                        struct codec_bytes *out, struct err *e)
{
    assert(r->k >= 4 && r->k <= CODEC_K_MAX && r->k % 4 == 0);
    int32_t most = codec_amax_bits(u, n);
    if (most > CODEC_BITS_MAX) {
        return codec_refuse(most, e);
    }
    struct kept *w = mem_alloc(sizeof(*w));
    int64_t total = 0;
    int32_t rice = rice_bits(r->k);
    struct bits b = {.bytes = out->part[CODEC_GAP]};
    for (int64_t at = 0; at < n; at += CODEC_TILE) {
        int64_t m = n - at < CODEC_TILE ? n - at : CODEC_TILE;
        int64_t kept = codec_kept(r->k, m);
        uint32_t key[CODEC_TILE];
        uint16_t index[CODEC_K_MAX];
        for (int64_t i = 0; i < m; i++) {
            key[i] = f32_bits(u[at + i]) & 0x7fffffffU;
        }
        choose(key, m, kept, index);
        int32_t before = -1;
        for (int64_t i = 0; i < kept; i++) {
            put_gap(&b, (uint32_t)(index[i] - before - 1), rice);
            before = index[i];
            w->value[total] = key[index[i]];
            w->negative[total++] = (uint8_t)(f32_bits(u[at + index[i]]) >> 31);
        }
    }
    if (b.count > 0) {
        b.bytes[b.at++] = (uint8_t)b.held;
    }
    out->size[CODEC_GAP] = b.at;
    struct means means = two_means(w, total);
    store_u16(out->part[CODEC_SIDE], magnitude(means.lo));
    store_u16(out->part[CODEC_SIDE] + 2, magnitude(means.hi));
    memset(out->part[CODEC_MAIN], 0, (size_t)out->size[CODEC_MAIN]);
    for (int64_t i = 0; i < total; i++) {
        int high = f32_from_bits(w->value[i]) >= means.limit;
        out->part[CODEC_MAIN][i / 4] |= (uint8_t)((high | w->negative[i] << 1) << (2 * (i % 4)));
    }
    mem_free(w);
    return ST_OK;
}

/* ---- reading ---- */

struct source {
    const uint8_t *bytes;
    int64_t size;
    int64_t at;    // bytes taken into held
    uint64_t held; // zeros above count
    int count;
};

/* At least 32 bits in hand, unless the bytes end before. */
static inline void refill(struct source *s)
{
    if (s->count >= 32) {
        return;
    }
    if (s->at + 4 <= s->size) {
        uint32_t w;
        memcpy(&w, s->bytes + s->at, sizeof(w));
        s->held |= (uint64_t)w << s->count;
        s->count += 32;
        s->at += 4;
        return;
    }
    while (s->at < s->size && s->count <= 56) {
        s->held |= (uint64_t)s->bytes[s->at++] << s->count;
        s->count += 8;
    }
}

/* False when the bits end, or the gap is longer than a tile. */
static inline bool take_gap(struct source *s, int32_t r, uint32_t *gap)
{
    uint32_t zeros = 0;
    refill(s);
    while (s->held == 0) {
        zeros += (uint32_t)s->count;
        s->count = 0;
        if (zeros > CODEC_TILE || s->at >= s->size) {
            return false;
        }
        refill(s);
    }
    int run = __builtin_ctzll(s->held);
    zeros += (uint32_t)run;
    s->held >>= run;
    s->held >>= 1; // in two steps: run + 1 may be all 64
    s->count -= run + 1;
    refill(s);
    if (s->count < r || zeros > CODEC_TILE) {
        return false;
    }
    *gap = zeros << r | ((uint32_t)s->held & ((1U << r) - 1));
    s->held >>= r;
    s->count -= r;
    return true;
}

enum status topk_decode(const struct codec_rule *r, const struct codec_bytes *in, int64_t n,
                        float *out, struct err *e)
{
    assert(r->k >= 4 && r->k <= CODEC_K_MAX && r->k % 4 == 0);
    uint16_t lo = load_u16(in->part[CODEC_SIDE]);
    uint16_t hi = load_u16(in->part[CODEC_SIDE] + 2);
    TRY(codec_check_scale(lo, e));
    TRY(codec_check_scale(hi, e));
    const float value[4] = {bf16_value(lo), bf16_value(hi), -bf16_value(lo), -bf16_value(hi)};
    int32_t rice = rice_bits(r->k);
    struct source s = {.bytes = in->part[CODEC_GAP], .size = in->size[CODEC_GAP]};
    const uint8_t *code = in->part[CODEC_MAIN];
    int64_t total = 0;
    memset(out, 0, (size_t)n * sizeof(*out));
    for (int64_t at = 0; at < n; at += CODEC_TILE) {
        int64_t m = n - at < CODEC_TILE ? n - at : CODEC_TILE;
        int64_t kept = codec_kept(r->k, m);
        int64_t index = -1;
        for (int64_t i = 0; i < kept; i++, total++) {
            uint32_t gap = 0;
            if (!take_gap(&s, rice, &gap) || (index += 1 + (int64_t)gap) >= m) {
                return err_set(e, ST_CORRUPT, "a place is outside of its tile");
            }
            out[at + index] = value[code[total / 4] >> (2 * (total % 4)) & 3];
        }
    }
    // What is left: less than a byte of padding, zero.
    bool rest = s.at < s.size || s.count >= 8 || s.held != 0;
    if (rest || (total % 4 != 0 && code[total / 4] >> (2 * (total % 4)))) {
        return err_set(e, ST_CORRUPT, "something follows the last value of a group");
    }
    return ST_OK;
}
