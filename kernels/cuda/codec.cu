/*
 * Updates coded where the weights are: codec.h's encoders, to the bit.
 *
 * Compiled with -fmad=false: every operation of the codecs is rounded by itself. A warp codes a
 * block of 256 values under int8, q4 and q2, eight to a lane; a block of threads codes a group
 * under topk. What the codecs sum in a fixed order is summed in that order here too, so that which
 * tensor falls back to a higher rung does not depend on where it was coded.
 */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"

static const int THREADS = CODEC_BLOCK;  // one lane of codec_sums() each
static const int PER = CODEC_BLOCK / 32; // values of a lane within a block
static const int WARPS = THREADS / 32;   // blocks of values per block of threads
static const int TILES = CODEC_GROUP / CODEC_TILE;
static const int OWN = CODEC_TILE / THREADS; // keys of a thread within a tile

static_assert(CODEC_BLOCK == 256, "eight values a lane");

enum { LEAST_BITS = 0x0d800000 }; // of 2^-100, as in the codecs

static __device__ __forceinline__ float bf16_float(uint32_t bits)
{
    return bits_float(bits << 16);
}

/* To the nearest, ties to even; and below, to the larger magnitude. */
static __device__ __forceinline__ uint32_t nearest_bf16(float v)
{
    uint32_t b = float_bits(v);
    return (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
}

static __device__ __forceinline__ uint32_t up_bf16(float v)
{
    return (float_bits(v) + 0xffffu) >> 16;
}

static __device__ __forceinline__ int64_t group_end(int64_t at, int64_t n)
{
    return at + CODEC_GROUP < n ? at + CODEC_GROUP : n;
}

/* The lanes of codec_sums() into the first one. */
static __device__ double fold(double *lane, double mine)
{
    __syncthreads(); // the last call's result has been read
    lane[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            lane[threadIdx.x] += lane[threadIdx.x + half];
        }
        __syncthreads();
    }
    return lane[0];
}

// ---- what an update is made of ------------------------------------------------------------------

template <bool SPLIT>
static __global__ void __launch_bounds__(THREADS)
    delta(float *u, struct codec_result *results, const void *w, const uint16_t *rest,
          const float *base, const float *residual, float beta, int64_t n)
{
    __shared__ double lanes[THREADS];
    int64_t at = (int64_t)blockIdx.x * CODEC_GROUP;
    double sum = 0.0;
#pragma unroll 8
    for (int64_t i = at + threadIdx.x; i < group_end(at, n); i += THREADS) {
        float local;
        if constexpr (SPLIT) {
            local = bits_float(((uint32_t)((const uint16_t *)w)[i] << 16) +
                               (uint32_t)(int32_t)(int16_t)rest[i]);
        } else {
            local = ((const float *)w)[i];
        }
        float d = base[i] - local;
        sum += (double)d * (double)d;
        u[i] = residual ? d + beta * residual[i] : d;
    }
    sum = fold(lanes, sum);
    if (threadIdx.x == 0) {
        results[blockIdx.x].fresh = sum;
    }
}

void cuda_delta(struct backend *be, float *u, struct codec_result *results, const void *w,
                const void *rest, const float *base, const float *residual, float beta, int64_t n)
{
    if (n > 0) {
        cuda_launch(cuda_of(be), rest ? delta<true> : delta<false>, cuda_blocks(n, CODEC_GROUP),
                    THREADS, 0, u, results, w, (const uint16_t *)rest, base, residual, beta, n);
    }
}

/* v becomes u - v; what codec_encode() would have refused, and codec_sums(). */
static __global__ void __launch_bounds__(THREADS)
    measure(struct codec_result *results, float *v, const float *u, int64_t n, bool gaps)
{
    __shared__ double lanes[THREADS];
    __shared__ uint32_t bits[THREADS];
    int64_t at = (int64_t)blockIdx.x * CODEC_GROUP;
    double diff = 0.0;
    double uu = 0.0;
    double vv = 0.0;
    double uv = 0.0;
    uint32_t most = 0;
#pragma unroll 4
    for (int64_t i = at + threadIdx.x; i < group_end(at, n); i += THREADS) {
        double x = (double)u[i];
        double y = (double)v[i];
        uint32_t b = float_bits(u[i]) & 0x7fffffffu;
        diff += (x - y) * (x - y);
        uu += x * x;
        vv += y * y;
        uv += x * y;
        most = b > most ? b : most;
        v[i] = u[i] - v[i];
    }
    diff = fold(lanes, diff);
    uu = fold(lanes, uu);
    vv = fold(lanes, vv);
    uv = fold(lanes, uv);
    bits[threadIdx.x] = most;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int t = 1; t < THREADS; t++) {
            most = bits[t] > most ? bits[t] : most;
        }
        struct codec_result *r = &results[blockIdx.x];
        r->sums.diff = diff;
        r->sums.uu = uu;
        r->sums.vv = vv;
        r->sums.uv = uv;
        r->most = most;
        r->gap_size = gaps ? r->gap_size : 0;
    }
}

// ---- whole numbers and levels -------------------------------------------------------------------

/* A rule as kernels want it. */
struct levels {
    float mid[CODEC_LEVELS_MAX - 1], level[CODEC_LEVELS_MAX];
};

/* Eight values of a lane; zeros behind the last. */
static __device__ __forceinline__ void lane_values(float x[PER], const float *u, int64_t i,
                                                   int64_t n)
{
    if (i + PER <= n) {
        pack<float, 4> a = load<4>(u + i);
        pack<float, 4> b = load<4>(u + i + 4);
        for (int j = 0; j < 4; j++) {
            x[j] = a.v[j];
            x[4 + j] = b.v[j];
        }
        return;
    }
    for (int j = 0; j < PER; j++) {
        x[j] = i + j < n ? u[i + j] : 0.0f;
    }
}

/* The largest magnitude of the block, as bits. */
static __device__ __forceinline__ uint32_t block_most(const float x[PER])
{
    uint32_t most = 0;
    for (int j = 0; j < PER; j++) {
        uint32_t b = float_bits(x[j]) & 0x7fffffffu;
        most = b > most ? b : most;
    }
    for (int d = 16; d > 0; d /= 2) {
        uint32_t other = (uint32_t)__shfl_xor_sync(ALL_LANES, (int)most, d);
        most = other > most ? other : most;
    }
    return most;
}

/* To the nearest whole number, ties to even: there is no room for a fraction above 1.5 2^23. */
static __device__ __forceinline__ int whole(float v)
{
    int c = (int)(float_bits(v + 12582912.0f) - 0x4b400000u);
    c = c > 127 ? 127 : c;
    return c < -127 ? -127 : c;
}

template <enum codec C>
static __device__ __forceinline__ uint32_t code_of(const struct levels &k, float x, float s)
{
    uint32_t b = float_bits(x);
    float v = bits_float(b & 0x7fffffffu) / s;
    uint32_t j = 0;
    for (int m = 0; m < (C == CODEC_Q4 ? 7 : 1); m++) {
        j += v > k.mid[m] ? 1u : 0u;
    }
    return (C == CODEC_Q4 ? b >> 28 & 8u : b >> 30 & 2u) | j;
}

/* A warp a block of values: the scale, then codes and what they decode to. */
template <enum codec C>
static __global__ void __launch_bounds__(THREADS)
    scaled(struct levels k, uint8_t *main, uint16_t *side, float *v, const float *u, int64_t n)
{
    int64_t block = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    int64_t i = block * CODEC_BLOCK + (int64_t)(threadIdx.x % 32) * PER;
    if (block * CODEC_BLOCK >= n) {
        return; // the whole warp
    }
    const int bits = C == CODEC_INT8 ? 8 : C == CODEC_Q4 ? 4 : 2;
    float x[PER];
    lane_values(x, u, i, n);
    uint32_t most = block_most(x);
    float largest = bits_float(most);
    uint32_t scale = most < LEAST_BITS ? 0 : up_bf16(C == CODEC_INT8 ? largest / 127.0f : largest);
    float s = bf16_float(scale);
    if (threadIdx.x % 32 == 0) {
        side[block] = (uint16_t)scale;
    }
    uint64_t packed = 0;
    for (int j = 0; j < PER; j++) {
        float y = 0.0f;
        uint64_t code = 0;
        if (scale && i + j < n && C == CODEC_INT8) {
            int q = whole(x[j] / s);
            code = (uint64_t)(q & 255);
            y = (float)q * s;
        } else if (scale && i + j < n) {
            uint32_t q = code_of<C>(k, x[j], s);
            uint32_t sign = C == CODEC_Q4 ? q >> 3 : q >> 1;
            code = q;
            y = k.level[q & (C == CODEC_Q4 ? 7u : 1u)] * s;
            y = sign ? -y : y;
        } else if (C != CODEC_INT8) {
            y = k.level[0] * s;
        }
        packed |= code << (bits * j);
        if (i + j < n) {
            v[i + j] = y;
        }
    }
    int64_t bytes = (n * bits + 7) / 8;
    int64_t at = i * bits / 8;
    for (int j = 0; j < bits && at + j < bytes; j++) {
        main[at + j] = (uint8_t)(packed >> (8 * j));
    }
}

/* The rungs without a scale. */
template <enum codec C>
static __global__ void plain(uint8_t *main, float *v, const float *u, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) {
        return;
    }
    if constexpr (C == CODEC_F32) {
        reinterpret_cast<float *>(main)[i] = u[i];
        v[i] = u[i];
    } else {
        uint32_t b = nearest_bf16(u[i]);
        reinterpret_cast<uint16_t *>(main)[i] = (uint16_t)b;
        v[i] = bf16_float(b);
    }
}

// ---- the largest few ----------------------------------------------------------------------------

struct room {
    uint32_t key[CODEC_TILE];
    int count[2048];
    int part[THREADS];
    uint16_t index[CODEC_K_MAX];
    int digit, rank;
    int bits; /* of the gap part so far */
    float lo, hi, limit;
};

/* What a block may ask for on the smallest GPUs that we build for (compute capability 8.6). */
static_assert(sizeof(struct room) + TILES * CODEC_K_MAX * sizeof(uint16_t) <= 99 * 1024,
              "every k fits every GPU");

/* Sum of what the threads before this one brought. */
static __device__ int sum_before(int *part, int mine)
{
    part[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned d = 1; d < THREADS; d *= 2) {
        int other = threadIdx.x >= d ? part[threadIdx.x - d] : 0;
        __syncthreads();
        part[threadIdx.x] += other;
        __syncthreads();
    }
    int before = part[threadIdx.x] - mine;
    __syncthreads();
    return before;
}

/* Of the digit counts, which holds the key of this rank when keys fall; its rank within. */
static __device__ void find_digit(struct room *r, int rank)
{
    const int bins = 2048 / THREADS;
    int sum = 0;
    for (int b = 0; b < bins; b++) {
        sum += r->count[threadIdx.x * bins + b];
    }
    r->part[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        int p = THREADS - 1;
        while (rank >= r->part[p]) {
            rank -= r->part[p--];
        }
        int digit = p * bins + bins - 1;
        while (rank >= r->count[digit]) {
            rank -= r->count[digit--];
        }
        r->digit = digit;
        r->rank = rank;
    }
    __syncthreads();
}

/* The kept values of a group, by their places in it: magnitudes are read from u where they lie. */
struct kept {
    const float *u;
    const uint16_t *place;
    int count;

    __device__ __forceinline__ uint32_t operator()(int j) const
    {
        return float_bits(u[place[j]]) & 0x7fffffffu;
    }
};

/* Of key(0) to key(n - 1): that at `rank` when they fall, and in r->rank its rank among equals. */
template <typename Key>
static __device__ uint32_t rank_key(struct room *r, const Key &key, int n, int rank)
{
    uint32_t found = 0;
    for (int pass = 0; pass < 3; pass++) {
        int shift = pass == 0 ? 20 : pass == 1 ? 10 : 0;
        uint32_t most = pass == 0 ? 2047 : 1023;
        uint32_t above = pass == 0 ? 0 : ~((most + 1) * (1u << shift) - 1);
        for (int b = (int)threadIdx.x; b < 2048; b += THREADS) {
            r->count[b] = 0;
        }
        __syncthreads();
        for (int i = (int)threadIdx.x; i < n; i += THREADS) {
            uint32_t k = key(i);
            if ((k & above) == found) {
                atomicAdd(&r->count[k >> shift & most], 1);
            }
        }
        __syncthreads();
        find_digit(r, rank);
        rank = r->rank;
        found |= (uint32_t)r->digit << shift;
    }
    return found;
}

/* Indices of the `kept` largest of a tile, rising; among equals the lower ones. */
static __device__ void choose(struct room *r, int n, int kept)
{
    const auto key = [r](int i) { return r->key[i]; };
    uint32_t last = rank_key(r, key, n, kept - 1);
    int equals = r->rank + 1;
    int first = (int)threadIdx.x * OWN;
    int mine = 0; // keys above the last in the upper half, equal to it in the lower
    for (int i = first; i < first + OWN && i < n; i++) {
        mine += r->key[i] > last ? 1 << 16 : r->key[i] == last ? 1 : 0;
    }
    int before = sum_before(r->part, mine);
    int above = before >> 16;
    int equal = before & 0xffff;
    for (int i = first; i < first + OWN && i < n; i++) {
        bool is_equal = r->key[i] == last;
        if (r->key[i] > last || (is_equal && equal < equals)) {
            r->index[above + (equal < equals ? equal : equals)] = (uint16_t)i;
        }
        above += r->key[i] > last;
        equal += is_equal;
    }
    __syncthreads();
}

/* Some bits at a place of the stream, whose bytes are filled from their lowest bit on. */
static __device__ __forceinline__ void put_bits(uint32_t *stream, int at, uint64_t value)
{
    value <<= at % 32;
    atomicOr(&stream[at / 32], (uint32_t)value);
    if (value >> 32) {
        atomicOr(&stream[at / 32 + 1], (uint32_t)(value >> 32));
    }
}

/* The gaps between a tile's indices: g >> rice zeros, a one, the low bits of g. */
static __device__ void put_gaps(struct room *r, uint32_t *stream, int kept, int rice)
{
    int per = (kept + THREADS - 1) / THREADS;
    int first = (int)threadIdx.x * per;
    int end = first + per < kept ? first + per : kept;
    int mine = 0;
    for (int i = first; i < end; i++) {
        int gap = r->index[i] - (i ? r->index[i - 1] : -1) - 1;
        mine += (gap >> rice) + 1 + rice;
    }
    int at = r->bits; // before the last thread adds to it
    at += sum_before(r->part, mine);
    for (int i = first; i < end; i++) {
        int gap = r->index[i] - (i ? r->index[i - 1] : -1) - 1;
        at += gap >> rice;
        put_bits(stream, at, 1u | (uint64_t)(gap & ((1 << rice) - 1)) << 1);
        at += 1 + rice;
    }
    if (threadIdx.x == THREADS - 1) {
        r->bits += r->part[THREADS - 1];
    }
    __syncthreads();
}

/* Two magnitudes by 2-means over the kept, from their median; one thread, in the codec's order. */
static __device__ void two_means(struct room *r, const struct kept &kept, float median)
{
    int n = kept.count;
    double t = (double)median;
    double lo = 0.0;
    double hi = 0.0;
    for (int i = 0; i < 8; i++) {
        double sum_lo = 0.0;
        double sum_hi = 0.0;
        int count = 0; // of the high ones
        for (int j = 0; j < n; j++) {
            double v = (double)bits_float(kept(j));
            if (v >= t) {
                sum_hi += v;
                count++;
            } else {
                sum_lo += v;
            }
        }
        hi = count > 0 ? sum_hi / (double)count : sum_lo / (double)(n - count);
        lo = count < n ? sum_lo / (double)(n - count) : hi;
        t = (lo + hi) / 2.0;
    }
    r->lo = (float)lo;
    r->hi = (float)hi;
    r->limit = (float)t;
}

static __device__ __forceinline__ uint32_t magnitude(float v)
{
    return float_bits(v) < LEAST_BITS ? 0 : nearest_bf16(v);
}

static __device__ __forceinline__ int kept_of(int k, int n)
{
    return n / CODEC_TILE * k + (k * (n % CODEC_TILE) + CODEC_TILE - 1) / CODEC_TILE;
}

/* Codes of two bits, a high or low magnitude and a sign, and the values they stand for. */
static __device__ void put_codes(struct room *r, uint8_t *main, float *v, const struct kept &kept)
{
    int total = kept.count;
    float lo = bf16_float(magnitude(r->lo));
    float hi = bf16_float(magnitude(r->hi));
    for (int b = (int)threadIdx.x; b < (total + 3) / 4; b += THREADS) {
        uint32_t byte = 0;
        for (int j = 4 * b; j < 4 * b + 4 && j < total; j++) {
            int at = kept.place[j];
            uint32_t high = bits_float(kept(j)) >= r->limit;
            uint32_t negative = float_bits(kept.u[at]) >> 31;
            byte |= (high | negative << 1) << (2 * (j % 4));
            float y = high ? hi : lo;
            v[at] = negative ? -y : y;
        }
        main[b] = (uint8_t)byte;
    }
}

/* A block of threads a group. Shared: the room, and the places of what is kept. */
static __global__ void __launch_bounds__(THREADS)
    topk(struct codec_parts out, int64_t main_size, struct codec_result *results, float *v,
         const float *u, int64_t n, int k, int rice)
{
    SHARED_DYNAMIC(dynamic);
    struct room *r = reinterpret_cast<struct room *>(dynamic);
    uint16_t *place = reinterpret_cast<uint16_t *>(r + 1);
    int64_t group = blockIdx.x;
    int64_t begin = group * CODEC_GROUP;
    int size = (int)(group_end(begin, n) - begin);
    uint32_t *stream = reinterpret_cast<uint32_t *>(out.part[CODEC_GAP] + group * out.gap_stride);
    u += begin;
    v += begin;
    for (int64_t i = threadIdx.x; i < out.gap_stride / 4; i += THREADS) {
        stream[i] = 0;
    }
    for (int i = (int)threadIdx.x; i < size; i += THREADS) {
        v[i] = 0.0f;
    }
    if (threadIdx.x == 0) {
        r->bits = 0;
    }
    int total = 0;
    for (int at = 0; at < size; at += CODEC_TILE) {
        int m = size - at < CODEC_TILE ? size - at : CODEC_TILE;
        int take = kept_of(k, m);
        for (int i = (int)threadIdx.x; i < m; i += THREADS) {
            r->key[i] = float_bits(u[at + i]) & 0x7fffffffu;
        }
        __syncthreads();
        choose(r, m, take);
        put_gaps(r, stream, take, rice);
        for (int i = (int)threadIdx.x; i < take; i += THREADS) {
            place[total + i] = (uint16_t)(at + r->index[i]);
        }
        total += take;
        __syncthreads();
    }
    const struct kept kept = {u, place, total};
    float median = bits_float(rank_key(r, kept, total, total / 2));
    if (threadIdx.x == 0) {
        two_means(r, kept, median);
        uint16_t *side = reinterpret_cast<uint16_t *>(out.part[CODEC_SIDE]) + 2 * group;
        side[0] = (uint16_t)magnitude(r->lo);
        side[1] = (uint16_t)magnitude(r->hi);
        results[group].gap_size = (r->bits + 7) / 8;
    }
    __syncthreads();
    put_codes(r, out.part[CODEC_MAIN] + group * main_size, v, kept);
}

// ---- host side ----------------------------------------------------------------------------------

static struct levels levels_of(const struct codec_rule *rule)
{
    struct levels k = {};
    int count = rule->codec == CODEC_Q4 ? 8 : rule->codec == CODEC_Q2 ? 2 : 0;
    for (int j = 0; j < count; j++) {
        k.level[j] = rule->level[j];
    }
    for (int j = 0; j < CODEC_LEVELS_MAX - 1; j++) {
        k.mid[j] = j + 1 < count ? (rule->level[j] + rule->level[j + 1]) * 0.5f : 2.0f;
    }
    return k;
}

/* As the codec: floor(log2(.69 4096 / k)), in whole numbers. */
static int rice_bits(int k)
{
    int r = 0;
    while ((int64_t)k << (r + 1) <= 2826) {
        r++;
    }
    return r;
}

static void code_topk(struct cuda *c, const struct codec_rule *rule, const struct codec_parts *out,
                      struct codec_result *results, float *v, const float *u, int64_t n)
{
    size_t shared = sizeof(struct room) + (size_t)TILES * (size_t)rule->k * sizeof(uint16_t);
    int64_t main_size = (int64_t)TILES * rule->k / 4;
    cuda_launch(c, topk, cuda_blocks(n, CODEC_GROUP), THREADS, shared, *out, main_size, results, v,
                u, n, (int)rule->k, rice_bits(rule->k));
}

void cuda_encode(struct backend *be, const struct codec_rule *rule, const struct codec_parts *out,
                 struct codec_result *results, float *left, const float *u, int64_t n)
{
    struct cuda *c = cuda_of(be);
    uint8_t *main = out->part[CODEC_MAIN];
    uint16_t *side = (uint16_t *)out->part[CODEC_SIDE];
    unsigned blocks = cuda_blocks(n, CODEC_BLOCK * WARPS);
    struct levels k = levels_of(rule);
    if (n <= 0) {
        return;
    }
    switch (rule->codec) {
    case CODEC_F32:
        cuda_launch(c, plain<CODEC_F32>, cuda_blocks(n, THREADS), THREADS, 0, main, left, u, n);
        break;
    case CODEC_BF16:
        cuda_launch(c, plain<CODEC_BF16>, cuda_blocks(n, THREADS), THREADS, 0, main, left, u, n);
        break;
    case CODEC_INT8:
        cuda_launch(c, scaled<CODEC_INT8>, blocks, THREADS, 0, k, main, side, left, u, n);
        break;
    case CODEC_Q4:
        cuda_launch(c, scaled<CODEC_Q4>, blocks, THREADS, 0, k, main, side, left, u, n);
        break;
    case CODEC_Q2:
        cuda_launch(c, scaled<CODEC_Q2>, blocks, THREADS, 0, k, main, side, left, u, n);
        break;
    case CODEC_TOPK:
    case CODEC_COUNT:
        code_topk(c, rule, out, results, left, u, n);
        break;
    }
    cuda_launch(c, measure, cuda_blocks(n, CODEC_GROUP), THREADS, 0, results, left, u, n,
                rule->codec == CODEC_TOPK);
}
