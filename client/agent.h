/*
 * agent.h - a silo's agent: polls for tasks, trains or evaluates, sends updates, survives anything.
 *
 * One agent works in one state folder (client/state.h), on one task at a time:
 *
 *     hello -> claim (long poll) -> base checkpoint -> train, with heartbeats and snapshots
 *           -> update file -> create, chunks, finish -> settle the optimizer state -> claim ...
 *
 * What is durable is in the state folder; killing the process at any instant and starting it again
 * gives the bits of an undisturbed run. SIGINT or SIGTERM ends the current step, writes a snapshot,
 * gives the task back and returns; a second one ends the process at once.
 */
#ifndef CLIENT_AGENT_H
#define CLIENT_AGENT_H

#include <stdint.h>

#include "client/data.h"

struct agent_config {
    const char *state_dir;
    const struct data_source_arg *sources;
    int source_count;
    const char *device; /* auto, cpu, ref, cuda */
    const char *dtype;  /* auto, f32, bf16 */
    int threads;        /* 0: all cores */
    int sync_every;     /* as trainer.h has it */
    const char *codec;  /* of updates: a rung or auto; NULL: what the run asks for */
    double max_mbps;    /* of files, each way, in megabit per second; 0: unlimited */
};

/* Works until told to stop; an exit code (client/options.h). Installs signal handlers. */
int agent_run(const struct agent_config *c);

#endif
