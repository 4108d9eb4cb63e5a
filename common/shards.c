#include "common/shards.h"

#include <assert.h>

// About so many buckets, so that the first sums travel early; pieces of at most 4 MiB as fp32.
enum { BUCKETS = 8, PIECE_MAX = 16 * SHARD_UNIT };

struct shards shards_of(int64_t total, int32_t ranks)
{
    assert(total > 0 && ranks > 0);
    int64_t unit = SHARD_UNIT;
    int64_t piece = (total / (ranks * (int64_t)BUCKETS) + unit - 1) / unit * unit;
    piece = piece > PIECE_MAX ? PIECE_MAX : piece < unit ? unit : piece;
    return (struct shards){ranks, ranks > 1 ? piece : (total + unit - 1) / unit * unit, total};
}

int64_t shards_count(const struct shards *s, int32_t rank)
{
    int64_t bucket = s->ranks * s->piece;
    int64_t last = s->total % bucket - rank * s->piece; // of the last bucket, which may be cut
    last = last < 0 ? 0 : last > s->piece ? s->piece : last;
    return s->total / bucket * s->piece + last;
}

struct shard_run shards_run(const struct shards *s, int64_t at, int64_t most)
{
    assert(at >= 0 && at < s->total);
    int64_t piece = at / s->piece;
    int64_t into = at % s->piece;
    int64_t left = s->piece - into < s->total - at ? s->piece - into : s->total - at;
    return (struct shard_run){(int32_t)(piece % s->ranks), piece / s->ranks * s->piece + into,
                              left < most ? left : most};
}
