/*
 * id.h - public identifiers: a letter, an underscore and a ULID (26 characters
 * of Crockford's base 32).
 *
 * Sortable by time of birth. r run, e experiment, s silo, t task, u upload, k token.
 */
#ifndef COMMON_ID_H
#define COMMON_ID_H

#include <stdbool.h>

enum { ID_LEN = 28 };

void id_new(char prefix, char out[ID_LEN + 1]);
bool id_valid(char prefix, const char *text);

#endif
