/* Updates, coded by the codecs' own functions, the groups shared out among threads. */
#include "kernels/cpu/cpu.h"
#include "kernels/host.h"

void cpu_delta(struct backend *be, float *u, struct codec_result *results, const void *w,
               const void *rest, const float *base, const float *residual, float beta, int64_t n)
{
    (void)be;
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t g = 0; g < host_groups(n); g++) {
        host_delta(u, results, w, rest, base, residual, beta, n, g);
    }
}

void cpu_encode(struct backend *be, const struct codec_rule *rule, const struct codec_parts *out,
                struct codec_result *results, float *left, const float *u, int64_t n)
{
    (void)be;
#pragma omp parallel for num_threads(be->threads) schedule(dynamic)
    for (int64_t g = 0; g < host_groups(n); g++) {
        host_encode(rule, out, results, left, u, n, g);
    }
}
