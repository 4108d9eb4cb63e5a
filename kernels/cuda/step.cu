/*
 * The optimizer step: norm of the gradient, AdamW and ADOPT, compute weights.
 *
 * Compiled with -fmad=false: every operation of struct optim_step is rounded by itself, in the
 * order written, so that the bits are those of the CPU. The kernels are bound by memory.
 */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"

static const int NORM_THREADS = 512;
static const int CLIP_STAGE = 1024;
static const int STEP_THREADS = 256;
static const int STEP_ROUNDS = 4; // accesses of a thread

/* One block per chunk. Sums are double: squares of large gradients leave the range of fp32. */
static __global__ void __launch_bounds__(NORM_THREADS)
    sqnorm(double *partials, const float *g, int64_t n)
{
    __shared__ double sums[NORM_THREADS];
    int64_t start = (int64_t)blockIdx.x * NORM_CHUNK;
    int64_t end = start + NORM_CHUNK < n ? start + NORM_CHUNK : n;
    double sum = 0.0;
    for (int64_t i = start + threadIdx.x; i < end; i += NORM_THREADS) {
        double v = (double)g[i];
        sum += v * v;
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = NORM_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            sums[threadIdx.x] += sums[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sums[0];
    }
}

void cuda_sqnorm(struct backend *be, enum dtype gt, double *partials, const void *g, int64_t n)
{
    (void)gt; // there is no F64 here
    if (n > 0) {
        cuda_launch(cuda_of(be), sqnorm, cuda_blocks(n, NORM_CHUNK), NORM_THREADS, 0, partials,
                    (const float *)g, n);
    }
}

/* One thread adds, in the order the contract wants; the others fetch. */
static __global__ void __launch_bounds__(CLIP_STAGE)
    clip(struct clip_state *out, const double *partials, int64_t count, double max_norm)
{
    __shared__ double stage[CLIP_STAGE];
    double sum = 0.0;
    for (int64_t start = 0; start < count; start += CLIP_STAGE) {
        int64_t left = count - start < CLIP_STAGE ? count - start : CLIP_STAGE;
        if (threadIdx.x < left) {
            stage[threadIdx.x] = partials[start + threadIdx.x];
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int64_t i = 0; i < left; i++) {
                sum += stage[i];
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        double norm = sqrt(sum);
        out->norm = norm;
        out->factor = fmin(1.0, max_norm / (norm + 1e-6));
        out->finite = isfinite(norm) ? 1 : 0;
        out->taken += out->finite;
    }
}

void cuda_clip(struct backend *be, struct clip_state *out, const double *partials, int64_t count,
               double max_norm)
{
    cuda_launch(cuda_of(be), clip, 1, CLIP_STAGE, 0, out, partials, count, max_norm);
}

/* V weights from i on: fp32, or a split master (backend.h). */
template <bool SPLIT, int V>
static __device__ __forceinline__ pack<float, V> get_weights(const void *w, const uint16_t *rest,
                                                             int64_t i)
{
    if constexpr (SPLIT) {
        pack<uint16_t, V> high = load<V>((const uint16_t *)w + i);
        pack<uint16_t, V> low = load<V>(rest + i);
        pack<float, V> out;
        for (int j = 0; j < V; j++) {
            out.v[j] =
                bits_float(((uint32_t)high.v[j] << 16) + (uint32_t)(int32_t)(int16_t)low.v[j]);
        }
        return out;
    } else {
        return load<V>((const float *)w + i);
    }
}

template <bool SPLIT, int V>
static __device__ __forceinline__ void put_weights(void *w, uint16_t *rest, int64_t i,
                                                   const pack<float, V> &in)
{
    if constexpr (SPLIT) {
        pack<uint16_t, V> high;
        pack<uint16_t, V> low;
        for (int j = 0; j < V; j++) {
            high.v[j] = (uint16_t)((float_bits(in.v[j]) + 0x8000u) >> 16);
            low.v[j] = (uint16_t)float_bits(in.v[j]);
        }
        store<V>((uint16_t *)w + i, high);
        store<V>(rest + i, low);
    } else {
        store<V>((float *)w + i, in);
    }
}

/* What struct optim_step says, each rounded to fp32 once. */
struct step_consts {
    float factor, lr, keep, b1, b2, c1, c2, eps, bias1, bias2, bound;
};

struct adamw {
    static __device__ __forceinline__ void step(const struct step_consts &k, float gi, float &w,
                                                float &m, float &v)
    {
        w = w * k.keep;
        m = k.b1 * m + k.c1 * gi;
        v = k.b2 * v + k.c2 * (gi * gi);
        w = w - (k.lr * (m / k.bias1)) / (sqrtf(v / k.bias2) + k.eps);
    }
};

struct adopt_first {
    static __device__ __forceinline__ void step(const struct step_consts &, float gi, float &,
                                                float &, float &v)
    {
        v = gi * gi;
    }
};

struct adopt {
    static __device__ __forceinline__ void step(const struct step_consts &k, float gi, float &w,
                                                float &m, float &v)
    {
        w = w * k.keep;
        float root = sqrtf(v);
        float n = gi / (root > k.eps ? root : k.eps);
        n = n > k.bound ? k.bound : n < -k.bound ? -k.bound : n;
        m = m + k.c1 * (n - m);
        w = w - k.lr * m;
        v = k.b2 * v + k.c2 * (gi * gi);
    }
};

template <typename RULE, bool SPLIT, int V>
static __device__ __forceinline__ void walk(const struct step_consts &k, void *w, uint16_t *rest,
                                            float *m, float *v, const float *g, int64_t n)
{
    int64_t i = ((int64_t)blockIdx.x * STEP_ROUNDS * STEP_THREADS + threadIdx.x) * V;
    for (int round = 0; round < STEP_ROUNDS && i < n; round++, i += STEP_THREADS * V) {
        pack<float, V> pw = get_weights<SPLIT, V>(w, rest, i);
        pack<float, V> pm = load<V>(m + i);
        pack<float, V> pv = load<V>(v + i);
        pack<float, V> pg = load<V>(g + i);
        for (int j = 0; j < V; j++) {
            RULE::step(k, pg.v[j] * k.factor, pw.v[j], pm.v[j], pv.v[j]);
        }
        put_weights<SPLIT, V>(w, rest, i, pw);
        store<V>(m + i, pm);
        store<V>(v + i, pv);
    }
}

/*
 * Which step it is, and whether, is read here and not known when the kernel is enqueued. One thread
 * rounds for its block what the struct says.
 */
template <bool SPLIT, int V>
static __global__ void __launch_bounds__(STEP_THREADS)
    optim(const struct optim_step *steps, const struct clip_state *clip, void *w, uint16_t *rest,
          float *m, float *v, const float *g, int64_t n)
{
    __shared__ struct step_consts k;
    const struct optim_step *s = clip->taken > steps->t ? steps + (clip->taken - steps->t) : steps;
    if (!clip->finite) {
        return; // every thread of every block
    }
    if (threadIdx.x == 0) {
        k.factor = (float)clip->factor;
        k.lr = (float)s->lr;
        k.keep = (float)(1.0 - s->decay);
        k.b1 = (float)s->beta1;
        k.b2 = (float)s->beta2;
        k.c1 = (float)(1.0 - s->beta1);
        k.c2 = (float)(1.0 - s->beta2);
        k.eps = (float)s->eps;
        k.bias1 = (float)s->bias1;
        k.bias2 = (float)s->bias2;
        k.bound = (float)s->clamp;
    }
    __syncthreads();
    if (s->kind == OPTIM_ADAMW) {
        walk<adamw, SPLIT, V>(k, w, rest, m, v, g, n);
    } else if (s->t == 1) {
        walk<adopt_first, SPLIT, V>(k, w, rest, m, v, g, n);
    } else {
        walk<adopt, SPLIT, V>(k, w, rest, m, v, g, n);
    }
}

template <bool SPLIT>
static void optim_by(struct cuda *c, const struct optim_step *steps, const struct clip_state *clip,
                     void *w, uint16_t *rest, float *m, float *v, const float *g, int64_t n)
{
    const int64_t block = STEP_THREADS * STEP_ROUNDS;
    if (moves_wide<float>(n, w, m, v, g) && (uintptr_t)rest % 16 == 0) {
        cuda_launch(c, optim<SPLIT, 4>, cuda_blocks(n, block * 4), STEP_THREADS, 0, steps, clip, w,
                    rest, m, v, g, n);
    } else {
        cuda_launch(c, optim<SPLIT, 1>, cuda_blocks(n, block), STEP_THREADS, 0, steps, clip, w,
                    rest, m, v, g, n);
    }
}

void cuda_optim(struct backend *be, enum dtype gt, const struct optim_step *steps,
                const struct clip_state *clip, void *w, void *rest, void *m, void *v, const void *g,
                int64_t n)
{
    (void)gt;
    struct cuda *c = cuda_of(be);
    if (n <= 0) {
        return;
    }
    if (rest) {
        optim_by<true>(c, steps, clip, w, (uint16_t *)rest, (float *)m, (float *)v,
                       (const float *)g, n);
    } else {
        optim_by<false>(c, steps, clip, w, nullptr, (float *)m, (float *)v, (const float *)g, n);
    }
}
