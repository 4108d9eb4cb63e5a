/*
 * Several GPUs of one silo: NCCL, taken from the system when a second device is asked for, so that
 * a machine with one GPU needs none of it. A sum of all runs on the backend's own stream, between
 * its ops; shares are summed and handed out on one beside it.
 */
#include "kernels/cuda/cuda.cuh"

#if !defined(CUDA_EMULATED) && __has_include(<nccl.h>)
#include <dlfcn.h>
#include <nccl.h>
#include <string.h>

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
    decltype(&ncclCommCount) count;
    decltype(&ncclCommUserRank) rank;
    decltype(&ncclCommDestroy) destroy;
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
                 find(library, "ncclCommCount", &nccl.count) &&
                 find(library, "ncclCommUserRank", &nccl.rank) &&
                 find(library, "ncclCommDestroy", &nccl.destroy) &&
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

const char *cuda_join(struct backend *be, const struct backend_meeting *at, int rank, int size)
{
    ncclUniqueId id;
    memcpy(&id, at->bytes, sizeof(id));
    ncclComm_t comm;
    ncclResult_t r = nccl.init(&comm, size, id, rank);
    cuda_of(be)->comm = r == ncclSuccess ? comm : nullptr;
    return r == ncclSuccess ? nullptr : nccl.text(r);
}

static void check(struct cuda *c, ncclResult_t r)
{
    if (r != ncclSuccess) {
        cuda_fail(c, nccl.text(r));
    }
}

void cuda_all_reduce(struct backend *be, enum dtype t, void *x, int64_t n)
{
    struct cuda *c = cuda_of(be);
    if (c->comm && n > 0) { // else a rank alone
        check(c, nccl.all_reduce(x, x, (size_t)n, t == DTYPE_F64 ? ncclFloat64 : ncclFloat32,
                                 ncclSum, static_cast<ncclComm_t>(c->comm), c->stream));
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
    ncclComm_t comm = static_cast<ncclComm_t>(c->comm);
    int size = 0;
    int rank = 0;
    if (!comm || n <= 0) {
        return;
    }
    check(c, nccl.count(comm, &size));
    check(c, nccl.rank(comm, &rank));
    if (n == share * size) {
        check(c, nccl.reduce_scatter(x, x + rank * share, (size_t)share, ncclFloat32, ncclSum, comm,
                                     c->talk));
        return;
    }
    check(c, nccl.group_start());
    for (int r = 0; r < size; r++) {
        struct share s = share_of(r, n, share);
        if (s.size > 0) {
            check(c,
                  nccl.reduce(x + s.at, x + s.at, s.size, ncclFloat32, ncclSum, r, comm, c->talk));
        }
    }
    check(c, nccl.group_end());
}

void cuda_all_gather(struct backend *be, void *x, int64_t n, int64_t share)
{
    struct cuda *c = cuda_of(be);
    ncclComm_t comm = static_cast<ncclComm_t>(c->comm);
    char *p = static_cast<char *>(x);
    int size = 0;
    int rank = 0;
    if (!comm || n <= 0) {
        return;
    }
    check(c, nccl.count(comm, &size));
    check(c, nccl.rank(comm, &rank));
    if (n == share * size) {
        check(c, nccl.all_gather(p + rank * share, p, (size_t)share, ncclInt8, comm, c->talk));
        return;
    }
    check(c, nccl.group_start());
    for (int r = 0; r < size; r++) {
        struct share s = share_of(r, n, share);
        if (s.size > 0) {
            check(c, nccl.broadcast(p + s.at, p + s.at, s.size, ncclInt8, r, comm, c->talk));
        }
    }
    check(c, nccl.group_end());
}

void cuda_leave(struct cuda *c)
{
    if (c->comm) {
        (void)nccl.destroy(static_cast<ncclComm_t>(c->comm));
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

void cuda_leave(struct cuda *)
{
}

#endif
