/*
 * aggregate_block.h - one block of an aggregation: read, summed, stepped, written.
 *
 * The part of aggregate.h that knows numbers. A block is at most AGGREGATE_BLOCK elements of the
 * flat order; what becomes of it depends on nothing outside of it but the weights, so any thread
 * may take any block. Blocks share no memory: each thread has a bench. What concerns all blocks
 * (their order, norms over the whole, digests of the output) is aggregate.c's.
 *
 *     updates --read, decode--> [v_k] --w_k--> D --outer step--> x', state' --write--> files
 *
 * Sums run in double over LANES partial sums of a fixed order, so that vector registers change no
 * bit.
 */
#ifndef SERVER_AGGREGATE_BLOCK_H
#define SERVER_AGGREGATE_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/outer.h"
#include "server/aggregate.h"

/* Inputs whose block is kept in memory between the sum and the cosines; those beyond are read again
 * (from the page cache), so that memory does not grow with the number of updates. */
enum { KEPT_INPUTS = 16 };

/* A block: a group of a tensor, or a stretch of a table that names none. */
struct block {
    int64_t at, n; /* of the flat order */
    int32_t tensor;
    int64_t group;
};

/* What one thread works with; one block of everything. */
struct bench {
    uint8_t *scratch; /* a coded group's bytes */
    float *raw;       /* bytes as they are in a file */
    float *kept;      /* [KEPT_INPUTS][AGGREGATE_BLOCK] */
    double *delta;    /* D */
    double *x;
    double *before;                   /* x of the base, for the step's norm */
    double *arrays[OUTER_ARRAYS_MAX]; /* the outer state */
    /* This block's part of the sums over all parameters. */
    double delta_sq, step_sq;
    double *sq;  /* [input_count] */
    double *dot; /* [input_count] */
    bool finite;
    int corrupt; /* the update that could not be read, or -1 */
    /* What was written, kept until the digests' turn comes. */
    float *out_x;
    float *out_arrays[OUTER_ARRAYS_MAX];
};

/* What all blocks are made with. Borrowed. */
struct mix {
    const struct aggregate_job *job;
    const double *shares;  /* [input_count], add up to 1 */
    const double *weights; /* [input_count], shares after clipping */
    bool cosines;          /* are wanted */
};

/* Every tensor's groups in the flat order, count of them; the caller frees the list. */
struct block *blocks_make(const struct param_table *t, int64_t *count);

void bench_init(struct bench *b, const struct aggregate_job *j);
void bench_release(struct bench *b);

/* Each update's part of its norm into b->sq, nothing else. ST_CORRUPT: b->corrupt says which. */
enum status block_measure(const struct mix *w, struct bench *b, const struct block *at,
                          struct err *e) MUST_CHECK;

/* The block of the new files, and its part of every sum in b. ST_CORRUPT: b->corrupt says which
 * update, or -1: the base or its state ends early. */
enum status block_fold(const struct mix *w, struct bench *b, const struct block *at,
                       struct err *e) MUST_CHECK;

/* n floats at an offset of a file. ST_CORRUPT: it ends early. */
enum status block_read(int fd, int64_t offset, float *out, int64_t n, struct err *e) MUST_CHECK;

/* Where array i of an outer state begins whose first begins at offset. */
int64_t aggregate_array_at(const struct aggregate_job *j, int64_t offset, int i);

/* Do the updates hold moments of the inner optimizer? */
bool aggregate_moments(const struct aggregate_job *j);

#endif
