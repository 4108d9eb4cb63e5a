/* cuda_emul_ranks.h - what tests can do to the ranks of cuda_emul_nccl.hpp. */
#ifndef TESTS_SUPPORT_CUDA_EMUL_RANKS_H
#define TESTS_SUPPORT_CUDA_EMUL_RANKS_H

#ifdef __cplusplus
extern "C" {
#endif

/* Of this rank, -1 for none: no sum can be enqueued, or NCCL says so when it is asked. */
void emul_ranks_refuse(int rank);
void emul_ranks_async(int rank);

/* This rank fails when it enters a meeting. */
void emul_ranks_shut_out(int rank);

/* Called behind every call within a group. */
void emul_ranks_between(void (*fn)(int rank));

/* Streams that are asked say that their device is lost. */
void emul_streams_lost(int lost);

/* Events that are asked about have not been reached. */
void emul_events_pending(int pending);

/* How many communicators have been aborted and how many closed. */
int emul_ranks_aborted(void);
int emul_ranks_closed(void);

#ifdef __cplusplus
}
#endif

#endif
