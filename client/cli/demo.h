/*
 * demo.h - a whole federation on one machine, by the means a real one has: a server with its own
 * PostgreSQL, silos that join with one-time tokens over the REST API, one run.
 *
 *     STATE/server     the server's data folder         STATE/text, data   what the silos train on
 *     STATE/silos/N    each silo's state folder         STATE/logs         what everybody says
 *     STATE/demo.json  silos, ports, run: what a second start needs to go on
 *     STATE/url, admin-token   where `photon` commands find the demo
 */
#ifndef CLIENT_CLI_DEMO_H
#define CLIENT_CLI_DEMO_H

#include <stdbool.h>
#include <stdint.h>

#include "client/cli/api.h"
#include "client/cli/demo_proc.h"
#include "client/cli/demo_text.h"

enum { DEMO_PATH_MAX = 512 };

struct demo {
    /* asked for */
    char state[DEMO_PATH_MAX];
    const char *data;
    int64_t rounds; /* 0: the default */
    int64_t silos_wanted;
    int64_t port_wanted; /* 0: the next free one */
    int64_t kill_silo, kill_round;
    bool exit_after;
    /* remembered in demo.json */
    int port, bulk_port;
    struct demo_source silos[DEMO_SILOS_MAX];
    int silo_count;
    char run[32];
    int runs_made;
    /* this time */
    char bin[DEMO_PATH_MAX];
    char url[64];
    struct proc server;
    struct proc clients[DEMO_SILOS_MAX];
    struct api api;
    bool api_open;
    int64_t heard_ms; /* when a round closed last */
    int64_t closed;   /* rounds closed that were seen */
    bool failed;
    char why[240];
};

/* Did a signal ask us to stop? */
bool demo_stopping(void);

/* STATE/sub/name, or STATE/sub where name is "". */
void demo_path(char out[DEMO_PATH_MAX], const struct demo *d, const char *sub, const char *name);

/* Text found or given, and prepared into shards; does nothing when it was done before. */
enum status demo_prepare(struct demo *d, struct err *e) MUST_CHECK;

/* Ports, server, its token, the silos joined and started. */
enum status demo_launch(struct demo *d, struct err *e) MUST_CHECK;
void demo_stop(struct demo *d);

/* Restart what died, kill what was asked to be killed. False when it cannot go on. */
bool demo_tend(struct demo *d);

/* The run of before, or a new one. */
enum status demo_submit(struct demo *d, struct err *e) MUST_CHECK;

/* Did the training work? An exit code; says why not. */
int demo_check(struct demo *d);

enum status demo_load(struct demo *d, struct err *e) MUST_CHECK;
enum status demo_save(const struct demo *d, struct err *e) MUST_CHECK;

#endif
