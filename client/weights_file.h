/*
 * weights_file.h - a model's weights as a checkpoint file, written where no aggregator is.
 *
 * The same container, tensors and metadata as a run's checkpoints (docs/API.md, "Files"), so that
 * every tool that reads those reads these.
 */
#ifndef CLIENT_WEIGHTS_FILE_H
#define CLIENT_WEIGHTS_FILE_H

#include <stdint.h>

#include "client/trainer.h"
#include "common/run_spec.h"
#include "common/status.h"

/* The weights in the trainer, by rename. ST_IO, ST_LIMIT, ST_DEVICE. */
enum status weights_file_write(struct trainer *t, const struct run_spec *spec, int64_t round,
                               const char *path, struct err *e) MUST_CHECK;

/* The first weights of the spec's seed: the bytes of the run's checkpoint 0. */
enum status weights_file_first(const struct run_spec *spec, const char *path,
                               struct err *e) MUST_CHECK;

/* Into the trainer. ST_NOT_FOUND, ST_CORRUPT: no checkpoint of this model. */
enum status weights_file_load(struct trainer *t, const char *path, struct err *e) MUST_CHECK;

#endif
