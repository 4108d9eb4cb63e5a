/*
 * pretok.h - cuts text into pieces by a regular expression. The only door to PCRE2.
 *
 * Tokenizers are written for Oniguruma or Rust's regex; here `\s` is spelled out as Unicode's
 * White_Space, because PCRE2's also takes U+180E. What the engines understand differently, or what
 * cannot be exact while text comes in blocks (anchors, looking behind), is refused by name. Matches
 * and what lies between them are pieces
 * ("Isolated"). Tables are those of PCRE2 10.42: Unicode 14.
 */
#ifndef CLIENT_PRETOK_H
#define CLIENT_PRETOK_H

#include <stdbool.h>
#include <stddef.h>

#include "common/status.h"

struct pretok;       /* a compiled expression; shared by threads */
struct pretok_match; /* what one thread needs to run it */

/* The expression of GPT-2 and its descendants. */
struct pretok *pretok_gpt2(void);

/* ST_INVALID: not an expression, or one that cannot be run exactly. */
enum status pretok_regex(struct pretok **out, const char *pattern, struct err *e) MUST_CHECK;
/* The pattern is a plain string. */
enum status pretok_string(struct pretok **out, const char *text, struct err *e) MUST_CHECK;
void pretok_free(struct pretok *p);

struct pretok_match *pretok_match_new(const struct pretok *p);
void pretok_match_free(struct pretok_match *m);

/*
 * The next match in valid UTF-8 from `from` on: [*begin, *end), not empty. No match: both are n.
 * With more text to come (last false), *more is set when the answer may depend on it; *begin and
 * *end are then not to be used. ST_LIMIT: the expression takes too long on this text.
 */
enum status pretok_next(struct pretok_match *m, const char *s, size_t n, size_t from, bool last,
                        size_t *begin, size_t *end, bool *more, struct err *e) MUST_CHECK;

/* Version of the tables behind \p{L} and \p{N}, "14.0.0". */
const char *pretok_unicode_version(void);

#endif
