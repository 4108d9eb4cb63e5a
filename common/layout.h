/*
 * layout.h - what a run's files hold, as a function of its spec.
 *
 * An update holds the tensors that travel: all but the frozen ones, which never change, and the
 * personal ones, which stay on their silo. Where the run averages the inner optimizer's moments,
 * an update holds those of the same tensors too, and a checkpoint holds those of all:
 *
 *     update       [m.<tensor> ...]  <tensor> ...  [v.<tensor> ...]      of tensors that travel
 *     checkpoint   [m.<tensor> ...]  <tensor> ...  [v.<tensor> ...]      of all tensors
 *     step                           <tensor> ...                        of tensors that travel
 *
 * which is the order of names, as everywhere. A part is one of these three arrays. What a part
 * holds of the model's flat order is a list of spans; what is in none of them counts as zero.
 *
 * Where federation.fragments is P > 1, the tensors that travel are split into P fragments, and
 * update and step of round r hold fragment (r - 1) mod P alone: no other moves in that round, and a
 * silo keeps its own values of them.
 * Whole blocks go into a fragment, in turn (Douillard et al. 2025, "Streaming DiLoCo", stride
 * them likewise); so do wte, wpe and the final norm. Each, the embeddings first, joins the fragment
 * that is the smallest by then, which makes them as equal in bytes as whole blocks allow.
 */
#ifndef COMMON_LAYOUT_H
#define COMMON_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/params.h"
#include "common/run_spec.h"

enum layout_part { LAYOUT_M = 0, LAYOUT_WEIGHTS, LAYOUT_V, LAYOUT_PARTS };

/* Elements [model, model + count) of the model's flat order are [at, at + count) of a part. */
struct layout_span {
    int64_t model;
    int64_t at;
    int64_t count;
};

struct layout {
    struct param_table table;           /* the file's tensors, in its order */
    int64_t part_at[LAYOUT_PARTS];      /* first element of each part in the file, -1: not there */
    int64_t part_count;                 /* elements of one part */
    const int32_t *index[LAYOUT_PARTS]; /* of the model's tensors: where in table, or -1 */
    int32_t span_count;
    const struct layout_span *spans; /* rising, as long as can be */
};

/* All live in the arena. Rounds count from 1. */
struct layout layout_update(struct arena *a, const struct run_spec *s, int64_t round);
struct layout layout_checkpoint(struct arena *a, const struct run_spec *s);
struct layout layout_step(struct arena *a, const struct run_spec *s, int64_t round);

/*
 * What a silo that kept its weights at the end of round `kept` (0: none) takes from the checkpoint
 * that `round` starts from; at equals model. All but the personal tensors, and but the fragments
 * that no round from `kept` on has synchronised.
 */
struct layout layout_common(struct arena *a, const struct run_spec *s, int64_t kept, int64_t round);

/* Which fragment each of the model's tensors is in, or -1: it does not travel. In the arena. */
const int32_t *layout_fragments(struct arena *a, const struct run_spec *s,
                                const struct param_table *model);

/* The most fragments that what travels can be split into. */
int32_t layout_fragments_max(const struct run_spec *s);

/* Which element of the model an element of a part is; no tensor's lie apart. */
int64_t layout_model_at(const struct layout *l, int64_t at);

/* Which of the model's tensors an optimizer moves. */
bool layout_trains(const struct run_spec *s, const char *tensor);
bool layout_travels(const struct run_spec *s, const char *tensor);

#endif
