/*
 * Several GPUs of one silo: NCCL, taken from the system when a second device is asked for, so that
 * a machine with one GPU needs none of it. A sum of all runs on the backend's own stream, between
 * its ops; shares are summed and handed out on one beside it.
 *
 * A rank that fails leaves the others waiting on their devices; watch.h ends that. The watching
 * thread asks NCCL and the device how they are, and aborts the communicator, which ends the sums
 * that are under way. From then on the rank says why to everything that is asked of it.
 *
 * Nobody may be inside NCCL when a communicator is aborted, and the last abort of a process frees
 * those of all its ranks. So they are of the kind whose calls do not wait, each call is made under
 * the seat's lock, and what NCCL goes on with by itself is asked about until it is done.
 */
#include "kernels/cuda/cuda.cuh"

#if defined(CUDA_EMULATED) || __has_include(<nccl.h>)
#ifndef CUDA_EMULATED
#include <dlfcn.h>
#include <nccl.h>
#endif
#include <pthread.h>
#include <sched.h>
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
    decltype(&ncclCommInitRankConfig) init;
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
                 find(library, "ncclCommInitRankConfig", &nccl.init) &&
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

/* A rank's place among the others. */
struct seat {
    ncclComm_t comm; /* NULL: there is none yet, or no longer */
    int rank, size;
    struct watch *watch;
    pthread_mutex_t lock;        /* of comm, held for each of NCCL's calls: none of them waits */
    cudaEvent_t after;           /* the sum enqueued last */
    std::atomic<double> since_s; /* when what is waited for began; 0: nothing is */
    std::atomic<bool> busy;      /* it is not enqueued yet, and after is of the one before */
    std::atomic<bool> summed;    /* once at least: no step of this rank is recorded */
    std::atomic<const char *> failed; /* here; the others wait for it */
    std::atomic<bool> off;            /* and why says why */
    char why[256];
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

/* What NCCL says of the communicator, which the caller has locked. */
static ncclResult_t asked(struct seat *s)
{
    ncclResult_t r = ncclSuccess;
    ncclResult_t st = s->comm ? nccl.async_error(s->comm, &r) : ncclSuccess;
    return st != ncclSuccess ? st : r;
}

/* Until NCCL has done what it goes on with by itself, or the rank is called off. */
static ncclResult_t settle(struct seat *s, ncclResult_t r)
{
    const struct timespec pause = {0, 100 * 1000};
    for (int tries = 0; r == ncclInProgress; tries++) {
        (void)(tries < 1000 ? sched_yield() : nanosleep(&pause, nullptr));
        (void)pthread_mutex_lock(&s->lock);
        r = asked(s);
        (void)pthread_mutex_unlock(&s->lock);
    }
    return r;
}

/* Of a device between sums as well: one that is lost then is not to be waited for. */
static const char *device_says(struct cuda *c, struct seat *s, double since, double *since_s)
{
    cudaError_t err = cudaSetDevice(c->device);
    err = err == cudaSuccess ? cudaEventQuery(s->after) : err;
    if (err == cudaSuccess) {
        *since_s = 0;
        (void)s->since_s.compare_exchange_strong(since, 0); // else another has begun
    }
    const char *why = error_of(err);
    why = why ? why : error_of(cudaStreamQuery(c->stream));
    return why ? why : error_of(cudaStreamQuery(c->talk));
}

/* For the watching thread. Before the first sum a step may be being recorded, which questions to
 * the device would spoil. */
static const char *look(void *ctx, double *since_s)
{
    struct cuda *c = static_cast<struct cuda *>(ctx);
    struct seat *s = seat_of(c);
    double since = s->since_s; // before busy is looked at
    const char *why = s->failed;
    *since_s = since != 0 ? now_s() - since : 0;
    if (why || (since == 0 && !s->summed) || pthread_mutex_trylock(&s->lock)) {
        return why; // or its owner is enqueuing
    }
    ncclResult_t r = asked(s);
    (void)pthread_mutex_unlock(&s->lock);
    if (r != ncclSuccess && r != ncclInProgress) {
        return nccl.text(r);
    }
    return s->busy ? nullptr : device_says(c, s, since, since_s);
}

static void call_off(void *ctx, const char *why)
{
    struct cuda *c = static_cast<struct cuda *>(ctx);
    struct seat *s = seat_of(c);
    (void)pthread_mutex_lock(
        &s->lock); // not for long: no call waits, and a group is under it whole
    (void)snprintf(s->why, sizeof(s->why), "%s", why);
    s->off = true; // before what the owner waits for ends
    (void)cudaSetDevice(c->device);
    (void)nccl.abort(s->comm); // NULL is allowed
    s->comm = nullptr;
    (void)pthread_mutex_unlock(&s->lock);
}

const char *cuda_called_off(struct cuda *c)
{
    struct seat *s = seat_of(c);
    return s && s->off ? s->why : nullptr;
}

/* Nobody watches any more. NCCL closes nothing that has failed: such a one is aborted. */
static void rise(struct cuda *c, struct seat *s)
{
    if (s->comm) {
        bool well = !s->failed && !c->failed && asked(s) == ncclSuccess;
        (void)(well ? nccl.destroy(s->comm) : nccl.abort(s->comm));
    }
    if (s->after) {
        (void)cudaEventDestroy(s->after);
    }
    (void)pthread_mutex_destroy(&s->lock);
    delete s;
}

static const char *enter(struct seat *s, const struct backend_meeting *at)
{
    ncclUniqueId id;
    memcpy(&id, at->bytes, sizeof(id));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0; // else nobody could be let out who waits for a rank that is gone
    (void)pthread_mutex_lock(&s->lock);
    ncclResult_t r = s->off ? ncclSuccess : nccl.init(&s->comm, s->size, id, s->rank, &config);
    (void)pthread_mutex_unlock(&s->lock);
    r = settle(s, r);
    return r == ncclSuccess ? nullptr : nccl.text(r);
}

/* Watched from the first, so that nobody waits in there for one that fails here; whose seat stays,
 * for those who come later to be told, until it is closed. */
const char *cuda_join(struct backend *be, const struct backend_meeting *at, int rank, int size)
{
    struct cuda *c = cuda_of(be);
    struct seat *s = new (std::nothrow) seat{};
    if (!s) {
        return "out of memory";
    }
    s->rank = rank;
    s->size = size;
    s->busy = true;
    s->since_s = now_s();
    (void)pthread_mutex_init(&s->lock, nullptr);
    c->comm = s;
    const struct watch_rank seen = {c, rank, c->device, PATIENCE_S, look, call_off};
    s->watch = watch_join(at->bytes, &seen);
    if (!s->watch) {
        c->comm = nullptr;
        rise(c, s);
        return "no thread to watch the ranks with";
    }
    const char *why = c->failed; // bound to another device than its own, say
    why = why ? why : error_of(cudaEventCreateWithFlags(&s->after, cudaEventDisableTiming));
    why = why ? why : enter(s, at);
    s->failed = why;
    s->since_s = 0;
    s->busy = false;
    return s->off ? s->why : why;
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
    s->busy = true;
    s->since_s = now_s(); // after busy, see look()
    return s;
}

/* Until it is enqueued the stream is NCCL's. */
static void talk_end(struct cuda *c, struct seat *s, ncclResult_t r, cudaStream_t on)
{
    (void)pthread_mutex_unlock(&s->lock);
    r = settle(s, r);
    const char *why = r == ncclSuccess ? nullptr : nccl.text(r);
    if (!why && !s->off) {
        why = error_of(cudaEventRecord(s->after, on));
    }
    if (why && !s->off) { // else it was called off meanwhile
        s->failed = why;
        cuda_fail(c, why);
    }
    s->summed = true;
    s->busy = false;
}

void cuda_all_reduce(struct backend *be, enum dtype t, void *x, int64_t n)
{
    struct cuda *c = cuda_of(be);
    struct seat *s = talk_begin(c, n);
    if (s) {
        ncclResult_t r =
            nccl.all_reduce(x, x, (size_t)n, t == DTYPE_F64 ? ncclFloat64 : ncclFloat32, ncclSum,
                            s->comm, c->stream);
        talk_end(c, s, r, c->stream);
    }
}

/* The first of two that is an error, else the second. */
static ncclResult_t worse(ncclResult_t a, ncclResult_t b)
{
    return a == ncclSuccess || a == ncclInProgress ? b : a;
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
    ncclResult_t st = ncclSuccess;
    if (n == share * s->size) {
        st = nccl.reduce_scatter(x, x + s->rank * share, (size_t)share, ncclFloat32, ncclSum,
                                 s->comm, c->talk);
    } else {
        st = nccl.group_start();
        for (int r = 0; r < s->size; r++) {
            struct share of = share_of(r, n, share);
            if (of.size > 0) {
                st = worse(st, nccl.reduce(x + of.at, x + of.at, of.size, ncclFloat32, ncclSum, r,
                                           s->comm, c->talk));
            }
        }
        st = worse(st, nccl.group_end());
    }
    talk_end(c, s, st, c->talk);
}

void cuda_all_gather(struct backend *be, void *x, int64_t n, int64_t share)
{
    struct cuda *c = cuda_of(be);
    char *p = static_cast<char *>(x);
    struct seat *s = talk_begin(c, n);
    if (!s) {
        return;
    }
    ncclResult_t st = ncclSuccess;
    if (n == share * s->size) {
        st = nccl.all_gather(p + s->rank * share, p, (size_t)share, ncclInt8, s->comm, c->talk);
    } else {
        st = nccl.group_start();
        for (int r = 0; r < s->size; r++) {
            struct share of = share_of(r, n, share);
            if (of.size > 0) {
                st = worse(st, nccl.broadcast(p + of.at, p + of.at, of.size, ncclInt8, r, s->comm,
                                              c->talk));
            }
        }
        st = worse(st, nccl.group_end());
    }
    talk_end(c, s, st, c->talk);
}

void cuda_leave(struct cuda *c)
{
    struct seat *s = seat_of(c);
    if (s) {
        watch_leave(s->watch, s->rank);
        c->comm = nullptr;
        rise(c, s);
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
