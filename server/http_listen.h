/*
 * http_listen.h - what must be in order before a listener starts: its address, its port.
 */
#ifndef SERVER_HTTP_LISTEN_H
#define SERVER_HTTP_LISTEN_H

#include <stdbool.h>

#include "common/status.h"

/* "host:port" taken apart: [::1]:8080, 127.0.0.1:0, localhost:8080, :8080 (every address). */
struct listen_address {
    char host[128];
    int port;
};

enum status listen_address_parse(struct listen_address *out, const char *text,
                                 struct err *e) MUST_CHECK;

/*
 * Would http_listen() take these two, if their ports are free? ST_DENIED and ST_INVALID as there;
 * ST_INVALID too when they are one.
 */
enum status http_listen_check(const char *control, const char *bulk, bool tls,
                              struct err *e) MUST_CHECK;

/*
 * A listening socket, and the port it got. ST_CONFLICT: the port is taken. ST_DENIED: the address
 * is not this machine's own loopback and there is no TLS. ST_INVALID: no such address.
 */
enum status http_listen(int *fd, int *port, const char *address, bool tls,
                        struct err *e) MUST_CHECK;

/* wanted connections, or fewer where the process may not open that many files. */
int http_connection_limit(int wanted);

#endif
