/*
 * shards.h - which of several ranks keeps which part of the optimizer's state (ZeRO stage 1;
 * Rajbhandari et al. 2020).
 *
 * The flat array is cut into pieces, which are dealt to the ranks in turn. A round of them is a
 * bucket: gradients are summed and weights handed out a bucket at a time, to each rank an equal
 * part of it, save for the last. A rank keeps its pieces one behind the other. Pieces are whole
 * chunks of the gradient's norm, so that a rank sums its own chunks to the same bits as one that
 * has all.
 *
 *     flat     | p0 | p1 | p2 | p3 | p4 | p5 | p6 |        3 ranks
 *     rank 0   | p0 | p3 | p6 |
 *     rank 1   | p1 | p4 |
 */
#ifndef COMMON_SHARDS_H
#define COMMON_SHARDS_H

#include <stdint.h>

enum { SHARD_UNIT = 65536 };

struct shards {
    int32_t ranks;
    int64_t piece; /* elements, a multiple of SHARD_UNIT */
    int64_t total;
};

/* Elements of one rank that lie together in the flat array. */
struct shard_run {
    int32_t rank;
    int64_t at; /* where they begin in what that rank keeps */
    int64_t count;
};

/* One rank keeps everything in one piece. */
struct shards shards_of(int64_t total, int32_t ranks);

/* Elements that a rank keeps; the first keeps the most. */
int64_t shards_count(const struct shards *s, int32_t rank);

/* The run that begins at this element, of at most `most`. */
struct shard_run shards_run(const struct shards *s, int64_t at, int64_t most);

#endif
