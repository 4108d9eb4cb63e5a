/*
 * cpu.h - the inside of the CPU backend: its state, and what one instruction set offers it.
 *
 * Three layers. lanes_*.c compile the same kernels (rows.h, attn.h, gemm.h, step.h) once per
 * instruction set into a table `struct lanes`; a kernel works on a range, alone, without threads.
 * ops_*.c cut each op into ranges and spread them over threads with OpenMP. backend.c chooses the
 * lanes once, at open, and fills in the op table.
 *
 * Which thread does which range never changes the bits: a range is either independent of the others
 * or leaves a partial sum that is added in range order, and those are cut by size alone.
 */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/backend.h"

/* More than any machine has; a typing error, not a wish. */
enum { CPU_THREADS_MAX = 1024 };

/* Rows whose column sums are one partial sum (norm_bwd, bias_bwd). */
enum { ROW_BLOCK = 64 };

/* Columns a thread takes at a time: enough for the prefetcher, few enough for sums in L1. */
enum { COLUMN_BLOCK = 256 };

/* Queries and keys of an attention tile; a multiple of every MR and of every 2 VL. */
enum { ATTN_TILE = 64 };

struct attn {
    enum dtype at;
    int64_t B, T, H, D;
    const void *qkv;
    const float *slopes;   /* or NULL */
    void *o;               /* forward writes them, */
    float *lse;            /* (B, H, T)            */
    const void *o_read;    /* backward reads them  */
    const float *lse_read; /* (B, H, T)            */
    const void *dout;      /* backward             */
    void *dqkv;            /* backward             */
    int64_t parts;         /* forward: how many share one head's query tiles */
};

/* What of a head's backward pass is done: tiles [0, 1) of keys and queries, and whose gradients. */
struct attn_range {
    int64_t key0, key1, query0, query1;
    bool keys, queries;
};

/* Working space: of a thread forward; backward of a packed head, and of a thread. */
enum attn_memory { ATTN_FORWARD, ATTN_HEAD, ATTN_WORK };

/* A head is packed in this many parts, in any order. */
enum { ATTN_PACK_PARTS = 5 };

/* Rows and columns of a block of a product's output, */
enum { GEMM_SIDE = 128 };
/* and how much of the inner dimension is packed at a time, units. */
enum { GEMM_CHUNK = 1024 };

/* A before packing, or B: rows of the output, or columns of it, by the dimension summed over. */
struct gemm_operand {
    const void *p;
    int64_t outer;
    int64_t ld; /* elements from one row to the next, or from one element of the sum to the next, */
    bool inner_contiguous; /* as these lie beside each other, or those */
};

/* A product of our own, see gemm.h. Units are 4 bytes: one float, or two bf16 along the inner
 * dimension where the lanes have `pairs`. */
struct gemm_task {
    bool bf16; /* the operands */
    int64_t inner, units;
    int64_t pitch; /* units from one packed row to the next: odd, so that groups do not all lie in
                      the same sets of a cache */
    void *out;
    enum dtype out_type;
    bool accumulate;
    const void *bias; /* or NULL */
    enum dtype bias_type;
    int64_t n; /* columns of the whole output */
};

/* What is packed: rows or columns [first, first + count) and units [unit, end), `group` rows beside
 * each other. */
struct gemm_part {
    int64_t first, count, unit, end, group;
};

/* A block of the output, and units [unit, end) of its operands, packed. */
struct gemm_block {
    int64_t row, rows, col, cols;
    int64_t unit, end;
    const uint32_t *a, *b;
    float *sums; /* (GEMM_SIDE, GEMM_SIDE), kept from one chunk of units to the next */
};

struct lanes {
    const char *name;
    enum dtype best; /* what a training computes in that leaves the choice to us */
    bool own_bf16;   /* our own product of bf16 serves: oneDNN's is slower */
    bool pairs;      /* and multiplies pairs of them; else each was widened to a float */

    void (*embed_fwd)(enum dtype at, void *x, const int32_t *tokens, const void *wte,
                      const void *wpe, int64_t T, int64_t C, int64_t row0, int64_t row1);
    void (*embed_bwd)(enum dtype at, float *dwte, float *dwpe, const int32_t *tokens,
                      const void *dx, int64_t N, int64_t T, int64_t C, int64_t col0, int64_t col1);
    void (*norm_fwd)(enum dtype at, void *xs, void *out, float *mean, float *rstd, const void *x,
                     const void *y, const void *g, const void *b, int64_t C, int64_t row0,
                     int64_t row1);
    /* dg_part, db_part (C) are overwritten with these rows' sums */
    void (*norm_bwd)(enum dtype at, void *dx, float *dg_part, float *db_part, const void *dout,
                     const void *xs, const float *mean, const float *rstd, const void *g, int64_t C,
                     int64_t row0, int64_t row1);
    /* sum[c] += part[0][c] + part[1][c] + ... in this order, columns [col0, col1) */
    void (*add_parts)(float *sum, const float *parts, int64_t count, int64_t stride, int64_t col0,
                      int64_t col1);
    void (*bias_bwd)(enum dtype at, float *db, const void *dy, int64_t M, int64_t N, int64_t col0,
                     int64_t col1);
    void (*gelu_fwd)(enum dtype at, void *a, const void *h, int64_t i0, int64_t i1);
    void (*gelu_bwd)(enum dtype at, void *dh, const void *h, const void *da, int64_t i0,
                     int64_t i1);
    void (*xent)(enum dtype at, void *logits, float *loss, const int32_t *targets, float inv_n,
                 bool train, int64_t V, int64_t row0, int64_t row1);
    double (*sqnorm)(const float *g, int64_t n);
    void (*optim)(const struct optim_step *s, double factor, void *w, uint16_t *rest, float *m,
                  float *v, const float *g, int64_t n);

    /* Bytes one thread needs; a multiple of 64. */
    size_t (*attn_scratch)(const struct attn *x, enum attn_memory what);
    /* Head `item` of B*H; forward: only the query tiles part, part + parts, ... */
    void (*attn_fwd)(const struct attn *x, int64_t item, int64_t part, void *scratch);
    void (*attn_pack)(const struct attn *x, int64_t item, int part, void *head, void *work);
    void (*attn_bwd)(const struct attn *x, int64_t item, const struct attn_range *range, void *head,
                     void *work);

    /* Our own product: how many rows of A, columns of B are packed beside each other. */
    int64_t a_group, b_group;
    void (*gemm_pack)(const struct gemm_task *t, const struct gemm_operand *x,
                      const struct gemm_part *part, uint32_t *out);
    void (*gemm_block)(const struct gemm_task *t, const struct gemm_block *b);
};

extern const struct lanes lanes_base;
#if defined(__x86_64__)
extern const struct lanes lanes_avx2;
extern const struct lanes lanes_avx512;
extern const struct lanes lanes_bf16;
extern const struct lanes lanes_amx;
#endif

struct gemm_plans; /* what gemm_dnnl.c or gemm_own.c remembers between calls */

struct cpu {
    struct backend be;
    const struct lanes *lanes;
    bool own_bf16; /* the lanes', until a test or a bench wants oneDNN's */
    struct gemm_plans *plans;
    void
        *scratch; /* grows to the largest op seen, so that a step in its stride allocates nothing */
    size_t scratch_size;
    const char *failed; /* the first failure since the last sync, static text */
};

/* At least this much, 64-byte aligned; NULL, and the backend has failed, when memory is out. */
void *cpu_scratch(struct cpu *c, size_t size);
void cpu_fail(struct cpu *c, const char *why);

/* gemm_dnnl.c or gemm_own.c */
enum status cpu_gemm_open(struct cpu *c, struct err *e) MUST_CHECK;
void cpu_gemm_close(struct cpu *c);
const char *cpu_plan_gemm(struct backend *be, const struct gemm *g);
void cpu_gemm(struct backend *be, const struct gemm *g, void *out, const void *a, const void *b,
              const void *bias);
extern const char cpu_gemm_name[]; /* who multiplies where own_bf16 does not say so, for benches */

/* gemm_blocked.c: our own product, for every shape and either build. Same bits on any number of
 * threads. */
const char *cpu_plan_gemm_blocked(struct backend *be, const struct gemm *g);
void cpu_gemm_blocked(struct backend *be, const struct gemm *g, void *out, const void *a,
                      const void *b, const void *bias);

/* ops_rows.c */
void cpu_embed_fwd(struct backend *be, enum dtype at, void *x, const int32_t *tokens,
                   const void *wte, const void *wpe, int64_t B, int64_t T, int64_t C);
void cpu_embed_bwd(struct backend *be, enum dtype at, void *dwte, void *dwpe, const int32_t *tokens,
                   const void *dx, int64_t B, int64_t T, int64_t C);
void cpu_norm_fwd(struct backend *be, enum dtype at, void *xs, void *out, void *mean, void *rstd,
                  const void *x, const void *y, const void *g, const void *b, int64_t N, int64_t C);
void cpu_norm_bwd(struct backend *be, enum dtype at, void *dx, void *dg, void *db, const void *dout,
                  const void *xs, const void *mean, const void *rstd, const void *g, int64_t N,
                  int64_t C);
void cpu_bias_bwd(struct backend *be, enum dtype at, void *db, const void *dy, int64_t M,
                  int64_t N);
void cpu_gelu_fwd(struct backend *be, enum dtype at, void *a, const void *h, int64_t n);
void cpu_gelu_bwd(struct backend *be, enum dtype at, void *dh, const void *h, const void *da,
                  int64_t n);
void cpu_xent(struct backend *be, enum dtype at, void *logits, void *loss, const int32_t *targets,
              double inv_n, bool train, int64_t rows, int64_t V);

/* ops_attn.c */
void cpu_attn_fwd(struct backend *be, enum dtype at, void *o, void *lse, const void *qkv,
                  const float *slopes, int64_t B, int64_t T, int64_t H, int64_t D);
void cpu_attn_bwd(struct backend *be, enum dtype at, void *dqkv, const void *qkv, const void *o,
                  const void *dout, const void *lse, const float *slopes, int64_t B, int64_t T,
                  int64_t H, int64_t D);

/* ops_step.c */
void cpu_sqnorm(struct backend *be, enum dtype gt, double *partials, const void *g, int64_t n);
void cpu_clip(struct backend *be, struct clip_state *out, const double *partials, int64_t count,
              double max_norm);
void cpu_optim(struct backend *be, enum dtype gt, const struct optim_step *steps,
               const struct clip_state *clip, void *w, void *rest, void *m, void *v, const void *g,
               int64_t n);
void cpu_delta(struct backend *be, float *u, struct codec_result *results, const void *w,
               const void *rest, const float *base, const float *residual, float beta, int64_t n);
void cpu_encode(struct backend *be, const struct codec_rule *rule, const struct codec_parts *out,
                struct codec_result *results, float *left, const float *u, int64_t n);
void cpu_zero(struct backend *be, void *p, size_t size);

#endif
