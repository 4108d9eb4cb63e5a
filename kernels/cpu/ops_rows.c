/* The ops over rows and elements, cut into ranges for threads. */
#include "kernels/cpu/cpu.h"

/* Elements a thread takes at a time where rows do not matter; keeps both operands in L2. */
enum { ELEMENT_BLOCK = 16384 };

static const struct cpu *cpu_of(struct backend *be)
{
    return (const struct cpu *)be;
}

static int64_t blocks_of(int64_t n, int64_t block)
{
    return (n + block - 1) / block;
}

static int64_t end_of(int64_t i, int64_t block, int64_t n)
{
    return (i + 1) * block < n ? (i + 1) * block : n;
}

void cpu_embed_fwd(struct backend *be, enum dtype at, void *x, const int32_t *tokens,
                   const void *wte, const void *wpe, int64_t B, int64_t T, int64_t C)
{
    const struct lanes *l = cpu_of(be)->lanes;
    int64_t blocks = blocks_of(B * T, ROW_BLOCK);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        l->embed_fwd(at, x, tokens, wte, wpe, T, C, i * ROW_BLOCK, end_of(i, ROW_BLOCK, B * T));
    }
}

void cpu_embed_bwd(struct backend *be, enum dtype at, void *dwte, void *dwpe, const int32_t *tokens,
                   const void *dx, int64_t B, int64_t T, int64_t C)
{
    const struct lanes *l = cpu_of(be)->lanes;
    int64_t blocks = blocks_of(C, COLUMN_BLOCK);
    // A column belongs to one thread, which meets the positions in order.
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        l->embed_bwd(at, dwte, dwpe, tokens, dx, B * T, T, C, i * COLUMN_BLOCK,
                     end_of(i, COLUMN_BLOCK, C));
    }
}

void cpu_norm_fwd(struct backend *be, enum dtype at, void *xs, void *out, void *mean, void *rstd,
                  const void *x, const void *y, const void *g, const void *b, int64_t N, int64_t C)
{
    const struct lanes *l = cpu_of(be)->lanes;
    int64_t blocks = blocks_of(N, ROW_BLOCK);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        l->norm_fwd(at, xs, out, mean, rstd, x, y, g, b, C, i * ROW_BLOCK, end_of(i, ROW_BLOCK, N));
    }
}

void cpu_norm_bwd(struct backend *be, enum dtype at, void *dx, void *dg, void *db, const void *dout,
                  const void *xs, const void *mean, const void *rstd, const void *g, int64_t N,
                  int64_t C)
{
    struct cpu *c = (struct cpu *)be;
    const struct lanes *l = c->lanes;
    int64_t blocks = blocks_of(N, ROW_BLOCK);
    int64_t columns = blocks_of(C, COLUMN_BLOCK);
    float *dg_parts = cpu_scratch(c, (size_t)(2 * blocks * C) * sizeof(float));
    if (!dg_parts) {
        return;
    }
    float *db_parts = dg_parts + blocks * C;
#pragma omp parallel num_threads(be->threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < blocks; i++) {
            l->norm_bwd(at, dx, dg_parts + i * C, db_parts + i * C, dout, xs, mean, rstd, g, C,
                        i * ROW_BLOCK, end_of(i, ROW_BLOCK, N));
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < columns; i++) {
            int64_t end = end_of(i, COLUMN_BLOCK, C);
            l->add_parts(dg, dg_parts, blocks, C, i * COLUMN_BLOCK, end);
            if (db) {
                l->add_parts(db, db_parts, blocks, C, i * COLUMN_BLOCK, end);
            }
        }
    }
}

void cpu_bias_bwd(struct backend *be, enum dtype at, void *db, const void *dy, int64_t M, int64_t N)
{
    const struct lanes *l = cpu_of(be)->lanes;
    int64_t blocks = blocks_of(N, COLUMN_BLOCK);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        l->bias_bwd(at, db, dy, M, N, i * COLUMN_BLOCK, end_of(i, COLUMN_BLOCK, N));
    }
}

void cpu_gelu_fwd(struct backend *be, enum dtype at, void *a, const void *h, int64_t n)
{
    const struct lanes *l = cpu_of(be)->lanes;
    int64_t blocks = blocks_of(n, ELEMENT_BLOCK);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        l->gelu_fwd(at, a, h, i * ELEMENT_BLOCK, end_of(i, ELEMENT_BLOCK, n));
    }
}

void cpu_gelu_bwd(struct backend *be, enum dtype at, void *dh, const void *h, const void *da,
                  int64_t n)
{
    const struct lanes *l = cpu_of(be)->lanes;
    int64_t blocks = blocks_of(n, ELEMENT_BLOCK);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        l->gelu_bwd(at, dh, h, da, i * ELEMENT_BLOCK, end_of(i, ELEMENT_BLOCK, n));
    }
}

void cpu_xent(struct backend *be, enum dtype at, void *logits, void *loss, const int32_t *targets,
              double inv_n, bool train, int64_t rows, int64_t V)
{
    const struct lanes *l = cpu_of(be)->lanes;
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        l->xent(at, logits, loss, targets, (float)inv_n, train, V, r, r + 1);
    }
}
