/* A range is inside the file whatever the header says, and what it says reads back as itself. */
#include <assert.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "server/range.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char text[128];
    uint64_t drawn = 0;
    if (len < sizeof(drawn) || len - sizeof(drawn) >= sizeof(text)) {
        return 0;
    }
    memcpy(&drawn, data, sizeof(drawn));
    int64_t size = (int64_t)(drawn >> 1) >> (drawn & 63);
    memcpy(text, data + sizeof(drawn), len - sizeof(drawn));
    text[len - sizeof(drawn)] = '\0';

    int64_t start = -1;
    int64_t n = -1;
    enum range_kind kind = range_parse(text, size, &start, &n);
    assert(start >= 0 && n >= 0 && start <= size && n <= size - start);
    if (kind != RANGE_PART) {
        assert(start == 0 && n == size);
        return 0;
    }
    assert(n >= 1);
    (void)snprintf(text, sizeof(text), "bytes=%" PRId64 "-%" PRId64, start, start + n - 1);
    int64_t start2 = -1;
    int64_t n2 = -1;
    assert(range_parse(text, size, &start2, &n2) == RANGE_PART);
    assert(start2 == start && n2 == n);
    return 0;
}
