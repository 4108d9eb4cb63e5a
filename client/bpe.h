/*
 * bpe.h - byte-pair merging of one piece: the bytes of a piece become ids, lowest rank first, the
 * leftmost of equals. Short pieces are remembered, which is most of the speed on real text.
 */
#ifndef CLIENT_BPE_H
#define CLIENT_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "client/tokenizer_parts.h"

struct bpe; /* one thread's */

struct bpe *bpe_new(const struct tokenizer *t);
void bpe_free(struct bpe *b);

/* The ids of a piece of n >= 1 bytes, at most n of them; valid until the next call. */
const int32_t *bpe_piece(struct bpe *b, const char *piece, size_t n, int32_t *count);

#endif
