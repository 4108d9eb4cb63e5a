/*
 * text.h - whether a text is UTF-8 (RFC 3629), and fit for a terminal.
 *
 * PostgreSQL and JSON take UTF-8 alone, and text that was cut at a number of bytes, or that quotes
 * what a stranger sent, may be none.
 */
#ifndef COMMON_TEXT_H
#define COMMON_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Bytes of the character at s, of which left may be read: 1 to 4, or 0 when none begins there. NUL
 * is one byte long. No surrogates, no overlong forms.
 */
size_t text_char_len(const char *s, size_t left);

/* Is the text UTF-8 from its beginning to its NUL? */
bool text_is_utf8(const char *text);

/* Puts '?' in the place of each byte that belongs to no character. */
void text_repair(char *text);

/*
 * Puts spaces in the place of control characters (C0, DEL and C1): a terminal obeys them, and they
 * end lines. How many bytes that were; 0: the text is as it was.
 */
size_t text_plain(char *text);

#endif
