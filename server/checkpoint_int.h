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
struct checkpoint_out {
    struct blob_store *blobs;
    char tmp[TMP_NAME + 1];
    int fd;
    int64_t bytes;
    int64_t data_offset;
    struct sha256 *hash;       /* of what was written so far, in the file's order */
    const struct digest *want; /* it must be this one, and takes its place; NULL: whatever it is */
};

/* The file of these tensors with its header in it, room for the rest. */
enum status checkpoint_out_open(struct checkpoint_out *o, struct blob_store *blobs,
                                const struct run_spec *spec, const struct param_table *table,
                                const char *kind, int32_t round, struct err *e) MUST_CHECK;
/* A file of so many bytes, nothing in it. */
enum status checkpoint_out_create(struct checkpoint_out *o, struct blob_store *blobs, int64_t bytes,
                                  struct err *e) MUST_CHECK;
/* A file that never gets a name. */
enum status checkpoint_out_scratch(struct checkpoint_out *o, struct blob_store *blobs,
                                   struct err *e) MUST_CHECK;
/* Adds the data section, as it lies in the file, to the file's digest, and to data_hash, which may
 * be NULL: of a file that was not written from its beginning to its end. */
enum status checkpoint_out_hash(struct checkpoint_out *o, struct sha256 *data_hash,
                                struct err *e) MUST_CHECK;
/* Gives the file its name. Afterwards nothing of it is left to release. */
enum status checkpoint_out_place(struct checkpoint_out *o, struct digest *d,
                                 struct err *e) MUST_CHECK;
/* The same where the digest is known. */
enum status checkpoint_out_place_as(struct checkpoint_out *o, const struct digest *d,
                                    struct err *e) MUST_CHECK;
void checkpoint_out_release(struct checkpoint_out *o);

/* ST_LIMIT: the disk is full. */
enum status checkpoint_write(int fd, const void *data, size_t size, int64_t offset,
                             struct err *e) MUST_CHECK;

/* ST_CORRUPT: the file ends early. */
enum status checkpoint_read(int fd, void *out, int64_t size, int64_t at, struct err *e) MUST_CHECK;

/* A file that is read: first whole against its digest, then its header, then its data. */
struct checkpoint_in {
    struct digest want;
    int fd;
    int64_t bytes;
    int64_t data_offset;
    enum status st;
    struct err err;
};

/* ST_CORRUPT: it is missing, or not what it was. Open afterwards, -1 where it is missing. */
enum status checkpoint_in_check(struct blob_store *blobs, struct checkpoint_in *in,
                                struct err *e) MUST_CHECK;
void checkpoint_in_close(struct checkpoint_in *in); /* -1 is fine */
/* Each with its status. */
void checkpoint_in_check_all(struct blob_store *blobs, struct checkpoint_in *inputs, int count,
                             int threads);
/* A file of our own: damaged or of another run is the same to us. */
enum status checkpoint_in_check_header(struct checkpoint_in *in, const struct run_spec *spec,
                                       const struct param_table *table, const char *kind,
                                       int32_t round, struct err *e) MUST_CHECK;

/* Tensors of an outer state: each array of the optimizer whole, one after the other, its name
 * before the tensors'; then y where checkpoints go down in steps (common/step.h). */
struct param_table checkpoint_state_table(struct arena *a, const struct param_table *t,
                                          const struct run_spec *spec);

#endif
