/*
 * utf8.h - text as Unicode: validation, repair, and normalization form C. The
 * only door to utf8proc.
 *
 * Strict as the Unicode Standard, chapter 3: no surrogates, nothing overlong, nothing above
 * U+10FFFF. Repair puts one U+FFFD for each maximal subpart that cannot be decoded.
 */
#ifndef CLIENT_UTF8_H
#define CLIENT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/status.h"

enum { UTF8_BAD = -1, UTF8_MORE = -2 };

/*
 * The character at s (n >= 1 bytes) and its length. UTF8_BAD: *len bytes are no character.
 * UTF8_MORE: the bytes end within one.
 */
int32_t utf8_at(const char *s, size_t n, size_t *len);

/* Bytes up to the first that is not ASCII. */
size_t utf8_ascii(const char *s, size_t n);

/* The bytes at the end of s that may begin a character whose rest is still to come: 0 to 3. */
size_t utf8_cut(const char *s, size_t n);

/* Append s, repaired. */
void utf8_repair(struct buf *out, const char *s, size_t n);

/*
 * The place of the last character of valid text before which normalization may be cut: nothing
 * before it composes with it or with what follows. 0 when there is none.
 */
size_t utf8_nfc_boundary(const char *s, size_t n);

/* Append the NFC of valid text. ST_NOMEM. */
enum status utf8_nfc(struct buf *out, const char *s, size_t n, struct err *e) MUST_CHECK;

/* Version of the tables used by utf8_nfc(), "14.0.0". */
const char *utf8_unicode_version(void);

#endif
