/*
 * shard_writer.h - writes the shards of one split, file after file, each no larger than asked.
 *
 * A shard is written under a temporary name, synced, digested and renamed.
 */
#ifndef CLIENT_SHARD_WRITER_H
#define CLIENT_SHARD_WRITER_H

#include <stdint.h>

#include "client/shard.h"
#include "common/status.h"

struct shard_writer;

/* dir must outlive it. */
struct shard_writer *shard_writer_new(const char *dir, enum split split, int32_t width,
                                      int64_t shard_tokens);
/* An unfinished shard's temporary file is removed. */
void shard_writer_free(struct shard_writer *w);

enum status shard_writer_add(struct shard_writer *w, const int32_t *ids, int32_t count,
                             struct err *e) MUST_CHECK;
enum status shard_writer_end(struct shard_writer *w, struct err *e) MUST_CHECK;

/* What was written; valid until the writer is freed. */
int32_t shard_writer_shards(const struct shard_writer *w, const struct manifest_shard **out);
int64_t shard_writer_tokens(const struct shard_writer *w);

/* Write a whole file others may read: temporary name, sync, rename, sync the folder. ST_IO. */
enum status folder_put(const char *dir, const char *name, const void *bytes, size_t len,
                       struct err *e) MUST_CHECK;

#endif
