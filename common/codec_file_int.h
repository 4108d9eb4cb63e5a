/*
 * codec_file_int.h - what reading (codec_file.c) and writing (codec_write.c) of coded files share.
 */
#ifndef COMMON_CODEC_FILE_INT_H
#define COMMON_CODEC_FILE_INT_H

#include "common/codec_file.h"

/* One part of one tensor, and where its place is to be noted. */
struct coded_part {
    struct st_tensor t;
    int element;
    int64_t *at;
};

/* Where a group's main and side bytes begin within their parts. */
void coded_group_at(const struct codec_rule *r, int64_t group, int64_t at[CODEC_PARTS]);

/* Sizes of a tensor's whole main and side parts. */
void coded_sizes(struct coded_tensor *ct, int64_t groups);

/* A file of the table on that rung, nothing in it. */
void coded_init(struct coded_file *f, struct arena *a, const struct param_table *t,
                enum codec codec, int32_t k);

/*
 * Gives every part its place, from the rules and gap sizes of f->tensors, and makes the header,
 * *len bytes. Then the parts, in the order of the file, can be copied. All in the arena.
 */
void *coded_lay_out(struct coded_file *f, struct arena *a, const struct coded_meta *meta,
                    struct coded_part **parts_out, int *part_count, int64_t *len);

enum status coded_read_full(int fd, void *out, int64_t size, int64_t at, struct err *e) MUST_CHECK;

#endif
