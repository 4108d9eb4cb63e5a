/*
 * spec_reader.h - members of a JSON document read and checked, every problem gathered.
 *
 * A person who sends a spec wants all that is wrong with it at once, each with its place and the
 * remedy, so nothing here stops at the first problem: a member that is absent or wrong leaves what
 * the caller had put there, the default, and whoever asked looks at `total` in the end.
 *
 * Which keys a part may have is a table of the caller's: an unknown one is complained of with the
 * part where it belongs, or with the nearest known key.
 */
#ifndef COMMON_SPEC_READER_H
#define COMMON_SPEC_READER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/json.h"
#include "common/status.h"

/* What is wrong with a spec: a JSON pointer and a sentence with the remedy. */
struct spec_problem {
    char pointer[96];
    char detail[200];
};

enum { SPEC_PROBLEMS_MAX = 16, SPEC_KEYS_MAX = 14 };

/* The keys of one part; "" is the document itself. A table of them ends in a row without a name. */
struct spec_section {
    const char *name;
    const char *keys[SPEC_KEYS_MAX];
};

/* Where problems gather, SPEC_PROBLEMS_MAX of them. More than that are counted, not stored. */
struct spec_reader {
    const struct spec_section *sections;
    struct spec_problem *problems;
    int count;
    int total;
};

/* One object of the document; o is NULL when it was left out. */
struct spec_part {
    struct spec_reader *r;
    const char *name; /* "" for the document itself */
    const struct json *o;
};

/* Bounds of a rate; `open` excludes them. JSON has no NaN, and json_parse() refuses infinities. */
struct spec_range {
    double min;
    bool min_open;
    double max;
    bool max_open;
};

/* The object of that name, which a section must describe; its unknown keys are complained of. */
struct spec_part spec_part(struct spec_reader *r, const struct json *doc, const char *name);

/* key "" speaks of the part itself. */
void spec_complain(const struct spec_part *p, const char *key, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/* NULL when absent, and then the second complains. */
const struct json *spec_get(const struct spec_part *p, const char *key);
void spec_need(const struct spec_part *p, const char *key, const char *remedy);

/* Each leaves *io alone when the key is absent or wrong; wrong is complained of. */
void spec_int(const struct spec_part *p, const char *key, int64_t min, int64_t max, int64_t *io);
void spec_i32(const struct spec_part *p, const char *key, int32_t min, int32_t max, int32_t *io);
void spec_rate(const struct spec_part *p, const char *key, struct spec_range a, double *io);
void spec_bool(const struct spec_part *p, const char *key, bool *io);
void spec_name(const struct spec_part *p, const char *key, char out[64]);

/* The same for a value that stands somewhere else, an array say; NULL is absent. */
void spec_num(const struct spec_part *p, const char *key, const struct json *v, struct spec_range a,
              double *io);

/* The index of one of the words, a list that ends in NULL, or -1: absent, or complained of. */
int spec_word(const struct spec_part *p, const char *key, const char *const *words);

#endif
