/*
 * Several GPUs of one silo: NCCL, taken from the system when a second device is asked for, so that
 * a machine with one GPU needs none of it. A sum of all runs on the backend's own stream, between
 * its ops; shares are summed and handed out on one beside it.
 *
 * A rank that fails leaves the others waiting on their devices; watch.h ends that. The watching
 * thread asks NCCL and the device how they are, and aborts the communicator, which ends the sums
 * that are under way. From then on the rank says why to everything that is asked of it.
 */
#include "kernels/cuda/cuda.cuh"

#if defined(CUDA_EMULATED) || __has_include(<nccl.h>)
#ifndef CUDA_EMULATED
#include <dlfcn.h>
#include <nccl.h>
#endif
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <atomic>
#include <new>

#include "kernels/cuda/watch.h"

static_assert(sizeof(ncclUniqueId) <= sizeof(struct backend_meeting), "a meeting holds NCCL's id");

/* Its functions, by their own types. */
static struct nccl {
    decltype(&ncclGetUniqueId) id;
    decltype(&ncclCommInitRank) init;
    decltype(&ncclAllReduce) all_reduce;
    decltype(&ncclReduceScatter) reduce_scatter;
    decltype(&ncclAllGather) all_gather;
    decltype(&ncclReduce) reduce;
    decltype(&ncclBroadcast) broadcast;
    decltype(&ncclGroupStart) group_start;
    decltype(&ncclGroupEnd) group_end;
    decltype(&ncclCommDestroy) destroy;
    decltype(&ncclCommAbort) abort;
    decltype(&ncclCommGetAsyncError) async_error;
    decltype(&ncclGetErrorString) text;
} nccl;

template <typename F> static bool find(void *library, const char *name, F *out)
{
    *out = reinterpret_cast<F>(dlsym(library, name));
    return *out != nullptr;
}

static const char *load()
{
    if (nccl.text) {
        return nullptr;
    }
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        return "several GPUs need NCCL, and there is no libnccl.so.2 here";
    }
    bool whole = find(library, "ncclGetUniqueId", &nccl.id) &&
                 find(library, "ncclCommInitRank", &nccl.init) &&
                 find(library, "ncclAllReduce", &nccl.all_reduce) &&
                 find(library, "ncclReduceScatter", &nccl.reduce_scatter) &&
                 find(library, "ncclAllGather", &nccl.all_gather) &&
                 find(library, "ncclReduce", &nccl.reduce) &&
                 find(library, "ncclBroadcast", &nccl.broadcast) &&
                 find(library, "ncclGroupStart", &nccl.group_start) &&
                 find(library, "ncclGroupEnd", &nccl.group_end) &&
                 find(library, "ncclCommDestroy", &nccl.destroy) &&
                 find(library, "ncclCommAbort", &nccl.abort) &&
                 find(library, "ncclCommGetAsyncError", &nccl.async_error) &&
                 find(library, "ncclGetErrorString", &nccl.text);
    return whole ? nullptr : "libnccl.so.2 lacks a function";
}

const char *cuda_meet(struct backend *, struct backend_meeting *out)
{
    const char *why = load();
    if (why) {
        return why;
    }
    ncclUniqueId id;
    ncclResult_t r = nccl.id(&id);
    memcpy(out->bytes, &id, sizeof(id));
    return r == ncclSuccess ? nullptr : nccl.text(r);
}

/*
 * Half an hour counts what is computed before the sum as well, so no step that anybody waits for is
 * taken for a stuck one. What fails by itself is seen at once.
 */
static const double PATIENCE_S = 1800;

/* How long an owner that is inside NCCL is waited for before the communicator is taken away. */
enum { GRACE_S = 2 };

/* A rank's place among the others. */
struct seat {
    ncclComm_t comm;
    int rank, size;
    struct watch *watch;
    pthread_mutex_t lock;             /* held while NCCL is called, by the owner or to abort */
    cudaEvent_t after;                /* the sum enqueued last */
    std::atomic<double> since_s;      /* when that was; 0: it has ended, or there was none */
    std::atomic<const char *> failed; /* a sum could not be enqueued here: others wait for it */
    std::atomic<bool> off;            /* and why says why */
    char why[200];
};

static double now_s()
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct seat *seat_of(struct cuda *c)
{
    return static_cast<struct seat *>(c->comm);
}

static const char *error_of(cudaError_t err)
{
    bool good = err == cudaSuccess || err == cudaErrorNotReady;
    (void)cudaGetLastError();
    return good ? nullptr : cudaGetErrorString(err);
}

/* For the watching thread. Before the first sum there is nothing to wait for, and a step may be
 * being recorded, which questions would spoil. */
static const char *look(void *ctx, double *since_s)
{
    struct cuda *c = static_cast<struct cuda *>(ctx);
    struct seat *s = seat_of(c);
    double since = s->since_s;
    const char *failed = s->failed;
    if (failed || since == 0) {
        return failed;
    }
    *since_s = now_s() - since;
    if (pthread_mutex_trylock(&s->lock)) {
        return nullptr; // its owner is enqueuing
    }
    ncclResult_t r = ncclSuccess;
    ncclResult_t asked = nccl.async_error(s->comm, &r);
    r = asked != ncclSuccess ? asked : r;
    const char *why = r == ncclSuccess || r == ncclInProgress ? nullptr : nccl.text(r);
    cudaError_t at = cudaSetDevice(c->device);
    if (!why && at == cudaSuccess) {
        at = cudaEventQuery(s->after);
        if (at == cudaSuccess) {
            *since_s = 0;
            s->since_s = 0;
        }
        why = error_of(at);
        why = why ? why : error_of(cudaStreamQuery(c->stream));
        why = why ? why : error_of(cudaStreamQuery(c->talk));
    } else if (!why) {
        why = error_of(at);
    }
    (void)pthread_mutex_unlock(&s->lock);
    return why;
}

static void call_off(void *ctx, const char *why)
{
    struct cuda *c = static_cast<struct cuda *>(ctx);
    struct seat *s = seat_of(c);
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += GRACE_S;
    bool locked = pthread_mutex_timedlock(&s->lock, &until) == 0;
    (void)snprintf(s->why, sizeof(s->why), "%s", why);
    s->off = true; // before what the owner waits for ends
    (void)cudaSetDevice(c->device);
    (void)nccl.abort(s->comm); // also frees an owner that hangs inside a call
    if (locked) {
        (void)pthread_mutex_unlock(&s->lock);
    }
}

const char *cuda_called_off(struct cuda *c)
{
    struct seat *s = seat_of(c);
    return s && s->off ? s->why : nullptr;
}

static void rise(struct seat *s)
{
    if (!s->off) { // else it is gone
        (void)nccl.destroy(s->comm);
    }
    if (s->after) {
        (void)cudaEventDestroy(s->after);
    }
    (void)pthread_mutex_destroy(&s->lock);
    delete s;
}

const char *cuda_join(struct backend *be, const struct backend_meeting *at, int rank, int size)
{
    struct cuda *c = cuda_of(be);
    ncclUniqueId id;
    memcpy(&id, at->bytes, sizeof(id));
    struct seat *s = new (std::nothrow) seat{};
    if (!s) {
        return "out of memory";
    }
    ncclResult_t r = nccl.init(&s->comm, size, id, rank);
    if (r != ncclSuccess) {
        delete s;
        return nccl.text(r);
    }
    s->rank = rank;
    s->size = size;
    (void)pthread_mutex_init(&s->lock, nullptr);
    c->comm = s;
    cudaError_t err = cudaEventCreateWithFlags(&s->after, cudaEventDisableTiming);
    const struct watch_rank seen = {c, rank, c->device, PATIENCE_S, look, call_off};
    s->watch = err == cudaSuccess ? watch_join(at->bytes, &seen) : nullptr;
    if (!s->watch) {
        c->comm = nullptr;
        rise(s);
        return err != cudaSuccess ? cudaGetErrorString(err) : "no thread to watch the ranks with";
    }
    return nullptr;
}

static void check(struct cuda *c, ncclResult_t r)
{
    if (r != ncclSuccess && !seat_of(c)->off) {
        seat_of(c)->failed = nccl.text(r);
        cuda_fail(c, nccl.text(r));
    }
}

/* The seat, locked, for a sum of n elements; NULL where there is nothing to do. */
static struct seat *talk_begin(struct cuda *c, int64_t n)
{
    struct seat *s = seat_of(c);
    if (!s || n <= 0) { // a rank alone
        return nullptr;
    }
    (void)pthread_mutex_lock(&s->lock);
    if (s->off) {
        (void)pthread_mutex_unlock(&s->lock);
        cuda_fail(c, s->why);
        return nullptr;
    }
    s->since_s = now_s();
    return s;
}

static void talk_end(struct cuda *c, struct seat *s, cudaStream_t on)
{
    if (!s->off) { // else it was called off in the middle of the call
        cuda_check(c, cudaEventRecord(s->after, on));
    }
    (void)pthread_mutex_unlock(&s->lock);
}

void cuda_all_reduce(struct backend *be, enum dtype t, void *x, int64_t n)
{
    struct cuda *c = cuda_of(be);
    struct seat *s = talk_begin(c, n);
    if (s) {
        check(c, nccl.all_reduce(x, x, (size_t)n, t == DTYPE_F64 ? ncclFloat64 : ncclFloat32,
                                 ncclSum, s->comm, c->stream));
        talk_end(c, s, c->stream);
    }
}

/* Of a rank's share of n: where it begins, and its size. */
struct share {
    size_t at, size;
};

static struct share share_of(int rank, int64_t n, int64_t share)
{
    int64_t at = rank * share < n ? rank * share : n;
    int64_t end = at + share < n ? at + share : n;
    return {(size_t)at, (size_t)(end - at)};
}

/* One call where all shares are equal; else one sum a rank, which NCCL does together. */
void cuda_reduce_scatter(struct backend *be, float *x, int64_t n, int64_t share)
{
    struct cuda *c = cuda_of(be);
    struct seat *s = talk_begin(c, n);
    if (!s) {
        return;
    }
    if (n == share * s->size) {
        check(c, nccl.reduce_scatter(x, x + s->rank * share, (size_t)share, ncclFloat32, ncclSum,
                                     s->comm, c->talk));
    } else {
        check(c, nccl.group_start());
        for (int r = 0; r < s->size; r++) {
            struct share of = share_of(r, n, share);
            if (of.size > 0) {
                check(c, nccl.reduce(x + of.at, x + of.at, of.size, ncclFloat32, ncclSum, r,
                                     s->comm, c->talk));
            }
        }
        check(c, nccl.group_end());
    }
    talk_end(c, s, c->talk);
}

void cuda_all_gather(struct backend *be, void *x, int64_t n, int64_t share)
{
    struct cuda *c = cuda_of(be);
    char *p = static_cast<char *>(x);
    struct seat *s = talk_begin(c, n);
    if (!s) {
        return;
    }
    if (n == share * s->size) {
        check(c,
              nccl.all_gather(p + s->rank * share, p, (size_t)share, ncclInt8, s->comm, c->talk));
    } else {
        check(c, nccl.group_start());
        for (int r = 0; r < s->size; r++) {
            struct share of = share_of(r, n, share);
            if (of.size > 0) {
                check(c,
                      nccl.broadcast(p + of.at, p + of.at, of.size, ncclInt8, r, s->comm, c->talk));
            }
        }
        check(c, nccl.group_end());
    }
    talk_end(c, s, c->talk);
}

void cuda_leave(struct cuda *c)
{
    struct seat *s = seat_of(c);
    if (s) {
        watch_leave(s->watch, s->rank);
        c->comm = nullptr;
        rise(s);
    }
}

#else

const char *cuda_meet(struct backend *, struct backend_meeting *)
{
    return "this build knows no NCCL; it takes one GPU";
}

const char *cuda_join(struct backend *, const struct backend_meeting *, int, int)
{
    return "this build knows no NCCL; it takes one GPU";
}

void cuda_all_reduce(struct backend *, enum dtype, void *, int64_t)
{
}

void cuda_reduce_scatter(struct backend *, float *, int64_t, int64_t)
{
}

void cuda_all_gather(struct backend *, void *, int64_t, int64_t)
{
}

const char *cuda_called_off(struct cuda *)
{
    return nullptr;
}

void cuda_leave(struct cuda *)
{
}

#endif
