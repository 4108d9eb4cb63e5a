/*
 * json.h - the only door to cJSON: reading documents from strangers, writing our own.
 *
 * Reading refuses what JSON parsers tend to let through: bytes after the document, duplicate
 * keys, nesting over 32, NaN, NUL in strings (it would hide their rest). Numbers are doubles, so
 * whole numbers are exact below 2^53. A parsed document belongs to the arena. Writing is a small
 * printer into a growing buffer.
 */
#ifndef COMMON_JSON_H
#define COMMON_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/buf.h"
#include "common/status.h"

struct json; /* one value of a parsed document */

enum json_kind { JSON_NULL = 0, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

/* ST_INVALID says where and why. len counts bytes; the text needs no NUL at its end. */
enum status json_parse(const struct json **out, struct arena *a, const char *text, size_t len,
                       struct err *e) MUST_CHECK;

enum json_kind json_kind(const struct json *v);
const struct json *json_get(const struct json *object, const char *key); /* NULL: absent */
int json_len(const struct json *v);                                      /* items or members */
const struct json *json_at(const struct json *v, int index);             /* item or member value */
const char *json_key_at(const struct json *object, int index);
/* A walk over items or members, in order; the two above count from the start each time. */
const struct json *json_first(const struct json *v);              /* NULL: none */
const struct json *json_next(const struct json *v);               /* NULL: it was the last */
const char *json_key(const struct json *v);                       /* a member's; NULL for an item */
const char *json_str(const struct json *v);                       /* NULL when it is no string */
double json_num(const struct json *v);                            /* asserts the kind */
bool json_bool(const struct json *v);                             /* asserts the kind */
bool json_is_int(const struct json *v, int64_t min, int64_t max); /* a whole number in range? */
int64_t json_int(const struct json *v);                           /* after json_is_int() */
char *json_print(struct arena *a, const struct json *v);          /* compact text */

/*
 * Required members by name: ST_INVALID "'key' is missing", or is not of that kind, or out of range.
 */
enum status json_want_str(const struct json *o, const char *key, const char **out,
                          struct err *e) MUST_CHECK;
enum status json_want_int(const struct json *o, const char *key, int64_t min, int64_t max,
                          int64_t *out, struct err *e) MUST_CHECK;
enum status json_want_num(const struct json *o, const char *key, double *out,
                          struct err *e) MUST_CHECK;

/* ST_INVALID naming the first member of o that is not in the NULL-terminated list. */
enum status json_only(const struct json *o, const char *const *keys, struct err *e) MUST_CHECK;

/*
 * Writer. Commas are put by the writer; keys are given inside objects and NULL inside arrays.
 *
 *     jw_object(b, NULL); jw_str(b, "name", n); jw_int(b, "round", 3); jw_end_object(b);
 *
 * A double that is not finite is written as null.
 */
void jw_object(struct buf *b, const char *key);
void jw_end_object(struct buf *b);
void jw_array(struct buf *b, const char *key);
void jw_end_array(struct buf *b);
void jw_str(struct buf *b, const char *key, const char *value); /* NULL: null */
void jw_int(struct buf *b, const char *key, int64_t value);
void jw_num(struct buf *b, const char *key, double value); /* shortest text that reads back equal */
void jw_bool(struct buf *b, const char *key, bool value);
void jw_null(struct buf *b, const char *key);
void jw_raw(struct buf *b, const char *key, const char *json); /* JSON text as it is */

#endif
