/*
 * checkpoint_int.h - what checkpoint.c (checkpoint 0) and checkpoint_next.c (the next ones) share:
 * files on their way into the blob store, files that are read from it.
 */
#ifndef SERVER_CHECKPOINT_INT_H
#define SERVER_CHECKPOINT_INT_H

#include "common/id.h"
#include "common/run_header.h"
#include "server/checkpoint.h"

enum { READ_SIZE = 1 << 20, TMP_NAME = 8 + ID_LEN };

/* A file on its way into the blob store. Begins as {.fd = -1}. */
struct output {
    struct blob_store *blobs;
    char tmp[TMP_NAME + 1];
    int fd;
    int64_t bytes;
    int64_t data_offset;
    struct sha256 *hash;       /* of what was written so far, in the file's order */
    const struct digest *want; /* it must be this one, and takes its place; NULL: whatever it is */
};

/* The file of these tensors with its header in it, room for the rest. */
enum status output_open(struct output *o, struct blob_store *blobs, const struct run_spec *spec,
                        const struct param_table *table, const char *kind, int32_t round,
                        struct err *e) MUST_CHECK;
/* Gives the file its name. Afterwards nothing of it is left to release. */
enum status output_place(struct output *o, struct digest *d, struct err *e) MUST_CHECK;
void output_release(struct output *o);

/* ST_LIMIT: the disk is full. */
enum status write_full(int fd, const void *data, size_t size, int64_t offset,
                       struct err *e) MUST_CHECK;

/* A file that is read: first whole against its digest, then its header, then its data. */
struct input {
    struct digest want;
    int fd;
    int64_t bytes;
    int64_t data_offset;
    enum status st;
    struct err err;
};

/* ST_CORRUPT: it is missing, or not what it was. Open afterwards, -1 where it is missing. */
enum status input_check(struct blob_store *blobs, struct input *in, struct err *e) MUST_CHECK;
/* Each with its status. */
void input_check_all(struct blob_store *blobs, struct input *inputs, int count, int threads);
/* A file of our own: damaged or of another run is the same to us. */
enum status input_check_header(struct input *in, const struct run_spec *spec,
                               const struct param_table *table, const char *kind, int32_t round,
                               struct err *e) MUST_CHECK;

/* Tensors of an outer state: each array whole, one after the other, its name before the tensors'.
 */
struct param_table checkpoint_state_table(struct arena *a, const struct param_table *t,
                                          enum outer_optimizer o);

#endif
