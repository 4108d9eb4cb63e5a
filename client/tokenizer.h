/*
 * tokenizer.h - text to token ids and back.
 *
 * Two kinds. The byte tokenizer needs no file: end-of-text 0, padding 1, the byte b is 2 + b. The
 * other is byte-level BPE from a tokenizer.json of Hugging Face's library, whose SHA-256 is its
 * identity. What such a file asks for and this reader does not do is refused by name, never
 * guessed: the ids must be exactly those of the library. (Its post-processor is left aside:
 * documents here are joined by the end-of-text token alone.)
 *
 *     text -> bad UTF-8 becomes U+FFFD -> added tokens -> NFC -> normalized added tokens
 *          -> pieces by regular expression -> bytes -> merges by lowest rank -> ids
 *
 * A tokenizer never changes once made: any number of threads may share it, each with an encoder of
 * its own. An encoder takes a document in blocks of any size and holds a bounded part of it: a
 * piece without a boundary in ENCODER_PIECE_MAX bytes is cut there.
 */
#ifndef CLIENT_TOKENIZER_H
#define CLIENT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/status.h"

enum {
    TOKENIZER_FILE_MAX = 64 * 1024 * 1024,
    ENCODER_PIECE_MAX = 1024 * 1024,
    BYTE_END_OF_TEXT = 0,
    BYTE_PADDING = 1,
    BYTE_FIRST = 2,
    BYTE_IDS = BYTE_FIRST + 256
};

struct tokenizer;

struct tokenizer_info {
    char sha256[65];     /* of the file; "" = the byte tokenizer */
    int32_t ids;         /* ids are below this */
    int32_t vocab_size;  /* ids rounded up to a multiple of 64: what a model should have */
    int32_t end_of_text; /* follows every document */
    int32_t padding;     /* -1: none */
    char normalizer[8];  /* none, NFC */
};

struct tokenizer *tokenizer_bytes(void);

/* ST_NOT_FOUND, ST_IO; ST_INVALID names what is not supported or wrong. path NULL or "": bytes. */
enum status tokenizer_open(struct tokenizer **out, const char *path, struct err *e) MUST_CHECK;
enum status tokenizer_parse(struct tokenizer **out, const char *json, size_t len,
                            struct err *e) MUST_CHECK;
void tokenizer_free(struct tokenizer *t);
void tokenizer_info(const struct tokenizer *t, struct tokenizer_info *out);

/* The bytes of a token, borrowed; *len is 0 for an id without one. */
const char *tokenizer_token(const struct tokenizer *t, int32_t id, size_t *len);
/* Its share of a text's bytes, for bits per byte: 0 for special tokens. */
int32_t tokenizer_token_bytes(const struct tokenizer *t, int32_t id);
/* Append the text of the ids. Ids without a token add nothing; special ones their name if asked. */
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t count, bool specials,
                      struct buf *out);

/* ---- encoding ---- */

/* Receives ids as they come; what it returns ends the encoding when not ST_OK. */
typedef enum status encoder_sink(void *ctx, const int32_t *ids, int32_t count, struct err *e);

struct encoder;

/*
 * specials: whether text that spells a special token becomes that token. Documents come from
 * strangers, so data preparation says no: "<|endoftext|>" in a document is just text there.
 */
struct encoder *encoder_new(const struct tokenizer *t, bool specials, encoder_sink *sink,
                            void *ctx);
void encoder_free(struct encoder *n);
enum status encoder_add(struct encoder *n, const char *bytes, size_t len, struct err *e) MUST_CHECK;
enum status encoder_end(struct encoder *n, struct err *e) MUST_CHECK; /* of the document */
/* Forget a document begun, after an error. */
void encoder_reset(struct encoder *n);

#endif
