/*
 * patterns.h - tensors chosen by name.
 *
 * A pattern is a tensor's name with `*` for any run of characters, dots included, tried on the
 * whole name and on the name without its leading "transformer.": wte.*, blocks.0.*, *.bias.
 */
#ifndef COMMON_PATTERNS_H
#define COMMON_PATTERNS_H

#include <stdbool.h>
#include <stdint.h>

enum { PATTERNS_MAX = 8, PATTERN_SIZE = 48 };

struct patterns {
    int32_t count;
    char text[PATTERNS_MAX][PATTERN_SIZE];
};

bool pattern_match(const char *pattern, const char *name);

/* Does one of them match? */
bool patterns_match(const struct patterns *p, const char *name);

#endif
