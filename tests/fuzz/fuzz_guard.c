/*
 * Request heads. What the guard lets through must be readable in one way only: one host, at most
 * one length of digits, never a length beside chunked, a path without anything
 * that decodes into another.
 */
#include <assert.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

#include "server/guard.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int count(const struct guard_header *h, int n, const char *name)
{
    int found = 0;
    for (int i = 0; i < n; i++) {
        found += h[i].name_len == strlen(name) && strncasecmp(h[i].name, name, h[i].name_len) == 0;
    }
    return found;
}

/* Lines: method, target, then name:value each; a line's end is \n, its value
 * may hold anything else. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[4096];
    if (size >= sizeof(text)) {
        return 0;
    }
    if (size > 0) {
        memcpy(text, data, size);
    }
    text[size] = '\0';
    char *lines[2 + GUARD_HEADERS_MAX + 1];
    size_t lens[2 + GUARD_HEADERS_MAX + 1];
    int n = 0;
    for (char *p = text; p <= text + size && n < 2 + GUARD_HEADERS_MAX + 1; n++) {
        char *end = memchr(p, '\n', (size_t)(text + size - p));
        end = end ? end : text + size;
        *end = '\0';
        lines[n] = p;
        lens[n] = (size_t)(end - p);
        p = end + 1;
    }
    if (n < 2) {
        return 0;
    }
    struct guard_header h[GUARD_HEADERS_MAX + 1];
    for (int i = 2; i < n; i++) {
        const char *colon = memchr(lines[i], ':', lens[i]);
        size_t name = colon ? (size_t)(colon - lines[i]) : lens[i];
        h[i - 2] = (struct guard_header){lines[i], name, colon ? colon + 1 : "",
                                         colon ? lens[i] - name - 1 : 0};
    }
    struct guard_result r = {.content_length = -2};
    struct err e = {0};
    if (guard_check(&r, lines[0], lines[1], h, n - 2, &e)) {
        assert(r.content_length == -2 && e.msg[0] != '\0'); // refused: nothing was written
        return 0;
    }
    assert(count(h, n - 2, "host") == 1);
    assert(count(h, n - 2, "content-length") == (r.content_length >= 0));
    assert(count(h, n - 2, "transfer-encoding") == r.chunked);
    assert(!r.chunked || r.content_length < 0);
    assert(lines[1][0] == '/' && utf8_valid(lines[1], strlen(lines[1])));
    assert(!strstr(lines[1], "%00") && !strchr(lines[1], '\\'));
    size_t path = strcspn(lines[1], "?");
    for (size_t i = 0; i + 2 < path; i++) {
        assert(strncasecmp(lines[1] + i, "%2f", 3) != 0 &&
               strncasecmp(lines[1] + i, "%2e", 3) != 0);
    }
    return 0;
}
