/*
 * cluster.h - a PostgreSQL of our own in the data folder, for whoever has none.
 *
 *     <data>/pg          the database files, made by initdb with data checksums
 *     <data>/pg.log      what PostgreSQL says
 *     <data>/pg-socket   its only door: a unix socket in a folder that its user alone may enter
 *                        (in /tmp when the path would be too long for a socket)
 *
 * The postmaster is our child, runs as an unprivileged user when we are root (PostgreSQL insists),
 * and in a session of its own, so that Ctrl-C stops it through us, in order. When this server was
 * killed, its postmaster lives on: the next start finds it by its pid file, makes sure that it
 * serves this very folder, and goes on with it; one that does not answer is ended and replaced.
 * When PostgreSQL itself was killed, cluster_tend() starts it again.
 *
 * One server per data folder: cluster_start() holds a lock on <data>/lock. To run several servers
 * over one database, name it with --database.
 */
#ifndef SERVER_CLUSTER_H
#define SERVER_CLUSTER_H

#include <stdbool.h>

#include "common/status.h"

struct cluster;

/*
 * Ready for connections when it returns: at most a minute. With share, a folder that another server
 * uses is only joined: its PostgreSQL is neither tended nor stopped. ST_CONFLICT without it.
 * ST_NOT_FOUND: no PostgreSQL programs (of the version that made the folder). ST_DENIED:
 * PostgreSQL's user cannot reach the folder. ST_IO, ST_RETRY: it did not start; why is in pg.log.
 */
enum status cluster_start(struct cluster **out, const char *data_dir, bool share,
                          struct err *e) MUST_CHECK;

/* For db_open(), as the owner of everything and as the role that serves (server/db_role.h), which
 * the caller makes. They live as long as the cluster. */
const char *cluster_conninfo(const struct cluster *c);
const char *cluster_server_conninfo(const struct cluster *c);

/* The postmaster's process, 0 when there is none of ours. */
int cluster_pid(const struct cluster *c);

/* Start PostgreSQL again if it died. Returns at once; connections fail until it is up. */
void cluster_tend(struct cluster *c);

/* Fast shutdown: sessions end, everything is written. Frees c; NULL is allowed. */
void cluster_stop(struct cluster *c);

#endif
