#include "common/spec_reader.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/nearest.h"

void spec_complain(const struct spec_part *p, const char *key, const char *fmt, ...)
{
    struct spec_reader *r = p->r;
    r->total++;
    if (r->count == SPEC_PROBLEMS_MAX) {
        return;
    }
    struct spec_problem *out = &r->problems[r->count++];
    (void)snprintf(out->pointer, sizeof(out->pointer), "%s%s%s%s", *p->name ? "/" : "", p->name,
                   *key ? "/" : "", key);
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(out->detail, sizeof(out->detail), fmt, ap);
    va_end(ap);
}

/* A stranger's text as it may stand in a message: short, printable ASCII. */
static const char *shown(const char *text, char out[41])
{
    int n = 0;
    for (; n < 40 && text[n]; n++) {
        out[n] = text[n] >= 0x20 && text[n] < 0x7f ? text[n] : '?';
    }
    out[n] = '\0';
    return out;
}

/* The same with '~' and '/' escaped, as a JSON pointer wants them (RFC 6901). */
static const char *pointer_part(const char *key, char out[81])
{
    char clean[41];
    int n = 0;
    for (const char *c = shown(key, clean); *c; c++) {
        if (*c == '~' || *c == '/') {
            out[n++] = '~';
            out[n++] = *c == '~' ? '0' : '1';
        } else {
            out[n++] = *c;
        }
    }
    out[n] = '\0';
    return out;
}

static const char *joined(const char *const *list, char out[160])
{
    int n = 0;
    out[0] = '\0';
    for (const char *const *w = list; *w; w++) {
        n += snprintf(out + n, 160 - (size_t)n, "%s%s", n > 0 ? ", " : "", *w);
        assert(n < 160);
    }
    return out;
}

/* A key that is right elsewhere is named there; else the nearest of this part, else of all. */
static void unknown_key(const struct spec_part *p, const struct spec_section *here, const char *key)
{
    char clean[41];
    char at[81];
    const char *near = nearest(key, here->keys);
    shown(key, clean);
    pointer_part(key, at);
    for (const struct spec_section *s = p->r->sections; s->name; s++) {
        for (const char *const *k = s->keys; *k; k++) {
            if (strcmp(*k, key) == 0) {
                spec_complain(p, at, "unknown key '%s' here; it belongs %s%s", clean,
                              *s->name ? "under " : "at the top of the spec", s->name);
                return;
            }
        }
    }
    if (near) {
        spec_complain(p, at, "unknown key '%s'; did you mean '%s'?", clean, near);
        return;
    }
    for (const struct spec_section *s = p->r->sections; s->name; s++) {
        near = nearest(key, s->keys);
        if (near) {
            spec_complain(p, at, "unknown key '%s'; did you mean '%s%s%s'?", clean, s->name,
                          *s->name ? "." : "", near);
            return;
        }
    }
    char all[160];
    spec_complain(p, at, "unknown key '%s'; known here: %s", clean, joined(here->keys, all));
}

struct spec_part spec_part(struct spec_reader *r, const struct json *doc, const char *name)
{
    struct spec_part p = {.r = r, .name = name, .o = *name ? json_get(doc, name) : doc};
    if (!p.o) {
        return p;
    }
    if (json_kind(p.o) != JSON_OBJECT) {
        spec_complain(&p, "", "must be a JSON object");
        p.o = NULL;
        return p;
    }
    const struct spec_section *s = r->sections;
    while (strcmp(s->name, name) != 0) {
        s++;
    }
    for (const struct json *v = json_first(p.o); v; v = json_next(v)) {
        bool known = false;
        for (const char *const *k = s->keys; *k && !known; k++) {
            known = strcmp(*k, json_key(v)) == 0;
        }
        if (!known) {
            unknown_key(&p, s, json_key(v));
        }
    }
    return p;
}

const struct json *spec_get(const struct spec_part *p, const char *key)
{
    return p->o ? json_get(p->o, key) : NULL;
}

void spec_need(const struct spec_part *p, const char *key, const char *remedy)
{
    if (!spec_get(p, key)) {
        spec_complain(p, key, "is missing; %s", remedy);
    }
}

void spec_int(const struct spec_part *p, const char *key, int64_t min, int64_t max, int64_t *io)
{
    const struct json *v = spec_get(p, key);
    if (!v) {
        return;
    }
    if (json_is_int(v, min, max)) {
        *io = json_int(v);
        return;
    }
    char got[40] = "";
    if (json_kind(v) == JSON_NUMBER) {
        (void)snprintf(got, sizeof(got), ", not %.15g", json_num(v));
    }
    spec_complain(p, key, "must be a whole number from %" PRId64 " to %" PRId64 "%s", min, max,
                  got);
}

void spec_i32(const struct spec_part *p, const char *key, int32_t min, int32_t max, int32_t *io)
{
    int64_t wide = *io;
    spec_int(p, key, min, max, &wide);
    *io = (int32_t)wide;
}

static bool in_range(double v, struct spec_range a)
{
    return (a.min_open ? v > a.min : v >= a.min) && (a.max_open ? v < a.max : v <= a.max);
}

void spec_num(const struct spec_part *p, const char *key, const struct json *v, struct spec_range a,
              double *io)
{
    if (!v) {
        return;
    }
    if (json_kind(v) == JSON_NUMBER && in_range(json_num(v), a)) {
        *io = json_num(v) + 0.0; // -0 prints as 0
        return;
    }
    char got[40] = "";
    if (json_kind(v) == JSON_NUMBER) {
        (void)snprintf(got, sizeof(got), ", not %.6g", json_num(v));
    }
    spec_complain(p, key, "must be a number %s %g and %s %g%s",
                  a.min_open ? "above" : "of at least", a.min, a.max_open ? "below" : "at most",
                  a.max, got);
}

void spec_rate(const struct spec_part *p, const char *key, struct spec_range a, double *io)
{
    spec_num(p, key, spec_get(p, key), a, io);
}

void spec_bool(const struct spec_part *p, const char *key, bool *io)
{
    const struct json *v = spec_get(p, key);
    if (v && json_kind(v) == JSON_BOOL) {
        *io = json_bool(v);
    } else if (v) {
        spec_complain(p, key, "must be true or false");
    }
}

int spec_word(const struct spec_part *p, const char *key, const char *const *words)
{
    const struct json *v = spec_get(p, key);
    char all[160];
    if (!v) {
        return -1;
    }
    const char *text = json_str(v);
    if (!text) {
        spec_complain(p, key, "must be one of: %s", joined(words, all));
        return -1;
    }
    for (int i = 0; words[i]; i++) {
        if (strcmp(words[i], text) == 0) {
            return i;
        }
    }
    char clean[41];
    const char *near = nearest(text, words);
    if (near) {
        spec_complain(p, key, "'%s' is not known; did you mean '%s'? (all: %s)", shown(text, clean),
                      near, joined(words, all));
    } else {
        spec_complain(p, key, "'%s' is not known; use one of: %s", shown(text, clean),
                      joined(words, all));
    }
    return -1;
}

static bool name_ok(const char *s)
{
    static const char WORD[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    static const char REST[] = "abcdefghijklmnopqrstuvwxyz0123456789._-";
    return *s && strchr(WORD, *s) && s[strspn(s, REST)] == '\0';
}

void spec_name(const struct spec_part *p, const char *key, char out[64])
{
    const struct json *v = spec_get(p, key);
    if (!v) {
        return;
    }
    const char *text = json_str(v);
    if (text && (*text == '\0' || (name_ok(text) && strlen(text) < 64))) {
        (void)snprintf(out, 64, "%s", text);
        return;
    }
    spec_complain(p, key,
                  "must be at most 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or "
                  "digit, for example \"tiny-1\"");
}
