/*
 * codec_file.h - a model's deltas as a safetensors file, each tensor on its own rung.
 *
 * Tensor T of n values is the parts below; the parts that are there say which rung it is on.
 *
 *     f32, bf16   T                F32 or BF16, T's shape
 *     int8        T:q8 I8, T's shape       T:scale BF16 [ceil(n / 256)]
 *     q4, q2      T:q4 U8 [ceil(n / 2)] or T:q2 U8 [ceil(n / 4)]   T:scale   T:level BF16 [8 or 2]
 *     topk        T:val U8 [ceil(kept / 4)]  T:gap U8 [bytes]  T:gap_at U32 [groups + 1]
 *                 T:mag BF16 [groups, 2]
 *
 * Parts lie by falling element size, then in the table's order, then by name; nothing between them.
 * The metadata say `codec`, the rung that was asked for; on other rungs than f32 also `fallback`,
 * the tensors sent one rung up (joined by commas), and under topk `k`. Norms and biases (rank 1)
 * are never below int8. Same values, same bytes: whoever reads a file makes its header anew from
 * the rungs found in it and compares, so that there is one way to write each file.
 *
 * A reader holds offsets and levels, in sizes that follow from the table, never from the file;
 * values and the places of gaps are read a group at a time.
 */
#ifndef COMMON_CODEC_FILE_H
#define COMMON_CODEC_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/codec.h"
#include "common/hash.h"
#include "common/params.h"
#include "common/safetensors.h"
#include "common/status.h"

struct coded_tensor {
    struct codec_rule rule;
    int64_t first, count;        /* in the flat order */
    int64_t at[CODEC_PARTS];     /* of main, side and gap: bytes from the file's start */
    int64_t size[CODEC_PARTS];   /* of the whole parts */
    int64_t level_at, gap_at_at; /* the same of the parts that say levels and places of gaps */
    const uint32_t *gap_at;      /* while coding: groups + 1 places in the gap part */
};

struct coded_file {
    const struct param_table *table;
    enum codec codec; /* asked for; tensors may be one rung up */
    int32_t k;
    struct coded_tensor *tensors; /* as in the table */
    int64_t data_offset;
    int64_t bytes; /* the whole file */
};

/* The metadata around codec, fallback and k: before and after them. A value of NULL is, to readers,
 * any of 16 characters. */
struct coded_meta {
    const struct st_meta *before;
    int before_count;
    const struct st_meta *after;
    int after_count;
};

/* ---- reading ---- */

/*
 * Reads the header of a file that should be of this codec and k, and what readers hold, into the
 * arena. meta: what its metadata must be. ST_CORRUPT says what is wrong. The file is the caller's
 * and stays open.
 */
enum status coded_open(struct coded_file *out, struct arena *a, int fd, const struct param_table *t,
                       enum codec codec, int32_t k, const struct coded_meta *meta,
                       struct err *e) MUST_CHECK;

/* What a file of this codec can weigh at most, whatever fell back. f32: exactly. */
int64_t coded_bytes_max(const struct param_table *t, enum codec codec, int32_t k,
                        const struct coded_meta *meta);

enum { CODED_SCRATCH = 6 * CODEC_GROUP }; /* bytes that a group's parts take at most */

/*
 * out[0..n) = the values of a group, n as coded_group() says. scratch has CODED_SCRATCH bytes.
 * ST_CORRUPT as codec_decode(), or the file ends early; ST_IO.
 */
enum status coded_read(const struct coded_file *f, int fd, int32_t tensor, int64_t group,
                       uint8_t *scratch, float *out, struct err *e) MUST_CHECK;

/* Values [*first, *first + *n) of the flat order. */
void coded_group(const struct param_table *t, int32_t tensor, int64_t group, int64_t *first,
                 int64_t *n);
int64_t coded_groups(const struct param_table *t, int32_t tensor);

/* Every value is decoded; the Euclidean norm of all. */
enum status coded_norm(const struct coded_file *f, int fd, double *norm, struct err *e) MUST_CHECK;

/* ---- writing ---- */

/* Groups that were coded elsewhere. */
struct coded_piece {
    int64_t first, n;         /* of the flat order: groups of one tensor */
    struct codec_parts parts; /* the host's memory, until the next piece but one is begun */
    const struct codec_result *results; /* of each group */
};

/*
 * Where the values are on a device they are coded there, a piece of at most `groups` groups at a
 * time: begin starts on one, end waits for the first that was begun and not ended and gives its
 * parts; two are in hand at once. end also does what wrote would. read is asked for samples alone.
 */
struct coded_coder {
    int64_t groups;
    enum status (*begin)(void *ctx, const struct codec_rule *r, int64_t first, int64_t n,
                         struct err *e);
    enum status (*end)(void *ctx, struct coded_piece *out, struct err *e);
};

/*
 * The values to code. read fills u[0..n) with those from `first` of the flat order on, the same
 * each time, and adds the square of what is new in them (without a residual) to *fresh. wrote,
 * which may be NULL, is told what a reader will see; again for a tensor's groups when it goes one
 * rung up.
 */
struct coded_source {
    void *ctx;
    enum status (*read)(void *ctx, int64_t first, int64_t n, float *u, double *fresh,
                        struct err *e);
    enum status (*wrote)(void *ctx, int64_t first, int64_t n, const float *u, const float *v,
                         struct err *e);
    const struct coded_coder *coder; /* or NULL: values are coded by this thread */
};

/* What coding did to the values. */
struct coded_report {
    double error;          /* ||u - v|| / ||u||, 0 when u is 0 */
    double cosine;         /* of u and v, 1 when u is 0 */
    double residual_ratio; /* ||u - v|| / ||fresh||, 0 when nothing is fresh */
    int32_t fallbacks;     /* tensors one rung up */
    double fallback_share; /* their share of the parameters */
};

/* Share of the parameters one rung up from which on the rung itself is too low. */
#define CODED_FALLBACK_MAX 0.1
enum { CODED_GUARD_ROUNDS = 10 }; /* so long the next ones go one rung up then */

/* Values coded into a scratch file, not yet an update or delta. */
struct coding {
    int fd; /* scratch, the caller's */
    struct coded_file file;
    struct coded_report report;
};

/*
 * Codes every tensor into the scratch file fd. A tensor whose error is out of bounds goes one rung
 * up: bf16 .005, int8 .03, q4 .16 (after learning its levels), q2 .6, topk when the cosine is below
 * .20 or the residual over 15 times what is fresh. ST_INVALID: a value is not finite or beyond
 * 2^100.
 */
enum status coding_run(struct coding *c, struct arena *a, int fd, const struct param_table *t,
                       enum codec codec, int32_t k, const struct coded_source *source,
                       struct err *e) MUST_CHECK;

/* The length of that file, before there is one. */
int64_t coding_bytes(const struct coding *c, struct arena *a, const struct coded_meta *meta);

/* The whole file into out_fd, from its start; *digest is its SHA-256, *bytes its length. */
enum status coding_place(const struct coding *c, struct arena *a, int out_fd,
                         const struct coded_meta *meta, struct digest *digest, int64_t *bytes,
                         struct err *e) MUST_CHECK;

#endif
