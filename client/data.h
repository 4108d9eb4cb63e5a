/*
 * data.h - a silo's text: token shards on disk, and the row that global step s reads.
 *
 * `photon data prepare` writes a folder: manifest.json (tokenizer's SHA-256, vocabulary, documents,
 * bytes, tokens, shards with their SHA-256) and shards `train-00000.bin`, `heldout-00000.bin` in
 * llm.c's format (256 x int32 head; u16 tokens up to a vocabulary of 65,536, else u32). Shards are
 * mapped read-only; a folder made with a tokenizer.json holds a copy of it, whose digest must be
 * the manifest's. A silo mixes several such folders ("sources") by weight.
 *
 * Row r of step s is a pure function of (seed, silo ordinal, s, r): its draw number is
 * s * rows + r, so `rows` must be the same for a whole run. A block of 4096 draws holds each source
 * as often as its weight says, in an order of the block's own; within a source, draw k reads window
 * rng_permute(key of epoch k / windows, k % windows, windows). So every window is seen once before
 * any is seen twice, nothing is replayed after a restart, and any number of threads may read.
 *
 * Window i of a source is the tokens [i * seq_len, i * seq_len + seq_len] of its shards joined.
 */
#ifndef CLIENT_DATA_H
#define CLIENT_DATA_H

#include <stdint.h>

#include "client/trainer.h"
#include "common/status.h"

struct data; /* one or more sources */

struct data_source_arg {
    const char *dir;
    double weight; /* > 0; relative */
};

struct data_info {
    char tokenizer_sha256[65]; /* "" = the byte tokenizer */
    int32_t vocab_size;        /* ids are below this; a model's may be larger */
    int64_t train_tokens;
    int64_t heldout_tokens;
};

/*
 * ST_NOT_FOUND, ST_CORRUPT, ST_INVALID (sources with different tokenizers), ST_IO, each naming the
 * file and the remedy. Sizes and heads are checked here, digests by `photon data check`.
 */
enum status data_open(struct data **out, const struct data_source_arg *sources, int count,
                      struct err *e) MUST_CHECK;
void data_close(struct data *d);
void data_info(const struct data *d, struct data_info *out);

/* ST_INVALID, with the remedy: the text is not made with this tokenizer, or has ids beyond these.
 */
enum status data_fits(const struct data *d, const char *tokenizer_sha256, int32_t vocab_size,
                      struct err *e) MUST_CHECK;

/*
 * rows x (seq_len + 1) tokens for one local step; inputs are [0, seq_len), targets [1, seq_len +
 * 1). ST_LIMIT when a source is shorter than one row.
 */
enum status data_train_rows(const struct data *d, uint64_t seed, int32_t silo_ordinal, int64_t step,
                            int32_t rows, int32_t seq_len, int32_t *out, struct err *e) MUST_CHECK;

/* Held-out windows: non-overlapping, the same for a whole run; the tail is dropped. */
int64_t data_heldout_windows(const struct data *d, int32_t seq_len);
/* Window i: seq_len + 1 tokens and the decoded bytes of its targets. */
enum status data_heldout_row(const struct data *d, int64_t i, int32_t seq_len, int32_t *out,
                             int64_t *target_bytes, struct err *e) MUST_CHECK;

/* What a trainer reads from: data as one silo of a run sees it. Must outlive the row_source. */
struct data_rows {
    const struct data *data;
    uint64_t seed;
    int32_t silo_ordinal;
};
struct row_source data_row_source(struct data_rows *rows);

#endif
