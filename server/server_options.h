/*
 * server_options.h - photon-server's command line, and what its exit codes mean.
 */
#ifndef SERVER_SERVER_OPTIONS_H
#define SERVER_SERVER_OPTIONS_H

#include <stdbool.h>

#include "common/log.h"

enum exit_code {
    EXIT_DONE = 0,
    EXIT_BROKEN = 1, /* check found something */
    EXIT_USAGE = 2,  /* the command line is wrong */
    EXIT_CONFIG = 3, /* a setting, a file or the database's settings are refused */
    EXIT_TAKEN = 4,  /* the port or the folder is in use, or the database does not let us in */
    EXIT_MEMORY = 7, /* out of memory */
    EXIT_BUG = 70,
    EXIT_TEMPORARY = 75 /* the database does not answer; try again later */
};

struct server_options {
    const char *data;
    const char *database;         /* NULL: a private cluster */
    const char *migrate_database; /* as its owner; NULL: one role does both */
    const char *listen;
    const char *bulk_listen; /* NULL: the same host, the next port */
    bool tls_auto;           /* a certificate of our own */
    const char *tls_cert;
    const char *tls_key;
    const char *public_url;
    const char *bulk_url;
    const char *web; /* NULL: found beside the program */
    const char *sql;
    int workers;
    int aggregate_threads;
    const char *store;          /* s3://bucket/prefix; NULL: the data folder */
    const char *s3_endpoint;    /* NULL: AWS */
    const char *s3_credentials; /* NULL: the environment */
    const char *s3_ca;          /* NULL: the system's */
    const char *free_floor;     /* room on the disk that stays free; NULL: blob.h's own */
    bool log_json;
    enum log_level log_level;
    bool unsafe_database;
    int bulk_mbps; /* weights in and out together, megabit per second; 0: unlimited */
    int daily_upload_gb, daily_download_gb; /* of one silo; 0: unlimited */
    int orphan_hours;                       /* files that no row knows are left alone for so long */
    int audit_days;                         /* 0: for ever */
    const char *acks;                       /* check: what silos were told is accepted */
    bool check;
    bool repair; /* check: make damaged checkpoints again */
};

/* False: the program ends now, with *rc; everything was said. */
bool server_options_parse(struct server_options *o, int argc, char **argv, int *rc);

#endif
