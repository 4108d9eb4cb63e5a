#include "server/range.h"

#include <stddef.h>
#include <string.h>
#include <strings.h>

/* Digits to a number that stops growing at the type's end: no file reaches that far. */
static const char *read_number(const char *p, int64_t *out)
{
    const char *from = p;
    int64_t v = 0;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *p - '0', &v)) {
            v = INT64_MAX;
        }
    }
    *out = v;
    return p == from ? NULL : p;
}

enum range_kind range_parse(const char *header, int64_t size, int64_t *start, int64_t *len)
{
    *start = 0;
    *len = size;
    static const char unit[] = "bytes=";
    if (!header || strncasecmp(header, unit, sizeof(unit) - 1) != 0) {
        return RANGE_WHOLE;
    }
    const char *p = header + sizeof(unit) - 1;
    int64_t first = 0;
    int64_t last = INT64_MAX;

    if (*p == '-') { // the last n bytes
        p = read_number(p + 1, &last);
        if (!p || *p) {
            return RANGE_WHOLE;
        }
        if (last == 0) {
            return RANGE_UNSATISFIABLE;
        }
        if (size == 0) {
            return RANGE_WHOLE; // "the entire representation is used", and it has no bytes
        }
        *len = last < size ? last : size;
        *start = size - *len;
        return RANGE_PART;
    }

    p = read_number(p, &first);
    if (!p || *p != '-') {
        return RANGE_WHOLE;
    }
    p++;
    if (*p) {
        p = read_number(p, &last);
        if (!p || *p || last < first) {
            return RANGE_WHOLE;
        }
    }
    if (first >= size) {
        return RANGE_UNSATISFIABLE;
    }
    *start = first;
    *len = (last < size - 1 ? last : size - 1) - first + 1;
    return RANGE_PART;
}

bool range_allowed(const char *if_range, const char *etag)
{
    // Only a strong tag compares equal; a date never does, for blobs have none.
    return !if_range || strcmp(if_range, etag) == 0;
}
