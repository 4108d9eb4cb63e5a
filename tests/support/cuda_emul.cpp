#include "tests/support/cuda_emul_int.hpp"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>
#include <vector>

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"

dim3 threadIdx, blockIdx, blockDim, gridDim;

void emul_stop(const char *why)
{
    (void)fprintf(stderr, "cuda_emul: %s (block %u,%u thread %u,%u)\n", why, blockIdx.x, blockIdx.y,
                  threadIdx.x, threadIdx.y);
    abort();
}

// ---- captures ---------------------------------------------------------------------------------

struct emul_graph {
    std::vector<std::function<void()>> work;
};

static emul_graph *capture;
static cudaStream_t captured;
static bool capture_broken;
static int streams;

/* Do it, or keep it where the stream is captured. */
static cudaError_t enqueue(cudaStream_t s, const std::function<void()> &work)
{
    if (capture && s == captured) {
        capture->work.push_back(work);
    } else {
        work();
    }
    return cudaSuccess;
}

/* What a capture does not survive. */
static cudaError_t not_in_capture(cudaStream_t s)
{
    if (capture && s == captured) {
        capture_broken = true;
        return 900;
    }
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, int)
{
    captured = s;
    capture = new emul_graph;
    capture_broken = false;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *g)
{
    *g = capture;
    capture = nullptr;
    return capture_broken ? 901 : cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t g, unsigned long long)
{
    *exec = new emul_graph(*g);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t)
{
    for (const auto &work : exec->work) {
        work();
    }
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

// ---- memory -----------------------------------------------------------------------------------

static const size_t PAGE = 4096;

struct mapping {
    void *base;
    size_t size;
};

static std::map<void *, mapping> mappings;

cudaError_t cudaMalloc(void **p, size_t size)
{
    size_t used = (size + 255) / 256 * 256;
    if (size > (size_t)1 << 40) {
        return cudaErrorMemoryAllocation;
    }
    if (capture) {
        emul_stop("memory was asked for in a capture");
    }
    size_t pages = (used + PAGE - 1) / PAGE * PAGE;
    void *base = mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED || mprotect((char *)base + pages, PAGE, PROT_NONE)) {
        return cudaErrorMemoryAllocation;
    }
    *p = (char *)base + pages - used;
    memset(*p, 0xff, size); // fresh memory holds nothing useful
    mappings[*p] = {base, pages + PAGE};
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (p) {
        auto it = mappings.find(p);
        if (it == mappings.end()) {
            emul_stop("freed what was not allocated");
        }
        (void)munmap(it->second.base, it->second.size);
        mappings.erase(it);
    }
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t s)
{
    return enqueue(s, [=] { memset(p, value, size); });
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t size, int, cudaStream_t s)
{
    return enqueue(s, [=] { memcpy(dst, src, size); });
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    return not_in_capture(s);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, int)
{
    *s = (cudaStream_t)(intptr_t)(++streams);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t)
{
    return cudaSuccess;
}

/* Copies are done when they are asked for, so there is nothing to wait for. */
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned)
{
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = nullptr;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t)
{
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t)
{
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t)
{
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t size)
{
    return cudaMalloc(p, size);
}

cudaError_t cudaFreeHost(void *p)
{
    return cudaFree(p);
}

static thread_local cudaError_t last_error;

cudaError_t cudaGetLastError()
{
    cudaError_t err = last_error;
    last_error = cudaSuccess;
    return err;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}

static int capability = 90;

void emul_capability(int c)
{
    capability = c;
}

cudaError_t cudaDeviceGetAttribute(int *value, int attr, int)
{
    *value = attr == cudaDevAttrComputeCapabilityMajor   ? capability / 10
             : attr == cudaDevAttrComputeCapabilityMinor ? capability % 10
                                                         : 227 * 1024;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int)
{
    (void)snprintf(prop->name, sizeof(prop->name), "no GPU");
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int)
{
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_now, size_t *total)
{
    *free_now = *total = (size_t)4 << 30;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *)
{
    out->numRegs = 168; // what nvcc says of the kernels that ask
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *, int, int)
{
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t)
{
    return "invalid configuration";
}

// ---- fibers -----------------------------------------------------------------------------------

enum { STACK = 96 * 1024 };

/* One lane's copy, not delivered yet. */
struct copy {
    uint32_t to;
    const void *from;
    bool there;
};

struct fiber {
    ucontext_t context;
    jmp_buf back;
    bool started, done;
    dim3 index;
    std::vector<std::vector<copy>> groups;
    std::vector<copy> open;
};

/* Where a set of threads waits for each other. */
struct meeting {
    unsigned alive, arrived, generation;
    int kind;
    unsigned char slots[2][32]
                       [EMUL_SLOT]; /* of a warp: what each lane brought, this time and last */
};

static fiber fibers[EMUL_THREADS];
static meeting warps[EMUL_THREADS / 32];
static meeting block_meeting;
static unsigned char *stacks;
static unsigned char *shared_memory;
unsigned emul_current;
uint64_t emul_progress;
static jmp_buf scheduler;
static ucontext_t scheduler_context;
static const std::function<void()> *body;

unsigned char *emul_shared()
{
    return shared_memory;
}

void emul_yield()
{
    if (_setjmp(fibers[emul_current].back) == 0) {
        _longjmp(scheduler, 1);
    }
}

static void complete(meeting *m)
{
    m->arrived = 0;
    m->generation++;
    emul_progress++;
}

/* Wait for all who are still alive. */
static void meet(meeting *m, int kind)
{
    if (m->arrived == 0) {
        m->kind = kind;
    } else if (m->kind != kind) {
        emul_stop("lanes of a warp are at different collectives");
    }
    unsigned mine = m->generation;
    m->arrived++;
    if (m->arrived == m->alive) {
        complete(m);
        return;
    }
    while (m->generation == mine) {
        emul_yield();
    }
}

static void leave(meeting *m)
{
    m->alive--;
    if (m->arrived > 0 && m->arrived == m->alive) {
        complete(m);
    }
}

/* A fiber outlives its block, as making one anew costs calls of the system: it has one turn of this
 * in each. */
static void run_fiber()
{
    for (;;) {
        (*body)();
        fibers[emul_current].done = true;
        emul_progress++;
        leave(&warps[emul_current / 32]);
        leave(&block_meeting);
        emul_yield();
    }
}

static void resume(unsigned n)
{
    fiber *f = &fibers[n];
    emul_current = n;
    threadIdx = f->index;
    if (_setjmp(scheduler) == 0) {
        if (f->started) {
            _longjmp(f->back, 1);
        }
        f->started = true;
        (void)getcontext(&f->context);
        f->context.uc_stack.ss_sp = stacks + (size_t)n * STACK;
        f->context.uc_stack.ss_size = STACK;
        f->context.uc_link = nullptr;
        makecontext(&f->context, run_fiber, 0);
        (void)swapcontext(&scheduler_context, &f->context);
    }
}

static void run_block(unsigned threads, size_t shared)
{
    memset(shared_memory, 0xff, shared);
    emul_block_begins();
    block_meeting.alive = threads;
    block_meeting.arrived = 0;
    for (unsigned w = 0; w * 32 < threads; w++) {
        warps[w].alive = threads - w * 32 < 32 ? threads - w * 32 : 32;
        warps[w].arrived = 0;
    }
    for (unsigned n = 0; n < threads; n++) {
        fiber *f = &fibers[n];
        f->done = false;
        f->index = dim3(n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y);
        f->groups.clear();
        f->open.clear();
    }
    for (bool left = true; left;) {
        uint64_t before = emul_progress;
        left = false;
        for (unsigned n = 0; n < threads; n++) {
            if (!fibers[n].done) {
                resume(n);
                left = left || !fibers[n].done;
            }
        }
        if (left && emul_progress == before && !emul_deliver()) {
            emul_stop("threads wait for each other for ever");
        }
    }
    emul_block_ends();
}

static void run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &kernel);

void emulate_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &kernel)
{
    (void)enqueue(captured, [=] { run_grid(grid, block, shared, kernel); });
}

static void run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &kernel)
{
    unsigned threads = block.x * block.y * block.z;
    if (threads == 0 || threads > EMUL_THREADS || shared > 227 * 1024 || grid.y > 65535 ||
        grid.x == 0 || grid.y == 0 || grid.x > 0x7fffffffu) {
        last_error = 9;
        return;
    }
    if (!stacks) {
        stacks =
            (unsigned char *)mmap(nullptr, (size_t)EMUL_THREADS * STACK, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        shared_memory = (unsigned char *)aligned_alloc(1024, 228 * 1024);
    }
    body = &kernel;
    gridDim = grid;
    blockDim = block;
    for (unsigned y = 0; y < grid.y; y++) {
        for (unsigned x = 0; x < grid.x; x++) {
            blockIdx = dim3(x, y, 0);
            run_block(threads, shared);
        }
    }
}

void __syncthreads()
{
    meet(&block_meeting, 1);
}

/* Everyone's value to everyone: the slots, valid until the lane's next exchange but one. */
unsigned char (*emul_exchange(const void *value, size_t size, int kind))[EMUL_SLOT]
{
    meeting *w = &warps[emul_current / 32];
    unsigned parity = w->generation % 2;
    memcpy(w->slots[parity][emul_current % 32], value, size);
    meet(w, kind);
    return w->slots[parity];
}

template <typename T> static T shuffle(unsigned mask, T v, int lane_mask)
{
    if (mask != 0xffffffffu) {
        emul_stop("a shuffle of less than a warp");
    }
    T other;
    memcpy(&other, emul_exchange(&v, sizeof(v), 2)[(emul_current % 32) ^ (unsigned)lane_mask],
           sizeof(other));
    return other;
}

float __shfl_xor_sync(unsigned mask, float v, int lane_mask)
{
    return shuffle(mask, v, lane_mask);
}

int __shfl_xor_sync(unsigned mask, int v, int lane_mask)
{
    return shuffle(mask, v, lane_mask);
}

// ---- instructions -----------------------------------------------------------------------------

bf16 to_bf16(float v)
{
    uint32_t bits = float_bits(v);
    if (v != v) {
        return bf16{0x7fff};
    }
    return bf16{(uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

uint32_t narrow2(float lo, float hi)
{
    return (uint32_t)to_bf16(lo).bits | (uint32_t)to_bf16(hi).bits << 16;
}

uint32_t shared_address(const void *p)
{
    return (uint32_t)((const unsigned char *)p - shared_memory);
}

void copy_async(uint32_t shared, const void *global, bool there)
{
    if (shared % 16 || (uintptr_t)global % 16) {
        emul_stop("cp.async is not aligned");
    }
    fibers[emul_current].open.push_back({shared, global, there});
}

void copy_commit()
{
    fiber *f = &fibers[emul_current];
    f->groups.push_back(f->open);
    f->open.clear();
}

void emul_copy_wait(int left)
{
    fiber *f = &fibers[emul_current];
    while (f->groups.size() > (size_t)left) {
        for (const copy &c : f->groups.front()) {
            static const unsigned char zeros[16] = {};
            memcpy(shared_memory + c.to, c.there ? c.from : zeros, 16);
        }
        f->groups.erase(f->groups.begin());
    }
}

/* The address of row `row` of matrix m, as the lane that is in charge of it said. */
static const uint16_t *matrix_row(unsigned char (*slots)[EMUL_SLOT], unsigned m, unsigned row)
{
    uint32_t at;
    memcpy(&at, slots[m * 8 + row], sizeof(at));
    if (at % 16) {
        emul_stop("ldmatrix is not aligned");
    }
    return (const uint16_t *)(shared_memory + at);
}

/* PTX manual, ldmatrix: lane l holds elements 2 (l % 4), +1 of row l / 4 of each matrix. */
void load_matrices(uint32_t r[4], uint32_t row)
{
    unsigned lane = emul_current % 32;
    unsigned char(*slots)[EMUL_SLOT] = emul_exchange(&row, sizeof(row), 3);
    for (unsigned m = 0; m < 4; m++) {
        const uint16_t *p = matrix_row(slots, m, lane / 4) + 2 * (lane % 4);
        r[m] = (uint32_t)p[0] | (uint32_t)p[1] << 16;
    }
}

void load_transposed(uint32_t r[4], uint32_t row)
{
    unsigned lane = emul_current % 32;
    unsigned char(*slots)[EMUL_SLOT] = emul_exchange(&row, sizeof(row), 4);
    for (unsigned m = 0; m < 4; m++) {
        uint32_t lo = matrix_row(slots, m, 2 * (lane % 4))[lane / 4];
        uint32_t hi = matrix_row(slots, m, 2 * (lane % 4) + 1)[lane / 4];
        r[m] = lo | hi << 16;
    }
}

static double half_of(const unsigned char *slot, unsigned i)
{
    uint16_t bits;
    memcpy(&bits, slot + 2 * i, sizeof(bits));
    return (double)bits_float((uint32_t)bits << 16);
}

/*
 * PTX manual, mma.m16n8k16 with .bf16. With g = lane / 4 and t = lane % 4:
 *     a_i: row g for i in {0, 1, 4, 5}, else g + 8; column 2 t + i % 2, + 8 for i >= 4
 *     b_i: row 2 t + i % 2, + 8 for i >= 2; column g
 *     c_i: row g for i < 2, else g + 8; column 2 t + i % 2
 */
void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    unsigned char(*slots)[EMUL_SLOT] = emul_exchange(mine, sizeof(mine), 5);
    unsigned lane = emul_current % 32;
    double A[2][16]; /* the two rows and two columns that this lane's sums are made of */
    double B[2][16];
    for (unsigned t = 0; t < 4; t++) {
        const unsigned char *row = slots[lane / 4 * 4 + t];
        for (unsigned i = 0; i < 8; i++) {
            A[i / 2 % 2][2 * t + i % 2 + (i >= 4 ? 8 : 0)] = half_of(row, i);
        }
        for (unsigned n = 0; n < 2; n++) {
            const unsigned char *column = slots[(2 * (lane % 4) + n) * 4 + t];
            for (unsigned i = 0; i < 4; i++) {
                B[n][2 * t + i % 2 + (i >= 2 ? 8 : 0)] = half_of(column + 16, i);
            }
        }
    }
    for (unsigned i = 0; i < 4; i++) {
        double sum = 0.0;
        for (unsigned k = 0; k < 16; k++) {
            sum += A[i / 2][k] * B[i % 2][k];
        }
        c[i] = (float)((double)c[i] + sum);
    }
}

void warp_meet()
{
    meet(&warps[emul_current / 32], 6);
}

int same_in_warp(int v)
{
    int first;
    memcpy(&first, emul_exchange(&v, sizeof(v), 7)[0], sizeof(first));
    return first;
}

// ---- cuBLASLt, which has no way here ------------------------------------------------------------

const char *lt_open(struct cuda *)
{
    return nullptr;
}

void lt_close(struct cuda *)
{
}

bool lt_plan(struct cuda *, const struct gemm *, int)
{
    return false;
}

bool lt_gemm(struct cuda *, const struct gemm *, void *, const void *, const void *, const void *)
{
    return false;
}
