#include "server/guard.h"

#include <string.h>
#include <strings.h>

#include "common/text.h"

/* RFC 9110 section 5.6.2: the characters of a method or a field name. */
static bool is_token(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        bool alnum = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!alnum && (c == '\0' || !strchr("!#$%&'*+-.^_`|~", c))) {
            return false;
        }
    }
    return len > 0;
}

static bool name_is(const struct guard_header *h, const char *name)
{
    return h->name_len == strlen(name) && strncasecmp(h->name, name, h->name_len) == 0;
}

/* Visible ASCII alone; what our routes never need and a proxy may fold is refused. */
static enum status check_target(const char *target, struct err *e)
{
    size_t len = strlen(target);
    if (len == 0 || len > GUARD_TARGET_MAX) {
        return err_set(e, ST_INVALID, "the request target is empty or longer than %d bytes",
                       GUARD_TARGET_MAX);
    }
    if (target[0] != '/') {
        return err_set(e, ST_INVALID, "the request target must begin with '/'");
    }
    const char *query = strchr(target, '?');
    size_t path_len = query ? (size_t)(query - target) : len;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)target[i];
        if (c <= 0x20 || c >= 0x7f || c == '#' || c == '\\') {
            return err_set(e, ST_INVALID, "the request target holds a byte that must be encoded");
        }
        bool in_path = i < path_len;
        if (c == '%' && strncmp(target + i, "%00", 3) == 0) {
            return err_set(e, ST_INVALID, "the request target holds an encoded NUL");
        }
        if (in_path && c == '%' &&
            (strncasecmp(target + i, "%2f", 3) == 0 || strncasecmp(target + i, "%5c", 3) == 0 ||
             strncasecmp(target + i, "%2e", 3) == 0)) {
            return err_set(e, ST_INVALID, "the path holds an encoded slash or dot");
        }
        if (in_path && strncmp(target + i, "/..", 3) == 0 &&
            (i + 3 >= path_len || target[i + 3] == '/')) {
            return err_set(e, ST_INVALID, "the path holds '..'");
        }
    }
    return ST_OK;
}

static enum status parse_length(int64_t *out, const struct guard_header *h, struct err *e)
{
    if (h->value_len == 0 || h->value_len > 18) { // 18 digits stay below 2^63
        return err_set(e, ST_INVALID, "Content-Length must be 1 to 18 digits");
    }
    int64_t n = 0;
    for (size_t i = 0; i < h->value_len; i++) {
        if (h->value[i] < '0' || h->value[i] > '9') {
            return err_set(e, ST_INVALID, "Content-Length must be digits alone");
        }
        n = n * 10 + (h->value[i] - '0');
    }
    *out = n;
    return ST_OK;
}

struct seen {
    int hosts;
    int lengths;
    int encodings;
};

static enum status check_header(struct guard_result *r, struct seen *seen,
                                const struct guard_header *h, struct err *e)
{
    if (!is_token(h->name, h->name_len)) {
        return err_set(e, ST_INVALID, "a header's name is no token");
    }
    if (h->value_len > 0 && memchr(h->value, '\0', h->value_len)) {
        return err_set(e, ST_INVALID, "a header's value holds a NUL");
    }
    if (name_is(h, "Host")) {
        seen->hosts++;
    } else if (name_is(h, "Content-Length")) {
        seen->lengths++;
        return parse_length(&r->content_length, h, e);
    } else if (name_is(h, "Transfer-Encoding")) {
        seen->encodings++;
        if (h->value_len != 7 || strncasecmp(h->value, "chunked", 7) != 0) {
            return err_set(e, ST_INVALID, "Transfer-Encoding may only be chunked");
        }
        r->chunked = true;
    }
    return ST_OK;
}

static bool may_have_body(const char *method)
{
    return strcmp(method, "POST") == 0 || strcmp(method, "PUT") == 0 ||
           strcmp(method, "PATCH") == 0;
}

enum status guard_check(struct guard_result *out, const char *method, const char *target,
                        const struct guard_header *headers, int count, struct err *e)
{
    struct guard_result r = {.content_length = -1};
    struct seen seen = {0};

    if (!is_token(method, strlen(method))) {
        return err_set(e, ST_INVALID, "the method is no token");
    }
    TRY(check_target(target, e));
    if (count > GUARD_HEADERS_MAX) {
        return err_set(e, ST_INVALID, "more than %d headers", GUARD_HEADERS_MAX);
    }
    for (int i = 0; i < count; i++) {
        TRY(check_header(&r, &seen, &headers[i], e));
    }
    if (seen.hosts != 1) {
        return err_set(e, ST_INVALID, "a request needs exactly one Host, this has %d", seen.hosts);
    }
    if (seen.lengths > 1 || seen.encodings > 1 || (seen.lengths && seen.encodings)) {
        return err_set(e, ST_INVALID, "the body's length is given twice");
    }
    if (!may_have_body(method) && (r.content_length > 0 || r.chunked)) {
        return err_set(e, ST_INVALID, "%s takes no body", method);
    }
    *out = r;
    return ST_OK;
}

bool utf8_valid(const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        size_t n = text[i] ? text_char_len(text + i, len - i) : 0;
        if (n == 0) {
            return false;
        }
        i += n;
    }
    return true;
}
