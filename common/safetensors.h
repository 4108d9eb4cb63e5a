/*
 * safetensors.h - the container of checkpoints and updates (huggingface/safetensors).
 *
 * u64 little-endian header length N, N bytes of JSON padded with spaces, data. Only the header is
 * ever held in memory; data is read and written by position. A reader refuses what is not exactly
 * this: a header over limits.h, unknown dtypes, holes, overlaps, sizes that do not fit shapes,
 * bytes left over, duplicate names.
 *
 * Files written here have their tensors sorted by falling dtype size, then name, 8-aligned; for
 * F32 alone that is the flat order of common/params.h, so the data section *is* the flat array.
 */
#ifndef COMMON_SAFETENSORS_H
#define COMMON_SAFETENSORS_H

#include <stdint.h>

#include "common/arena.h"
#include "common/params.h"
#include "common/status.h"

struct st_tensor {
    const char *name;
    const char *dtype; /* F64 F32 BF16 I32 U32 I8 U8 */
    int32_t rank;
    int64_t shape[4];
    int64_t begin, end; /* bytes from the start of the data section */
};

struct st_meta { /* one string of __metadata__ */
    const char *key;
    const char *value;
};

struct st_header {
    int64_t data_offset; /* where the data section starts in the file */
    int64_t data_bytes;
    int32_t tensor_count;
    const struct st_tensor *tensors; /* by begin */
    int32_t meta_count;
    const struct st_meta *meta;
};

/* From the first bytes of a file (at least 8 + N). file_bytes is the file's length. ST_CORRUPT says
 * what is wrong. */
enum status st_parse(struct st_header *out, struct arena *a, const void *bytes, int64_t len,
                     int64_t file_bytes, struct err *e) MUST_CHECK;

/* Reads the header of an open file. */
enum status st_read(struct st_header *out, struct arena *a, int fd, struct err *e) MUST_CHECK;

/* NULL when there is no such key. */
const char *st_meta_get(const struct st_header *h, const char *key);

/*
 * The header (length word included) of a file with these tensors, which lie in this order from the
 * data's start on. "format": "pt" is added to meta. Same inputs, same bytes. *len bytes in the
 * arena.
 */
void *st_tensors_header(struct arena *a, const struct st_tensor *tensors, int32_t count,
                        const struct st_meta *meta, int meta_count, int64_t *len);

/*
 * The header (length word included) of an F32 file holding exactly the tensors of the table.
 * "format": "pt" is added to meta. Same inputs, same bytes. *len bytes in the arena.
 */
void *st_params_header(struct arena *a, const struct param_table *t, const struct st_meta *meta,
                       int meta_count, int64_t *len);

/* ST_CORRUPT unless h holds exactly the table's tensors as F32, in flat order. */
enum status st_check_params(const struct st_header *h, const struct param_table *t,
                            struct err *e) MUST_CHECK;

#endif
