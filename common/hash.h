/*
 * hash.h - digests: SHA-256 of bytes as they stream by. The only door to libcrypto.
 *
 * A digest is 32 bytes; as text it is 64 lower-case hex digits, what sha256sum prints.
 */
#ifndef COMMON_HASH_H
#define COMMON_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

enum { DIGEST_SIZE = 32, DIGEST_HEX = 64 };

struct digest {
    uint8_t bytes[DIGEST_SIZE];
};

struct sha256; /* a running digest */

struct sha256 *sha256_new(void);
void sha256_free(struct sha256 *h);
void sha256_add(struct sha256 *h, const void *bytes, size_t len);
void sha256_end(struct sha256 *h, struct digest *out); /* h starts anew */

void sha256_of(const void *bytes, size_t len, struct digest *out);
enum status sha256_file(const char *path, struct digest *out, int64_t *bytes,
                        struct err *e) MUST_CHECK;

void digest_hex(const struct digest *d, char out[DIGEST_HEX + 1]);
enum status digest_parse(struct digest *out, const char *hex, struct err *e) MUST_CHECK;
bool digest_equal(const struct digest *a, const struct digest *b); /* constant time */

/* n bytes nobody can guess, for tokens and ids. */
void random_bytes(void *out, size_t n);

#endif
