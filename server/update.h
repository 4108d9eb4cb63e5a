/*
 * update.h - is this file the update we asked for?
 *
 * An update comes from a stranger. Before it is accepted, and again before it touches a sum, its
 * file must be a safetensors container of exactly the model's tensors, say in its metadata which
 * run, round, base and silo it belongs to, be coded as codec_file.h says, and hold finite values
 * only. All of it in constant memory, whatever the size.
 */
#ifndef SERVER_UPDATE_H
#define SERVER_UPDATE_H

#include <stdint.h>

#include "common/arena.h"
#include "common/codec_file.h"
#include "common/hash.h"
#include "common/params.h"
#include "common/safetensors.h"
#include "common/status.h"

/* What an update's metadata must say; docs/API.md "Files". */
struct update_expected {
    const char *run_name;
    int32_t round;
    struct digest base;
    const char *silo_name;
    int64_t tokens; /* -1: any */
    int64_t steps;  /* -1: any */
    enum codec codec;
    int32_t k; /* topk */
};

/*
 * A norm beyond this many times the norm of the weights it would be subtracted from is no training
 * result: one silo could move the mean wherever it likes. Honest rounds stay below 1.
 */
#define UPDATE_NORM_RATIO_MAX 10.0

enum { UPDATE_META_COUNT = 8 };

/* The metadata in the order of docs/API.md, for st_params_header() of an f32 update. In the arena.
 */
struct st_meta *update_meta(struct arena *a, const struct update_expected *u);

/* The same around what the codec adds; for coded_open() and coding_place(). */
struct coded_meta update_coded_meta(struct arena *a, const struct update_expected *u);

/* ST_CORRUPT says what is wrong, in words for the silo: the container, the metadata, the shapes.
 * What *out holds is in the arena. */
enum status update_open(struct coded_file *out, struct arena *a, int fd,
                        const struct param_table *table, const struct update_expected *want,
                        struct err *e) MUST_CHECK;

/* Every value of an F32 data section: ST_CORRUPT when one is not finite or the file ends early.
 * *norm is the Euclidean one. Updates: coded_norm(). */
enum status update_check_values(int fd, int64_t data_offset, int64_t count, double *norm,
                                struct err *e) MUST_CHECK;

/* Values that are sums of squares: ST_CORRUPT also when one is below zero. */
enum status update_check_squares(int fd, int64_t data_offset, int64_t count,
                                 struct err *e) MUST_CHECK;

#endif
