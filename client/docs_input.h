/*
 * docs_input.h - a file, or bytes, read block by block, inflated on the way. For client/docs*.c.
 */
#ifndef CLIENT_DOCS_INPUT_H
#define CLIENT_DOCS_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

enum { INPUT_BLOCK = 256 * 1024 };

struct input;

/* consumed (may be NULL) grows by the bytes read from the file. ST_NOT_FOUND, ST_IO. */
enum status input_open(struct input **out, const char *path, bool gzip, int64_t *consumed,
                       struct err *e) MUST_CHECK;
struct input *input_memory(const char *path, const void *bytes, size_t len, bool gzip,
                           int64_t *consumed);
void input_close(struct input *in);

/* The next bytes, borrowed until the next call; *n is 0 at the end. ST_CORRUPT: broken gzip. */
enum status input_block(struct input *in, const char **out, size_t *n, struct err *e) MUST_CHECK;
/* The same, at most `most` of them. */
enum status input_some(struct input *in, size_t most, const char **out, size_t *n,
                       struct err *e) MUST_CHECK;
/* Put the bytes of the last call back: they come again. */
void input_again(struct input *in);

/* Bytes of the file as stored; not known (-1) when it is compressed. */
int64_t input_size(const struct input *in);

#endif
