/*
 * tls_make.h - certificates made here: a private authority, and a certificate by it for this
 * server.
 *
 * All of it is one folder, so that it can be backed up and moved:
 *
 *     ca.key      0600   the authority's key; needed to renew, not to serve
 *     ca.pem      0644   its certificate, ten years: what browsers and --ca-file are given
 *     server.key  0600   the server's key, what silos pin. Made once and kept by every renewal: who
 *                        loses it has to send every silo a new join line, so it is never replaced
 *     server.pem  0644   its certificate and the authority's, 397 days
 *
 * Keys are ECDSA P-256. A file is whole or not there (temp, sync, rename), a key is durable before
 * a certificate speaks of it, and the folder is locked meanwhile: several servers may share it.
 * This is the second door to libcrypto, beside common/hash.h.
 */
#ifndef SERVER_TLS_MAKE_H
#define SERVER_TLS_MAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/hash.h"
#include "common/status.h"

enum { TLS_HOSTS_MAX = 16, TLS_DAYS = 397, TLS_RENEW_DAYS = 60, TLS_CA_DAYS = 3650 };

/*
 * Make in the folder what is missing, ends within TLS_RENEW_DAYS of now_s (Unix time), or is not
 * for exactly these hosts (names and addresses). *made: server.pem is new. ST_INVALID: a host that
 * no certificate can name. ST_CORRUPT: a key that is gone or damaged while its certificate is
 * there. ST_DENIED: others may read a key. ST_IO: the folder.
 */
enum status tls_make(const char *dir, const char *const *hosts, int count, int64_t now_s,
                     bool *made, struct err *e) MUST_CHECK;

struct tls_facts {
    struct digest key; /* SHA-256 of SubjectPublicKeyInfo: what a pin is */
    int64_t ends_s;    /* Unix time */
    bool vouched;      /* by the authorities this system trusts */
};

/* ST_INVALID: the text holds no certificate or no key, or the key is another certificate's. */
enum status tls_inspect(struct tls_facts *out, const char *cert_pem, const char *key_pem,
                        struct err *e) MUST_CHECK;

#endif
