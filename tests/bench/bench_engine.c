/*
 * bench_engine.c - how fast kernels and whole training steps are, against ceilings of the same run.
 *
 *     bench_engine [--device D] [--dtype T] [--threads N] [--size S]... [--seconds S] [--only
 * ops|steps|attn]
 *
 * First what the machine can do: one large matrix product, copying, and the products of each
 * model's own shapes by themselves. Then every op, as a share of the first two, and steps of the
 * whole trainer. Medians with p10 and p90; one JSON line per case beside a table for people.
 * Numbers are random, never zeros. With a load over 1.2 per core the figures are printed, but
 * called unreliable. On a GPU every run of an op finds the second-level cache full of other things.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/mfu.h"
#include "client/model.h"
#include "client/trainer.h"
#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"
#include "kernels/attn_skip.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include "tests/bench/rates.h"

struct size {
    const char *name;
    struct model_spec m;
    int32_t batch;  /* sequences of an op */
    int32_t passes; /* a step is so many batches; 32 sequences are what a silo's step has */
    bool gpu;       /* meant for one: not run elsewhere unless named */
};

static const struct size SIZES[] = {
    {"5.8m", {256, 8, 6, 4096, 256, POSITION_LEARNED, true}, 8, 1, false},
    {"29m", {512, 8, 8, 8192, 512, POSITION_LEARNED, true}, 4, 1, false},
    {"125m", {768, 12, 12, 50368, 512, POSITION_LEARNED, true}, 1, 1, false},
    {"125m-2k", {768, 12, 12, 50368, 2048, POSITION_ALIBI, false}, 8, 4, true},
    {"1b-2k", {2048, 16, 24, 50368, 2048, POSITION_ALIBI, false}, 8, 4, true},
    {"3b-2k", {2560, 20, 32, 50368, 2048, POSITION_ALIBI, false}, 8, 4, true},
    {"7b-2k", {4096, 32, 32, 50368, 2048, POSITION_ALIBI, false}, 8, 4, true},
};
enum { SIZE_COUNT = sizeof(SIZES) / sizeof(SIZES[0]) };

static struct {
    const char *device;
    const char *dtype;
    int threads;
    bool size[SIZE_COUNT];
    double seconds;
    bool ops, steps;
    bool attn; /* of the ops attention alone: for backends that have more than one way to do it */
} opt = {.device = "cpu", .dtype = "auto", .seconds = 12, .ops = true, .steps = true};

static struct {
    double product, copy; /* operations and bytes a second */
    double block;         /* operations a second of the multiply instruction; or 0 */
} ceiling;

// ---- one op -----------------------------------------------------------------------------------

/* More than twice the largest second-level cache of a GPU so far (126 MB, B200). */
enum { WIPE_SIZE = 256 << 20, WIPED_RUNS_LEAST = 30, RUNS_LEAST = 5 };

/* Backends leave out scores by tiles of this many queries and keys. */
enum { SKIP_ROWS = 64 };

/* Where partial sums begin behind the small structs. */
enum { SMALL_SUMS = 256 };
_Static_assert(sizeof(struct clip_state) + sizeof(struct optim_step) <= SMALL_SUMS,
               "room for both");

struct bench_op {
    struct backend *be;
    enum dtype at;
    const struct size *size;
    int64_t N;    /* tokens */
    char *mem[6]; /* random numbers, large enough for any operand */
    int32_t *tokens;
    char *small;   /* a struct clip_state, a struct optim_step, then partial sums */
    float *slopes; /* ALiBi's, or NULL */
    char *wipe;    /* WIPE_SIZE bytes, written between runs; NULL where nothing is flushed */
    double call_s; /* what a call that does next to nothing takes a GPU; else 0 */
    struct gemm g;
    double flops, bytes; /* of one call */
    int64_t tiles, kept; /* of attention's scores; 0 for other ops */
};

typedef void op_fn(struct bench_op *b);

static struct times measure(struct bench_op *b, op_fn *fn, double seconds)
{
    struct times t = {0};
    int least = b->wipe ? WIPED_RUNS_LEAST : RUNS_LEAST;
    fn(b);
    (void)b->be->ops->sync(b->be);
    double end = clock_mono_s() + seconds;
    while (t.n < least || (clock_mono_s() < end && t.n < TIMES_MAX)) {
        if (b->wipe) {
            b->be->ops->zero(b->be, b->wipe, WIPE_SIZE);
            (void)b->be->ops->sync(b->be);
        }
        double start = clock_mono_s();
        fn(b);
        (void)b->be->ops->sync(b->be);
        t.s[t.n++] = fmax(clock_mono_s() - start - b->call_s, 1e-7);
    }
    return t;
}

/* On a GPU: a launch and the wait for it, microseconds that the ops of a step do not have. */
static void op_next_to_nothing(struct bench_op *b)
{
    b->be->ops->zero(b->be, b->wipe, sizeof(float));
}

static void op_gemm(struct bench_op *b)
{
    b->be->ops->gemm(b->be, &b->g, b->mem[0], b->mem[1], b->mem[2], b->mem[3]);
}

static void op_embed_fwd(struct bench_op *b)
{
    const struct model_spec *m = &b->size->m;
    b->be->ops->embed_fwd(b->be, b->at, b->mem[0], b->tokens, b->mem[1], b->mem[2], b->size->batch,
                          m->seq_len, m->d_model);
}

static void op_embed_bwd(struct bench_op *b)
{
    const struct model_spec *m = &b->size->m;
    b->be->ops->embed_bwd(b->be, b->at, b->mem[0], b->mem[1], b->tokens, b->mem[2], b->size->batch,
                          m->seq_len, m->d_model);
}

static void op_norm_fwd(struct bench_op *b)
{
    float *stats = (float *)(void *)b->mem[5];
    b->be->ops->norm_fwd(b->be, b->at, b->mem[0], b->mem[1], stats, stats + b->N, b->mem[2],
                         b->mem[3], b->mem[4], b->mem[4], b->N, b->size->m.d_model);
}

static void op_norm_bwd(struct bench_op *b)
{
    float *stats = (float *)(void *)b->mem[5];
    b->be->ops->norm_bwd(b->be, b->at, b->mem[0], b->mem[1], b->mem[1], b->mem[2], b->mem[3], stats,
                         stats + b->N, b->mem[4], b->N, b->size->m.d_model);
}

static void op_bias_bwd(struct bench_op *b)
{
    b->be->ops->bias_bwd(b->be, b->at, b->mem[0], b->mem[1], b->N, 4 * (int64_t)b->size->m.d_model);
}

static void op_gelu_fwd(struct bench_op *b)
{
    b->be->ops->gelu_fwd(b->be, b->at, b->mem[0], b->mem[1], 4 * b->N * b->size->m.d_model);
}

static void op_gelu_bwd(struct bench_op *b)
{
    b->be->ops->gelu_bwd(b->be, b->at, b->mem[0], b->mem[1], b->mem[2],
                         4 * b->N * b->size->m.d_model);
}

static void op_attn_fwd(struct bench_op *b)
{
    const struct model_spec *m = &b->size->m;
    b->be->ops->attn_fwd(b->be, b->at, b->mem[0], b->mem[5], b->mem[1], b->slopes, b->size->batch,
                         m->seq_len, m->n_heads, m->d_model / m->n_heads);
}

static void op_attn_bwd(struct bench_op *b)
{
    const struct model_spec *m = &b->size->m;
    b->be->ops->attn_bwd(b->be, b->at, b->mem[2], b->mem[1], b->mem[0], b->mem[3], b->mem[5],
                         b->slopes, b->size->batch, m->seq_len, m->n_heads,
                         m->d_model / m->n_heads);
}

static int64_t xent_rows(const struct bench_op *b)
{
    return b->N < 512 ? b->N : 512;
}

static void op_xent(struct bench_op *b)
{
    b->be->ops->xent(b->be, b->at, b->mem[0], b->mem[5], b->tokens, 1.0 / (double)b->N, true,
                     xent_rows(b), b->size->m.vocab_size);
}

static int64_t optim_elements(const struct bench_op *b)
{
    return 12 * (int64_t)b->size->m.d_model * b->size->m.d_model;
}

static void op_sqnorm(struct bench_op *b)
{
    double *partials = (double *)(void *)(b->small + SMALL_SUMS);
    b->be->ops->sqnorm(b->be, DTYPE_F32, partials, b->mem[0], optim_elements(b));
}

static void op_adamw(struct bench_op *b)
{
    const struct clip_state *c = (const struct clip_state *)(const void *)b->small;
    const struct optim_step *s =
        (const struct optim_step *)(const void *)(b->small + sizeof(struct clip_state));
    b->be->ops->optim(b->be, DTYPE_F32, s, c, b->mem[0], b->mem[1], b->mem[2], b->mem[3], b->mem[4],
                      optim_elements(b));
}

// ---- printing -----------------------------------------------------------------------------------

/* What of its ceilings an op reaches; the larger share tells what it is bound by. */
static void report_op(const struct bench_op *b, const char *name, struct times *t)
{
    double p50 = quantile(t, 0.5);
    double p10 = quantile(t, 0.1);
    double p90 = quantile(t, 0.9);
    double of_product = b->flops / p50 / ceiling.product;
    double of_copy = b->bytes / p50 / ceiling.copy;
    (void)printf("  %-28s %9.3f ms  [%8.3f %8.3f] %8.1f GFLOP/s %7.1f GB/s  %3.0f %% of %s\n", name,
                 p50 * 1e3, p10 * 1e3, p90 * 1e3, b->flops / p50 * 1e-9, b->bytes / p50 * 1e-9,
                 100 * fmax(of_product, of_copy), of_product > of_copy ? "a product" : "copying");
    (void)printf("{\"bench\":\"op\",\"size\":\"%s\",\"op\":\"%s\",\"dtype\":\"%s\",\"n\":%d,"
                 "\"median_s\":%.6g,\"p10_s\":%.6g,\"p90_s\":%.6g,\"gflops\":%.5g,\"gbps\":%.5g,"
                 "\"of_product\":%.4f,\"of_copy\":%.4f",
                 b->size->name, name, b->at == DTYPE_BF16 ? "bf16" : "f32", t->n, p50, p10, p90,
                 b->flops / p50 * 1e-9, b->bytes / p50 * 1e-9, of_product, of_copy);
    if (b->tiles) {
        (void)printf(",\"kept_tiles\":%" PRId64 ",\"tiles\":%" PRId64, b->kept, b->tiles);
    }
    (void)printf("}\n");
}

/* A product of the model and how often a step has it. */
struct shape {
    const char *name;
    int64_t N, K;
    int times;
};

/* Seconds that the products of one step take by themselves, and oneDNN's; 0 where that is not there
 * beside our own. */
struct alone {
    double products_s, onednn_s;
};

/* A CPU backend that multiplies this itself, though oneDNN could: that has bf16 with AVX-512 alone,
 * where ours choose bf16. */
static struct cpu *beside_onednn(const struct bench_op *b)
{
    struct cpu *c = strcmp(b->be->ops->name, "cpu") == 0 ? (struct cpu *)b->be : NULL;
    bool own = c && c->own_bf16 && b->at == DTYPE_BF16 && c->lanes->best == DTYPE_BF16;
    return own && strcmp(cpu_gemm_name, "oneDNN") == 0 ? c : NULL;
}

static double bench_product(struct bench_op *b, const char *name, double seconds, bool print)
{
    struct times t = measure(b, op_gemm, seconds);
    if (print) {
        report_op(b, name, &t);
    }
    return quantile(&t, 0.5);
}

/* A large vocabulary is multiplied in chunks of rows, as the model does it. */
static struct alone bench_products(struct bench_op *b, double seconds, bool print)
{
    struct cpu *other = beside_onednn(b);
    const struct model_spec *m = &b->size->m;
    int64_t d = m->d_model;
    const struct shape shapes[] = {
        {"qkv", 3 * d, d, m->n_layers}, {"out", d, d, m->n_layers},
        {"up", 4 * d, d, m->n_layers},  {"down", d, 4 * d, m->n_layers},
        {"head", m->vocab_size, d, 1},
    };
    static const char *const uses[] = {"fwd", "dgrad", "wgrad"};
    struct alone alone = {0};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        for (int use = 0; use < GEMM_USE_COUNT; use++) {
            b->g = (struct gemm){.use = (enum gemm_use)use,
                                 .a_type = b->at,
                                 .bias = use == GEMM_FWD && shapes[i].times > 1,
                                 .M = b->N,
                                 .N = shapes[i].N,
                                 .K = shapes[i].K};
            b->flops = 2.0 * (double)b->N * (double)shapes[i].N * (double)shapes[i].K;
            b->bytes = 0;
            char name[64];
            (void)snprintf(name, sizeof(name), "gemm %s %s", shapes[i].name, uses[use]);
            alone.products_s +=
                b->size->passes * shapes[i].times * bench_product(b, name, seconds, print);
            if (other) {
                other->own_bf16 = false;
                (void)snprintf(name, sizeof(name), "gemm %s %s by oneDNN", shapes[i].name,
                               uses[use]);
                alone.onednn_s +=
                    b->size->passes * shapes[i].times * bench_product(b, name, seconds, print);
                other->own_bf16 = true;
            }
        }
    }
    return alone;
}

static int32_t step_batch(const struct size *s)
{
    return s->batch * s->passes;
}

static double step_gemm_flops(const struct size *s)
{
    const struct model_spec *m = &s->m;
    double d = m->d_model;
    return 6.0 * (12.0 * m->n_layers * d * d + (double)m->vocab_size * d) * step_batch(s) *
           m->seq_len;
}

// ---- ops of a size
// --------------------------------------------------------------------------------

static bool alibi(struct bench_op *b)
{
    const struct model_spec *m = &b->size->m;
    if (m->position != POSITION_ALIBI) {
        return true;
    }
    size_t size = (size_t)m->n_heads * sizeof(float);
    float *slopes = mem_alloc(size);
    model_alibi_slopes(slopes, m->n_heads);
    b->slopes = b->be->ops->alloc(b->be, size);
    if (b->slopes) {
        b->be->ops->put(b->be, b->slopes, slopes, size);
    }
    mem_free(slopes);
    return b->slopes != NULL;
}

/* Room for the largest operand of any op of this size. */
static bool operands(struct bench_op *b)
{
    const struct model_spec *m = &b->size->m;
    int64_t d = m->d_model;
    int64_t head = opt.attn ? 0 : (b->N > d ? b->N : d) * m->vocab_size;
    int64_t most = 12 * d * d > 4 * b->N * d ? 12 * d * d : 4 * b->N * d;
    most = head > most ? head : most;
    for (int i = 0; i < 6; i++) {
        b->mem[i] = b->be->ops->alloc(b->be, (size_t)most * 4);
        if (!b->mem[i]) {
            return false;
        }
        mfu_fill(b->be, b->mem[i], b->at, b->at == DTYPE_F32 ? most : 2 * most);
    }
    // Gradients and statistics are fp32 whatever the dtype.
    size_t ids = (size_t)b->N * sizeof(*b->tokens);
    int32_t *tokens = mem_alloc(ids);
    for (int64_t i = 0; i < b->N; i++) {
        tokens[i] = (int32_t)(rng_u64(1, (uint64_t)i) % (uint64_t)m->vocab_size);
    }
    // Random gradients must not blow the weights up.
    const struct clip_state c = {.norm = 1, .factor = 1e-9, .finite = 1};
    const struct optim_step adamw = {OPTIM_ADAMW, 3, 1e-4, 0, 0.9, 0.95, 1e-8, 0.27, 0.14, 0};
    size_t partials = (size_t)(optim_elements(b) / NORM_CHUNK + 1) * sizeof(double);
    b->tokens = b->be->ops->alloc(b->be, ids);
    b->small = b->be->ops->alloc(b->be, SMALL_SUMS + partials);
    bool gpu = strcmp(b->be->ops->name, "cuda") == 0;
    b->wipe = gpu ? b->be->ops->alloc(b->be, WIPE_SIZE) : NULL;
    bool room = b->tokens && b->small && (b->wipe || !gpu) && alibi(b);
    if (room) {
        b->be->ops->put(b->be, b->tokens, tokens, ids);
        b->be->ops->put(b->be, b->small, &c, sizeof(c));
        b->be->ops->put(b->be, b->small + sizeof(c), &adamw, sizeof(adamw));
    }
    mem_free(tokens);
    return room;
}

static void operands_free(struct bench_op *b)
{
    for (int i = 0; i < 6; i++) {
        b->be->ops->release(b->be, b->mem[i]);
    }
    b->be->ops->release(b->be, b->tokens);
    b->be->ops->release(b->be, b->small);
    b->be->ops->release(b->be, b->slopes);
    b->be->ops->release(b->be, b->wipe);
}

static float element_at(const struct bench_op *b, const void *from, int64_t i)
{
    return b->at == DTYPE_BF16 ? master_join(((const uint16_t *)from)[i], 0)
                               : ((const float *)from)[i];
}

/* The largest norm of each tile's rows: row i of this head begins at from + i ld. */
static void tile_norms(const struct bench_op *b, const char *from, int64_t ld, float *out)
{
    const struct model_spec *m = &b->size->m;
    int64_t D = m->d_model / m->n_heads;
    for (int64_t i = 0; i < m->seq_len; i++) {
        const char *row = from + (size_t)(i * ld) * dtype_size(b->at);
        float sum = 0;
        for (int64_t c = 0; c < D; c++) {
            sum += element_at(b, row, c) * element_at(b, row, c);
        }
        float norm = ATTN_NORM_SLACK * sqrtf(sum);
        out[i / SKIP_ROWS] = i % SKIP_ROWS ? fmaxf(out[i / SKIP_ROWS], norm) : norm;
    }
}

static int64_t kept_of_head(const struct bench_op *b, const float *q, const float *k, float slope)
{
    const struct model_spec *m = &b->size->m;
    int64_t tiles = (m->seq_len + SKIP_ROWS - 1) / SKIP_ROWS;
    float scale = 1.0f / sqrtf((float)(m->d_model / m->n_heads));
    int64_t kept = 0;
    for (int64_t i = 0; i < tiles; i++) {
        for (int64_t j = 0; j <= i; j++) {
            float gap = (float)((i - j - 1) * SKIP_ROWS + 1);
            kept += i == j || !attn_can_skip(q[i], k[j], k[i], scale, slope, gap);
        }
    }
    return kept;
}

/*
 * How many of the causal tiles the rule of attn_skip.h keeps. It depends on the norms of q and k,
 * so this is of the numbers in mem[0] alone, as the backend is about to see them: a trained model
 * keeps more or fewer.
 */
static void count_tiles(struct bench_op *b)
{
    const struct model_spec *m = &b->size->m;
    int64_t tiles = (m->seq_len + SKIP_ROWS - 1) / SKIP_ROWS;
    int64_t d = m->d_model;
    b->kept = b->tiles = (int64_t)b->size->batch * m->n_heads * tiles * (tiles + 1) / 2;
    if (!b->slopes) {
        return;
    }
    size_t e = dtype_size(b->at);
    size_t size = (size_t)(3 * d * m->seq_len) * e; // of q, k and v of one sequence
    char *qkv = mem_alloc(size);
    float *q = mem_alloc((size_t)tiles * sizeof(*q));
    float *k = mem_alloc((size_t)tiles * sizeof(*k));
    float *slopes = mem_alloc((size_t)m->n_heads * sizeof(*slopes));
    model_alibi_slopes(slopes, m->n_heads);
    b->kept = 0;
    for (int32_t row = 0; row < b->size->batch; row++) {
        b->be->ops->get(b->be, qkv, b->mem[0] + (size_t)row * size, size);
        for (int32_t h = 0; h < m->n_heads; h++) {
            const char *head = qkv + (size_t)(h * (d / m->n_heads)) * e;
            tile_norms(b, head, 3 * d, q);
            tile_norms(b, head + (size_t)d * e, 3 * d, k);
            b->kept += kept_of_head(b, q, k, slopes[h]);
        }
    }
    mem_free(slopes);
    mem_free(k);
    mem_free(q);
    mem_free(qkv);
}

static void one(struct bench_op *b, const char *name, op_fn *fn, double flops, double bytes)
{
    b->flops = flops;
    b->bytes = bytes;
    struct times t = measure(b, fn, 0.2);
    report_op(b, name, &t);
}

static void bench_attn(struct bench_op *b, double pairs, double nd)
{
    const struct model_spec *m = &b->size->m;
    double e = (double)dtype_size(b->at);
    mfu_fill(b->be, b->mem[0], b->at, 3 * b->N * m->d_model); // products have written there
    count_tiles(b);
    (void)printf("  attention's scores, by ALiBi's rule on these numbers: kept tiles %" PRId64
                 " of %" PRId64 " (%.1f %%)\n",
                 b->kept, b->tiles, 100.0 * (double)b->kept / (double)b->tiles);
    one(b, "attn_fwd", op_attn_fwd, 2 * pairs, 4 * e * nd);
    one(b, "attn_bwd", op_attn_bwd, 5 * pairs, 8 * e * nd);
    b->tiles = 0;
}

static void bench_ops(struct bench_op *b)
{
    const struct model_spec *m = &b->size->m;
    double e = (double)dtype_size(b->at);
    double nd = (double)b->N * m->d_model;
    double p = (double)optim_elements(b);
    double pairs = (double)b->N * m->seq_len * m->d_model; // causal: half of 2 N T d, twice
    double xv = (double)xent_rows(b) * m->vocab_size;
    bench_attn(b, pairs, nd);
    if (opt.attn) {
        return;
    }
    one(b, "embed_fwd", op_embed_fwd, 0, 3 * e * nd);
    one(b, "embed_bwd", op_embed_bwd, 0, (e + 16) * nd);
    one(b, "norm_fwd", op_norm_fwd, 0, 4 * e * nd);
    one(b, "norm_bwd", op_norm_bwd, 0, 4 * e * nd);
    one(b, "bias_bwd 4d", op_bias_bwd, 0, 4 * e * nd);
    one(b, "gelu_fwd", op_gelu_fwd, 0, 8 * e * nd);
    one(b, "gelu_bwd", op_gelu_bwd, 0, 12 * e * nd);
    mfu_fill(b->be, b->mem[0], b->at, (int64_t)xv);
    one(b, "xent 512 rows", op_xent, 0, 2 * e * xv);
    for (int i = 0; i < 5; i++) {
        mfu_fill(b->be, b->mem[i], DTYPE_F32, (int64_t)p);
    }
    one(b, "sqnorm 12dd", op_sqnorm, 0, 4 * p);
    one(b, "adamw 12dd", op_adamw, 0, 30 * p);
}

// ---- steps
// ----------------------------------------------------------------------------------------

static enum status random_rows(void *ctx, int64_t step, int32_t rows, int32_t seq_len, int32_t *out,
                               struct err *e)
{
    const struct size *s = ctx;
    (void)e;
    for (int64_t i = 0; i < (int64_t)rows * (seq_len + 1); i++) {
        out[i] = (int32_t)(rng_u64((uint64_t)step, (uint64_t)i) % (uint64_t)s->m.vocab_size);
    }
    return ST_OK;
}

/*
 * Weights of about the right size, the same million again and again: to draw those of a large model
 * by the rule, and read them from a file, would take longer than the steps.
 */
static enum status put_weights(struct trainer *t, struct err *e)
{
    enum { PIECE = 1 << 20 };
    struct model *m = trainer_model(t);
    int64_t total = trainer_params(t)->total;
    float *piece = mem_alloc(PIECE * sizeof(*piece));
    params_init(trainer_params(t), 1, 0, total < PIECE ? total : PIECE, piece); // of the embedding
    for (int64_t at = 0; at < total; at += PIECE) {
        int64_t n = total - at < PIECE ? total - at : PIECE;
        model_put(m, model_flat(m).weights, at, n, piece);
    }
    for (int32_t i = 0; i < trainer_params(t)->count; i++) {
        const struct param *p = &trainer_params(t)->items[i];
        if (p->rank == 1) { // gains and biases
            params_init(trainer_params(t), 1, p->offset, p->count, piece);
            model_put(m, model_flat(m).weights, p->offset, p->count, piece);
        }
    }
    enum status st = trainer_weights(t, 0, 1, piece, e); // when all of it has arrived
    mem_free(piece);
    return st;
}

static struct trainer_config config_of(struct size *s)
{
    return (struct trainer_config){
        .model = s->m,
        .inner = {.optimizer = INNER_ADAMW,
                  .lr = 1e-4,
                  .beta1 = 0.9,
                  .beta2 = 0.95,
                  .eps = 1e-8,
                  .clip_norm = 1,
                  .batch = step_batch(s),
                  .micro_batch = s->gpu ? 0 : s->batch, /* 0: what the device has room for */
                  .warmup = 10,
                  .schedule_steps = 10000,
                  .min_lr_ratio = 0.1},
        .rows = {.ctx = s, .train = random_rows},
        .device = opt.device,
        .dtype = opt.dtype,
        .threads = opt.threads,
    };
}

static enum status run_steps(struct trainer *t, struct times *times, struct times *cpu,
                             double *loss, struct err *e)
{
    struct step_report r;
    int64_t step = 0;
    trainer_run_until(t,
                      INT64_MAX); // a step's report is that of the one before, where that is faster
    for (; step < 2; step++) {    // warm-up: pages, code, caches
        TRY(trainer_step(t, step, &r, e));
    }
    double end = clock_mono_s() + opt.seconds;
    while (times->n < 5 || (clock_mono_s() < end && times->n < TIMES_MAX)) {
        double start = clock_mono_s();
        double start_cpu = cpu_now();
        TRY(trainer_step(t, step++, &r, e));
        times->s[times->n++] = clock_mono_s() - start;
        cpu->s[cpu->n++] = cpu_now() - start_cpu;
    }
    *loss = r.loss;
    return ST_OK;
}

static enum status bench_steps(const struct size *size, struct alone alone, struct err *e)
{
    struct size s = *size; // the row source's context is not const
    struct trainer_config c = config_of(&s);
    struct trainer *t = NULL;
    struct times times = {0};
    struct times cpu = {0};
    double loss = 0;
    TRY(trainer_open(&t, &c, e));
    enum status st = put_weights(t, e);
    if (!st) {
        st = run_steps(t, &times, &cpu, &loss, e);
    }
    char what[96];
    double planned = (double)model_plan(trainer_model(t))->total;
    trainer_describe(t, what);
    trainer_close(t);
    if (st) {
        return st;
    }
    double p50 = quantile(&times, 0.5);
    double p10 = quantile(&times, 0.1);
    double p90 = quantile(&times, 0.9);
    double tokens = (double)step_batch(&s) * s.m.seq_len;
    double flops = step_gemm_flops(&s);
    double causal = mfu_token_flops(&s.m) * tokens;
    double full = causal + 6.0 * s.m.n_layers * s.m.d_model * s.m.seq_len * tokens;
    double load = load_now();
    (void)printf(
        "%s step, %s: %.1f ms [%.1f %.1f], %.0f tokens/s, %.1f GFLOP/s of products, %.0f %% "
        "of their own rate, %.1f GiB planned, loss %.3f, load %.1f%s\n",
        s.name, what, p50 * 1e3, p10 * 1e3, p90 * 1e3, tokens / p50, flops / p50 * 1e-9,
        100 * alone.products_s / p50, planned / (1 << 30), loss, load,
        load > 1.2 * (double)sysconf(_SC_NPROCESSORS_ONLN) ? ": UNRELIABLE" : "");
    if (alone.onednn_s > 0) {
        (void)printf("  %.0f %% of the rate at which oneDNN does these products alone\n",
                     100 * alone.onednn_s / p50);
    }
    (void)printf(
        "  MFU of a large product's rate here: %.1f %% with causal attention (6 L d T a token), "
        "%.1f %% with all of it (12 L d T)\n",
        100 * causal / p50 / ceiling.product, 100 * full / p50 / ceiling.product);
    (void)printf(
        "{\"bench\":\"step\",\"size\":\"%s\",\"what\":\"%s\",\"n\":%d,\"median_s\":%.6g,"
        "\"p10_s\":%.6g,\"p90_s\":%.6g,\"cpu_s\":%.6g,\"tokens_per_s\":%.6g,\"gemm_gflops\":%.5g,"
        "\"model_gflops_causal\":%.5g,\"model_gflops_full\":%.5g,\"mfu_causal\":%.4f,"
        "\"mfu_full\":%.4f,\"gemm_own_s\":%.6g,\"share\":%.4f,\"onednn_s\":%.6g,\"planned_bytes\":%"
        ".0f,"
        "\"loss\":%.5g,\"load\":%.2f}\n",
        s.name, what, times.n, p50, p10, p90, quantile(&cpu, 0.5), tokens / p50, flops / p50 * 1e-9,
        causal / p50 * 1e-9, full / p50 * 1e-9, causal / p50 / ceiling.product,
        full / p50 / ceiling.product, alone.products_s, alone.products_s / p50, alone.onednn_s,
        planned, loss, load);
    return ST_OK;
}

static enum status bench_size(struct backend *be, enum dtype at, const struct size *s,
                              struct err *e)
{
    struct bench_op b = {.be = be, .at = at, .size = s, .N = (int64_t)s->batch * s->m.seq_len};
    if (!operands(&b)) {
        operands_free(&b);
        return err_set(e, ST_NOMEM, "no memory for the operands of %s", s->name);
    }
    if (b.wipe) {
        struct times call = measure(&b, op_next_to_nothing, 0.05);
        b.call_s = quantile(&call, 0.5);
        (void)printf("%s: a launch and the wait for it, taken off each op: %.1f us\n", s->name,
                     b.call_s * 1e6);
    }
    struct alone alone = {0};
    if (!opt.attn) {
        alone = bench_products(&b, 0.1, opt.ops);
        (void)printf("%s: the products of a step alone: %.1f ms, %.1f GFLOP/s\n", s->name,
                     alone.products_s * 1e3, step_gemm_flops(s) / alone.products_s * 1e-9);
    }
    if (alone.onednn_s > 0) {
        (void)printf("%s: the same by oneDNN: %.1f ms, %.1f GFLOP/s\n", s->name,
                     alone.onednn_s * 1e3, step_gemm_flops(s) / alone.onednn_s * 1e-9);
    }
    if (opt.ops) {
        bench_ops(&b);
    }
    operands_free(&b);
    return opt.steps ? bench_steps(s, alone, e) : ST_OK;
}

// ---- command line -------------------------------------------------------------------------------

static bool parse(int argc, char **argv)
{
    bool any = false;
    for (int i = 1; i < argc; i += 2) {
        const char *key = argv[i];
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!value) {
            return false;
        }
        bool known = true;
        if (!strcmp(key, "--device")) {
            opt.device = value;
        } else if (!strcmp(key, "--dtype")) {
            opt.dtype = value;
        } else if (!strcmp(key, "--threads")) {
            opt.threads = (int)strtol(value, NULL, 10);
        } else if (!strcmp(key, "--seconds")) {
            opt.seconds = strtod(value, NULL);
        } else if (!strcmp(key, "--only")) {
            opt.attn = !strcmp(value, "attn");
            opt.ops = opt.attn || !strcmp(value, "ops");
            opt.steps = !strcmp(value, "steps");
            known = opt.ops || opt.steps;
        } else if (!strcmp(key, "--size")) {
            known = false;
            for (int k = 0; k < SIZE_COUNT; k++) {
                if (!strcmp(value, SIZES[k].name)) {
                    opt.size[k] = any = known = true;
                }
            }
        } else {
            known = false;
        }
        if (!known) {
            return false;
        }
    }
    for (int k = 0; k < SIZE_COUNT && !any; k++) {
        opt.size[k] = SIZES[k].gpu == !strcmp(opt.device, "cuda");
    }
    return true;
}

static enum status bench_all(struct err *e)
{
    struct backend *be = NULL;
    TRY(trainer_words_check(opt.device, opt.dtype, e));
    TRY(backend_open(&be, opt.device, opt.threads, e));
    enum dtype at = backend_dtype(be, opt.dtype);
    const char *wait = getenv("OMP_WAIT_POLICY");
    const char *attention = getenv("PHOTON_CUDA_ATTN");
    ceiling.copy = copy_rate(be);
    ceiling.block = block_rate(be, at);
    enum status st = mfu_peak(opt.device, opt.threads, opt.dtype, &ceiling.product, e);
    (void)printf(
        "device %s, %d threads, %s, a large product %.1f GFLOP/s, copy %.1f GB/s, load %.1f, "
        "OMP_WAIT_POLICY %s\n",
        be->ops->name, be->threads, dtype_name(at), ceiling.product * 1e-9, ceiling.copy * 1e-9,
        load_now(), wait ? wait : "unset");
    if (ceiling.block > 0) {
        (void)printf("  products from the first cache alone %.1f GFLOP/s\n", ceiling.block * 1e-9);
    }
    (void)printf("{\"bench\":\"machine\",\"device\":\"%s\",\"threads\":%d,\"product_gflops\":%.5g,"
                 "\"block_gflops\":%.5g,\"copy_gbps\":%.4g,\"load\":%.2f,\"attention\":\"%s\"}\n",
                 be->ops->name, be->threads, ceiling.product * 1e-9, ceiling.block * 1e-9,
                 ceiling.copy * 1e-9, load_now(), attention ? attention : "");
    for (int k = 0; k < SIZE_COUNT && !st; k++) {
        if (opt.size[k]) {
            st = bench_size(be, at, &SIZES[k], e);
            (void)fflush(stdout);
        }
    }
    backend_close(be);
    return st;
}

int main(int argc, char **argv)
{
    struct err e;
    if (!parse(argc, argv)) {
        (void)fprintf(stderr,
                      "usage: %s [--device D] [--dtype T] [--threads N] [--size "
                      "5.8m|29m|125m|125m-2k|1b-2k|3b-2k|7b-2k]... "
                      "[--seconds S] [--only ops|steps|attn]\n",
                      argv[0]);
        return 2;
    }
    (void)setvbuf(stdout, NULL, _IOLBF, 0); // who ends it early has what was measured by then
    if (bench_all(&e)) {
        (void)fprintf(stderr, "bench_engine: %s\n", e.msg);
        return 1;
    }
    return 0;
}
