/*
 * prepare.h - text to a folder of token shards that client/data.h reads.
 *
 * Each document goes to train or held-out by the SHA-256 of its first 64 KiB, so the same document
 * is always on the same side, whatever stands around it; <|endoftext|> follows it. The manifest is
 * written last, by rename: a folder without one is unfinished and may be written anew.
 * Nothing but a block of text, a shard's buffer and the encoder is held in memory.
 */
#ifndef CLIENT_PREPARE_H
#define CLIENT_PREPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "client/docs.h"
#include "client/shard.h"
#include "client/tokenizer.h"
#include "common/arena.h"
#include "common/status.h"

struct prepare_options {
    const char *const *inputs;
    int input_count;
    const char *out_dir;
    const char *tokenizer; /* a tokenizer.json; NULL: bytes */
    double heldout;        /* share of the documents, 0 <= heldout < 1 */
    const char *text_key;
    enum doc_format format;
    int64_t shard_tokens; /* in one file */
    bool force;           /* replace a finished folder */
};

struct prepare_progress {
    int64_t done_bytes; /* of files, as stored */
    int64_t all_bytes;
    int64_t documents;
    int64_t tokens;
    const char *file;
};

struct prepare_report {
    struct manifest manifest; /* in the arena */
    struct doc_counts counts;
    int64_t files;
    int64_t binary;
    int64_t other;
};

/*
 * tick(ctx, progress) is called now and then; it may be NULL. ST_CONFLICT: out_dir is finished and
 * force is not set. ST_NOT_FOUND: no text. ST_INVALID, ST_CORRUPT, ST_LIMIT, ST_IO name the file.
 */
enum status prepare(struct prepare_report *out, struct arena *a, const struct prepare_options *o,
                    void (*tick)(void *ctx, const struct prepare_progress *p), void *ctx,
                    struct err *e) MUST_CHECK;

/*
 * Hash every shard anew and look at every token. ST_CORRUPT names the first that is wrong.
 * tick(ctx, bytes done) may be NULL.
 */
enum status prepare_check(struct manifest *out, struct arena *a, const char *dir,
                          void (*tick)(void *ctx, int64_t done, int64_t all), void *ctx,
                          struct err *e) MUST_CHECK;

#endif
