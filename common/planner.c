#include "common/planner.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "common/layout.h"
#include "common/limits.h"
#include "common/schedule.h"

static double comm_s(enum plan_topology t, const struct plan_round *r)
{
    double k = (double)r->silos;
    double s = r->up_bytes > r->down_bytes ? r->up_bytes : r->down_bytes;
    if (t == PLAN_SERVER) {
        double shared = k * (r->down_bytes + r->up_bytes) / r->link;
        double own = r->silo_link > 0.0 ? (r->down_bytes + r->up_bytes) / r->silo_link : 0.0;
        return (shared > own ? shared : own) + 2.0 * r->latency_s;
    }
    if (r->silos == 1) {
        return 0.0;
    }
    double link = r->silo_link > 0.0 && r->silo_link < r->link ? r->silo_link : r->link;
    if (t == PLAN_ALL_REDUCE) {
        return (k - 1.0) * s / link + r->latency_s;
    }
    return 2.0 * s * (k - 1.0) / (k * link) + 2.0 * (k - 1.0) * r->latency_s;
}

/* Of all silos in a round. */
static double bytes_moved(enum plan_topology t, const struct plan_round *r)
{
    double k = (double)r->silos;
    double s = r->up_bytes > r->down_bytes ? r->up_bytes : r->down_bytes;
    switch (t) {
    case PLAN_ALL_REDUCE:
        return k * (k - 1.0) * s;
    case PLAN_RING:
        return 2.0 * s * (k - 1.0);
    case PLAN_SERVER:
    case PLAN_TOPOLOGIES:
        break;
    }
    return k * (r->up_bytes + r->down_bytes);
}

struct plan_cost plan_cost(enum plan_topology t, const struct plan_round *r, int64_t rounds)
{
    double n = (double)rounds;
    double comm = comm_s(t, r) * n;
    double compute = r->compute_s * n;
    double hidden = r->overlap * comm;
    double left = hidden > compute ? hidden - compute : 0.0;
    double waits = r->fold_s * n + (comm - hidden) + left;
    double total = compute + fmax(0.0, waits - r->ahead_s * n);
    return (struct plan_cost){.comm_s = comm_s(t, r),
                              .round_s = total / n,
                              .total_s = total,
                              .bytes = bytes_moved(t, r) * n,
                              .utilisation = total > 0.0 ? compute / total : 0.0};
}

double plan_compute_s(int64_t params, int64_t tokens, double flops)
{
    return 6.0 * (double)params * (double)tokens / flops;
}

double plan_break_even(double link, double rival_compute_s, double rival_comm_s, double compute_s,
                       double comm_s)
{
    double saved = rival_comm_s - comm_s;
    double more = compute_s - rival_compute_s;
    if (saved <= 0.0) { // it sends less and is
        return more >= 0.0 ? 0.0 : (double)INFINITY;
    }
    return more <= 0.0 ? (double)INFINITY : link * saved / more;
}

/* Bits of an index as Rice codes a geometric gap: r and a unary part. */
static double topk_bits(int32_t k)
{
    double density = (double)k / CODEC_TILE;
    double r = floor(log2(.69 / density));
    r = r > 0.0 ? r : 0.0;
    double gap = r + 1.0 / (1.0 - pow(1.0 - density, exp2(r)));
    double group = (32.0 + 32.0) / CODEC_GROUP; // where its stream begins, and two magnitudes
    return density * (gap + 2.0) + group;
}

static double bits_of(enum codec codec, int32_t k, bool rank_1)
{
    static const double scale = 16.0 / CODEC_BLOCK;
    switch (codec) {
    case CODEC_F32:
    case CODEC_COUNT:
        return 32.0;
    case CODEC_BF16:
        return 16.0;
    case CODEC_INT8:
        return 8.0 + scale;
    case CODEC_Q4:
        return rank_1 ? 8.0 + scale : 4.0 + scale;
    case CODEC_Q2:
        return rank_1 ? 8.0 + scale : 2.0 + scale;
    case CODEC_TOPK:
        break;
    }
    return rank_1 ? 8.0 + scale : topk_bits(k);
}

static double table_bytes(const struct param_table *t, enum codec codec, int32_t k)
{
    double bits = 0.0;
    for (int32_t i = 0; i < t->count; i++) {
        bits += (double)t->items[i].count * bits_of(codec, k, t->items[i].rank == 1);
    }
    return bits / 8.0;
}

double plan_update_bytes(const struct run_spec *s, enum codec codec, int32_t k)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    double bytes = 0.0;
    int32_t parts = schedule_fragments(s);
    for (int32_t round = 1; round <= parts; round++) {
        struct layout l = layout_update(a, s, round);
        bytes += table_bytes(&l.table, codec, k);
    }
    arena_free(a);
    return bytes / parts;
}

double plan_checkpoint_bytes(const struct run_spec *s)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct layout l = layout_checkpoint(a, s);
    double bytes = table_bytes(&l.table, CODEC_F32, 0);
    arena_free(a);
    return bytes;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

double plan_median(double *v, int count)
{
    if (count < 1) {
        return (double)NAN;
    }
    qsort(v, (size_t)count, sizeof(*v), by_size);
    return (v[(count - 1) / 2] + v[count / 2]) / 2.0;
}
