/* Updates, coded by the codecs' own functions. */
#include "kernels/host.h"
#include "kernels/ref/ops.h"

void ref_delta(struct backend *be, float *u, struct codec_result *results, const void *w,
               const void *rest, const float *base, const float *residual, float beta, int64_t n)
{
    (void)be;
    for (int64_t g = 0; g < host_groups(n); g++) {
        host_delta(u, results, w, rest, base, residual, beta, n, g);
    }
}

void ref_encode(struct backend *be, const struct codec_rule *rule, const struct codec_parts *out,
                struct codec_result *results, float *left, const float *u, int64_t n)
{
    (void)be;
    for (int64_t g = 0; g < host_groups(n); g++) {
        host_encode(rule, out, results, left, u, n, g);
    }
}
