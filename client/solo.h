/*
 * solo.h - a centralized training: the silos' trainer without a server, on one machine's text.
 *
 * It is the baseline that a federation is compared with, so everything that decides a step is the
 * federation's: first weights from the seed, learning rate and row from the global step, the same
 * trainer. The spec's rounds x local_steps are its steps; where rounds would end it evaluates and
 * writes a checkpoint. In its folder:
 *
 *     checkpoint-00000640.safetensors   weights after so many steps; the newest keep_checkpoints
 *     metrics.jsonl                     losses, rates, evaluations; its manual is
 * docs/OPERATIONS.md state-640, progress.json          what a restart goes on from; progress.json
 * names the state
 *
 * Killing it at any instant and starting it again gives the bits of an undisturbed training.
 */
#ifndef CLIENT_SOLO_H
#define CLIENT_SOLO_H

#include <stdbool.h>
#include <stdint.h>

#include "client/data.h"
#include "common/run_spec.h"
#include "common/status.h"

struct solo_config {
    const struct run_spec *spec;
    const struct data *data;    /* what is trained on */
    const struct data *heldout; /* whose held-out windows are evaluated; may be the same */
    const char *dir;
    int64_t steps;      /* in all */
    int64_t eval_every; /* steps; also after the last one, and before the first */
    int64_t save_every; /* steps between two checkpoint files; the last is always one */
    int64_t log_every;  /* steps between two lines of the metrics */
    int64_t windows;    /* per evaluation, spread over the text; 0: all */
    const char *device;
    const char *dtype;
    int threads;
    bool measure_peak; /* for MFU: takes a quarter of a second */
    bool quiet;
    bool (*stopping)(void); /* asked before each step; then what was done is saved */
};

struct solo_report {
    int64_t steps; /* done */
    int64_t tokens;
    double eval_loss; /* of the last evaluation; NAN without */
    bool stopped;
};

/*
 * ST_CONFLICT: the folder holds another training, or another process trains in it. ST_INVALID: text
 * and spec do not fit. ST_NOMEM, ST_DEVICE, ST_IO, ST_LIMIT. ST_CORRUPT: the training diverged.
 */
enum status solo_train(const struct solo_config *c, struct solo_report *out,
                       struct err *e) MUST_CHECK;

#endif
