/*
 * Any bytes as JSON. Property: what parses prints as text that parses, and prints the same again.
 */
#include <stdlib.h>
#include <string.h>

#include "common/json.h"

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size)
{
    struct arena *a = arena_new(1 << 22);
    const struct json *doc = NULL;
    struct err e = {0};
    if (json_parse(&doc, a, (const char *)bytes, size, &e) == ST_OK) {
        const char *first = json_print(a, doc);
        const struct json *again = NULL;
        if (json_parse(&again, a, first, strlen(first), &e) ||
            strcmp(json_print(a, again), first) != 0) {
            abort();
        }
        int count = 0;
        for (const struct json *v = json_first(doc); v; v = json_next(v)) {
            count++;
        }
        if (json_kind(doc) >= JSON_ARRAY && count != json_len(doc)) {
            abort();
        }
    } else if (e.msg[0] == '\0') {
        abort();
    }
    arena_free(a);
    return 0;
}
