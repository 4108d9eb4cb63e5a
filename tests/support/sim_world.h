/*
 * sim_world.h - silos, servers and the network between them, on a virtual clock, over sim_store.h.
 *
 * What may happen next lies in a queue of events; sim_step() lets one happen and queues what
 * follows from it. All chance comes out of sim_draw(), so that a seed is a whole history.
 */
#ifndef TESTS_SUPPORT_SIM_WORLD_H
#define TESTS_SUPPORT_SIM_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/support/sim_store.h"

enum { SIM_EVENTS_MAX = 4096 };

enum event_kind {
    TO_SERVER = 0,
    TO_SILO,
    SILO_TIMER,
    SILO_BEAT,
    SILO_UP,
    SERVER_UP,
    TENDER,
    FOLDER,
    FOLD_END,
    FINISH,
    CHAOS,
    PEOPLE,
    EVENT_KINDS
};
enum request { CLAIM = 0, BEAT, CREATE, CHUNK, FINISHED, RELEASE };

struct message {
    enum request what;
    int silo, server;
    unsigned id; // of the request, so that its silo knows the answer
    struct sim_task task;
    int upload;
    uint64_t digest;
    const char *code;
    // the answer
    bool found, counted, bad;
    enum hold hold;
};

struct event {
    double at;
    uint64_t order;
    enum event_kind kind;
    int actor;     // silo or server
    unsigned life; // of the actor: what was meant for an earlier one is void
    int stage;
    struct message m;
};

enum phase { IDLE = 0, TRAIN, CREATING, SENDING, FINISHING, RELEASING };

struct silo {
    bool up;
    unsigned life, asked, timer;
    enum phase phase;
    struct sim_task task;
    int upload, server;
    uint64_t digest;
    const char *code;
    double speed;
    // its journal outlives it
    uint64_t trained;
    int trained_number;
};

struct server {
    bool up, folding;
    unsigned life;
    struct sim_fold fold;
};

/* Everything of one seed. */
struct world {
    uint64_t state; // of the random numbers
    uint64_t digest;
    bool trace;
    double now, calm_at;
    uint64_t order;
    struct event heap[SIM_EVENTS_MAX];
    int events;
    struct silo silo[SIM_SILOS];
    struct server server[SIM_SERVERS];
    double cut_until[SIM_SILOS][SIM_SERVERS];
    double loss, twice, late;
    int fails_one_in; // trainings end in a failure
    int rots_one_in;  // stored updates
    struct sim_store *store;
    bool over[SIM_UPLOADS]; // its silo was told: the round is over, it does not count
    bool told[SIM_UPLOADS]; // its silo was told: it counts
    long steps;
};

extern struct world w;

/* ---- chance ---- */

uint64_t sim_draw(void);
double sim_unit(void); /* 0 <= x < 1 */
double sim_between(double a, double b);
int sim_below(int n);

/* Do faults still happen? */
bool sim_stormy(void);

/* ---- what happens ---- */

/* A line of the history: into its digest, and printed under --seed. */
void sim_note(const char *what, int a, int b);

void sim_push(struct event e, double in_s);
struct event sim_pop(void);
void sim_step(const struct event *e);

#endif
