/*
 * shard.h - a file of tokens in llm.c's format, and the manifest of a folder of them.
 *
 * A shard is a head of 256 little-endian int32 (magic, version, number of tokens) and the tokens:
 * magic 20240520, version 1: u16; magic 20240801, version 7: u32. The manifest is JSON; unknown
 * keys are ignored, so that later versions may add some.
 */
#ifndef CLIENT_SHARD_H
#define CLIENT_SHARD_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/buf.h"
#include "common/status.h"

enum {
    SHARD_HEAD_BYTES = 1024,
    SHARD_U16 = 20240520,
    SHARD_U32 = 20240801,
    SHARD_NAME_MAX = 32,
    SHARDS_MAX = 65536,
    MANIFEST_MAX = 32 * 1024 * 1024,
    U16_IDS = 65536 /* a vocabulary up to this is written as u16 */
};

struct shard_head {
    int32_t width; /* bytes of a token: 2 or 4 */
    int64_t tokens;
};

/* From the first bytes of a file of that size. ST_CORRUPT: no such file, or its length lies. */
enum status shard_head_parse(struct shard_head *out, const void *bytes, int64_t len,
                             int64_t file_bytes, struct err *e) MUST_CHECK;
void shard_head_write(const struct shard_head *h, unsigned char out[SHARD_HEAD_BYTES]);

struct shard { /* a mapped file */
    struct shard_head head;
    const unsigned char *map;
    int64_t map_bytes;
};

enum status shard_open(struct shard *out, const char *path, struct err *e) MUST_CHECK;
void shard_close(struct shard *s);
/* Tokens [at, at + count) as they are: ids from a file are not to be trusted. */
void shard_read(const struct shard *s, int64_t at, int64_t count, int32_t *out);

/* ---- the manifest ---- */

enum split { SPLIT_TRAIN = 0, SPLIT_HELDOUT, SPLIT_COUNT };
extern const char *const SPLIT_NAMES[SPLIT_COUNT];

struct manifest_shard {
    char file[SHARD_NAME_MAX]; /* train-00000.bin */
    enum split split;
    int64_t tokens;
    char sha256[65];
};

struct manifest_split {
    int64_t documents;
    int64_t bytes; /* of text */
    int64_t tokens;
};

struct manifest {
    char tokenizer_sha256[65]; /* "" = the byte tokenizer */
    int32_t ids;               /* ids are below this */
    int32_t vocab_size;        /* what a model should have: ids rounded up to a multiple of 64 */
    int32_t end_of_text;       /* follows every document */
    char unicode[48];          /* versions of the tables behind pieces and NFC; "" for bytes */
    double heldout;            /* share of the documents held out */
    struct manifest_split splits[SPLIT_COUNT];
    int32_t shard_count;
    const struct manifest_shard *shards; /* train first, in reading order */
};

/* ST_CORRUPT says what is wrong. Shards live in the arena. */
enum status manifest_parse(struct manifest *out, struct arena *a, const char *json, size_t len,
                           struct err *e) MUST_CHECK;
enum status manifest_read(struct manifest *out, struct arena *a, const char *dir,
                          struct err *e) MUST_CHECK;
void manifest_print(struct buf *out, const struct manifest *m);

#endif
