/*
 * sim_silo.h - virtual silos: what photon-client does in a round, without a connection.
 *
 * All silos of a simulation share one trainer, whose memory is that of one silo; a silo's own are
 * its text, its place in it, and what it keeps between rounds, which waits in files (client/own.h).
 * The bits of an update are those of photon-client for the same spec, silo name and text.
 */
#ifndef CLIENT_CLI_SIM_SILO_H
#define CLIENT_CLI_SIM_SILO_H

#include <stdbool.h>
#include <stdint.h>

#include "client/data.h"
#include "client/own.h"
#include "client/trainer.h"
#include "common/codec.h"
#include "common/hash.h"
#include "common/run_spec.h"
#include "common/status.h"

struct sim_silo {
    char name[64];
    int32_t ordinal;
    struct data *data; /* owned */
    int32_t settled;   /* the last round whose update counted, whose moments it has; 0: none */
    double speed;      /* tokens/s as stated, where the run's steps go by it; else 0 */
    int32_t held;      /* one more than the newest checkpoint that it has; 0: none */
};

/* The trainer and whose text it reads at the moment. */
struct sim_desk {
    const struct run_spec *spec;
    const char *dir; /* of the simulation; silos keep files in dir/silos/NAME */
    struct trainer *trainer;
    const struct data *data;
    int32_t ordinal;
    int64_t windows, all; /* of an evaluation, and what they are spread over */
    bool (*stopping)(void);
};

struct sim_desk_config {
    const struct run_spec *spec;
    const char *dir;
    const char *device;
    const char *dtype;
    int threads;
    bool (*stopping)(void);
};

enum status sim_desk_open(struct sim_desk *d, const struct sim_desk_config *c,
                          struct err *e) MUST_CHECK;
void sim_desk_close(struct sim_desk *d);

/* A round's base checkpoint. */
struct sim_base {
    struct own_base file;
    int32_t round;     /* the round that is trained, from 1 */
    struct digest sha; /* of the file */
};

struct sim_update {
    int64_t bytes;
    int64_t tokens;
    int32_t steps;
    double train_loss; /* mean over the round's steps */
    double seconds;
    enum codec codec; /* the run's, or one up while the guard holds */
    struct digest sha256;
    char path[1024]; /* the file */
};

/*
 * One task: so many local steps from the base, the update file, what the silo keeps of this round
 * beside what it kept before (sim_silo_settle() chooses), and the residual likewise. ST_RETRY:
 * asked to stop. ST_CORRUPT: the training diverged.
 */
enum status sim_silo_train(struct sim_desk *d, const struct sim_silo *s,
                           const struct sim_base *base, int32_t steps, struct sim_update *out,
                           struct err *e) MUST_CHECK;

/* The update of that round counted: its moments are the silo's from now on. */
void sim_silo_settle(struct sim_silo *s, int32_t round);
/* Files of those two rounds that it does not go on from. */
void sim_silo_tidy(const struct sim_desk *d, const struct sim_silo *s, int32_t before, int32_t now);

/* A checkpoint's weights as that silo would use them: with its own personal tensors. */
enum status sim_silo_load(struct sim_desk *d, const struct sim_silo *s, const struct sim_base *head,
                          struct err *e) MUST_CHECK;

/*
 * Loss of the weights in the trainer on up to so many windows of this text; 0: all of them. The
 * first ones, as a silo takes them, or spread over all its sources.
 */
enum status sim_evaluate(struct sim_desk *d, const struct data *data, int64_t windows, bool spread,
                         struct eval_result *sum, struct err *e) MUST_CHECK;

#endif
