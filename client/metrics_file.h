/*
 * metrics_file.h - numbers of a training as JSON lines in a file, of which a restart loses none.
 *
 * Every line is one object with the member "step", the steps done when it was written. A training
 * that goes on from step n repeats what came after it; opening the file for that step drops those
 * lines, and a last one that a kill cut short, so that each number stands there once.
 */
#ifndef CLIENT_METRICS_FILE_H
#define CLIENT_METRICS_FILE_H

#include <stdint.h>
#include <stdio.h>

#include "common/buf.h"
#include "common/status.h"

struct metrics_file {
    FILE *to;
    struct buf line; /* of the object being written */
};

/* Keeps the lines up to this step; negative: none. ST_IO, ST_LIMIT. */
enum status metrics_file_open(struct metrics_file *m, const char *path, int64_t step,
                              struct err *e) MUST_CHECK;
void metrics_file_close(struct metrics_file *m); /* one that was never opened is fine */

/* A line: metrics_file_begin(), members with jw_...(), metrics_file_end(). */
struct buf *metrics_file_begin(struct metrics_file *m, const char *kind, int64_t step);
enum status metrics_file_end(struct metrics_file *m, struct err *e) MUST_CHECK;

#endif
