/*
 * watch.h - that no rank waits for ever for one that is gone.
 *
 * A sum over the ranks ends when all have come to it. A device that is lost never does, the others
 * wait on theirs, and NCCL learns only of what its network tells. So a thread looks at every rank
 * ten times a second. When one has failed, or has waited longer than is believable, all are called
 * off: what they wait for ends, with an error that names the rank. Nothing here knows CUDA, so that
 * tests can have ranks of their own.
 */
#ifndef KERNELS_CUDA_WATCH_H
#define KERNELS_CUDA_WATCH_H

#ifdef __cplusplus
extern "C" {
#endif

/* What a rank shows. Both are called by the watching thread, never both at once. */
struct watch_rank {
    void *ctx;
    int rank, device;
    double patience_s; /* a sum that takes longer will not end */

    /* NULL, or what went wrong, static text; *since_s: for how long a sum has not ended, or 0. */
    const char *(*look)(void *ctx, double *since_s);

    /* At most once. The text is the callee's to copy. */
    void (*call_off)(void *ctx, const char *why);
};

struct watch;

/* Those who name the same meeting, 128 bytes, are watched together. NULL: out of memory, threads.
 */
struct watch *watch_join(const void *meeting, const struct watch_rank *r);

/* Afterwards nothing of the rank is called any more. The last one out ends the watch. */
void watch_leave(struct watch *w, int rank);

#ifdef __cplusplus
}
#endif

#endif
