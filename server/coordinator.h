/*
 * coordinator.h - what makes runs move: four threads of a server.
 *
 *     tender    once a second and at every wake: rounds of running runs open, seal, end; silos that
 *               fell silent
 *     folder    checkpoint 0 of new runs, and the aggregation of sealed rounds (server/fold.h):
 *               minutes for a large model, hence a thread of its own
 *     keeper    files past their keeping, files that no row knows, checkpoints to be mended; events
 *               linked to their run's chain
 *     listener  turns PostgreSQL's notifications into hub wakes, so that another process's commit
 *               wakes our parked requests and our tender
 *
 * Each has a database connection of its own, and keeps trying when the database is away. They hold
 * nothing in memory that a restart would need: killed at any moment, the next server goes on.
 */
#ifndef SERVER_COORDINATOR_H
#define SERVER_COORDINATOR_H

#include <stdbool.h>

#include "common/status.h"
#include "server/server.h"

struct coordinator;

enum { COORDINATOR_CONNECTIONS = 4 }; /* to the database: one of each thread */

/* server and conninfo must outlive it. ST_RETRY: the database does not answer. */
enum status coordinator_start(struct coordinator **out, struct server *server, const char *conninfo,
                              struct err *e) MUST_CHECK;

/*
 * Waits two seconds for an aggregation under way, no longer: the next start repeats it. False: it
 * runs on, with what it uses of the server; the caller must leave that alone and end the process.
 * NULL is allowed.
 */
bool coordinator_stop(struct coordinator *c);

#endif
