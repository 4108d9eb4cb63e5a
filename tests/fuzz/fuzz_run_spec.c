/*
 * Any JSON as a run spec. Property: what is accepted prints as a spec that is accepted, is equal to
 * the last byte, and prints the same; what is refused says where and why.
 */
#include <stdlib.h>
#include <string.h>

#include "common/run_spec.h"

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

static void check_problems(const struct spec_problem *problems, int count)
{
    if (count < 1 || count > SPEC_PROBLEMS_MAX) {
        abort();
    }
    for (int i = 0; i < count; i++) {
        if (problems[i].detail[0] == '\0' ||
            (problems[i].pointer[0] && problems[i].pointer[0] != '/')) {
            abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size)
{
    struct arena *a = arena_new(1 << 22);
    const struct json *doc = NULL;
    struct run_spec s;
    struct run_spec again;
    struct spec_problem problems[SPEC_PROBLEMS_MAX];
    int count = 0;
    struct err e = {0};
    if (json_parse(&doc, a, (const char *)bytes, size, &e) == ST_OK) {
        if (run_spec_parse(&s, doc, problems, &count, &e)) {
            check_problems(problems, count);
        } else {
            const char *first = run_spec_json(a, &s);
            if (json_parse(&doc, a, first, strlen(first), &e) ||
                run_spec_parse(&again, doc, problems, &count, &e) ||
                memcmp(&s, &again, sizeof(s)) != 0 ||
                strcmp(run_spec_json(a, &again), first) != 0) {
                abort();
            }
        }
    }
    arena_free(a);
    return 0;
}
