/*
 * Our own matrix product: both operands are packed once into the order in which tile.h reads them,
 * then every tile of the output is one task. A tile sums its whole inner dimension by itself in
 * fixed blocks, so the bits do not depend on the number of threads.
 *
 * It serves where oneDNN is absent or would fall back to its plain C reference.
 */
#include "kernels/cpu/cpu.h"

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void)
{
    return 0;
}
#endif

/* An operand before packing: `outer` rows of the output (or columns of it), `inner` summed over. */
struct operand {
    const void *p;
    int64_t outer;
    int64_t ld;
    bool inner_contiguous;
};

struct product {
    struct operand a, b;
    int64_t inner;
};

static struct product product_of(const struct gemm *g, const void *a, const void *b)
{
    switch (g->use) {
    case GEMM_DGRAD: // dX (M, K) = dY (M, N) W (N, K)
        return (struct product){{a, g->M, g->N, true}, {b, g->K, g->K, false}, g->N};
    case GEMM_WGRAD: // dW (N, K) = dY (M, N)^T X (M, K)
        return (struct product){{a, g->N, g->N, false}, {b, g->K, g->K, false}, g->M};
    case GEMM_FWD: // Y (M, N) = X (M, K) W (N, K)^T
    case GEMM_USE_COUNT:
        break;
    }
    return (struct product){{a, g->M, g->K, true}, {b, g->N, g->K, true}, g->K};
}

static void pack(const struct lanes *l, bool bf16, uint32_t *out, int64_t group, int64_t units,
                 const struct operand *x, int64_t inner, int64_t index)
{
    size_t size = bf16 ? 2 : 4;
    int64_t first = index * group;
    int64_t count = x->outer - first < group ? x->outer - first : group;
    uint32_t *to = out + first * units;
    if (x->inner_contiguous) {
        const char *from = (const char *)x->p + (size_t)(first * x->ld) * size;
        l->pack_inner(bf16, to, group, from, x->ld, count, inner);
    } else {
        l->pack_outer(bf16, to, group, (const char *)x->p + (size_t)first * size, x->ld, count,
                      inner);
    }
}

static int64_t groups_of(int64_t n, int64_t group)
{
    return (n + group - 1) / group;
}

void cpu_gemm_blocked(struct backend *be, const struct gemm *g, void *out, const void *a,
                      const void *b, const void *bias)
{
    struct cpu *c = (struct cpu *)be;
    const struct lanes *l = c->lanes;
    struct product x = product_of(g, a, b);
    bool bf16 = g->a_type == DTYPE_BF16;
    int64_t units = bf16 ? (x.inner + 1) / 2 : x.inner;
    int64_t a_groups = groups_of(x.a.outer, l->mr);
    int64_t b_groups = groups_of(x.b.outer, l->nr);
    int64_t a_units = (a_groups * l->mr * units + 15) / 16 * 16;
    int64_t b_units = (b_groups * l->nr * units + 15) / 16 * 16;
    int64_t sums = l->tile_m * l->tile_n;
    float *tiles =
        cpu_scratch(c, (size_t)(sums * be->threads + a_units + b_units) * sizeof(uint32_t));
    if (!tiles) {
        return;
    }
    void *rest = tiles + sums * be->threads;
    uint32_t *packed = rest;
    bool f32_out = g->use == GEMM_WGRAD || g->out_f32 || !bf16;
    struct tile_task t = {
        .bf16 = bf16,
        .a = packed,
        .b = packed + a_units,
        .units = units,
        .out = out,
        .out_type = f32_out ? DTYPE_F32 : DTYPE_BF16,
        .accumulate = g->accumulate,
        .bias = g->bias ? bias : NULL,
        .bias_type = g->a_type,
        .m = x.a.outer,
        .n = x.b.outer,
    };
    int64_t down = groups_of(t.m, l->tile_m);
    int64_t across = groups_of(t.n, l->tile_n);
#pragma omp parallel num_threads(be->threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < a_groups; i++) {
            pack(l, bf16, packed, l->mr, units, &x.a, x.inner, i);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < b_groups; i++) {
            pack(l, bf16, packed + a_units, l->nr, units, &x.b, x.inner, i);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < down * across; i++) {
            l->tile(&t, i % down * l->tile_m, i / down * l->tile_n,
                    tiles + sums * omp_get_thread_num());
        }
    }
}
