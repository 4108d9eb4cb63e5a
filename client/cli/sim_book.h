/*
 * sim_book.h - where a simulation stands: sim.json, replaced by rename after each whole round.
 */
#ifndef CLIENT_CLI_SIM_BOOK_H
#define CLIENT_CLI_SIM_BOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "client/cli/sim_silo.h"
#include "common/hash.h"
#include "common/run_spec.h"
#include "common/status.h"
#include "common/step.h"

enum { SIM_PATH_MAX = 1024 };

struct sim_book {
    const char *dir;
    char identity[DIGEST_HEX + 1]; /* of spec, silos, text and drop-outs */
    int32_t round;                 /* closed */
    struct digest weights;         /* the head's files in the store */
    int64_t weights_bytes;
    bool has_state;
    struct digest state;
    int64_t tokens; /* trained by updates that counted */
    int64_t upload_bytes, download_bytes;
    double eval_loss;                   /* of the last evaluation; NAN without */
    bool steps;                         /* checkpoints go down in steps (common/step.h) */
    int64_t step_bytes[STEP_CHAIN_MAX]; /* of the step to checkpoint n, at n % STEP_CHAIN_MAX */
    int32_t tripped;                    /* the newest round whose step tripped the guard; 0: none */
};

/* Bytes that the silo, which holds what it holds, takes to have the head: its weights, or steps. */
int64_t sim_book_down(const struct sim_book *b, const struct run_spec *spec,
                      const struct sim_silo *silo);

/* A new book, before round 1; makes the folder. */
enum status sim_book_open(struct sim_book *b, const char *dir, const struct run_spec *spec,
                          const struct sim_silo *silos, int count, double drop,
                          struct err *e) MUST_CHECK;

/*
 * What stands there, into b and the silos' settled. *found false: nothing, b is as it was.
 * ST_CONFLICT: of another simulation. ST_CORRUPT, ST_INVALID: no book of ours.
 */
enum status sim_book_read(struct sim_book *b, const struct run_spec *spec, struct sim_silo *silos,
                          int count, bool *found, struct err *e) MUST_CHECK;
enum status sim_book_write(const struct sim_book *b, const struct sim_silo *silos, int count,
                           struct err *e) MUST_CHECK;

/* A name in the folder. */
void sim_book_path(const struct sim_book *b, const char *name, char out[SIM_PATH_MAX]);

#endif
