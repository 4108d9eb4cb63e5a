/*
 * The CUDA kernels on the host's emulation of a device (tests/support/cuda_emul.hpp), op by op
 * against the reference. Products take the plain kernel: there is no cuBLASLt here.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/backend.h"
#include "kernels/cuda/watch.h"
#include "tests/support/check.h"
#include "tests/support/cuda_emul_ranks.h"
#include "tests/support/op_parity.h"

extern backend_cuda_fn photon_backend;

static struct backend *gpu;

/* Column sums need little working space, the gradient of an embedding much more. */
static void sums(void *memory)
{
    gpu->ops->bias_bwd(gpu, DTYPE_F32, memory, memory, 4, 8);
}

/* What would have to take working space is not kept; what was kept before it was taken is void. */
static void a_recording_holds_while_the_working_space_stays(void)
{
    const char *why = "";
    gpu = photon_backend(0, &why);
    CHECK(gpu != NULL);
    float *memory = gpu->ops->alloc(gpu, 4096);
    int32_t *tokens = gpu->ops->alloc(gpu, 4096);
    gpu->ops->record(gpu);
    sums(memory);
    CHECK(gpu->ops->recorded(gpu) == NULL);
    CHECK(gpu->ops->sync(gpu) == NULL);
    sums(memory);
    gpu->ops->record(gpu);
    sums(memory);
    void *kept = gpu->ops->recorded(gpu);
    CHECK(kept != NULL && gpu->ops->replay(gpu, kept));
    gpu->ops->embed_bwd(gpu, DTYPE_F32, memory, NULL, tokens, memory, 1, 4, 8);
    CHECK(!gpu->ops->replay(gpu, kept));
    gpu->ops->unrecord(gpu, kept);
    CHECK(gpu->ops->sync(gpu) == NULL);
    gpu->ops->release(gpu, memory);
    gpu->ops->release(gpu, tokens);
    backend_close(gpu);
}

/* A call that no recording takes: there is none, and the same done without it is no error. */
static void what_fails_in_a_recording_is_over_with_it(void)
{
    const char *why = "";
    gpu = photon_backend(0, &why);
    CHECK(gpu != NULL);
    float *memory = gpu->ops->alloc(gpu, 4096);
    float host[8];
    for (int i = 0; i < 2; i++) { // the second time there is working space already
        gpu->ops->record(gpu);
        sums(memory);
        gpu->ops->get(gpu, host, memory, sizeof(host));
        CHECK(gpu->ops->recorded(gpu) == NULL);
        sums(memory);
        gpu->ops->get(gpu, host, memory, sizeof(host));
        CHECK(gpu->ops->sync(gpu) == NULL);
    }
    gpu->ops->release(gpu, memory);
    backend_close(gpu);
}

// ---- ranks that wait for each other -------------------------------------------------------------

/* A rank of a pretended NCCL: what it shows, and what was done to it. */
struct pretended {
    const char *error;
    double since_s;
    int looked, called_off;
    char why[256];
};

static pthread_mutex_t pretended_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t pretended_turn = PTHREAD_COND_INITIALIZER;

static const char *pretended_look(void *ctx, double *since_s)
{
    struct pretended *p = ctx;
    (void)pthread_mutex_lock(&pretended_lock);
    p->looked++;
    *since_s = p->since_s;
    const char *error = p->error;
    (void)pthread_cond_broadcast(&pretended_turn);
    (void)pthread_mutex_unlock(&pretended_lock);
    return error;
}

static void pretended_call_off(void *ctx, const char *why)
{
    struct pretended *p = ctx;
    (void)pthread_mutex_lock(&pretended_lock);
    p->called_off++;
    (void)snprintf(p->why, sizeof(p->why), "%s", why);
    (void)pthread_cond_broadcast(&pretended_turn);
    (void)pthread_mutex_unlock(&pretended_lock);
}

/* Until a number has come that far. */
static void wait_for(const int *n, int least)
{
    struct timespec end; // a watch that sleeps for good is a failure, not a wait
    (void)clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 60;
    int late = 0;
    (void)pthread_mutex_lock(&pretended_lock);
    while (*n < least && !late) {
        late = pthread_cond_timedwait(&pretended_turn, &pretended_lock, &end);
    }
    (void)pthread_mutex_unlock(&pretended_lock);
    CHECK_INT(late, 0);
}

static struct watch *watched(struct pretended *p, const struct backend_meeting *at, int rank)
{
    const struct watch_rank r = {p, rank, 4 + rank, 60, pretended_look, pretended_call_off};
    struct watch *w = watch_join(at, &r);
    CHECK(w != NULL);
    return w;
}

static void set(struct pretended *p, const char *error, double since_s)
{
    (void)pthread_mutex_lock(&pretended_lock);
    p->error = error;
    p->since_s = since_s;
    (void)pthread_mutex_unlock(&pretended_lock);
}

/* Whether it failed or a sum does not end, all of its meeting are told, once, and nobody else. */
static void a_rank_that_fails_keeps_no_other_waiting(void)
{
    static const char *const errors[] = {"the device is lost", NULL};
    for (int way = 0; way < 2; way++) {
        const struct backend_meeting here = {{1}};
        const struct backend_meeting elsewhere = {{2}};
        struct pretended ranks[3] = {0};
        struct pretended gone = {0};
        struct pretended other = {0};
        struct watch *w = watched(&ranks[0], &here, 0);
        CHECK(watched(&ranks[1], &here, 1) == w && watched(&ranks[2], &here, 2) == w);
        CHECK(watched(&gone, &here, 3) == w);
        struct watch *w2 = watched(&other, &elsewhere, 0);
        CHECK(w2 != w);
        set(&ranks[0], NULL, 59); // long, yet believable
        wait_for(&ranks[0].looked, 2);
        CHECK_INT(ranks[0].called_off, 0);
        watch_leave(w, 3);
        set(&ranks[1], errors[way], way ? 61 : 0);
        for (int i = 0; i < 3; i++) {
            wait_for(&ranks[i].called_off, 1);
            CHECK(strstr(ranks[i].why, "GPU 5 (rank 1)") != NULL);
            CHECK(strstr(ranks[i].why, way ? "too long" : errors[0]) != NULL);
            CHECK(strlen(ranks[i].why) > 60 && strstr(ranks[i].why, "--device") != NULL);
        }
        wait_for(&other.looked, 4); // as long again
        for (int i = 0; i < 3; i++) {
            watch_leave(w, i);
            CHECK_INT(ranks[i].called_off, 1);
        }
        watch_leave(w2, 0);
        CHECK_INT(other.called_off, 0);
        CHECK_INT(gone.called_off, 0);
    }
}

enum { RANKS = 2, ELEMENTS = 10 };

/* One rank on a thread of its own. */
struct member {
    struct backend *be;
    struct backend_meeting at;
    int rank;
    float *x;
    const char *joined, *told;
    pthread_t thread;
};

static void *join_meeting(void *arg)
{
    struct member *m = arg;
    m->joined = m->be->ops->join(m->be, &m->at, m->rank, RANKS);
    return NULL;
}

/* Sums of all, of equal shares and of unequal ones, each handed out again. */
static void *sum_up(void *arg)
{
    struct member *m = arg;
    for (int share = ELEMENTS / RANKS; share <= ELEMENTS / RANKS + 2; share += 2) {
        for (int i = 0; i < ELEMENTS; i++) {
            m->x[i] = (float)((m->rank + 1) * (i + 1));
        }
        m->be->ops->reduce_scatter(m->be, m->x, ELEMENTS, share);
        m->be->ops->all_gather(m->be, m->x, ELEMENTS * (int64_t)sizeof(float),
                               share * (int64_t)sizeof(float));
        for (int i = 0; i < ELEMENTS; i++) {
            CHECK(m->x[i] == (float)(3 * (i + 1)));
        }
    }
    m->be->ops->all_reduce(m->be, DTYPE_F32, m->x, ELEMENTS);
    CHECK(m->x[1] == 12.0f);
    m->told = m->be->ops->sync(m->be);
    return NULL;
}

static void *sum_all(void *arg)
{
    struct member *m = arg;
    m->be->ops->all_reduce(m->be, DTYPE_F32, m->x, ELEMENTS);
    return NULL;
}

static void side_by_side(struct member *m, void *(*fn)(void *))
{
    for (int i = 0; i < RANKS; i++) {
        CHECK_INT(pthread_create(&m[i].thread, NULL, fn, &m[i]), 0);
    }
    for (int i = 0; i < RANKS; i++) {
        (void)pthread_join(m[i].thread, NULL);
    }
}

static void members_open(struct member *m)
{
    const char *why = "";
    for (int i = 0; i < RANKS; i++) {
        m[i] = (struct member){.be = photon_backend(0, &why), .rank = i};
        CHECK(m[i].be != NULL);
        m[i].x = m[i].be->ops->alloc(m[i].be, ELEMENTS * sizeof(float));
    }
    CHECK(m[0].be->ops->meet(m[0].be, &m[0].at) == NULL);
    m[1].at = m[0].at;
    side_by_side(m, join_meeting);
    CHECK(m[0].joined == NULL && m[1].joined == NULL);
    side_by_side(m, sum_up);
    CHECK(m[0].told == NULL && m[1].told == NULL);
}

static void members_close(struct member *m)
{
    for (int i = 0; i < RANKS; i++) {
        m[i].be->ops->release(m[i].be, m[i].x);
        backend_close(m[i].be);
    }
}

/* Both say who it was, and go on saying that they are no longer together. */
static void check_called_off(struct member *m)
{
    for (int i = 0; i < RANKS; i++) {
        for (int again = 0; again < 2; again++) {
            const char *why = m[i].be->ops->sync(m[i].be);
            CHECK(why != NULL && strstr(why, "unhandled cuda error") != NULL);
            CHECK(i == 1 || (why && strstr(why, "(rank 1)") != NULL));
            m[i].be->ops->all_reduce(m[i].be, DTYPE_F32, m[i].x, ELEMENTS); // returns at once
        }
    }
}

static void wait_for_aborts(int least)
{
    const struct timespec pause = {0, 10 * 1000 * 1000};
    int pauses = 0; // a minute of them: a watch that sleeps for good is a failure, not a wait
    while (emul_ranks_aborted() < least && pauses++ < 6000) {
        (void)nanosleep(&pause, NULL);
    }
    CHECK_INT(emul_ranks_aborted(), least);
}

static void ranks_sum_and_part(void)
{
    struct member m[RANKS];
    int closed = emul_ranks_closed();
    int aborted = emul_ranks_aborted();
    members_open(m);
    members_close(m);
    CHECK_INT(emul_ranks_closed(), closed + RANKS);
    CHECK_INT(emul_ranks_aborted(), aborted);
}

/* The first waits inside the sum when the second cannot come to it. */
static void a_sum_that_one_rank_cannot_join_ends_for_all(void)
{
    struct member m[RANKS];
    int aborted = emul_ranks_aborted();
    int closed = emul_ranks_closed();
    members_open(m);
    emul_ranks_refuse(1);
    side_by_side(m, sum_all);
    wait_for_aborts(aborted + RANKS);
    emul_ranks_refuse(-1);
    check_called_off(m);
    members_close(m);
    CHECK_INT(emul_ranks_aborted(), aborted + RANKS);
    CHECK_INT(emul_ranks_closed(), closed);
}

/* What NCCL learns while a sum is under way ends it on every device. */
static void an_error_that_nccl_tells_late_is_asked_for(void)
{
    struct member m[RANKS];
    int aborted = emul_ranks_aborted();
    members_open(m);
    emul_events_pending(1);
    side_by_side(m, sum_all);
    emul_ranks_async(1);
    wait_for_aborts(aborted + RANKS);
    emul_ranks_async(-1);
    emul_events_pending(0);
    check_called_off(m);
    members_close(m);
    CHECK_INT(emul_ranks_aborted(), aborted + RANKS);
}

/* The first waits in the meeting that the second cannot enter; a later meeting is as any. */
static void a_rank_that_cannot_enter_keeps_no_other_waiting(void)
{
    struct member m[RANKS];
    const char *why = "";
    int closed = emul_ranks_closed();
    for (int i = 0; i < RANKS; i++) {
        m[i] = (struct member){.be = photon_backend(0, &why), .rank = i};
        m[i].x = m[i].be->ops->alloc(m[i].be, ELEMENTS * sizeof(float));
    }
    CHECK(m[0].be->ops->meet(m[0].be, &m[0].at) == NULL);
    m[1].at = m[0].at;
    emul_ranks_shut_out(1);
    side_by_side(m, join_meeting);
    emul_ranks_shut_out(-1);
    CHECK(m[0].joined != NULL && strstr(m[0].joined, "(rank 1)") != NULL);
    CHECK(m[1].joined != NULL);
    members_close(m);
    CHECK_INT(emul_ranks_closed(), closed);
    ranks_sum_and_part();
}

/* Long enough for the watch to want it. */
static void linger(int rank)
{
    const struct timespec while_watched = {0, 400 * 1000 * 1000};
    if (rank == 0) {
        emul_ranks_async(1);
        (void)nanosleep(&while_watched, NULL);
    }
}

static void *sum_unequal_shares(void *arg)
{
    struct member *m = arg;
    m->be->ops->reduce_scatter(m->be, m->x, ELEMENTS, ELEMENTS / RANKS + 2);
    return NULL;
}

/* The emulation stops the program when a communicator is aborted there, or used afterwards. */
static void nobody_is_called_off_between_two_calls_of_a_group(void)
{
    struct member m[RANKS];
    int aborted = emul_ranks_aborted();
    members_open(m);
    emul_ranks_between(linger);
    side_by_side(m, sum_unequal_shares);
    emul_ranks_between(NULL);
    wait_for_aborts(aborted + RANKS);
    emul_ranks_async(-1);
    check_called_off(m);
    members_close(m);
}

static void a_device_that_is_lost_between_two_steps_is_noticed(void)
{
    struct member m[RANKS];
    int aborted = emul_ranks_aborted();
    int closed = emul_ranks_closed();
    members_open(m);
    emul_streams_lost(1);
    wait_for_aborts(aborted + RANKS);
    emul_streams_lost(0);
    CHECK(m[0].be->ops->sync(m[0].be) != NULL);
    members_close(m);
    CHECK_INT(emul_ranks_closed(), closed);
}

int main(void)
{
    RUN(ranks_sum_and_part);
    RUN(a_rank_that_cannot_enter_keeps_no_other_waiting);
    RUN(nobody_is_called_off_between_two_calls_of_a_group);
    RUN(a_device_that_is_lost_between_two_steps_is_noticed);
    RUN(a_sum_that_one_rank_cannot_join_ends_for_all);
    RUN(an_error_that_nccl_tells_late_is_asked_for);
    RUN(a_rank_that_fails_keeps_no_other_waiting);
    const char *why = "";
    (void)setenv("PHOTON_CUDA_GRAPHS", "1", 1);
    RUN(a_recording_holds_while_the_working_space_stays);
    RUN(what_fails_in_a_recording_is_over_with_it);
    gpu = photon_backend(0, &why);
    if (!gpu) {
        (void)fprintf(stderr, "%s\n", why);
        return 1;
    }
    op_parity_open(gpu, OP_SMALL);
    op_parity();
    op_parity_close();
    backend_close(gpu);
    return check_end();
}
