/* Attention: heads of sequences spread over threads. */
#include "kernels/cpu/cpu.h"

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void)
{
    return 0;
}
#endif

void cpu_attn_fwd(struct backend *be, enum dtype at, void *o, void *lse, const void *qkv,
                  const float *slopes, int64_t B, int64_t T, int64_t H, int64_t D)
{
    struct cpu *c = (struct cpu *)be;
    struct attn x = {
        .at = at, .B = B, .T = T, .H = H, .D = D, .qkv = qkv, .slopes = slopes, .o = o, .lse = lse};
    // With fewer heads than would keep all threads busy, several share the query tiles of one head.
    int64_t tiles = (T + ATTN_TILE - 1) / ATTN_TILE;
    x.parts = 1;
    while (B * H * x.parts < 4 * be->threads && x.parts < tiles && B * H % be->threads) {
        x.parts++;
    }
    size_t each = c->lanes->attn_scratch(&x, false);
    char *scratch = cpu_scratch(c, each * (size_t)be->threads);
    if (!scratch) {
        return;
    }
#pragma omp parallel for num_threads(be->threads) schedule(dynamic)
    for (int64_t i = 0; i < B * H * x.parts; i++) {
        c->lanes->attn_fwd(&x, i / x.parts, i % x.parts,
                           scratch + each * (size_t)omp_get_thread_num());
    }
}

void cpu_attn_bwd(struct backend *be, enum dtype at, void *dqkv, const void *qkv, const void *o,
                  const void *dout, const void *lse, const float *slopes, int64_t B, int64_t T,
                  int64_t H, int64_t D)
{
    struct cpu *c = (struct cpu *)be;
    // One struct serves both directions; backward only reads o and lse.
    struct attn x = {.at = at,
                     .B = B,
                     .T = T,
                     .H = H,
                     .D = D,
                     .qkv = qkv,
                     .slopes = slopes,
                     .o_read = o,
                     .lse_read = lse,
                     .dout = dout,
                     .dqkv = dqkv,
                     .parts = 1};
    size_t each = c->lanes->attn_scratch(&x, true);
    char *scratch = cpu_scratch(c, each * (size_t)be->threads);
    if (!scratch) {
        return;
    }
#pragma omp parallel for num_threads(be->threads) schedule(dynamic)
    for (int64_t i = 0; i < B * H; i++) {
        c->lanes->attn_bwd(&x, i, scratch + each * (size_t)omp_get_thread_num());
    }
}
