/*
 * delta.h - the update of a round: what the trainer has, against the checkpoint the round began
 * with.
 *
 * Which tensors, and whether moments go with them, is the spec's to say (common/layout.h). On the
 * f32 rung values are written as they are, block by block, where no residual waits; else they go
 * through client/feedback.h, on the device that has them where it can. No connection, no clock, no
 * journal in here: the agent and `photon sim` call the same, and so have the same bits.
 */
#ifndef CLIENT_DELTA_H
#define CLIENT_DELTA_H

#include <stdbool.h>
#include <stdint.h>

#include "client/trainer.h"
#include "common/codec_file.h"
#include "common/hash.h"
#include "common/run_spec.h"
#include "common/status.h"

struct delta_job {
    struct trainer *trainer;
    const struct run_spec *spec;
    int base_fd;         /* the checkpoint */
    int64_t base_offset; /* of its weights */
    enum codec codec;
    /* The update's metadata. */
    const char *run_name;
    int64_t round;
    const char *base_sha256;
    const char *silo_name;
    int64_t tokens, steps;
    /* Paths. residual is read when it is there; update is written, next and late where the result
     * says coded (client/feedback.h). None is synced. */
    const char *residual;
    const char *update;
    const char *next;
    const char *late;
};

struct delta_result {
    struct digest sha256; /* of the update */
    int64_t bytes;
    bool coded;                 /* through client/feedback.h */
    struct coded_report report; /* of coded ones, else zeros */
};

/* ST_INVALID: a delta that no rung takes; ST_LIMIT: the disk is full; ST_IO, ST_DEVICE. */
enum status delta_write(const struct delta_job *j, struct delta_result *out,
                        struct err *e) MUST_CHECK;

#endif
