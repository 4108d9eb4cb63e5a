#include <condition_variable>
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

struct emul_group {
    int size, here;
    unsigned done;
    bool aborted;
    std::vector<brought> all;
};

struct emul_comm {
    emul_group *group;
    int rank;
};

static std::mutex lock;
static std::condition_variable turn;
static std::map<std::string, emul_group> groups;
static int ids, refusing = -1, failing = -1, aborted, closed;
static bool pending;

typedef std::function<void(const std::vector<brought> &)> work;

/* All come, the last one does the work; false: aborted. */
static bool meet(ncclComm_t c, brought mine, const work &fn)
{
    std::unique_lock<std::mutex> held(lock);
    emul_group *g = c->group;
    unsigned now = g->done;
    g->all[c->rank] = mine;
    if (++g->here == g->size) {
        fn(g->all);
        g->here = 0;
        g->done++;
        turn.notify_all();
    }
    turn.wait(held, [&] { return g->done != now || g->aborted; });
    return g->done != now;
}

static ncclResult_t talk(ncclComm_t c, brought mine, const work &fn)
{
    {
        std::lock_guard<std::mutex> held(lock);
        if (c->rank == refusing) {
            return ncclUnhandledCudaError;
        }
    }
    return meet(c, mine, fn) ? ncclSuccess : ncclUnhandledCudaError;
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
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd()
{
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    std::lock_guard<std::mutex> held(lock);
    *id = ncclUniqueId{};
    (void)snprintf(id->internal, sizeof(id->internal), "meeting %d", ids++);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int size, ncclUniqueId id, int rank)
{
    {
        std::lock_guard<std::mutex> held(lock);
        emul_group *g = &groups[id.internal];
        g->size = size;
        g->all.resize((size_t)size);
        *comm = new emul_comm{g, rank};
    }
    (void)meet(*comm, {nullptr, nullptr}, [](const std::vector<brought> &) {});
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    std::lock_guard<std::mutex> held(lock);
    closed++;
    delete comm;
    return ncclSuccess;
}

/* The communicator itself stays: its owner may be inside a call. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    std::lock_guard<std::mutex> held(lock);
    aborted++;
    comm->group->aborted = true;
    turn.notify_all();
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *out)
{
    std::lock_guard<std::mutex> held(lock);
    *out = comm->rank == failing ? ncclUnhandledCudaError : ncclSuccess;
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
        SYMBOL(ncclGetUniqueId),   SYMBOL(ncclCommInitRank), SYMBOL(ncclAllReduce),
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
