/*
 * Several GPUs of one silo: NCCL, taken from the system when a second device is asked for, so that
 * a machine with one GPU needs none of it. The sum runs on the backend's own stream, between its
 * ops.
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

void cuda_all_reduce(struct backend *be, float *x, int64_t n)
{
    struct cuda *c = cuda_of(be);
    if (!c->comm || n <= 0) {
        return; // a rank alone
    }
    ncclResult_t r = nccl.all_reduce(x, x, (size_t)n, ncclFloat32, ncclSum,
                                     static_cast<ncclComm_t>(c->comm), c->stream);
    if (r != ncclSuccess) {
        cuda_fail(c, nccl.text(r));
    }
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

void cuda_all_reduce(struct backend *, float *, int64_t)
{
}

void cuda_leave(struct cuda *)
{
}

#endif
