#include "common/patterns.h"

#include <stddef.h>
#include <string.h>

static const char PREFIX[] = "transformer.";

/* The usual walk with one place to come back to: where the newest star was, and how much of the
 * name it has eaten. */
static bool glob(const char *p, const char *s)
{
    const char *star = NULL;
    const char *eaten = NULL;
    while (*s) {
        if (*p == '*') {
            star = p++;
            eaten = s;
        } else if (*p == *s) {
            p++;
            s++;
        } else if (star) {
            p = star + 1;
            s = ++eaten;
        } else {
            return false;
        }
    }
    while (*p == '*') {
        p++;
    }
    return *p == '\0';
}

bool pattern_match(const char *pattern, const char *name)
{
    size_t n = sizeof(PREFIX) - 1;
    return glob(pattern, name) || (strncmp(name, PREFIX, n) == 0 && glob(pattern, name + n));
}

bool patterns_match(const struct patterns *p, const char *name)
{
    for (int32_t i = 0; i < p->count; i++) {
        if (pattern_match(p->text[i], name)) {
            return true;
        }
    }
    return false;
}
