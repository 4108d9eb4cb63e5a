/*
 * tokenizer_parts.h - what a tokenizer is made of, for the files that make, write and run one.
 *
 * Everybody else includes client/tokenizer.h.
 */
#ifndef CLIENT_TOKENIZER_PARTS_H
#define CLIENT_TOKENIZER_PARTS_H

#include "client/pretok.h"
#include "client/tokenizer.h"

enum { PRETOK_STAGES_MAX = 4, ADDED_MAX = 1024, ADDED_LEN_MAX = 256 };

struct token {
    uint32_t at; /* in text */
    uint32_t len;
    bool special;
};

struct added {
    uint32_t len;
    int32_t id;
    bool special;
    bool normalized; /* looked for after NFC */
    char text[ADDED_LEN_MAX];
};

/* Added tokens of one kind, the longest first among those with one first byte. */
struct added_set {
    struct added *items;
    int count;
    size_t longest;
    int16_t first[256]; /* where the run of that first byte begins; -1: none */
};

struct merge {
    uint64_t pair; /* left << 32 | right; EMPTY_PAIR: a free place */
    int32_t rank;
    int32_t id;
};
#define EMPTY_PAIR UINT64_MAX

/* Open addressing, a power of two places, at most half of them taken. */
struct merge_table {
    struct merge *places;
    size_t mask;
    int32_t count;
};

struct tokenizer {
    char sha256[65];
    bool bytes; /* the byte tokenizer: nothing below is used but tokens */
    bool nfc;
    int32_t ids;
    int32_t end_of_text;
    int32_t padding;
    struct token *tokens; /* ids of them */
    struct buf text;
    int32_t byte_id[256];
    struct merge_table merges;
    struct added_set raw;        /* looked for in the text as it is */
    struct added_set normalized; /* looked for after NFC */
    struct pretok *stages[PRETOK_STAGES_MAX];
    int stage_count;
};

static inline uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

void merge_table_init(struct merge_table *t, int32_t count); /* room for count */
/* False when the pair is there already. */
bool merge_table_add(struct merge_table *t, struct merge m);
const struct merge *merge_table_find(const struct merge_table *t, uint64_t pair); /* NULL */

/* GPT-2's names for bytes: the code point that stands for a byte in a token, and back (-1). */
int32_t byte_char(int byte);
int byte_of_char(int32_t c);

/* Bytes as the text of a token in tokenizer.json. */
void byte_text(struct buf *out, const char *bytes, size_t len);

#endif
