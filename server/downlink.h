/*
 * downlink.h - the aggregator's side of a step (common/step.h): coded from x - y, taken from x.
 *
 * Files in, files out, a group at a time; which tensors, in layout_step()'s order. The rung is the
 * run's, or one up while a guard holds: after a step of which more than CODED_FALLBACK_MAX of its
 * parameters had to go one rung up, the next CODED_GUARD_ROUNDS steps are coded one up altogether.
 */
#ifndef SERVER_DOWNLINK_H
#define SERVER_DOWNLINK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/codec_file.h"
#include "common/layout.h"
#include "common/run_spec.h"
#include "common/status.h"

/* Does this checkpoint, from 1, come with a step? The last one is y itself. */
bool downlink_steps(const struct run_spec *spec, int32_t round);

/* The rung of that round's step; tripped is the newest round whose step had too many tensors one
 * rung up, 0: none. */
enum codec downlink_rung(const struct run_spec *spec, int32_t round, int32_t tripped);

/* A plain F32 array of the model's flat order, in a file. */
struct downlink_array {
    int fd;
    int64_t offset;
};

struct downlink_job {
    const struct layout *layout; /* layout_step() of the round */
    enum codec codec;
    int32_t k;
    struct downlink_array x;        /* of the checkpoint before */
    struct downlink_array y_before; /* before the outer step */
    struct downlink_array y;        /* after it */
    struct downlink_array out;      /* gets x - v for each element of the layout */
    int scratch_fd;                 /* gets what is coded, for coding_place() */
};

/* Whether a tensor's values are coded twice or not, the last ones count. ST_INVALID: x - y is not
 * finite, or beyond 2^100. What *c holds is in the arena. */
enum status downlink_code(struct coding *c, struct arena *a, const struct downlink_job *job,
                          struct err *e) MUST_CHECK;

#endif
