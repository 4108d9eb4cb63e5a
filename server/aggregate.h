/*
 * aggregate.h - fold updates into a new checkpoint, block by block.
 *
 * A pure function of files: (base weights, outer state, [updates in slot order with weights], outer
 * optimizer) -> (new weights, new outer state). Works through the parameters in blocks of at most
 * AGGREGATE_BLOCK elements, which are the groups of codec.h: for each block the updates are read in
 * the order given, decoded, summed in double with weights w_k / sum(w), the outer step is taken in
 * double and rounded once to fp32. Blocks are independent, so the bits do not depend on threads,
 * and memory is a few blocks per thread whatever the model's size and the number of updates. Files
 * are read with pread, never mapped whole, and output pages are dropped from memory as they are
 * written. What is not a function of one block (norms, digests of the output) is folded in block
 * order: a thread waits its turn.
 *
 * The rule itself is common/outer.h's. Where the spec bounds norms by their median, a pass before
 * measures them. An outer state's file holds its arrays one after the other (m, then v).
 *
 * Moments of the inner optimizer, where updates hold them, are averaged with the same weights and
 * go into the checkpoint. A tensor that no update of this round holds (common/layout.h) keeps its
 * weights and its outer state.
 */
#ifndef SERVER_AGGREGATE_H
#define SERVER_AGGREGATE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/codec_file.h"
#include "common/hash.h"
#include "common/layout.h"
#include "common/run_spec.h"
#include "common/status.h"

enum { AGGREGATE_BLOCK = CODEC_GROUP };

struct aggregate_input {
    int fd;              /* an update file: safetensors, F32, of the job's layout */
    int64_t data_offset; /* of its data section */
    /* How the file is coded; NULL: as plain F32. Codecs may differ from input to input. */
    const struct coded_file *coded;
    double weight; /* tokens, or 1 */
};

struct aggregate_job {
    const struct run_spec *spec;
    const struct param_table *table;
    int32_t round; /* outer steps with this one (schedule.h): a bias correction needs it */
    int base_fd;   /* checkpoint's weights */
    int64_t base_offset;
    int state_fd; /* outer state of the base, or -1: its first values */
    int64_t state_offset;
    const struct aggregate_input *inputs; /* in slot order */
    const struct layout *layout; /* of the inputs; NULL: all of the table, without moments */
    int input_count;
    int out_fd;                        /* new weights; the header is already written */
    int64_t out_offset;                /* of the weights */
    int64_t out_moments[LAYOUT_PARTS]; /* of m and v in the same file, where the layout has them */
    int out_state_fd;                  /* or -1 when the optimizer has no state */
    int64_t out_state_offset;
    /* What is written is added to these in file order, may be NULL. The caller has added the header
     * already. data_hash is over the weights alone. A file of one array needs no second read. */
    struct sha256 *out_hash;
    struct sha256 *out_data_hash;
    struct sha256 *out_state_hash;
    int threads; /* at least 1 */
};

struct aggregate_stats {
    double delta_norm;      /* ||D|| */
    double outer_step_norm; /* ||x' - x|| */
    double *update_norms;   /* before any clipping, [input_count], caller's; may be NULL */
    double *update_cosines; /* with D, [input_count], caller's; may be NULL */
    double *update_factors; /* what the norm's bound left of each, 1: all; may be NULL */
    bool finite;            /* is every new weight? never publish when not */
    double seconds;
    int64_t bytes_read;
};

/*
 * ST_CORRUPT when an input holds NaN or Inf or ends early: *corrupt_input says which, -1 means the
 * base or its outer state. ST_INVALID: no inputs, or weights that do not add up to something above
 * zero. ST_IO. The first trouble in block order is reported, whatever the threads do.
 */
enum status aggregate_run(const struct aggregate_job *job, struct aggregate_stats *stats,
                          int *corrupt_input, struct err *e) MUST_CHECK;

#endif
