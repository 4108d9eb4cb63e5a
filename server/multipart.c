#include "server/multipart.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

#include "common/mem.h"

/*
 * Parts are parted by the delimiter "\r\n--boundary". CR is in it only once, at its start, so when
 * a match breaks off, the bytes held back are content, and only the byte that broke it can begin
 * the next match.
 */
enum state {
    STATE_OPENING = 0, // the first delimiter, which has no line before it
    STATE_CONTENT,
    STATE_DELIMITED, // two bytes tell whether another part follows or the end
    STATE_HEADERS,
    STATE_CLOSED, // an optional line end
};

struct multipart {
    const struct multipart_handler *h;
    void *ctx;
    enum state state;
    enum status st;
    char delimiter[4 + MULTIPART_BOUNDARY_MAX + 1];
    size_t delimiter_len;
    size_t matched; // bytes of the delimiter, or of what follows it, seen so far
    char headers[MULTIPART_HEADERS_MAX + 1];
    size_t headers_len;
};

/* ---- the request's Content-Type ---- */

static bool boundary_char(char c)
{
    return isalnum((unsigned char)c) || (c && strchr("'()+_,-./:=? ", c));
}

static const char *skip_space(const char *p)
{
    while (*p == ' ' || *p == '\t') {
        p++;
    }
    return p;
}

/* A parameter's value, quoted or not, into out. NULL when it is malformed or too long. */
static const char *read_value(const char *p, char *out, size_t max_len)
{
    size_t n = 0;
    bool quoted = *p == '"';
    p += quoted;
    while (*p && (quoted ? *p != '"' : !strchr("; \t", *p))) {
        if (*p == '\\' || *p == '"' || (unsigned char)*p < 0x20 || n == max_len) {
            return NULL;
        }
        out[n++] = *p++;
    }
    if (quoted && *p++ != '"') {
        return NULL;
    }
    out[n] = '\0';
    return n > 0 ? skip_space(p) : NULL;
}

/*
 * The value of a parameter in "; a=b; name=value". NULL when it is absent, twice there, or the list
 * is malformed.
 */
static bool find_parameter(const char *p, const char *name, char *out, size_t max_len)
{
    bool found = false;
    size_t name_len = strlen(name);
    while (*(p = skip_space(p))) {
        if (*p != ';') {
            return false;
        }
        p = skip_space(p + 1);
        size_t key_len = strcspn(p, "=; \t");
        if (p[key_len] != '=') {
            return false;
        }
        bool wanted = key_len == name_len && strncasecmp(p, name, name_len) == 0;
        char other[MULTIPART_HEADERS_MAX + 1];
        if (wanted && found) {
            return false;
        }
        p = read_value(p + key_len + 1, wanted ? out : other,
                       wanted ? max_len : MULTIPART_HEADERS_MAX);
        if (!p) {
            return false;
        }
        found = found || wanted;
    }
    return found;
}

enum status multipart_open(struct multipart **out, const char *content_type,
                           const struct multipart_handler *h, void *ctx, struct err *e)
{
    static const char type[] = "multipart/form-data";
    char boundary[MULTIPART_BOUNDARY_MAX + 1];
    if (!content_type || strncasecmp(content_type, type, sizeof(type) - 1) != 0 ||
        !find_parameter(content_type + sizeof(type) - 1, "boundary", boundary,
                        MULTIPART_BOUNDARY_MAX)) {
        return err_set(e, ST_INVALID, "the body must be multipart/form-data with a boundary");
    }
    size_t len = strlen(boundary);
    for (size_t i = 0; i < len; i++) {
        if (!boundary_char(boundary[i]) || (i == len - 1 && boundary[i] == ' ')) {
            return err_set(e, ST_INVALID, "the multipart boundary has a character it may not have");
        }
    }
    struct multipart *m = mem_alloc(sizeof(*m));
    m->h = h;
    m->ctx = ctx;
    memcpy(m->delimiter, "\r\n--", 4);
    memcpy(m->delimiter + 4, boundary, len);
    m->delimiter_len = 4 + len;
    m->matched = 2; // as if the line before the first delimiter had just ended
    *out = m;
    return ST_OK;
}

void multipart_free(struct multipart *m)
{
    mem_free(m);
}

/* ---- a part's headers ---- */

static bool header_is(const char *line, const char *name, const char **value)
{
    size_t len = strlen(name);
    if (strncasecmp(line, name, len) != 0 || line[len] != ':') {
        return false;
    }
    *value = skip_space(line + len + 1);
    return true;
}

static enum status one_header(const char *line, char *name, const char **type, struct err *e)
{
    static const char form_data[] = "form-data";
    const char *v = NULL;
    if (*line == ' ' || *line == '\t' || !strchr(line, ':')) {
        return err_set(e, ST_INVALID, "a part's header is malformed");
    }
    if (header_is(line, "Content-Disposition", &v)) {
        if (name[0] || strncasecmp(v, form_data, sizeof(form_data) - 1) != 0 ||
            !find_parameter(v + sizeof(form_data) - 1, "name", name, MULTIPART_NAME_MAX)) {
            return err_set(e, ST_INVALID, "a part's Content-Disposition is malformed");
        }
    } else if (header_is(line, "Content-Type", &v)) {
        *type = v;
    } else if (header_is(line, "Content-Transfer-Encoding", &v) && strcasecmp(v, "binary") != 0) {
        return err_set(e, ST_INVALID, "a part has a transfer encoding; try binary");
    }
    return ST_OK;
}

/* headers holds whole lines, the empty one not among them. */
static enum status begin_part(struct multipart *m, struct err *e)
{
    char name[MULTIPART_NAME_MAX + 1] = "";
    const char *type = "";
    m->headers[m->headers_len] = '\0';
    if (strlen(m->headers) != m->headers_len) {
        return err_set(e, ST_INVALID, "a NUL byte in a part's header");
    }
    for (char *line = m->headers; *line;) {
        char *end = strstr(line, "\r\n");
        *end = '\0';
        if (strpbrk(line, "\r\n")) {
            return err_set(e, ST_INVALID, "a part's header has a bare line end");
        }
        TRY(one_header(line, name, &type, e));
        line = end + 2;
    }
    if (!name[0]) {
        return err_set(e, ST_INVALID, "a part without a name");
    }
    m->headers_len = 0;
    m->matched = 0;
    m->state = STATE_CONTENT;
    return m->h->begin(m->ctx, name, type, e);
}

/* ---- the machine ---- */

/*
 * Where the next delimiter begins, whole or in part at the piece's end; len when it does not.
 * *matched is how much of it is there. CR is common in weights, a delimiter is not: what lies
 * between is found as one.
 */
static size_t find_delimiter(const struct multipart *m, const char *p, size_t len, size_t *matched)
{
    size_t at = 0;
    *matched = 0;
    while (at < len) {
        const char *cr = memchr(p + at, '\r', len - at);
        if (!cr) {
            return len;
        }
        size_t begin = (size_t)(cr - p);
        size_t n = 1;
        while (n < m->delimiter_len && begin + n < len && p[begin + n] == m->delimiter[n]) {
            n++;
        }
        if (n == m->delimiter_len || begin + n == len) {
            *matched = n;
            return begin;
        }
        at = begin + 1;
    }
    return len;
}

/* Content up to the delimiter or the piece's end. *used says how many bytes that were. */
static enum status feed_content(struct multipart *m, const char *p, size_t len, size_t *used,
                                struct err *e)
{
    size_t at = 0;
    // One that began in the piece before goes on, or was content after all.
    while (at < len && m->matched > 0 && m->matched < m->delimiter_len) {
        if (p[at] == m->delimiter[m->matched]) {
            m->matched++;
            at++;
        } else {
            size_t held = m->matched;
            m->matched = 0;
            TRY(m->h->bytes(m->ctx, m->delimiter, held, e));
        }
    }
    if (m->matched == 0) {
        size_t content = find_delimiter(m, p + at, len - at, &m->matched);
        if (content > 0) {
            TRY(m->h->bytes(m->ctx, p + at, content, e));
        }
        at += content + m->matched;
    }
    if (m->matched == m->delimiter_len) {
        m->state = STATE_DELIMITED;
        m->matched = 0;
        TRY(m->h->end(m->ctx, e));
    }
    *used = at;
    return ST_OK;
}

static enum status feed_byte(struct multipart *m, char c, struct err *e)
{
    switch (m->state) {
    case STATE_OPENING:
        if (c != m->delimiter[m->matched]) {
            return err_set(e, ST_INVALID, "the body does not begin with its boundary");
        }
        if (++m->matched == m->delimiter_len) {
            m->state = STATE_DELIMITED;
            m->matched = 0;
        }
        return ST_OK;
    case STATE_DELIMITED:
        m->headers[m->matched++] = c;
        if (m->matched < 2) {
            return ST_OK;
        }
        m->matched = 0;
        if (memcmp(m->headers, "\r\n", 2) == 0) {
            m->state = STATE_HEADERS;
            return ST_OK;
        }
        if (memcmp(m->headers, "--", 2) == 0) {
            m->state = STATE_CLOSED;
            return ST_OK;
        }
        return err_set(e, ST_INVALID, "something follows a boundary");
    case STATE_HEADERS:
        if (m->headers_len == MULTIPART_HEADERS_MAX) {
            return err_set(e, ST_INVALID, "a part's headers are longer than %d bytes",
                           MULTIPART_HEADERS_MAX);
        }
        m->headers[m->headers_len++] = c;
        if (m->headers_len == 2 && memcmp(m->headers, "\r\n", 2) == 0) {
            return err_set(e, ST_INVALID, "a part without a name");
        }
        if (m->headers_len >= 4 && memcmp(m->headers + m->headers_len - 4, "\r\n\r\n", 4) == 0) {
            m->headers_len -= 2;
            return begin_part(m, e);
        }
        return ST_OK;
    case STATE_CLOSED:
        if (m->matched >= 2 || c != "\r\n"[m->matched]) {
            return err_set(e, ST_INVALID, "something follows the last boundary");
        }
        m->matched++;
        return ST_OK;
    case STATE_CONTENT:
        break;
    }
    return err_set(e, ST_INVALID, "not multipart");
}

enum status multipart_feed(struct multipart *m, const void *data, size_t len, struct err *e)
{
    const char *p = data;
    while (len > 0 && !m->st) {
        size_t used = 1;
        m->st = m->state == STATE_CONTENT ? feed_content(m, p, len, &used, e) : feed_byte(m, *p, e);
        p += used;
        len -= used;
    }
    return m->st;
}

enum status multipart_end(struct multipart *m, struct err *e)
{
    if (m->st) {
        return m->st;
    }
    if (m->state != STATE_CLOSED || m->matched == 1) {
        return err_set(e, ST_INVALID, "the body ends before its last boundary");
    }
    return ST_OK;
}
