#include "kernels/host.h"

#include <string.h>

#include "common/codec_int.h"

void host_copy(struct backend *be, enum queue q, void *dst, const void *src, size_t size)
{
    (void)be;
    (void)q;
    memcpy(dst, src, size);
}

void host_mark(struct backend *be, enum queue q, int mark)
{
    (void)be;
    (void)q;
    (void)mark;
}

const char *host_reach(struct backend *be, int mark)
{
    (void)be;
    (void)mark;
    return NULL;
}

void host_record(struct backend *be)
{
    (void)be;
}

void *host_recorded(struct backend *be)
{
    (void)be;
    return NULL;
}

bool host_replay(struct backend *be, void *recording)
{
    (void)be;
    (void)recording;
    return false;
}

void host_unrecord(struct backend *be, void *recording)
{
    (void)be;
    (void)recording;
}

int64_t host_groups(int64_t n)
{
    return (n + CODEC_GROUP - 1) / CODEC_GROUP;
}

static int64_t group_size(int64_t n, int64_t group)
{
    int64_t left = n - group * CODEC_GROUP;
    return left < CODEC_GROUP ? left : CODEC_GROUP;
}

void host_delta(float *u, struct codec_result *results, const void *w, const void *rest,
                const float *base, const float *residual, float beta, int64_t n, int64_t group)
{
    int64_t at = group * CODEC_GROUP;
    int64_t m = group_size(n, group);
    for (int64_t i = at; i < at + m; i++) {
        float local = rest ? master_join(((const uint16_t *)w)[i], ((const uint16_t *)rest)[i])
                           : ((const float *)w)[i];
        u[i] = base[i] - local;
    }
    results[group].fresh = codec_squares(u + at, m);
    for (int64_t i = at; residual && i < at + m; i++) {
        u[i] += beta * residual[i];
    }
}

void host_encode(const struct codec_rule *rule, const struct codec_parts *out,
                 struct codec_result *results, float *left, const float *u, int64_t n,
                 int64_t group)
{
    int64_t at = group * CODEC_GROUP;
    int64_t m = group_size(n, group);
    int64_t whole[CODEC_PARTS];
    struct codec_bytes bytes;
    struct codec_result *r = &results[group];
    codec_sizes(rule, CODEC_GROUP, whole);
    whole[CODEC_GAP] = out->gap_stride;
    for (int p = 0; p < CODEC_PARTS; p++) {
        bytes.part[p] = out->part[p] + group * whole[p];
    }
    // What is beyond bounds is told by its bits; what was just encoded decodes.
    r->most = codec_amax_bits(u + at, m);
    if (codec_encode(rule, u + at, m, &bytes, NULL) ||
        codec_decode(rule, &bytes, m, left + at, NULL)) {
        return;
    }
    r->gap_size = bytes.size[CODEC_GAP];
    r->sums = codec_sums(u + at, left + at, m);
    for (int64_t i = at; i < at + m; i++) {
        left[i] = u[i] - left[i];
    }
}
