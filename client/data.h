/*
 * data.h - a silo's text: token shards on disk, and the row that global step s reads.
 *
 * `photon data prepare` writes a folder: manifest.json (tokenizer's SHA-256, vocabulary, documents,
 * bytes, tokens, shards with their SHA-256) and shards `train-00000.bin`, `heldout-00000.bin` in
 * llm.c's format (256 x int32 head; u16 tokens up to a vocabulary of 65,536, else u32). Shards are
 * mapped read-only. A silo mixes several such folders ("sources") by weight.
 *
 * Row r of step s is a pure function of (seed, silo ordinal, s, r): pick the source by weight, then
 * position = rng_permute(key, draw number, windows of that source), so every window is seen once
 * before any is seen twice, and nothing is replayed after a restart.
 */
#ifndef CLIENT_DATA_H
#define CLIENT_DATA_H

#include <stdint.h>

#include "common/status.h"

struct data; /* one or more sources */

struct data_source_arg {
    const char *dir;
    double weight; /* > 0; relative */
};

struct data_info {
    char tokenizer_sha256[65]; /* "" = the byte tokenizer */
    int32_t vocab_size;        /* ids are below this */
    int64_t train_tokens;
    int64_t heldout_tokens;
};

/* ST_NOT_FOUND, ST_CORRUPT, ST_INVALID (sources with different tokenizers), each naming the file and the remedy. */
enum status data_open(struct data **out, const struct data_source_arg *sources, int count,
                      struct err *e) MUST_CHECK;
void data_close(struct data *d);
void data_info(const struct data *d, struct data_info *out);

/*
 * rows x (seq_len + 1) tokens for one local step; inputs are [0, seq_len), targets [1, seq_len + 1).
 * ST_LIMIT when a source is shorter than one row.
 */
enum status data_train_rows(const struct data *d, uint64_t seed, int32_t silo_ordinal, int64_t step,
                            int32_t rows, int32_t seq_len, int32_t *out, struct err *e) MUST_CHECK;

/* Held-out windows: non-overlapping, the same for a whole run; the tail is dropped. */
int64_t data_heldout_windows(const struct data *d, int32_t seq_len);
/* Window i: seq_len + 1 tokens and the decoded bytes of its targets. */
enum status data_heldout_row(const struct data *d, int64_t i, int32_t seq_len, int32_t *out,
                             int64_t *target_bytes, struct err *e) MUST_CHECK;

#endif
