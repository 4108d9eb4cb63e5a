#include "client/spec_file.h"

#include <stdio.h>
#include <string.h>

#include "client/durable.h"
#include "common/limits.h"
#include "common/mem.h"

static enum status parse(struct run_spec *out, struct arena *a, const char *text, struct err *e)
{
    const struct json *doc = NULL;
    struct spec_problem problems[SPEC_PROBLEMS_MAX];
    int count = 0;
    TRY(json_parse(&doc, a, text, strlen(text), e));
    return run_spec_parse(out, doc, problems, &count, e);
}

enum status spec_file_read(struct run_spec *out, const char *path, const char *name, struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    char *text = arena_alloc(a, LIMIT_CONTROL_BODY + 1);
    enum status st = file_read(path, text, LIMIT_CONTROL_BODY, e);
    st = st ? st : parse(out, a, text, e);
    if (!st && !*out->name) {
        (void)snprintf(out->name, sizeof(out->name), "%s", name);
    }
    arena_free(a);
    return st;
}
