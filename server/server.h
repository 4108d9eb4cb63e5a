/*
 * server.h - what one photon-server process shares between its parts.
 *
 * Built by main.c, read by handlers and the coordinator; its members are thread-safe modules.
 */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"

struct db_pool;
struct blob_store;
struct hub;
struct pace;
struct streams;
struct tls;

struct server {
    const char *data_dir;
    const char *web_dir;    /* the dashboard's files */
    const char *public_url; /* how silos and browsers reach control; NULL: as they came */
    const char *bulk_url;   /* how silos reach bulk; NULL: the request's host with bulk's port */
    int control_port, bulk_port;
    bool tls;
    bool https;              /* a browser speaks TLS, with us or with a proxy before us */
    struct tls *certificate; /* NULL: plain HTTP */
    atomic_bool stopping;    /* no new task is handed out */
    int64_t started_ms;      /* Unix time */
    int aggregate_threads;
    int64_t orphan_age_s; /* files that no row knows are reaped at this age */
    int audit_days;       /* rows of the audit table are kept so long; 0: for ever */
    int64_t daily_upload, daily_download; /* bytes of one silo in a day; 0: unlimited */
    struct db_pool *pool;                 /* of control, the herald and the event streams */
    struct db_pool *bulk_pool; /* of transfers, so that none of the above ever waits for them */
    struct blob_store *blobs;
    struct hub *hub;
    struct pace *bulk_pace;  /* NULL: unlimited */
    struct streams *streams; /* set by http_start() */
};

#endif
