/* Attention: heads of sequences spread over threads, and tiles of heads where those are few. */
#include "kernels/cpu/cpu.h"

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void)
{
    return 0;
}
#endif

/*
 * Heads that cost alike are dealt in order: a thread then reads rows that it wrote in the op
 * before, which between the dies of a processor is worth more than that who is done helps the
 * others. With ALiBi steep heads skip most of their tiles, so whoever is free takes the next.
 */
static void deal(const struct attn *x)
{
#ifdef _OPENMP
    omp_set_schedule(x->slopes ? omp_sched_dynamic : omp_sched_static, x->slopes ? 1 : 0);
#else
    (void)x;
#endif
}

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
    size_t each = c->lanes->attn_scratch(&x, ATTN_FORWARD);
    char *scratch = cpu_scratch(c, each * (size_t)be->threads);
    if (!scratch) {
        return;
    }
    deal(&x);
#pragma omp parallel for num_threads(be->threads) schedule(runtime)
    for (int64_t i = 0; i < B * H * x.parts; i++) {
        c->lanes->attn_fwd(&x, i / x.parts, i % x.parts,
                           scratch + each * (size_t)omp_get_thread_num());
    }
}

/* Memory of the heads that are packed at a time, and of each thread. */
struct bwd_memory {
    char *heads, *works;
    size_t head, work;
};

static bool take_memory(struct bwd_memory *m, struct cpu *c, const struct attn *x, int64_t heads)
{
    m->head = c->lanes->attn_scratch(x, ATTN_HEAD);
    m->work = c->lanes->attn_scratch(x, ATTN_WORK);
    m->heads = cpu_scratch(c, m->head * (size_t)heads + m->work * (size_t)c->be.threads);
    m->works = m->heads ? m->heads + m->head * (size_t)heads : NULL;
    return m->heads != NULL;
}

/* Each head by one thread, which computes P and dS once for all three gradients. */
static void bwd_whole(struct cpu *c, const struct attn *x, int64_t tiles)
{
    struct bwd_memory m;
    if (!take_memory(&m, c, x, c->be.threads)) {
        return;
    }
    const struct attn_range all = {0, tiles, 0, tiles, true, true};
    deal(x);
#pragma omp parallel for num_threads(c->be.threads) schedule(runtime)
    for (int64_t i = 0; i < x->B * x->H; i++) {
        char *head = m.heads + m.head * (size_t)omp_get_thread_num();
        char *work = m.works + m.work * (size_t)omp_get_thread_num();
        for (int part = 0; part < ATTN_PACK_PARTS; part++) {
            c->lanes->attn_pack(x, i, part, head, work);
        }
        c->lanes->attn_bwd(x, i, &all, head, work);
    }
}

/* Every head's tiles by all threads, the longest first: early keys have many queries, late queries
 * many keys. */
static void bwd_tiles(struct cpu *c, const struct attn *x, int64_t tiles)
{
    struct bwd_memory m;
    int64_t heads = x->B * x->H;
    if (!take_memory(&m, c, x, heads)) {
        return;
    }
#pragma omp parallel num_threads(c->be.threads)
    {
        char *work = m.works + m.work * (size_t)omp_get_thread_num();
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < heads * ATTN_PACK_PARTS; i++) {
            int64_t head = i / ATTN_PACK_PARTS;
            c->lanes->attn_pack(x, head, (int)(i % ATTN_PACK_PARTS),
                                m.heads + m.head * (size_t)head, work);
        }
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < heads * tiles; i++) {
            int64_t t = i / heads;
            const struct attn_range r = {t, t + 1, t, tiles, true, false};
            c->lanes->attn_bwd(x, i % heads, &r, m.heads + m.head * (size_t)(i % heads), work);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < heads * tiles; i++) {
            int64_t t = tiles - 1 - i / heads;
            const struct attn_range r = {0, t + 1, t, t + 1, false, true};
            c->lanes->attn_bwd(x, i % heads, &r, m.heads + m.head * (size_t)(i % heads), work);
        }
    }
}

/*
 * Is it faster to share the tiles? A pair of tiles costs five products in a head that goes by
 * itself, seven when shared; but a thread without a head does nothing, and the longest tile of keys
 * and of queries is one thread's.
 */
static bool shares_tiles(int64_t heads, int64_t tiles, int64_t threads)
{
    int64_t pairs = tiles * (tiles + 1) / 2;
    int64_t turns = (heads + threads - 1) / threads;
    int64_t shared = heads * pairs > tiles * threads ? heads * pairs : tiles * threads;
    return 5 * turns * pairs * threads > 7 * shared;
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
    int64_t tiles = (T + ATTN_TILE - 1) / ATTN_TILE;
    if (shares_tiles(B * H, tiles, be->threads)) {
        bwd_tiles(c, &x, tiles);
    } else {
        bwd_whole(c, &x, tiles);
    }
}
