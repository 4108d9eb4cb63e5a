/*
 * step.h - the way down: from one checkpoint to the next as a coded file.
 *
 * The aggregator keeps two arrays: y, which the outer optimizer moves, and x, the checkpoint that
 * silos hold. After an outer step u = x - y is coded once for all, on the run's own rung, and with
 * v what the file decodes to
 *
 *     x' = x - v
 *
 * is the next checkpoint, for the aggregator and for every silo: one F32 subtraction of an exactly
 * decoded value, so the same bits everywhere. What the rung left out stays in x' - y and goes with
 * a later step: error feedback that needs no residual of its own. A run's last checkpoint is y
 * itself and has no step.
 *
 * A step is a coded file (common/codec_file.h) of what its round synchronises (layout_step()): the
 * tensors that travel, or one fragment of them, as the others are in x' what they were in x. What
 * is left out of a fragment goes when its turn comes again. Its metadata say
 * kind=step run round base codec [fallback] [k] to, where base and to are the SHA-256 of the two
 * checkpoints' files.
 */
#ifndef COMMON_STEP_H
#define COMMON_STEP_H

#include <stdint.h>

#include "common/arena.h"
#include "common/codec_file.h"
#include "common/hash.h"
#include "common/layout.h"
#include "common/run_spec.h"
#include "common/status.h"

enum { STEP_CHAIN_MAX = 64 }; /* steps in a row that a silo may take */

struct step_id {
    const char *run_name;
    int32_t round; /* of the checkpoint that it leads to */
    struct digest base, to;
    enum codec codec;
    int32_t k; /* topk */
};

/* For coding_place() and coded_open(). In the arena. */
struct coded_meta step_meta(struct arena *a, const struct step_id *id);

/* ST_CORRUPT says what is wrong. table is layout_step()'s of its round; what *out holds is in the
 * arena. */
enum status step_open(struct coded_file *out, struct arena *a, int fd,
                      const struct param_table *table, const struct step_id *id,
                      struct err *e) MUST_CHECK;

/* x -= v: the one subtraction, for both sides. */
void step_take(float *x, const float *v, int64_t n);

struct step_file {
    int fd;
    struct coded_file coded;
};

struct step_job {
    const struct run_spec *spec;
    int base_fd;                   /* a checkpoint of the run */
    const struct step_file *steps; /* from it on, in order */
    int count;
    int32_t round; /* of the checkpoint that they lead to */
    int out_fd;    /* empty; gets that checkpoint's file */
};

/*
 * A group at a time, whatever the size of the model; *made is the SHA-256 of the file. Whoever
 * asked for a certain checkpoint compares. ST_CORRUPT: the base is no checkpoint of this run, or a
 * step is damaged; ST_LIMIT: the disk is full.
 */
enum status step_apply(const struct step_job *job, struct digest *made, struct err *e) MUST_CHECK;

#endif
