#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "tests/support/cuda_emul.hpp"

/* What one rank brings to a meeting of all. */
struct brought {
    const void *from;
    void *to;
};

typedef std::function<void(const std::vector<brought> &)> work;

struct op {
    brought mine;
    work fn;
};

/* The last abort of a process frees all of a meeting; these stay, to tell who uses one after. */
struct emul_comm {
    struct emul_group *group;
    int rank;
    std::deque<op> ops; /* that not all have come to */
    bool grouped;       /* its owner is within a group */
    bool gone;
};

struct emul_group {
    std::vector<emul_comm *> comms;
};

void emul_stop(const char *why);

static std::mutex lock;
static std::map<std::string, emul_group> groups;
static int ids, refusing = -1, failing = -1, shut_out = -1, aborted, closed;
static bool pending, lost;
static void (*between)(int rank);
static thread_local int depth;
static thread_local emul_comm *grouped;

/* What all have come to is done. */
static void advance(emul_group *g)
{
    for (;;) {
        std::vector<brought> all;
        for (emul_comm *c : g->comms) {
            if (!c || c->ops.empty()) {
                return;
            }
            all.push_back(c->ops.front().mine);
        }
        g->comms[0]->ops.front().fn(all);
        for (emul_comm *c : g->comms) {
            c->ops.pop_front();
        }
    }
}

static ncclResult_t state(const emul_comm *c)
{
    return c->rank == failing ? ncclUnhandledCudaError
           : c->ops.empty()   ? ncclSuccess
                              : ncclInProgress;
}

static void check_alive(const emul_comm *c)
{
    if (c->gone) {
        emul_stop("a communicator is used that is gone");
    }
}

static ncclResult_t talk(ncclComm_t c, brought mine, const work &fn)
{
    ncclResult_t r = ncclUnhandledCudaError;
    {
        std::lock_guard<std::mutex> held(lock);
        check_alive(c);
        if (!depth && !c->ops.empty()) {
            emul_stop("a call is made while the one before is in progress");
        }
        if (depth) {
            grouped = c;
            c->grouped = true;
        }
        if (c->rank != refusing) {
            c->ops.push_back({mine, fn});
            advance(c->group);
            r = depth ? ncclSuccess : state(c);
        }
    }
    if (depth && between) {
        between(c->rank);
    }
    return r;
}

template <typename T>
static void add(const std::vector<brought> &all, size_t at, size_t n, std::vector<T> *sum)
{
    sum->assign(n, T(0));
    for (const brought &b : all) {
        for (size_t i = 0; i < n; i++) {
            (*sum)[i] += static_cast<const T *>(b.from)[at + i];
        }
    }
}

template <typename T> static void all_reduce(const std::vector<brought> &all, size_t n)
{
    std::vector<T> sum;
    add(all, 0, n, &sum);
    for (const brought &b : all) {
        memcpy(b.to, sum.data(), n * sizeof(T));
    }
}

static size_t width(ncclDataType_t t)
{
    return t == ncclInt8 ? 1 : t == ncclFloat32 ? 4 : 8;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t t, ncclRedOp_t,
                           ncclComm_t comm, cudaStream_t)
{
    return talk(comm, {from, to}, [=](const std::vector<brought> &all) {
        t == ncclFloat64 ? all_reduce<double>(all, n) : all_reduce<float>(all, n);
    });
}

ncclResult_t ncclReduceScatter(const void *from, void *to, size_t n, ncclDataType_t, ncclRedOp_t,
                               ncclComm_t comm, cudaStream_t)
{
    return talk(comm, {from, to}, [=](const std::vector<brought> &all) {
        std::vector<std::vector<float>> sums(all.size());
        for (size_t r = 0; r < all.size(); r++) {
            add(all, r * n, n, &sums[r]);
        }
        for (size_t r = 0; r < all.size(); r++) {
            memcpy(all[r].to, sums[r].data(), n * sizeof(float));
        }
    });
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t n, ncclDataType_t t, ncclComm_t comm,
                           cudaStream_t)
{
    return talk(comm, {from, to}, [=](const std::vector<brought> &all) {
        for (const brought &b : all) {
            for (size_t r = 0; r < all.size(); r++) {
                memmove(static_cast<char *>(b.to) + r * n * width(t), all[r].from, n * width(t));
            }
        }
    });
}

ncclResult_t ncclReduce(const void *from, void *to, size_t n, ncclDataType_t, ncclRedOp_t, int root,
                        ncclComm_t comm, cudaStream_t)
{
    return talk(comm, {from, to}, [=](const std::vector<brought> &all) {
        std::vector<float> sum;
        add(all, 0, n, &sum);
        memcpy(all[root].to, sum.data(), n * sizeof(float));
    });
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t n, ncclDataType_t t, int root,
                           ncclComm_t comm, cudaStream_t)
{
    return talk(comm, {from, to}, [=](const std::vector<brought> &all) {
        for (const brought &b : all) {
            memmove(b.to, all[root].from, n * width(t));
        }
    });
}

ncclResult_t ncclGroupStart()
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd()
{
    std::lock_guard<std::mutex> held(lock);
    depth--;
    emul_comm *c = grouped;
    grouped = nullptr;
    if (!c) {
        return ncclSuccess;
    }
    check_alive(c);
    c->grouped = false;
    return c->rank == refusing ? ncclUnhandledCudaError : state(c);
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    std::lock_guard<std::mutex> held(lock);
    *id = ncclUniqueId{};
    (void)snprintf(id->internal, sizeof(id->internal), "meeting %d", ids++);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    std::lock_guard<std::mutex> held(lock);
    if (config->blocking) {
        emul_stop("nobody could leave a call that waits");
    }
    if (rank == shut_out) {
        *comm = nullptr;
        return ncclUnhandledCudaError;
    }
    emul_group *g = &groups[id.internal];
    g->comms.resize((size_t)size);
    *comm = g->comms[(size_t)rank] = new emul_comm{g, rank, {}, false, false};
    (*comm)->ops.push_back({{nullptr, nullptr}, [](const std::vector<brought> &) {}});
    advance(g);
    return state(*comm);
}

static void end(ncclComm_t comm)
{
    check_alive(comm);
    if (comm->grouped) {
        emul_stop("a communicator is ended while its owner is within a group");
    }
    comm->gone = true;
    comm->group->comms[(size_t)comm->rank] = nullptr;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    std::lock_guard<std::mutex> held(lock);
    if (state(comm) != ncclSuccess) {
        emul_stop("a communicator is closed that should be aborted");
    }
    closed++;
    end(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    std::lock_guard<std::mutex> held(lock);
    if (comm) {
        aborted++;
        end(comm);
    }
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *out)
{
    std::lock_guard<std::mutex> held(lock);
    check_alive(comm);
    *out = state(comm);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t)
{
    return "unhandled cuda error";
}

void *emul_dlopen(const char *, int)
{
    return &lock;
}

void *emul_dlsym(void *, const char *name)
{
#define SYMBOL(f)                                                                                  \
    {                                                                                              \
#f, reinterpret_cast < void *>(&(f))                                                       \
    }
    static const std::map<std::string, void *> symbols = {
        SYMBOL(ncclGetUniqueId),   SYMBOL(ncclCommInitRankConfig), SYMBOL(ncclAllReduce),
        SYMBOL(ncclReduceScatter), SYMBOL(ncclAllGather),    SYMBOL(ncclReduce),
        SYMBOL(ncclBroadcast),     SYMBOL(ncclGroupStart),   SYMBOL(ncclGroupEnd),
        SYMBOL(ncclCommDestroy),   SYMBOL(ncclCommAbort),    SYMBOL(ncclCommGetAsyncError),
        SYMBOL(ncclGetErrorString)};
    auto at = symbols.find(name);
    return at == symbols.end() ? nullptr : at->second;
}

cudaError_t cudaEventQuery(cudaEvent_t)
{
    std::lock_guard<std::mutex> held(lock);
    return pending ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t)
{
    std::lock_guard<std::mutex> held(lock);
    return lost ? cudaErrorMemoryAllocation : cudaSuccess; // any error will do
}

void emul_streams_lost(int l)
{
    std::lock_guard<std::mutex> held(lock);
    lost = l;
}

void emul_ranks_shut_out(int rank)
{
    std::lock_guard<std::mutex> held(lock);
    shut_out = rank;
}

void emul_ranks_between(void (*fn)(int rank))
{
    std::lock_guard<std::mutex> held(lock);
    between = fn;
}

void emul_ranks_refuse(int rank)
{
    std::lock_guard<std::mutex> held(lock);
    refusing = rank;
}

void emul_ranks_async(int rank)
{
    std::lock_guard<std::mutex> held(lock);
    failing = rank;
}

void emul_events_pending(int p)
{
    std::lock_guard<std::mutex> held(lock);
    pending = p;
}

int emul_ranks_aborted(void)
{
    std::lock_guard<std::mutex> held(lock);
    return aborted;
}

int emul_ranks_closed(void)
{
    std::lock_guard<std::mutex> held(lock);
    return closed;
}
