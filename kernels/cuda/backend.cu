/* Opening the CUDA backend: the device, its stream and its memory. */
#include <stdlib.h>
#include <string.h>

#include <new>

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/pins.cuh"

void cuda_fail(struct cuda *c, const char *why)
{
    if (!c->failed) {
        c->failed = why;
    }
}

void cuda_check(struct cuda *c, cudaError_t err)
{
    if (err != cudaSuccess) {
        cuda_fail(c, cudaGetErrorString(err));
    }
}

void *cuda_scratch(struct cuda *c, size_t size)
{
    if (size > c->scratch_size && c->recording) {
        c->spoiled = true; // memory cannot be taken now; the ops are not done with this pointer
        return c->scratch;
    }
    if (size > c->scratch_size) {
        // What is enqueued may still use the old block.
        cuda_check(c, cudaStreamSynchronize(c->stream));
        cuda_check(c, cudaFree(c->scratch));
        c->scratch = nullptr;
        c->scratch_size = 0;
        if (cudaMalloc(&c->scratch, size) != cudaSuccess) {
            (void)cudaGetLastError();
            c->scratch = nullptr;
            cuda_fail(c, "out of device memory for working space");
            return nullptr;
        }
        c->scratch_size = size;
    }
    return c->scratch;
}

// ---- queues -----------------------------------------------------------------------------------

static cudaError_t open_queues(struct cuda *c)
{
    cudaError_t err = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    if (err == cudaSuccess) {
        err = cudaStreamCreateWithFlags(&c->copies, cudaStreamNonBlocking);
    }
    if (err == cudaSuccess) {
        err = cudaStreamCreateWithFlags(&c->talk, cudaStreamNonBlocking);
    }
    for (int i = 0; i < BACKEND_MARKS && err == cudaSuccess; i++) {
        err = cudaEventCreateWithFlags(&c->marks[i], cudaEventDisableTiming);
    }
    return err;
}

static void close_queues(struct cuda *c)
{
    for (cudaEvent_t mark : c->marks) {
        if (mark) {
            (void)cudaEventDestroy(mark);
        }
    }
    const cudaStream_t streams[] = {c->talk, c->copies, c->stream};
    for (cudaStream_t s : streams) {
        if (s) {
            (void)cudaStreamDestroy(s);
        }
    }
}

static cudaStream_t queue_of(struct cuda *c, enum queue q)
{
    return q == QUEUE_OPS ? c->stream : q == QUEUE_COPY ? c->copies : c->talk;
}

/* All queues are empty. */
static void drain(struct cuda *c)
{
    cuda_check(c, cudaStreamSynchronize(c->copies));
    cuda_check(c, cudaStreamSynchronize(c->talk));
    cuda_check(c, cudaStreamSynchronize(c->stream));
}

static void *cuda_pin(struct backend *, size_t size)
{
    void *p = nullptr;
    if (cudaMallocHost(&p, size ? size : 1) != cudaSuccess) {
        (void)cudaGetLastError();
        return nullptr;
    }
    return p;
}

static void cuda_unpin(struct backend *be, void *p)
{
    cuda_check(cuda_of(be), cudaFreeHost(p));
}

static void cuda_send(struct backend *be, enum queue q, void *dst, const void *src, size_t size)
{
    struct cuda *c = cuda_of(be);
    cuda_check(c, cudaMemcpyAsync(dst, src, size, cudaMemcpyHostToDevice, queue_of(c, q)));
}

static void cuda_fetch(struct backend *be, enum queue q, void *dst, const void *src, size_t size)
{
    struct cuda *c = cuda_of(be);
    cuda_check(c, cudaMemcpyAsync(dst, src, size, cudaMemcpyDeviceToHost, queue_of(c, q)));
}

static void cuda_mark(struct backend *be, enum queue q, int mark)
{
    struct cuda *c = cuda_of(be);
    cuda_check(c, cudaEventRecord(c->marks[mark], queue_of(c, q)));
}

static void cuda_follow(struct backend *be, enum queue q, int mark)
{
    struct cuda *c = cuda_of(be);
    cuda_check(c, cudaStreamWaitEvent(queue_of(c, q), c->marks[mark], 0));
}

static const char *told(struct cuda *c)
{
    cuda_check(c, cudaGetLastError());
    const char *off = cuda_called_off(c);
    if (off) {
        cuda_fail(c, off);
    }
    const char *why = c->failed;
    c->failed = nullptr;
    return why;
}

static const char *cuda_reach(struct backend *be, int mark)
{
    struct cuda *c = cuda_of(be);
    cuda_check(c, cudaEventSynchronize(c->marks[mark]));
    return told(c);
}

// ---- recordings: CUDA graphs -----------------------------------------------------------------

/* It holds as long as the ops' working space is where it was. */
struct recording {
    cudaGraphExec_t graph;
    void *scratch;
};

static void cuda_record(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    cudaError_t err = cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal);
    c->recording = err == cudaSuccess;
    c->spoiled = false;
    c->failed_before = c->failed;
    cuda_check(c, err); // what follows would run now, and again when it is not recorded
}

static void *cuda_recorded(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    cudaGraph_t graph = nullptr;
    struct recording *r = new (std::nothrow) recording{nullptr, c->scratch};
    bool began = c->recording;
    bool ended = began && cudaStreamEndCapture(c->stream, &graph) == cudaSuccess;
    c->recording = false;
    bool good = r && ended && graph && !c->spoiled && !c->failed &&
                cudaGraphInstantiate(&r->graph, graph, 0) == cudaSuccess;
    if (graph) {
        (void)cudaGraphDestroy(graph);
    }
    if (!good) {
        (void)cudaGetLastError(); // said by NULL: the caller goes on without
        c->failed = began ? c->failed_before : c->failed; // a device that is lost says so again
        delete r;
        return nullptr;
    }
    return r;
}

static bool cuda_replay(struct backend *be, void *recording)
{
    struct cuda *c = cuda_of(be);
    struct recording *r = static_cast<struct recording *>(recording);
    if (r->scratch != c->scratch) {
        return false;
    }
    cuda_check(c, cudaGraphLaunch(r->graph, c->stream));
    return true;
}

static void cuda_unrecord(struct backend *be, void *recording)
{
    struct cuda *c = cuda_of(be);
    struct recording *r = static_cast<struct recording *>(recording);
    if (r) {
        cuda_check(c, cudaStreamSynchronize(c->stream));
        cuda_check(c, cudaGraphExecDestroy(r->graph));
        delete r;
    }
}

// ---- life and memory --------------------------------------------------------------------------

static void cuda_close(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    drain(c);
    cuda_leave(c);
    lt_close(c);
    (void)cudaFree(c->scratch);
    close_queues(c);
    delete c;
}

/*
 * Of the whole memory rather than of what is free at the moment: a plan made from it decides the
 * size of a pass, and with that the bits of a training that is resumed another day.
 */
static void cuda_caps(struct backend *be, struct backend_caps *out)
{
    out->memory = cuda_of(be)->memory;
    out->pass_tokens = GPU_PASS_TOKENS;
    out->dtype = DTYPE_BF16;
    out->apart = true;
    const char *graphs = getenv("PHOTON_CUDA_GRAPHS");
    out->records = graphs && strcmp(graphs, "1") == 0;
}

static void *cuda_alloc(struct backend *be, size_t size)
{
    struct cuda *c = cuda_of(be);
    void *p = nullptr;
    if (cudaMalloc(&p, size ? size : 1) != cudaSuccess) { // aligned to 256 bytes and more
        (void)cudaGetLastError();                         // said through NULL, not again by sync()
        return nullptr;
    }
    cuda_check(c, cudaMemsetAsync(p, 0, size, c->stream));
    cuda_check(c, cudaStreamSynchronize(c->stream)); // other queues may write there at once
    return p;
}

static void cuda_release(struct backend *be, void *p)
{
    struct cuda *c = cuda_of(be);
    drain(c);
    cuda_check(c, cudaFree(p));
}

/* The caller may reuse its memory at once, pinned or not: hence the wait. */
static void cuda_put(struct backend *be, void *dst, const void *src, size_t size)
{
    struct cuda *c = cuda_of(be);
    cuda_check(c, cudaMemcpyAsync(dst, src, size, cudaMemcpyHostToDevice, c->stream));
    cuda_check(c, cudaStreamSynchronize(c->stream));
}

static void cuda_get(struct backend *be, void *dst, const void *src, size_t size)
{
    struct cuda *c = cuda_of(be);
    cuda_check(c, cudaMemcpyAsync(dst, src, size, cudaMemcpyDeviceToHost, c->stream));
    cuda_check(c, cudaStreamSynchronize(c->stream));
}

static void cuda_zero(struct backend *be, void *p, size_t size)
{
    struct cuda *c = cuda_of(be);
    cuda_check(c, cudaMemsetAsync(p, 0, size, c->stream));
}

static const char *cuda_sync(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    drain(c);
    return told(c);
}

static bool cuda_supports(struct backend *be, enum dtype a_type)
{
    (void)be;
    return a_type == DTYPE_F32 || a_type == DTYPE_BF16;
}

static void cuda_bind(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    cuda_check(c, cudaSetDevice(c->device));
}

static const struct backend_ops CUDA_OPS = {
    .abi = BACKEND_ABI,
    .name = "cuda",
    .close = cuda_close,
    .caps = cuda_caps,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .put = cuda_put,
    .get = cuda_get,
    .pin = cuda_pin,
    .unpin = cuda_unpin,
    .send = cuda_send,
    .fetch = cuda_fetch,
    .mark = cuda_mark,
    .follow = cuda_follow,
    .reach = cuda_reach,
    .record = cuda_record,
    .recorded = cuda_recorded,
    .replay = cuda_replay,
    .unrecord = cuda_unrecord,
    .sync = cuda_sync,
    .supports = cuda_supports,
    .plan_gemm = cuda_plan_gemm,
    .embed_fwd = cuda_embed_fwd,
    .embed_bwd = cuda_embed_bwd,
    .norm_fwd = cuda_norm_fwd,
    .norm_bwd = cuda_norm_bwd,
    .gemm = cuda_gemm,
    .bias_bwd = cuda_bias_bwd,
    .gelu_fwd = cuda_gelu_fwd,
    .gelu_bwd = cuda_gelu_bwd,
    .attn_fwd = cuda_attn_fwd,
    .attn_bwd = cuda_attn_bwd,
    .xent = cuda_xent,
    .sqnorm = cuda_sqnorm,
    .clip = cuda_clip,
    .optim = cuda_optim,
    .zero = cuda_zero,
    .delta = cuda_delta,
    .encode = cuda_encode,
    .meet = cuda_meet,
    .join = cuda_join,
    .bind = cuda_bind,
    .all_reduce = cuda_all_reduce,
    .reduce_scatter = cuda_reduce_scatter,
    .all_gather = cuda_all_gather,
};

/* What the device is. NULL, or why it will not do. */
static const char *look_at_device(struct cuda *c)
{
    int major = 0;
    int minor = 0;
    size_t free_now = 0;
    size_t total = 0;
    cudaError_t err = cudaSetDevice(c->device);
    if (err == cudaSuccess) {
        err = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device);
    }
    if (err == cudaSuccess) {
        err = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, c->device);
    }
    if (err == cudaSuccess) {
        err = cudaDeviceGetAttribute(&c->shared_max, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                     c->device);
    }
    if (err == cudaSuccess) {
        err = cudaMemGetInfo(&free_now, &total); // creates the context: a busy device says so here
    }
    if (err == cudaSuccess) {
        err = open_queues(c);
    }
    if (err != cudaSuccess) {
        close_queues(c);
        return cudaGetErrorString(err);
    }
    if (major < 8) {
        close_queues(c);
        return "the GPU is older than compute capability 8.0";
    }
    c->capability = 10 * major + minor;
    pins_open(c);
    c->memory = gpu_memory_usable((int64_t)total);
    return nullptr;
}

/* The one symbol of the shared object. */
extern "C" __attribute__((visibility("default"))) struct backend *photon_backend(int device,
                                                                                 const char **why)
{
    int devices = 0;
    cudaError_t err = cudaGetDeviceCount(&devices);
    if (err != cudaSuccess || devices == 0) {
        (void)cudaGetLastError();
        *why = err != cudaSuccess ? cudaGetErrorString(err) : "no GPU";
        return nullptr;
    }
    if (device >= devices) {
        *why = "there are fewer GPUs than that";
        return nullptr;
    }
    struct cuda *c = new (std::nothrow) cuda{};
    if (!c) {
        *why = "out of memory";
        return nullptr;
    }
    c->device = device;
    const char *text = look_at_device(c);
    if (!text) {
        text = attn_open(c);
        text = text ? text : lt_open(c);
        if (text) {
            close_queues(c);
        }
    }
    if (text) {
        delete c;
        *why = text;
        return nullptr;
    }
    c->be.ops = &CUDA_OPS;
    c->be.threads = 1;
    return &c->be;
}
