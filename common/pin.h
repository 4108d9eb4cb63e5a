/*
 * pin.h - which public key a TLS server must show, as text that travels in a join line.
 *
 * A pin is curl's: "sha256//" and the base64 of the SHA-256 of the certificate's public key
 * (SubjectPublicKeyInfo, DER). It is of the key, not of the certificate, so it outlives each
 * renewal that keeps the key. Two may be named with a ";" between them, so that a server can be
 * given a new key: whoever shows either is the server. Each pin has one spelling; no other is
 * taken.
 */
#ifndef COMMON_PIN_H
#define COMMON_PIN_H

#include "common/hash.h"
#include "common/status.h"

enum {
    PIN_KEYS_MAX = 2,
    PIN_KEY_LEN = 8 + 44, /* sha256// and 32 bytes in base64 */
    PIN_TEXT_MAX = PIN_KEYS_MAX * (PIN_KEY_LEN + 1) - 1
};

struct pin {
    struct digest keys[PIN_KEYS_MAX];
    int count;
};

/* ST_INVALID: not one or two pins, to the letter; says what one looks like. */
enum status pin_parse(struct pin *out, const char *text, struct err *e) MUST_CHECK;

void pin_print(const struct pin *p, char out[PIN_TEXT_MAX + 1]);

#endif
