/*
 * host.h - what the backends "ref" and "cpu" share, since their memory is this machine's and their
 * ops are done when they return: queues that are never behind, and coding one group at a time.
 */
#ifndef KERNELS_HOST_H
#define KERNELS_HOST_H

#include "kernels/backend.h"

void host_copy(struct backend *be, enum queue q, void *dst, const void *src, size_t size);
void host_mark(struct backend *be, enum queue q, int mark);
const char *host_reach(struct backend *be, int mark);

/* Nothing is recorded: calling is all there is. */
void host_record(struct backend *be);
void *host_recorded(struct backend *be);
bool host_replay(struct backend *be, void *recording);
void host_unrecord(struct backend *be, void *recording);

/* Groups of n values. */
int64_t host_groups(int64_t n);

/* backend.h's delta and encode for the group of that index among n values. */
void host_delta(float *u, struct codec_result *results, const void *w, const void *rest,
                const float *base, const float *residual, float beta, int64_t n, int64_t group);
void host_encode(const struct codec_rule *rule, const struct codec_parts *out,
                 struct codec_result *results, float *left, const float *u, int64_t n,
                 int64_t group);

#endif
