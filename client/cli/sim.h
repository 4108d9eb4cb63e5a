/*
 * sim.h - a whole federation in one process: the aggregator's own core, virtual silos, no network.
 *
 * Seats are drawn, updates checked and folded, checkpoints named by the aggregator's code
 * (server/sampling.h, round.h, update.h, checkpoint.h), and silos train as photon-client does: a
 * simulation gives the checkpoint, byte for byte, that server and silos give for the same spec,
 * silo names and text. What it leaves out is time: nobody is late, a drop-out is a draw.
 *
 *     DIR/metrics.jsonl                      a line per round and per evaluation
 *     DIR/checkpoint-00000003.safetensors    of the newest keep_checkpoints rounds
 *     DIR/sim.json, store/, silos/           where a restart goes on: after the last whole round
 *
 * This is the one file of the client that knows the server (tests/lint/includes.sh).
 */
#ifndef CLIENT_CLI_SIM_H
#define CLIENT_CLI_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "client/cli/sim_silo.h"
#include "common/run_spec.h"
#include "common/status.h"

struct sim_config {
    const struct run_spec *spec;
    struct sim_silo *silos; /* sorted by name; their text is open */
    int silo_count;
    const struct data *eval; /* common held-out text; NULL: each silo's own, as in a federation */
    int64_t windows;         /* of eval; 0: all */
    double drop;             /* share of seats whose update never comes, drawn from the seed */
    const char *dir;
    const char *device;
    const char *dtype;
    int threads;
    int aggregate_threads;
    bool quiet;
    bool (*stopping)(void);
};

struct sim_report {
    int32_t round; /* closed */
    char sha256[65];
    int64_t tokens; /* trained by updates that counted */
    int64_t upload_bytes, download_bytes;
    double eval_loss; /* of the last evaluation; NAN without */
};

/*
 * ST_CONFLICT: the folder holds another simulation. ST_INVALID: text and spec do not fit, or too
 * few silos. ST_RETRY: told to stop. ST_LIMIT: no round found a quorum, or the disk is full.
 * ST_CORRUPT: a silo's training diverged.
 */
enum status sim_run(const struct sim_config *c, struct sim_report *out, struct err *e) MUST_CHECK;

#endif
