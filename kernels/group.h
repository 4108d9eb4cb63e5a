/*
 * group.h - ranks whose memory is this machine's: what the backends "ref" and "cpu" join.
 *
 * The members share one address space, so a sum needs no copies: each rank adds up its share of the
 * elements over all ranks, in their order, and writes it to every one.
 */
#ifndef KERNELS_GROUP_H
#define KERNELS_GROUP_H

#include "kernels/backend.h"

const char *group_meet(struct backend *be, struct backend_meeting *out);
const char *group_join(struct backend *be, const struct backend_meeting *at, int rank, int size);
void group_all_reduce(struct backend *be, enum dtype t, void *x, int64_t n);
void group_reduce_scatter(struct backend *be, float *x, int64_t n, int64_t share);
void group_all_gather(struct backend *be, void *x, int64_t n, int64_t share);

/* Part of closing a backend; the last one out ends the group. */
void group_leave(struct backend *be);

/* Threads of this machine need no binding. */
void group_bind(struct backend *be);

#endif
