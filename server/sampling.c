#include "server/sampling.h"

#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/rng.h"

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void sampling_draw(uint64_t seed, int32_t round, const char **names, int n)
{
    if (n < 2) {
        return;
    }
    size_t size = (size_t)n * sizeof(*names);
    const char **sorted = mem_alloc(size);
    memcpy(sorted, names, size);
    qsort(sorted, (size_t)n, sizeof(*sorted), by_text);
    uint64_t key = rng_u64(rng_key(seed, "sampling"), (uint64_t)round);
    for (int i = 0; i < n; i++) {
        names[i] = sorted[rng_permute(key, (uint64_t)i, (uint64_t)n)];
    }
    mem_free(sorted);
}
