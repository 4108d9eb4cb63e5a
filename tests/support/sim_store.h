/*
 * sim_store.h - the server's store in memory: each function is one of its transactions.
 *
 * What the database's shells do in SQL under locks is done here on arrays, at once: read, ask the
 * rules of server/round.h, seat.h, sampling.h and deadline.h, write what they say. The rules are
 * the running ones; only rows and locks are simulated. `broken` names the first rule of
 * sql/0006_invariants.sql, or promise to a silo, that does not hold.
 */
#ifndef TESTS_SUPPORT_SIM_STORE_H
#define TESTS_SUPPORT_SIM_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "server/round.h"
#include "server/seat.h"

enum {
    SIM_SILOS = 6,
    SIM_SERVERS = 2,
    SIM_SEATS = 6,
    SIM_ROUNDS = 64, /* attempts included */
    SIM_LEASES = 96, /* of one seat */
    SIM_UPLOADS = 512,
    SIM_UPDATES = 256,
    SIM_SAMPLES = 64
};

struct sim_spec {
    int rounds, silos, silos_per_round, min_silos, oversample;
    double cap_s, tau;
    uint64_t seed;
};

enum sim_outcome {
    OUT_HELD = 0,
    OUT_ACCEPTED,
    OUT_FAILED,
    OUT_RELEASED,
    OUT_EXPIRED,
    OUT_OLD,
    OUT_CANCELLED
};

struct sim_lease {
    int silo;
    enum sim_outcome outcome;
    double claimed, beat;
};

struct sim_seat {
    struct seat s;
    int drawn_for;
    int failures;
    int leases;
    struct sim_lease lease[SIM_LEASES]; /* epoch e at e - 1 */
};

struct sim_round {
    int number, attempt, expected, quorum;
    enum round_state state;
    double created, opened, deadline, cap;
    int drawn[SIM_SILOS];
    int drawn_count, seats;
    struct sim_seat seat[SIM_SEATS];
    int64_t agg_epoch;
    uint64_t manifest;
};

enum sim_upload_state { UP_OPEN = 0, UP_PLACED, UP_ACCEPTED, UP_REFUSED };

struct sim_upload {
    int round, seat, silo;
    uint64_t digest;
    bool whole;
    enum sim_upload_state state;
};

struct sim_update {
    int round, seat, silo, upload, carried_from;
    int64_t epoch;
    uint64_t digest;
    bool accepted;  /* else found corrupt */
    double rots_at; /* its file is damaged from then on */
    int events;
};

struct sim_checkpoint {
    uint64_t weights, manifest;
    int round; /* row that made it; -1: number 0 */
};

struct sim_silo {
    bool gone;
    double seen;
    int fails, aside, left_out;
};

struct sim_store {
    struct sim_spec spec;
    enum run_state run;
    int head;
    struct sim_round round[SIM_ROUNDS];
    int rounds;
    struct sim_upload upload[SIM_UPLOADS];
    int uploads;
    struct sim_update update[SIM_UPDATES];
    int updates;
    struct sim_checkpoint checkpoint[SIM_ROUNDS];
    struct sim_silo silo[SIM_SILOS];
    double server_seen[SIM_SERVERS], server_started[SIM_SERVERS];
    double samples[SIM_SAMPLES];
    int sample_count, starved, recalls, carried;
    int dirty; /* the round to be looked at; -1: none */
    char broken[160];
};

void sim_init(struct sim_store *s, const struct sim_spec *spec);
uint64_t sim_mix(uint64_t h, uint64_t v);

/* ---- silos ---- */

struct sim_task {
    int round, seat, number;
    int64_t epoch;
    uint64_t base;
};
bool sim_claim(struct sim_store *s, int silo, double now, struct sim_task *out);
enum hold sim_beat(struct sim_store *s, const struct sim_task *t, int silo, double now);
enum hold sim_create(struct sim_store *s, const struct sim_task *t, int silo, uint64_t digest,
                     int *upload);
enum hold sim_chunk(struct sim_store *s, const struct sim_task *t, int silo, int upload,
                    double now);
/* The steps of a finish. counted: it did before. */
enum hold sim_may_finish(struct sim_store *s, const struct sim_task *t, int silo, int upload,
                         bool *counted, double now);
void sim_place(struct sim_store *s, int upload);
void sim_refuse(struct sim_store *s, const struct sim_task *t, int silo, int upload, double now);
enum accept sim_accept(struct sim_store *s, const struct sim_task *t, int silo, int upload,
                       double rots_at, double now);
void sim_release(struct sim_store *s, const struct sim_task *t, int silo, const char *code,
                 double draw, double now);

/* ---- servers ---- */

void sim_arrive(struct sim_store *s, int server, double now);
void sim_tend(struct sim_store *s, int server, double now);

struct sim_fold {
    bool found;
    int round, count;
    int64_t epoch;
    uint64_t base;
    int update[SIM_SEATS];
    int damaged; /* the first whose file was found damaged, or -1 */
};
void sim_fold_begin(struct sim_store *s, struct sim_fold *f, double now);
/* Publish what was read at its beginning, or say that an input was damaged. */
void sim_fold_end(struct sim_store *s, const struct sim_fold *f, double now);

/* ---- people ---- */

void sim_pause(struct sim_store *s);
void sim_resume(struct sim_store *s, double now);

/* The invariants on what changed; whole: on everything. False: broken says which. */
bool sim_check(struct sim_store *s, bool whole);

/* A silo was told that this upload counts. */
bool sim_counted(const struct sim_store *s, int upload);

#endif
