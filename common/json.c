#include "common/json.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/text.h"

enum { DEPTH_MAX = 32 };

static const double EXACT_MAX = 9007199254740992.0; // 2^53: beyond it doubles skip whole numbers

struct json {
    cJSON node; // never built: a pointer to a cJSON is used as a pointer to this
};

static const struct json *wrap(const cJSON *n)
{
    return (const struct json *)n;
}

static const cJSON *raw(const struct json *v)
{
    return (const cJSON *)v;
}

static void delete_tree(void *p)
{
    cJSON_Delete(p);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sorted rather than each against each: a tokenizer's vocabulary has 50,000 members. */
static enum status check_keys(const cJSON *v, struct err *e)
{
    size_t count = 0;
    for (const cJSON *c = v->child; c && c->string; c = c->next) {
        count++;
    }
    if (count < 2) {
        return ST_OK;
    }
    void *block = NULL;
    TRY(mem_alloc_large(&block, count * sizeof(char *), e));
    char **keys = block;
    size_t n = 0;
    for (const cJSON *c = v->child; c; c = c->next) {
        keys[n++] = c->string;
    }
    qsort(keys, n, sizeof(*keys), by_name);
    enum status st = ST_OK;
    for (size_t i = 1; i < n && !st; i++) {
        if (strcmp(keys[i - 1], keys[i]) == 0) {
            st = err_set(e, ST_INVALID, "key '%.60s' is given twice", keys[i]);
        }
    }
    mem_free(block);
    return st;
}

/* No duplicate keys, no deep nesting, no number that a double cannot hold. */
static enum status check_tree(const cJSON *v, int depth, struct err *e)
{
    if (depth > DEPTH_MAX) {
        return err_set(e, ST_INVALID, "nested deeper than %d", DEPTH_MAX);
    }
    if (cJSON_IsNumber(v) && !isfinite(v->valuedouble)) {
        return err_set(e, ST_INVALID, "a number is out of range");
    }
    TRY(check_keys(v, e));
    for (const cJSON *c = v->child; c; c = c->next) {
        TRY(check_tree(c, depth + 1, e));
    }
    return ST_OK;
}

/*
 * cJSON recurses as deep as its own limit, so depth is bounded before it sees the text; and it
 * makes a NUL of \u0000, which would hide the rest of a string.
 */
static enum status check_text(const char *text, size_t len, struct err *e)
{
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (quoted) {
            if (c == '\\') {
                i++;
                if (len - i >= 5 && memcmp(text + i, "u0000", 5) == 0) {
                    return err_set(e, ST_INVALID, "a NUL character in the string at byte %zu", i);
                }
            } else if (c == '"') {
                quoted = false;
            }
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            if (++depth > DEPTH_MAX) {
                return err_set(e, ST_INVALID, "nested deeper than %d", DEPTH_MAX);
            }
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return ST_OK;
}

enum status json_parse(const struct json **out, struct arena *a, const char *text, size_t len,
                       struct err *e)
{
    if (len == 0) {
        return err_set(e, ST_INVALID, "the document is empty; try a JSON object");
    }
    if (memchr(text, '\0', len)) {
        return err_set(e, ST_INVALID, "a NUL byte in the document");
    }
    TRY(check_text(text, len, e));
    const char *end = NULL;
    cJSON *tree = cJSON_ParseWithLengthOpts(text, len, &end, 0);
    if (!tree) {
        size_t at = end ? (size_t)(end - text) : 0;
        return err_set(e, ST_INVALID, "not JSON at byte %zu", at);
    }
    arena_defer(a, delete_tree, tree);

    size_t rest = (size_t)(end - text);
    while (rest < len && strchr(" \t\r\n", text[rest])) {
        rest++;
    }
    if (rest < len) {
        return err_set(e, ST_INVALID, "something follows the document at byte %zu", rest);
    }
    TRY(check_tree(tree, 1, e));
    *out = wrap(tree);
    return ST_OK;
}

enum json_kind json_kind(const struct json *v)
{
    const cJSON *n = raw(v);
    if (cJSON_IsObject(n)) {
        return JSON_OBJECT;
    }
    if (cJSON_IsArray(n)) {
        return JSON_ARRAY;
    }
    if (cJSON_IsString(n)) {
        return JSON_STRING;
    }
    if (cJSON_IsNumber(n)) {
        return JSON_NUMBER;
    }
    return cJSON_IsBool(n) ? JSON_BOOL : JSON_NULL;
}

const struct json *json_get(const struct json *object, const char *key)
{
    return wrap(cJSON_GetObjectItemCaseSensitive(raw(object), key));
}

int json_len(const struct json *v)
{
    return cJSON_GetArraySize(raw(v));
}

const struct json *json_at(const struct json *v, int index)
{
    return wrap(cJSON_GetArrayItem(raw(v), index));
}

const char *json_key_at(const struct json *object, int index)
{
    const cJSON *n = cJSON_GetArrayItem(raw(object), index);
    return n ? n->string : NULL;
}

const struct json *json_first(const struct json *v)
{
    return wrap(raw(v)->child);
}

const struct json *json_next(const struct json *v)
{
    return wrap(raw(v)->next);
}

const char *json_key(const struct json *v)
{
    return raw(v)->string;
}

const char *json_str(const struct json *v)
{
    return v ? cJSON_GetStringValue(raw(v)) : NULL;
}

double json_num(const struct json *v)
{
    assert(cJSON_IsNumber(raw(v)));
    return raw(v)->valuedouble;
}

bool json_bool(const struct json *v)
{
    assert(cJSON_IsBool(raw(v)));
    return cJSON_IsTrue(raw(v));
}

bool json_is_int(const struct json *v, int64_t min, int64_t max)
{
    if (!v || !cJSON_IsNumber(raw(v))) {
        return false;
    }
    double d = raw(v)->valuedouble;
    return d == floor(d) && fabs(d) < EXACT_MAX && d >= (double)min && d <= (double)max;
}

int64_t json_int(const struct json *v)
{
    return (int64_t)json_num(v);
}

char *json_print(struct arena *a, const struct json *v)
{
    char *text = cJSON_PrintUnformatted(raw(v));
    assert(text);
    arena_defer(a, cJSON_free, text);
    return text;
}

enum status json_want_str(const struct json *o, const char *key, const char **out, struct err *e)
{
    const struct json *v = json_get(o, key);
    if (!v) {
        return err_set(e, ST_INVALID, "'%s' is missing", key);
    }
    if (!json_str(v)) {
        return err_set(e, ST_INVALID, "'%s' must be a string", key);
    }
    *out = json_str(v);
    return ST_OK;
}

enum status json_want_int(const struct json *o, const char *key, int64_t min, int64_t max,
                          int64_t *out, struct err *e)
{
    const struct json *v = json_get(o, key);
    if (!v) {
        return err_set(e, ST_INVALID, "'%s' is missing", key);
    }
    if (!json_is_int(v, min, max)) {
        return err_set(e, ST_INVALID, "'%s' must be a whole number from %" PRId64 " to %" PRId64,
                       key, min, max);
    }
    *out = json_int(v);
    return ST_OK;
}

enum status json_want_num(const struct json *o, const char *key, double *out, struct err *e)
{
    const struct json *v = json_get(o, key);
    if (!v) {
        return err_set(e, ST_INVALID, "'%s' is missing", key);
    }
    if (json_kind(v) != JSON_NUMBER) {
        return err_set(e, ST_INVALID, "'%s' must be a number", key);
    }
    *out = json_num(v);
    return ST_OK;
}

enum status json_only(const struct json *o, const char *const *keys, struct err *e)
{
    for (const cJSON *c = raw(o)->child; c; c = c->next) {
        bool known = false;
        for (const char *const *k = keys; *k && !known; k++) {
            known = strcmp(*k, c->string) == 0;
        }
        if (!known) {
            return err_set(e, ST_INVALID, "unknown key '%.60s'", c->string);
        }
    }
    return ST_OK;
}

/* ---- writing ---- */

static void lead(struct buf *b, const char *key);

static void put_text(struct buf *b, const char *s)
{
    buf_str(b, "\"");
    size_t left = strlen(s);
    for (const char *p = s; *p;) {
        unsigned char c = (unsigned char)*p;
        size_t n = text_char_len(p, left);
        switch (c) {
        case '"':
            buf_str(b, "\\\"");
            break;
        case '\\':
            buf_str(b, "\\\\");
            break;
        case '\n':
            buf_str(b, "\\n");
            break;
        case '\r':
            buf_str(b, "\\r");
            break;
        case '\t':
            buf_str(b, "\\t");
            break;
        default:
            if (c < 0x20) {
                buf_fmt(b, "\\u%04x", c);
            } else if (n == 0) { // a text that was cut within a character, or is none
                buf_str(b, "\\ufffd");
            } else {
                buf_add(b, p, n);
            }
        }
        n = n ? n : 1;
        p += n;
        left -= n;
    }
    buf_str(b, "\"");
}

/* A comma unless this is the first thing in its container, then the key. */
static void lead(struct buf *b, const char *key)
{
    if (b->len > 0 && !strchr("{[:", b->data[b->len - 1])) {
        buf_str(b, ",");
    }
    if (key) {
        put_text(b, key);
        buf_str(b, ":");
    }
}

void jw_object(struct buf *b, const char *key)
{
    lead(b, key);
    buf_str(b, "{");
}

void jw_end_object(struct buf *b)
{
    buf_str(b, "}");
}

void jw_array(struct buf *b, const char *key)
{
    lead(b, key);
    buf_str(b, "[");
}

void jw_end_array(struct buf *b)
{
    buf_str(b, "]");
}

void jw_str(struct buf *b, const char *key, const char *value)
{
    lead(b, key);
    if (value) {
        put_text(b, value);
    } else {
        buf_str(b, "null");
    }
}

void jw_int(struct buf *b, const char *key, int64_t value)
{
    lead(b, key);
    buf_fmt(b, "%" PRId64, value);
}

void jw_num(struct buf *b, const char *key, double value)
{
    lead(b, key);
    if (!isfinite(value)) {
        buf_str(b, "null");
        return;
    }
    char text[32];
    // Any decimal of up to 15 digits survives a double, so with 15 a shorter one shows as it is.
    for (int digits = 15; digits <= 17; digits++) {
        (void)snprintf(text, sizeof(text), "%.*g", digits, value);
        double back = 0.0;
        (void)sscanf(text, "%lf", &back);
        if (back == value) {
            break;
        }
    }
    buf_str(b, text);
}

void jw_bool(struct buf *b, const char *key, bool value)
{
    lead(b, key);
    buf_str(b, value ? "true" : "false");
}

void jw_null(struct buf *b, const char *key)
{
    lead(b, key);
    buf_str(b, "null");
}

void jw_raw(struct buf *b, const char *key, const char *json)
{
    lead(b, key);
    buf_str(b, json);
}
