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

void sampling_seats(uint64_t seed, int32_t round, struct sampled *s, int n, int seats)
{
    if (n < 1) {
        return;
    }
    const char **names = mem_alloc((size_t)n * sizeof(*names));
    struct sampled *drawn = mem_alloc((size_t)n * sizeof(*drawn));
    int free_seats = seats;
    for (int i = 0; i < n; i++) {
        names[i] = s[i].name;
        free_seats -= s[i].carried;
    }
    sampling_draw(seed, round, names, n);
    int seated = 0;
    int spare = seats;
    for (int i = 0; i < n; i++) {
        int k = 0;
        while (strcmp(s[k].name, names[i]) != 0) {
            k++;
        }
        bool sits = s[k].carried || free_seats-- > 0;
        drawn[sits ? seated++ : spare++] = s[k];
    }
    memcpy(s, drawn, (size_t)n * sizeof(*s));
    mem_free(drawn);
    mem_free(names);
}
