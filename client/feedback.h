/*
 * feedback.h - a silo's update on its rung, and what the rung left out.
 *
 * An update is made of u = beta^(1 + its rounds missed) e + Delta, where e, the residual, is what
 * former updates left out; beta is 1 but for topk (codec.h). What is sent decodes to v; u - v is
 * the residual of the next round, once the server has counted the update. Until then three files
 * wait beside each other, and a rename decides (client/state.h):
 *
 *     counted   NEXT = u - v becomes the residual
 *     late      LATE = u becomes the residual: all of the work rides in the next update
 *     refused   the residual stays what it was
 *
 * Residuals are F32 files of the tensors that travel. The f32 rung leaves nothing out: a silo that
 * changes to it sends its residual with the next update.
 *
 * No connection, no clock, no journal in here: the agent and `photon sim` call the same.
 */
#ifndef CLIENT_FEEDBACK_H
#define CLIENT_FEEDBACK_H

#include <stdint.h>

#include "common/codec_file.h"
#include "common/hash.h"
#include "common/status.h"

/*
 * Codes on the device that has the weights, with the same bits (client/trainer_code.h is one).
 * begin starts on u of [first, first + n) of the update's tensors, at most `groups` groups of one
 * of them; residual (n) may be NULL and is the caller's again when it returns. end waits for the
 * first that was begun and gives u, and left, what its code leaves out, beside the piece.
 */
struct feedback_coder {
    int64_t groups;
    enum status (*begin)(void *ctx, const struct codec_rule *r, int64_t first, int64_t n,
                         const float *residual, float beta, struct err *e);
    enum status (*end)(void *ctx, struct coded_piece *out, const float **u, const float **left,
                       struct err *e);
};

struct feedback_job {
    /* out[0..n) = base - local, from `first` of the update's tensors on; the same each time. */
    enum status (*delta)(void *ctx, int64_t first, int64_t n, float *out, struct err *e);
    void *ctx;
    const struct feedback_coder *coder; /* or NULL: delta alone is asked */
    const struct param_table *table;    /* of what travels (common/layout.h) */
    enum codec codec;
    int32_t k;
    /* The update's metadata. */
    const char *run_name;
    int64_t round;
    int32_t period; /* rounds from one update of these tensors to the next; 1 without fragments */
    const char *base_sha256;
    const char *silo_name;
    int64_t tokens, steps;
    /* Paths. residual is read when it is there; the others are written, not synced. */
    const char *residual;
    const char *update;
    const char *next;
    const char *late;
};

struct feedback_result {
    struct digest sha256; /* of the update */
    int64_t bytes;
    struct coded_report report;
};

/*
 * ST_INVALID: a delta is not finite or beyond 2^100; ST_LIMIT: the disk is full. A residual that
 * cannot be read, or is another model's, is left out with a warning.
 */
enum status feedback_encode(const struct feedback_job *j, struct feedback_result *out,
                            struct err *e) MUST_CHECK;

/*
 * The rung under `auto`: the first of the ladder down to q2 whose transfer takes at most
 * share * compute_s over a link of so many bytes per second, else topk; int8 where the link is not
 * known (0).
 */
enum codec feedback_auto(int64_t params, double bytes_per_s, double compute_s, double share);

#endif
