/*
 * tls.h - which certificate this server shows, and what others must know to believe it.
 *
 * Either the operator's files, or with `make` those of <data>/tls (tls_make.h), for every host that
 * the configuration names. tls_refresh() looks at the files again, which renews what is made here
 * and takes up what somebody else has renewed.
 *
 * The pin is for the join line. There is none when an authority of this system vouches for the
 * certificate: silos then need no pin, and whoever renews it there may take a new key.
 */
#ifndef SERVER_TLS_H
#define SERVER_TLS_H

#include <stdbool.h>

#include "common/pin.h"
#include "common/status.h"

struct tls;

struct tls_config {
    const char *data_dir;
    bool make;
    const char *cert, *key; /* the operator's, PEM; NULL with make */
    /* Where others find this server; any may be NULL. */
    const char *public_url, *bulk_url;
    const char *listen, *bulk_listen;
};

/* *out stays NULL when the config asks for no TLS. The config's strings are borrowed. ST_INVALID,
 * ST_CORRUPT, ST_DENIED, ST_IO: the files are not as they must be; says what to do. */
enum status tls_open(struct tls **out, const struct tls_config *c, struct err *e) MUST_CHECK;
void tls_close(struct tls *t); /* after the last connection; NULL is allowed */

/* On failure what was shown before still is. */
enum status tls_refresh(struct tls *t, struct err *e) MUST_CHECK;

/* "" when no pin is needed, or t is NULL. Any thread. */
void tls_pin(struct tls *t, char out[PIN_TEXT_MAX + 1]);

#endif
