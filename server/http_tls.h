/*
 * http_tls.h - the certificate that connections are shown, which may change while they come.
 *
 * The only door to GnuTLS, whose objects libmicrohttpd asks for at each handshake. Connections that
 * stand keep what they were shown. The callback is given nothing of ours, so there is one
 * certificate per process. Any thread may call.
 */
#ifndef SERVER_HTTP_TLS_H
#define SERVER_HTTP_TLS_H

#include "common/status.h"

/* Show this from now on: a chain, the server's certificate first, and its key. ST_INVALID: GnuTLS
 * cannot read them; what was shown before still is. */
enum status http_tls_show(const char *cert_pem, const char *key_pem, struct err *e) MUST_CHECK;

void http_tls_end(void); /* when no connection is left */

/* For MHD_OPTION_HTTPS_CERT_CALLBACK, as an object pointer. */
void *http_tls_callback(void);

char *http_tls_priorities(void); /* GnuTLS' words for TLS 1.3 and 1.2 only */

#endif
