#include "server/s3_xml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TAG_MAX = 64 };

static const struct {
    const char *name;
    char c;
} entities[] = {{"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}};

/* One character of text and how many bytes it took; an entity we do not know stays as it is. */
static size_t one(const char *p, char *c)
{
    for (size_t i = 0; i < sizeof(entities) / sizeof(entities[0]); i++) {
        size_t n = strlen(entities[i].name);
        if (strncmp(p, entities[i].name, n) == 0) {
            *c = entities[i].c;
            return n;
        }
    }
    *c = *p;
    return 1;
}

static const char *find_tag(const char *at, const char *lead, const char *tag, const char **after)
{
    char text[TAG_MAX + 4];
    (void)snprintf(text, sizeof(text), "%s%.*s>", lead, TAG_MAX, tag);
    const char *p = strstr(at, text);
    *after = p ? p + strlen(text) : NULL;
    return p;
}

bool s3_xml_text(const char **at, const char *tag, char *out, size_t size)
{
    const char *begin = NULL;
    const char *after = NULL;
    if (!find_tag(*at, "<", tag, &begin)) {
        return false;
    }
    const char *end = find_tag(begin, "</", tag, &after);
    if (!end || end - begin >= (ptrdiff_t)size) { // resolved, it is no longer than this
        return false;
    }
    size_t len = 0;
    for (const char *p = begin; p < end;) {
        p += one(p, &out[len]);
        len++;
    }
    out[len] = '\0';
    *at = after;
    return true;
}

static int digits(const char *p, int n)
{
    int v = 0;
    for (int i = 0; i < n; i++) {
        if (p[i] < '0' || p[i] > '9') {
            return -1;
        }
        v = 10 * v + (p[i] - '0');
    }
    return v;
}

int64_t s3_xml_time(const char *text)
{
    static const char form[] = "dddd-dd-ddTdd:dd:dd";
    if (strlen(text) < sizeof(form) - 1 || text[4] != '-' || text[7] != '-' || text[10] != 'T' ||
        text[13] != ':' || text[16] != ':') {
        return -1;
    }
    struct tm t = {.tm_year = digits(text, 4) - 1900,
                   .tm_mon = digits(text + 5, 2) - 1,
                   .tm_mday = digits(text + 8, 2),
                   .tm_hour = digits(text + 11, 2),
                   .tm_min = digits(text + 14, 2),
                   .tm_sec = digits(text + 17, 2)};
    bool sound = t.tm_year >= 70 && t.tm_mon >= 0 && t.tm_mon < 12 && t.tm_mday >= 1 &&
                 t.tm_mday <= 31 && t.tm_hour >= 0 && t.tm_hour < 24 && t.tm_min >= 0 &&
                 t.tm_min < 60 && t.tm_sec >= 0 && t.tm_sec <= 60;
    return sound ? (int64_t)timegm(&t) : -1;
}

bool s3_xml_object(const char **at, struct s3_object *out)
{
    const char *begin = NULL;
    const char *after = NULL;
    char bytes[32];
    char when[40];
    if (!find_tag(*at, "<", "Contents", &begin) || !find_tag(begin, "</", "Contents", &after)) {
        return false;
    }
    const char *key = begin;
    const char *size = begin;
    const char *time = begin;
    if (!s3_xml_text(&key, "Key", out->key, sizeof(out->key)) ||
        !s3_xml_text(&size, "Size", bytes, sizeof(bytes)) ||
        !s3_xml_text(&time, "LastModified", when, sizeof(when)) || key > after || size > after ||
        time > after) {
        return false;
    }
    char *end = NULL;
    out->bytes = strtoll(bytes, &end, 10);
    out->modified_s = s3_xml_time(when);
    *at = after;
    return end != bytes && *end == '\0' && out->bytes >= 0 && out->modified_s >= 0;
}
