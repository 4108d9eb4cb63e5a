/*
 * Our own matrix product: each thread has a region of the output, packs some of its columns into
 * the order in which tile.h reads them, then some of its rows, which stay in its cache while it
 * multiplies them by the columns. Threads share no packed operand: on a processor of several
 * dies that costs more than packing twice.
 *
 * It serves where it is faster than oneDNN's (`own_bf16`), where oneDNN is absent, and where that
 * has only its reference in plain C for a shape.
 */
#include "kernels/cpu/cpu.h"

struct product {
    struct gemm_operand a, b;
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

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t whole(int64_t n, int64_t group)
{
    return (n + group - 1) / group * group;
}

/* How the output is cut: a region of rows and columns for each thread, and how many of a region's
 * columns are packed at a time. */
struct cuts {
    int64_t rows, cols, chunk;
};

/*
 * Regions side by side pack the same rows or columns: the grid is the one with the least to do for
 * a thread, where to pack a row costs as much as PACKING elements of the output. Packed columns are
 * at most B_UNITS (2 MiB): they come from the last cache, once for all of a block's rows.
 */
static struct cuts cuts_of(const struct lanes *l, const struct product *x, int64_t pitch,
                           int64_t threads)
{
    enum { PACKING = 6, B_UNITS = 1 << 19 };
    struct cuts best = {0};
    int64_t least_work = INT64_MAX;
    for (int64_t across = 1, down = threads; down > 0; across++, down = threads / across) {
        int64_t rows = whole((x->a.outer + down - 1) / down, l->a_group);
        int64_t cols = whole((x->b.outer + across - 1) / across, l->b_group);
        int64_t work = rows * cols + PACKING * (rows + cols);
        if (work < least_work) {
            least_work = work;
            best = (struct cuts){.rows = rows, .cols = cols};
        }
    }
    int64_t most = whole(B_UNITS / pitch, GEMM_SIDE);
    best.chunk = least(best.cols, most);
    return best;
}

/* One region, in memory of its own. */
struct region {
    const struct lanes *l;
    const struct gemm_task *t;
    const struct product *x;
    struct cuts cut;
    int64_t row, rows, col, cols;
    uint32_t *a, *b;
    float *sums;
};

/* Floats of a region's memory. */
struct sizes {
    int64_t a, b, sums, all;
};

static struct sizes sizes_of(const struct gemm_task *t, struct cuts cut)
{
    int64_t block = (int64_t)GEMM_SIDE * GEMM_SIDE;
    struct sizes s = {
        .a = whole(least(cut.rows, GEMM_SIDE) * t->pitch, 16),
        .b = whole(cut.chunk * t->pitch, 16),
        .sums = block,
    };
    if (t->units > GEMM_CHUNK) { // every block's, from one chunk of units to the next
        s.sums = block * (whole(cut.rows, GEMM_SIDE) / GEMM_SIDE) *
                 (whole(cut.chunk, GEMM_SIDE) / GEMM_SIDE);
    }
    s.all = s.a + s.b + s.sums;
    return s;
}

/* Rows [row, row + rows) of a region by the packed columns [col, end), units [unit, last). */
static void multiply_rows(const struct region *r, int64_t row, int64_t rows, int64_t col,
                          int64_t end, int64_t unit, int64_t last, float *sums)
{
    struct gemm_part part = {row, rows, unit, last, r->l->a_group};
    r->l->gemm_pack(r->t, &r->x->a, &part, r->a);
    for (int64_t c = col; c < end; c += GEMM_SIDE) {
        struct gemm_block b = {
            .row = row,
            .rows = rows,
            .col = c,
            .cols = least(end - c, GEMM_SIDE),
            .unit = unit,
            .end = last,
            .a = r->a,
            .b = r->b + (c - col) * r->t->pitch,
            .sums = sums,
        };
        r->l->gemm_block(r->t, &b);
        if (r->t->units > GEMM_CHUNK) {
            sums += GEMM_SIDE * GEMM_SIDE;
        }
    }
}

static void multiply(const struct region *r)
{
    const struct gemm_task *t = r->t;
    for (int64_t col = r->col; col < r->col + r->cols; col += r->cut.chunk) {
        int64_t cols = least(r->col + r->cols - col, r->cut.chunk);
        for (int64_t unit = 0; unit < t->units; unit += GEMM_CHUNK) {
            int64_t last = least(t->units, unit + GEMM_CHUNK);
            struct gemm_part part = {col, cols, unit, last, r->l->b_group};
            r->l->gemm_pack(t, &r->x->b, &part, r->b);
            float *sums = r->sums;
            for (int64_t row = 0; row < r->rows; row += GEMM_SIDE) {
                multiply_rows(r, r->row + row, least(r->rows - row, GEMM_SIDE), col, col + cols,
                              unit, last, sums);
                if (t->units > GEMM_CHUNK) {
                    sums += whole(cols, GEMM_SIDE) * GEMM_SIDE;
                }
            }
        }
    }
}

/* A product and how it is cut; out and bias are not set yet. */
struct job {
    struct gemm_task task;
    struct product x;
    struct cuts cut;
    int64_t down, across; /* regions */
    struct sizes size;
};

static struct job job_of(const struct backend *be, const struct gemm *g, const void *a,
                         const void *b)
{
    struct job j = {.x = product_of(g, a, b)};
    const struct lanes *l = ((const struct cpu *)be)->lanes;
    bool bf16 = g->a_type == DTYPE_BF16;
    bool f32_out = g->use == GEMM_WGRAD || g->out_f32 || !bf16;
    j.task = (struct gemm_task){
        .bf16 = bf16,
        .inner = j.x.inner,
        .units = bf16 && l->pairs ? (j.x.inner + 1) / 2 : j.x.inner,
        .out_type = f32_out ? DTYPE_F32 : DTYPE_BF16,
        .accumulate = g->accumulate,
        .bias_type = g->a_type,
        .n = j.x.b.outer,
    };
    j.task.pitch = least(j.task.units, GEMM_CHUNK) | 1;
    j.cut = cuts_of(l, &j.x, j.task.pitch, be->threads);
    j.down = (j.x.a.outer + j.cut.rows - 1) / j.cut.rows;
    j.across = (j.x.b.outer + j.cut.cols - 1) / j.cut.cols;
    j.size = sizes_of(&j.task, j.cut);
    return j;
}

static float *memory_for(struct backend *be, const struct job *j)
{
    size_t floats = (size_t)(j->size.all * j->down * j->across);
    return cpu_scratch((struct cpu *)be, floats * sizeof(float));
}

const char *cpu_plan_gemm_blocked(struct backend *be, const struct gemm *g)
{
    struct job j = job_of(be, g, NULL, NULL);
    return memory_for(be, &j) ? NULL : "out of memory";
}

void cpu_gemm_blocked(struct backend *be, const struct gemm *g, void *out, const void *a,
                      const void *b, const void *bias)
{
    struct job j = job_of(be, g, a, b);
    j.task.out = out;
    j.task.bias = g->bias ? bias : NULL;
    float *memory = memory_for(be, &j);
    if (!memory) {
        return;
    }
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < j.down * j.across; i++) {
        float *own = memory + j.size.all * i;
        void *packed = own + j.size.sums;
        struct region r = {
            .l = ((const struct cpu *)be)->lanes,
            .t = &j.task,
            .x = &j.x,
            .cut = j.cut,
            .row = i / j.across * j.cut.rows,
            .col = i % j.across * j.cut.cols,
            .a = packed,
            .b = (uint32_t *)packed + j.size.a,
            .sums = own,
        };
        r.rows = least(j.x.a.outer - r.row, j.cut.rows);
        r.cols = least(j.x.b.outer - r.col, j.cut.cols);
        multiply(&r);
    }
}
