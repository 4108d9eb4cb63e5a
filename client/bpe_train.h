/*
 * bpe_train.h - learns byte-level BPE merges from text and writes them as a tokenizer.json.
 *
 * Ids are laid out as in the byte tokenizer (end-of-text 0, padding 1, bytes 2 to 257), then one
 * per merge. Pieces are counted, the commonest pair of neighbours becomes a token, ties go to the
 * smaller (left, right) ids, until the vocabulary is full or no pair comes twice. The result is a
 * function of the documents alone, in any order.
 */
#ifndef CLIENT_BPE_TRAIN_H
#define CLIENT_BPE_TRAIN_H

#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/status.h"

struct bpe_trainer;

struct bpe_trainer *bpe_trainer_new(void);
void bpe_trainer_free(struct bpe_trainer *t);

/* A document comes in blocks of any size; ST_LIMIT: over 2 GiB of different pieces. */
enum status bpe_trainer_add(struct bpe_trainer *t, const char *bytes, size_t len,
                            struct err *e) MUST_CHECK;
enum status bpe_trainer_end(struct bpe_trainer *t, struct err *e) MUST_CHECK;

/*
 * Learn up to `vocab` ids (258 and more) and append the file to out. *ids is how many it has:
 * fewer when the text has no more pairs. tick(ctx, ids so far) is called now and then;
 * it may be NULL.
 */
enum status bpe_trainer_learn(struct bpe_trainer *t, int32_t vocab,
                              void (*tick)(void *ctx, int32_t ids), void *ctx, struct buf *out,
                              int32_t *ids, struct err *e) MUST_CHECK;

#endif
