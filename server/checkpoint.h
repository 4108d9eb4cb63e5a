/*
 * checkpoint.h - a run's global weights as files: checkpoint 0 from the seed, the
 * next ones from updates.
 *
 * Both functions end with their files placed in the blob store, durable and named by their SHA-256;
 * nothing here knows the database: the caller commits the rows that refer to them. Same inputs,
 * same bytes, same digests, on any machine and with any number of threads; so doing it twice, or in
 * two processes at once, is harmless.
 *
 *     weights      safetensors, F32, metadata kind=checkpoint run round spec_sha256; with the inner
 *                  optimizer's moments where the run averages them (common/layout.h)
 *     outer state  kind=outer_state; the same tensors once per array that the outer optimizer keeps
 *                  (common/outer.h), named m.<tensor> and v.<tensor>; from checkpoint 1 on
 *     step         where codec.down says so (common/step.h): what leads from the weights before to
 *                  these; the outer state then also has y.<tensor>, which the optimizer moves
 */
#ifndef SERVER_CHECKPOINT_H
#define SERVER_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/codec_file.h"
#include "common/hash.h"
#include "common/params.h"
#include "common/run_spec.h"
#include "common/status.h"
#include "server/aggregate.h"
#include "server/blob.h"

struct checkpoint_files {
    struct digest weights; /* of the file: its name in the blob store */
    int64_t weights_bytes;
    struct digest weights_digest; /* of their values alone: the same for the same numbers */
    int64_t params;
    bool has_state;
    struct digest state; /* the outer state's file */
    int64_t state_bytes;
    bool has_step;      /* of files that were read from the store: and it is kept */
    struct digest step; /* from the checkpoint before */
    int64_t step_bytes;
    enum codec step_codec;
    struct coded_report step_report; /* not known of files that were read from the store */
};

/* Files of another run that a forked one begins with. */
struct checkpoint_source {
    struct digest weights;
    bool has_state; /* of the same outer optimizer */
    struct digest state;
};

/* One accepted update, as the store knows it. */
struct checkpoint_update {
    struct digest sha256;
    const char *silo_name;
    int64_t tokens;
    enum codec codec;
};

struct checkpoint_job {
    struct blob_store *blobs;
    const struct run_spec *spec;
    int32_t round;                           /* the number of the checkpoint to make, from 1 */
    int32_t outer_before;                    /* outer steps that a state taken over has seen */
    struct digest base;                      /* weights of checkpoint round - 1 */
    const struct digest *state;              /* its outer state, or NULL when it has none */
    const struct checkpoint_update *updates; /* in slot order */
    int update_count;
    enum codec down; /* the rung of its step (downlink_rung()), where it has one */
    int threads;
    const struct checkpoint_files *again; /* the files it was once, or NULL */
};

/* ST_LIMIT: the disk is full. ST_IO. */
enum status checkpoint_initial(struct blob_store *blobs, const struct run_spec *spec,
                               struct checkpoint_files *out, struct err *e) MUST_CHECK;

/*
 * The same file once more, in place of one that is damaged or lost. ST_CORRUPT: the spec does not
 * give that file; nothing was changed.
 */
enum status checkpoint_initial_again(struct blob_store *blobs, const struct run_spec *spec,
                                     const struct checkpoint_files *want, struct err *e) MUST_CHECK;

/*
 * Checkpoint 0 with the weights, and the outer state, of a checkpoint of another run of the same
 * model: the same numbers under this run's header, so weights_digest is the other's. ST_CORRUPT: a
 * file is missing, damaged or of another size. again: the files it was once, to be made in place of
 * damaged or lost ones, or NULL.
 */
enum status checkpoint_fork(struct blob_store *blobs, const struct run_spec *spec,
                            const struct checkpoint_source *from,
                            const struct checkpoint_files *again, struct checkpoint_files *out,
                            struct err *e) MUST_CHECK;

/*
 * Every file is read twice: first whole against its digest, then block by block. ST_CORRUPT: a file
 * is missing, damaged, not of this run, round and base, or not finite; *corrupt_update is its index
 * among the updates, or -1 when it is the base or its state. ST_INVALID: the result would not be
 * finite. ST_LIMIT: the disk is full. stats' arrays may be NULL or hold update_count numbers.
 * With again the result must be those very files, else ST_CORRUPT with *corrupt_update -1 and
 * nothing is changed; what is there under their names is replaced.
 */
enum status checkpoint_next(const struct checkpoint_job *job, struct checkpoint_files *out,
                            struct aggregate_stats *stats, int *corrupt_update,
                            struct err *e) MUST_CHECK;

/* What files of this run weigh, exactly: header and data. */
int64_t checkpoint_weights_bytes(const struct run_spec *spec);
/* The most on other rungs than f32: tensors may be one rung up, and gaps vary. */
int64_t checkpoint_update_bytes(const struct run_spec *spec, const char *silo_name,
                                enum codec codec, int32_t round);

#endif
