/*
 * Any bytes as one coded group: the first 8 say which rung, k, how many values and where the parts
 * end; for q4 and q2 the levels follow. Properties: nothing is written past the values, what an
 * accepted group gives is finite, and coding it anew keeps it (exactly where the rung is exact).
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/codec.h"
#include "common/mem.h"

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

static void check(const struct codec_rule *r, float *v, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(v[i])) {
            abort();
        }
    }
    struct codec_bytes b;
    codec_sizes(r, n, b.size);
    for (int p = 0; p < CODEC_PARTS; p++) {
        b.part[p] = mem_alloc((size_t)b.size[p] + 1);
    }
    struct err e = {0};
    float *again = mem_alloc((size_t)n * sizeof(*again));
    // Hostile values may be over 2^100, which no encoder takes.
    if (codec_encode(r, v, n, &b, &e) == ST_OK) {
        if (codec_decode(r, &b, n, again, &e) != ST_OK) {
            abort();
        }
        bool exact = r->codec == CODEC_F32 || r->codec == CODEC_BF16;
        if (exact && memcmp(v, again, (size_t)n * sizeof(*v)) != 0) {
            abort();
        }
    }
    mem_free(again);
    for (int p = 0; p < CODEC_PARTS; p++) {
        mem_free(b.part[p]);
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size)
{
    enum { HEAD = 8, GUARD = 4 };
    if (size < HEAD) {
        return 0;
    }
    struct codec_rule r =
        codec_rule((enum codec)(bytes[0] % CODEC_COUNT), 4 + 4 * (bytes[1] % (CODEC_K_MAX / 4)));
    int64_t n = 1 + (bytes[2] | bytes[3] << 8);
    const unsigned char *at = bytes + HEAD;
    int64_t left = (int64_t)size - HEAD;
    for (int j = 0; j < codec_level_count(r.codec) && left >= 2; j++, at += 2, left -= 2) {
        r.level[j] = bf16_value((uint16_t)(at[0] | at[1] << 8));
    }
    struct err e = {0};
    if (codec_check_levels(&r, &e)) {
        return 0;
    }
    // Each part in a block of its own, so that a read past its end is seen.
    struct codec_bytes b;
    codec_sizes(&r, n, b.size);
    if (r.codec == CODEC_TOPK) {
        b.size[CODEC_GAP] = bytes[4] | bytes[5] << 8;
    }
    for (int p = 0; p < CODEC_PARTS; p++) {
        int64_t take = b.size[p] < left ? b.size[p] : left;
        b.part[p] = mem_alloc(b.size[p] > 0 ? (size_t)b.size[p] : 1);
        memset(b.part[p], 0, (size_t)b.size[p]);
        memcpy(b.part[p], at, (size_t)take);
        at += take;
        left -= take;
    }
    float *v = mem_alloc(((size_t)n + GUARD) * sizeof(*v));
    memset(v, 0x5a, ((size_t)n + GUARD) * sizeof(*v));
    if (codec_decode(&r, &b, n, v, &e) == ST_OK) {
        check(&r, v, n);
    } else if (e.msg[0] == '\0') {
        abort();
    }
    for (int i = 0; i < GUARD; i++) {
        unsigned char want[sizeof(*v)];
        memset(want, 0x5a, sizeof(want));
        if (memcmp(&v[n + i], want, sizeof(want)) != 0) {
            abort();
        }
    }
    mem_free(v);
    for (int p = 0; p < CODEC_PARTS; p++) {
        mem_free(b.part[p]);
    }
    return 0;
}
