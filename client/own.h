/*
 * own.h - what a silo keeps for itself between rounds, and how a round starts from that and the
 * checkpoint.
 *
 * It is one state file of the trainer: the inner optimizer's moments, and the weights too where
 * some are this silo's own (schedule_keeps_weights()). No connection, no clock, no journal in here:
 * the agent and `photon sim` call the same, and so have the same bits.
 */
#ifndef CLIENT_OWN_H
#define CLIENT_OWN_H

#include <stdbool.h>
#include <stdint.h>

#include "client/trainer.h"
#include "common/run_spec.h"
#include "common/status.h"

struct own {
    const char *path; /* NULL: nothing is kept */
    int64_t kept;     /* the round whose end it is of */
};

/* A checkpoint of the run, and where its weights begin. */
struct own_base {
    int fd;
    int64_t offset;
};

/* Does a silo of this run keep anything? */
bool own_keeps(const struct run_spec *s);

/* Moments, and weights where it has its own; none where it has none. What is damaged, or of another
 * number of devices that train apart, counts as none, with a warning; ST_INVALID where weights are
 * in it. */
enum status own_load(struct trainer *t, const struct run_spec *s, const struct own *o,
                     struct err *e) MUST_CHECK;

/* The weights of the checkpoint that `round` starts from (an evaluation: round 0), but for those
 * that own_load() gave. */
enum status own_load_common(struct trainer *t, const struct run_spec *s, const struct own *o,
                            int64_t round, const struct own_base *base, struct err *e) MUST_CHECK;

/* Both, and the mean moments where the run averages them: the start of a round whose first step is
 * this global one. */
enum status own_start(struct trainer *t, const struct run_spec *s, const struct own *o,
                      int64_t round, int64_t global_step, const struct own_base *base,
                      struct err *e) MUST_CHECK;

/* The checkpoint with what the steps ahead, which are in the trainer, came to on top of it. */
enum status own_rebase(struct trainer *t, const struct run_spec *s, const struct own *o,
                       int64_t round, const struct own_base *base, struct err *e) MUST_CHECK;

/* The file for the next rounds: moments, and the weights where own_load() is to find them. */
enum status own_save(struct trainer *t, const struct run_spec *s, const char *path,
                     struct err *e) MUST_CHECK;

#endif
