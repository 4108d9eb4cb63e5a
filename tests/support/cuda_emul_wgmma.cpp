#include <stdio.h>
#include <stdlib.h>

#include <deque>
#include <map>
#include <vector>

#include "tests/support/cuda_emul_int.hpp"

// ---- the driver ---------------------------------------------------------------------------------

/* The CUDA driver API manual, cuTensorMapEncodeTiled: what it refuses. */
static CUresult encode(tensor_map *out, CUtensorMapDataType, cuuint32_t rank, void *base,
                       const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                       const cuuint32_t *every, CUtensorMapInterleave, CUtensorMapSwizzle,
                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill)
{
    bool good = rank == 5 && (uintptr_t)base % 16 == 0 && box[0] * 2 == 128;
    for (int i = 0; i < 5 && good; i++) {
        good = dims[i] > 0 && dims[i] <= (uint64_t)1 << 32 && box[i] > 0 && box[i] <= 256 &&
               every[i] == 1 &&
               (i == 4 || (strides[i] % 16 == 0 && strides[i] < (uint64_t)1 << 40));
        out->dims[i] = dims[i];
        out->box[i] = box[i];
        out->strides[i] = i ? strides[i - 1] : 2;
    }
    out->base = (const unsigned char *)base;
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

int cudaGetDriverEntryPointByVersion(const char *symbol, void **p, unsigned, unsigned long long,
                                     cudaDriverEntryPointQueryResult *how)
{
    bool known = strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *p = known ? (void *)encode : nullptr;
    *how = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return 0;
}

// ---- barriers in shared memory ------------------------------------------------------------------

/* PTX manual, mbarrier: a phase is over when nobody and no byte is awaited any more. */
struct barrier {
    uint32_t expected, pending;
    int64_t bytes;
    uint32_t phase; /* the current one, from 0 */
};

static std::map<uint32_t, barrier> barriers;

static barrier *barrier_at(uint32_t at)
{
    auto it = barriers.find(at);
    if (it == barriers.end()) {
        emul_stop("there is no barrier");
    }
    return &it->second;
}

static void barrier_look(barrier *b)
{
    if (b->pending == 0 && b->bytes == 0) {
        b->pending = b->expected;
        b->phase++;
        emul_progress++;
    }
}

void barrier_init(uint32_t at, uint32_t arrivals)
{
    if (at % 8 || arrivals == 0 || barriers.count(at)) {
        emul_stop("a barrier cannot be here");
    }
    barriers[at] = {arrivals, arrivals, 0, 0};
}

void barriers_ready()
{
}

void barrier_arrive(uint32_t at)
{
    barrier *b = barrier_at(at);
    if (b->pending == 0) {
        emul_stop("more arrive at a barrier than it expects");
    }
    b->pending--;
    barrier_look(b);
}

void barrier_expect(uint32_t at, uint32_t bytes)
{
    barrier_at(at)->bytes += bytes;
    barrier_arrive(at);
}

void barrier_wait(uint32_t at, uint32_t parity)
{
    // The phase of this parity is over when the current one has the other.
    while ((barrier_at(at)->phase & 1) == parity) {
        emul_yield();
    }
}

// ---- copies -------------------------------------------------------------------------------------

struct transfer {
    uint32_t to, barrier, bytes;
    const void *from; /* or, where it is NULL, */
    tensor_map map;
    int at[5];
};

static std::vector<transfer> under_way;
static uint32_t draws;

/* The same every time, and unlike the order of anything. */
static uint32_t draw()
{
    uint32_t x = ++draws * 2654435761u;
    x ^= x >> 15;
    return x * 2246822519u >> 8;
}

/* PTX manual, "Swizzling modes", 128 bytes: chunks of 16 bytes, permuted by the row of 128. */
static uint32_t swizzle(uint32_t address)
{
    return address ^ ((address / 128 % 8) * 16);
}

static uint16_t *shared_half(uint32_t at)
{
    return (uint16_t *)(void *)(emul_shared() + at);
}

static void arrive(const transfer &t)
{
    if (t.from) {
        memcpy(emul_shared() + t.to, t.from, t.bytes);
    }
    const tensor_map &m = t.map;
    uint32_t offset = 0;
    for (uint32_t i = 0; !t.from && i < t.bytes / 2; i++, offset += 2) {
        uint32_t left = i; // the first dimension runs fastest
        const unsigned char *p = m.base;
        bool inside = true;
        for (int d = 0; d < 5; d++) {
            int64_t x = t.at[d] + (int64_t)(left % m.box[d]);
            left /= m.box[d];
            inside = inside && x >= 0 && x < (int64_t)m.dims[d];
            p += x * (int64_t)m.strides[d];
        }
        *shared_half(swizzle(t.to + offset)) = inside ? *(const uint16_t *)(const void *)p : 0;
    }
    barrier *b = barrier_at(t.barrier);
    b->bytes -= t.bytes;
    barrier_look(b);
    emul_progress++;
}

static void send(const transfer &t)
{
    if (draw() % 2) {
        arrive(t);
    } else {
        under_way.push_back(t);
    }
}

bool emul_deliver()
{
    if (under_way.empty()) {
        return false;
    }
    size_t n = draw() % under_way.size();
    transfer t = under_way[n];
    under_way.erase(under_way.begin() + (ptrdiff_t)n);
    arrive(t);
    return true;
}

void fetch_box(uint32_t tile, const tensor_map &map, uint32_t at, int row, int head, int batch)
{
    if (tile % 1024) {
        emul_stop("a box does not begin where its swizzle does");
    }
    uint32_t bytes = 2;
    for (uint32_t n : map.box) {
        bytes *= n;
    }
    send({tile, at, bytes, nullptr, map, {0, row, 0, head, batch}});
}

void fetch_bytes(uint32_t to, const void *from, uint32_t bytes, uint32_t at)
{
    if (to % 16 || (uintptr_t)from % 16 || bytes % 16) {
        emul_stop("a bulk copy is not aligned");
    }
    send({to, at, bytes, from, {}, {}});
}

// ---- among threads ------------------------------------------------------------------------------

struct named {
    uint32_t threads, arrived, generation;
};

static named turns[16];

static uint32_t come(uint32_t id, uint32_t threads)
{
    if (id == 0 || id > 15 || threads % 32) {
        emul_stop("no such named barrier");
    }
    named *t = &turns[id];
    if (t->arrived > 0 && t->threads != threads) {
        emul_stop("a named barrier of two sizes");
    }
    uint32_t mine = t->generation;
    t->threads = threads;
    if (++t->arrived == threads) {
        t->arrived = 0;
        t->generation++;
        emul_progress++;
    }
    return mine;
}

void turn_wait(uint32_t id, uint32_t threads)
{
    uint32_t mine = come(id, threads);
    while (turns[id].generation == mine) {
        emul_yield();
    }
}

void turn_give(uint32_t id, uint32_t threads)
{
    (void)come(id, threads);
}

void emul_registers(int n)
{
    if (n < 24 || n > 256 || n % 8) {
        emul_stop("setmaxnreg knows no such number");
    }
}

void shared_put(uint32_t at, int v)
{
    memcpy(emul_shared() + at, &v, sizeof(v));
}

int shared_get(uint32_t at)
{
    int v;
    memcpy(&v, emul_shared() + at, sizeof(v));
    return v;
}

void shared_get2(float v[2], uint32_t at)
{
    if (at % 8) {
        emul_stop("two floats are not aligned");
    }
    memcpy(v, emul_shared() + at, 2 * sizeof(float));
}

// ---- products -----------------------------------------------------------------------------------

static const int GROUP = 128;

struct product {
    float (*d)[4];
    int N;
    const uint32_t *a; /* or, where it is NULL, */
    uint64_t a_desc, b_desc;
    bool add;
};

struct issuer {
    bool fenced;
    std::vector<product> open;
    std::deque<std::vector<product>> groups;
};

struct gathering {
    unsigned arrived, generation;
};

static issuer issuers[EMUL_THREADS];
static gathering gatherings[EMUL_THREADS / GROUP];
static bool wgmma_broken;
static uint64_t wgmma_count;

void emul_break_wgmma(bool broken)
{
    wgmma_broken = broken;
}

uint64_t emul_wgmma_count(void)
{
    return wgmma_count;
}

void wgmma_fence()
{
    issuers[emul_current].fenced = true;
}

void wgmma_commit()
{
    issuer *i = &issuers[emul_current];
    i->groups.push_back(i->open);
    i->open.clear();
    i->fenced = false;
}

static void issue(const product &p)
{
    issuer *i = &issuers[emul_current];
    if (!i->fenced) {
        emul_stop("a product without a fence before it");
    }
    i->open.push_back(p);
}

void emul_wgmma_rows(float (*d)[4], int N, uint64_t a, uint64_t b, bool add)
{
    issue({d, N, nullptr, a, b, add});
}

void emul_wgmma_add(float (*d)[4], int N, const uint32_t *a, uint64_t b)
{
    issue({d, N, a, 0, b, true});
}

/* PTX manual, "Matrix descriptor format". */
struct view {
    uint32_t start, leading, stride;
};

static view view_of(uint64_t desc)
{
    if (desc >> 62 != 1 || (desc >> 49 & 7) != 0) {
        emul_stop("a descriptor is not of the 128-byte swizzle");
    }
    return {(uint32_t)(desc & 0x3fff) * 16, (uint32_t)(desc >> 16 & 0x3fff) * 16,
            (uint32_t)(desc >> 32 & 0x3fff) * 16};
}

static double half_at(uint32_t at)
{
    return (double)bits_float((uint32_t)*shared_half(swizzle(at)) << 16);
}

/* "Strides": K-major rows are 128 bytes apart in eights, the eights `stride`. */
static double by_rows(const view &v, uint32_t row, uint32_t k)
{
    return half_at(v.start + row / 8 * v.stride + row % 8 * 128 + 2 * k);
}

/* MN-major: 64 columns lie together, the next 64 `leading` on; depth as rows before. */
static double by_columns(const view &v, uint32_t k, uint32_t column)
{
    return half_at(v.start + column / 64 * v.leading + column % 64 * 2 + k / 8 * v.stride +
                   k % 8 * 128);
}

/* "Register fragments" of A in registers: as mma.m16n8k16 has them, warp w with rows 16 w on. */
static double from_lane(const product *lanes, uint32_t row, uint32_t k)
{
    const product &p = lanes[row / 16 * 32 + row % 8 * 4 + k % 8 / 2];
    uint32_t pair = p.a[(row % 16 / 8) + 2 * (k / 8)];
    return (double)bits_float((k % 2 ? pair >> 16 : pair & 0xffff) << 16);
}

/* One product of 128 lanes. */
static void multiply(const product *lanes)
{
    const product &first = lanes[0];
    wgmma_count++;
    static double A[64][16];
    static double B[16][256];
    for (int l = 1; l < GROUP; l++) {
        if (lanes[l].N != first.N || lanes[l].a_desc != first.a_desc ||
            lanes[l].b_desc != first.b_desc || lanes[l].add != first.add ||
            !lanes[l].a != !first.a) {
            emul_stop("lanes of a warpgroup issue different products");
        }
    }
    view a = first.a ? view{} : view_of(first.a_desc);
    view b = view_of(first.b_desc);
    for (uint32_t k = 0; k < 16; k++) {
        for (uint32_t i = 0; i < 64; i++) {
            A[i][k] = first.a ? from_lane(lanes, i, k) : by_rows(a, i, k);
        }
        for (uint32_t j = 0; j < (uint32_t)first.N; j++) {
            B[k][j] = first.a ? by_columns(b, k, j) : by_rows(b, j, k);
        }
    }
    for (uint32_t i = 0; i < 64; i++) {
        double sum[256] = {};
        for (uint32_t k = 0; k < 16; k++) {
            for (int j = 0; j < first.N; j++) {
                sum[j] += A[i][k] * B[k][j];
            }
        }
        // "Accumulator": lane l of warp w has rows 16 w + l / 4, + 8, columns 2 (l % 4), + 1 of 8.
        for (int j = 0; j < first.N; j++) {
            const product &p = lanes[i / 16 * 32 + i % 8 * 4 + (uint32_t)j % 8 / 2];
            float *d = &p.d[j / 8][i % 16 / 8 * 2 + (uint32_t)j % 2];
            *d = (float)((first.add ? (double)*d : 0.0) + sum[j]);
            if (wgmma_broken && j == 1) {
                *d += 0.125f;
            }
        }
    }
}

/* The oldest group of a warpgroup, whose lanes all wait. */
static void multiply_group(issuer *group)
{
    size_t count = group[0].groups.front().size();
    for (size_t n = 0; n < count; n++) {
        product lanes[GROUP];
        for (int l = 0; l < GROUP; l++) {
            if (group[l].groups.empty() || group[l].groups.front().size() != count) {
                emul_stop("lanes of a warpgroup issued different numbers of products");
            }
            lanes[l] = group[l].groups.front()[n];
        }
        multiply(lanes);
    }
    for (int l = 0; l < GROUP; l++) {
        group[l].groups.pop_front();
    }
}

void emul_wgmma_wait(int left)
{
    unsigned group = emul_current / (unsigned)GROUP;
    gathering *g = &gatherings[group];
    issuers[emul_current].fenced = false;
    unsigned mine = g->generation;
    if (++g->arrived == (unsigned)GROUP) {
        for (int i = 0; i < 2; i++) { // others go on meanwhile, to fill what was given back early
            emul_progress++;
            emul_yield();
        }
        while (issuers[group * (unsigned)GROUP].groups.size() > (size_t)left) {
            multiply_group(&issuers[group * (unsigned)GROUP]);
        }
        g->arrived = 0;
        g->generation++;
        emul_progress++;
    }
    while (g->generation == mine) {
        emul_yield();
    }
}

// ---- a block ------------------------------------------------------------------------------------

void emul_block_begins()
{
    barriers.clear();
    for (named &t : turns) {
        t = {};
    }
    for (gathering &g : gatherings) {
        g = {};
    }
    for (issuer &i : issuers) {
        i.fenced = false;
        i.open.clear();
        i.groups.clear();
    }
}

void emul_block_ends()
{
    if (!under_way.empty()) {
        emul_stop("a block ends before a copy into it");
    }
    for (const named &t : turns) {
        if (t.arrived) {
            emul_stop("a turn was given that nobody takes");
        }
    }
    for (const issuer &i : issuers) {
        if (!i.open.empty() || !i.groups.empty()) {
            emul_stop("a block ends before its products");
        }
    }
}
