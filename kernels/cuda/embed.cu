/*
 * The embedding and its gradient.
 *
 * The gradient of a token's row is the sum of dx over the positions that hold the token, always in
 * the same order. The positions are sorted by token here, on the device: integers are counted and
 * placed by atomics, which leaves each token's positions in any order, and then each position finds
 * its rank among them. Only after that are floats added, so that no sum depends on who came first.
 */
#include "common/limits.h"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"

enum { THREADS = 256, RUN_ROWS = 8 };

template <typename T, int V>
static __global__ void embed_fwd(T *x, const int32_t *tokens, const T *wte, const T *wpe, int64_t N,
                                 int64_t time, int64_t C)
{
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= N * C) {
        return;
    }
    int64_t n = i / C;
    int64_t c = i % C;
    pack<T, V> t = load<V>(wte + tokens[n] * C + c);
    if (wpe) {
        pack<T, V> u = load<V>(wpe + n % time * C + c);
#pragma unroll
        for (int v = 0; v < V; v++) {
            t.v[v] = narrow<T>(widen(t.v[v]) + widen(u.v[v]));
        }
    }
    store<V>(x + i, t);
}

template <typename T>
static void embed_fwd_as(struct cuda *c, T *x, const int32_t *tokens, const T *wte, const T *wpe,
                         int64_t N, int64_t time, int64_t C)
{
    const int W = 16 / sizeof(T);
    bool wide = moves_wide<T>(C, x, wte, wpe);
    cuda_launch(c, wide ? embed_fwd<T, W> : embed_fwd<T, 1>,
                cuda_blocks(N * C, THREADS * (wide ? W : 1)), THREADS, 0, x, tokens, wte, wpe, N,
                time, C);
}

void cuda_embed_fwd(struct backend *be, enum dtype at, void *x, const int32_t *tokens,
                    const void *wte, const void *wpe, int64_t B, int64_t T, int64_t C)
{
    if (at == DTYPE_BF16) {
        embed_fwd_as(cuda_of(be), (bf16 *)x, tokens, (const bf16 *)wte, (const bf16 *)wpe, B * T, T,
                     C);
    } else {
        embed_fwd_as(cuda_of(be), (float *)x, tokens, (const float *)wte, (const float *)wpe, B * T,
                     T, C);
    }
}

// ---- sorting positions by token
// -------------------------------------------------------------------

/* By token: how many positions hold it, how many are placed, and where they begin in `places`. */
struct token_entry {
    int32_t count, placed, start, unused;
};

struct sorting {
    struct token_entry *table; /* LIMIT_VOCAB entries, all zero at first               */
    int32_t *total;            /* positions handed out, zero at first                  */
    uint8_t *first;            /* (N) this position stands for its token               */
    int32_t *places;           /* (N) positions, each token's together, in any order   */
    int32_t *sorted;           /* (N) the same, ascending within each token            */
    int64_t N;
};

static __global__ void count_tokens(struct sorting s, const int32_t *tokens)
{
    int64_t n = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (n < s.N) {
        s.first[n] = atomicAdd(&s.table[tokens[n]].count, 1) == 0;
    }
}

/* Which token's places come first does not matter: each is summed by itself. */
static __global__ void hand_out_places(struct sorting s, const int32_t *tokens)
{
    int64_t n = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (n < s.N && s.first[n]) {
        struct token_entry *t = &s.table[tokens[n]];
        t->start = atomicAdd(s.total, t->count);
    }
}

static __global__ void place_positions(struct sorting s, const int32_t *tokens)
{
    int64_t n = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (n < s.N) {
        struct token_entry *t = &s.table[tokens[n]];
        s.places[t->start + atomicAdd(&t->placed, 1)] = (int32_t)n;
    }
}

static __global__ void rank_positions(struct sorting s, const int32_t *tokens)
{
    int64_t n = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (n < s.N) {
        struct token_entry t = s.table[tokens[n]];
        int32_t rank = 0;
        for (int32_t i = 0; i < t.count; i++) {
            rank += s.places[t.start + i] < (int32_t)n;
        }
        s.sorted[t.start + rank] = (int32_t)n;
    }
}

// ---- adding
// ---------------------------------------------------------------------------------------

/*
 * One block per position that stands for a token and 32 packs of columns. RUN_ROWS threads take
 * every RUN_ROWS-th position each; their sums are added in order.
 */
template <typename T, int V>
static __global__ void add_runs(float *dwte, struct sorting s, const int32_t *tokens, const T *dx,
                                int64_t C)
{
    __shared__ float sums[RUN_ROWS][32 * V];
    int64_t n = blockIdx.x;
    if (!s.first[n]) {
        return;
    }
    int32_t token = tokens[n];
    struct token_entry t = s.table[token];
    int64_t c = ((int64_t)blockIdx.y * 32 + threadIdx.x) * V;
    float sum[V] = {};
    if (c < C) {
        for (int32_t i = (int32_t)threadIdx.y; i < t.count; i += RUN_ROWS) {
            pack<T, V> p = load<V>(dx + s.sorted[t.start + i] * C + c);
#pragma unroll
            for (int v = 0; v < V; v++) {
                sum[v] += widen(p.v[v]);
            }
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        sums[threadIdx.y][v * 32 + threadIdx.x] = sum[v];
    }
    __syncthreads();
    if (threadIdx.y == 0 && c < C) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            float total = 0.0f;
            for (int i = 0; i < RUN_ROWS; i++) {
                total += sums[i][v * 32 + threadIdx.x];
            }
            dwte[token * C + c + v] += total;
        }
    }
}

template <typename T>
static __global__ void add_positions(float *dwpe, const T *dx, int64_t B, int64_t size)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) {
        float sum = 0.0f;
        for (int64_t b = 0; b < B; b++) {
            sum += widen(dx[b * size + i]);
        }
        dwpe[i] += sum;
    }
}

static bool sort_positions(struct cuda *c, struct sorting *s, const int32_t *tokens, int64_t N)
{
    size_t table = (size_t)LIMIT_VOCAB * sizeof(struct token_entry);
    size_t ids = (size_t)N * sizeof(int32_t);
    char *p = (char *)cuda_scratch(c, table + 256 + 2 * ids + (size_t)N);
    if (!p) {
        return false;
    }
    s->table = (struct token_entry *)p;
    s->total = (int32_t *)(p + table);
    s->places = (int32_t *)(p + table + 256);
    s->sorted = s->places + N;
    s->first = (uint8_t *)(s->sorted + N);
    s->N = N;
    cuda_check(c, cudaMemsetAsync(p, 0, table + 256, c->stream));
    unsigned blocks = cuda_blocks(N, THREADS);
    cuda_launch(c, count_tokens, blocks, THREADS, 0, *s, tokens);
    cuda_launch(c, hand_out_places, blocks, THREADS, 0, *s, tokens);
    cuda_launch(c, place_positions, blocks, THREADS, 0, *s, tokens);
    cuda_launch(c, rank_positions, blocks, THREADS, 0, *s, tokens);
    return true;
}

template <typename T>
static void embed_bwd_as(struct cuda *c, void *dwte, void *dwpe, const int32_t *tokens, const T *dx,
                         int64_t B, int64_t time, int64_t C)
{
    const int W = 16 / sizeof(T);
    int64_t N = B * time;
    struct sorting s;
    if (N <= 0 || !sort_positions(c, &s, tokens, N)) {
        return;
    }
    bool wide = moves_wide<T>(C, dx);
    dim3 grid((unsigned)N, cuda_blocks(C, 32 * (wide ? W : 1)));
    cuda_launch(c, wide ? add_runs<T, W> : add_runs<T, 1>, grid, dim3(32, RUN_ROWS), 0,
                (float *)dwte, s, tokens, dx, C);
    if (dwpe) {
        cuda_launch(c, add_positions<T>, cuda_blocks(time * C, THREADS), THREADS, 0, (float *)dwpe,
                    dx, B, time * C);
    }
}

void cuda_embed_bwd(struct backend *be, enum dtype at, void *dwte, void *dwpe,
                    const int32_t *tokens, const void *dx, int64_t B, int64_t T, int64_t C)
{
    if (at == DTYPE_BF16) {
        embed_bwd_as(cuda_of(be), dwte, dwpe, tokens, (const bf16 *)dx, B, T, C);
    } else {
        embed_bwd_as(cuda_of(be), dwte, dwpe, tokens, (const float *)dx, B, T, C);
    }
}
