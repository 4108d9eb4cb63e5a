/*
 * Attention as the op: which kernels do it.
 *
 * Heads of 64 and 128 in bf16 go to tensor cores, by mma.sync (attn.cu) unless the Hopper kernels
 * (attn_wgmma.cu) have passed a trial on this very machine, and somebody asked for that.
 * PHOTON_CUDA_ATTN says
 *
 *     nothing        what the file of choices has noted for this machine, else mma.sync
 *     mma            mma.sync, whatever is noted
 *     wgmma          Hopper's on Hopper; where that is not noted yet, after a trial that is noted
 *     wgmma-untried  Hopper's, without a trial: for tests
 *
 * Before a trial the file is told "mma", and "wgmma" only after: whoever comes when a trial has
 * ended the process, or the device, is not led there. A trial compares both kernels' results and
 * the Hopper kernels' own bits, twice. One that fails is an error of the training that asked.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "kernels/cuda/attn.cuh"
#include "kernels/cuda/pins.cuh"

/* Part of the noted name: to be raised when a change of the Hopper kernels makes an old trial void.
 */
enum { WGMMA_REVISION = 1 };

static struct attn describe(const float *slopes, int64_t T, int64_t H, int64_t D)
{
    return {.T = T,
            .H = H,
            .D = D,
            .tiles = T,
            .slopes = slopes,
            .norms = nullptr,
            .scale = (float)(1.0 / sqrt((double)D))};
}

// ---- forward and backward by given kernels ------------------------------------------------------

/* Working space is shared out in pieces that are aligned for anything. */
static size_t piece(size_t size)
{
    return (size + 255) / 256 * 256;
}

static size_t norms_size(const struct attn &x, int64_t B)
{
    return piece((size_t)(B * x.H * 2 * attn_norm_tiles(x)) * sizeof(float));
}

static void forward(struct cuda *c, enum attn_kind kind, void *o, float *lse, const void *qkv,
                    struct attn x, int64_t B)
{
    if (x.slopes) {
        float *norms = (float *)cuda_scratch(c, norms_size(x, B));
        if (!norms) {
            return;
        }
        attn_norms(c, norms, qkv, x, B);
        x.norms = norms;
    }
    if (kind == ATTN_WGMMA) {
        attn_fwd_ring(c, o, lse, qkv, x, B);
    } else {
        attn_fwd_tiled(c, o, lse, qkv, x, B);
    }
}

static void backward(struct cuda *c, enum attn_kind kind, void *dqkv, const void *qkv,
                     const void *o, const void *dout, const float *lse, struct attn x, int64_t B)
{
    const bool ring = kind == ATTN_WGMMA;
    const size_t rows = ring ? attn_terms_size(x, B) : (size_t)(B * x.H * x.T) * sizeof(float);
    char *room = (char *)cuda_scratch(c, norms_size(x, B) + rows);
    if (!room) {
        return;
    }
    float *of_rows = (float *)(void *)(room + norms_size(x, B));
    if (x.slopes) {
        attn_norms(c, (float *)(void *)room, qkv, x, B);
        x.norms = (float *)(void *)room;
    }
    if (ring) {
        attn_bwd_ring(c, dqkv, qkv, o, dout, lse, of_rows, x, B);
    } else {
        attn_delta(c, DTYPE_BF16, of_rows, o, dout, x, B);
        attn_bwd_tiled(c, dqkv, qkv, dout, lse, of_rows, x, B);
    }
}

// ---- the trial ----------------------------------------------------------------------------------

/* As much as a small training has; the emulation takes minutes for that. */
#ifdef CUDA_EMULATED
static const int64_t TRIAL_B = 1, TRIAL_T = 200, TRIAL_H = 2;
#else
static const int64_t TRIAL_B = 4, TRIAL_T = 1999, TRIAL_H = 12;
#endif

/* Results of one kind: o, then dqkv, then lse, in one piece of memory on either side. */
struct results {
    char *device, *host;
    int64_t halves, floats; /* how many */
};

static size_t results_size(const struct results &r)
{
    return (size_t)r.halves * sizeof(bf16) + (size_t)r.floats * sizeof(float);
}

static void results_make(struct cuda *c, const struct results &r, enum attn_kind kind,
                         const void *qkv, const void *dout, const struct attn &x)
{
    const int64_t n = TRIAL_B * x.T * x.H * x.D;
    float *lse = (float *)(void *)(r.device + r.halves * (int64_t)sizeof(bf16));
    char *dqkv = r.device + n * (int64_t)sizeof(bf16);
    cuda_check(c, cudaMemsetAsync(r.device, 0xff, results_size(r), c->stream));
    forward(c, kind, r.device, lse, qkv, x, TRIAL_B);
    backward(c, kind, dqkv, qkv, r.device, dout, lse, x, TRIAL_B);
    cuda_check(
        c, cudaMemcpyAsync(r.host, r.device, results_size(r), cudaMemcpyDeviceToHost, c->stream));
    cuda_check(c, cudaStreamSynchronize(c->stream));
}

static double half_at(const struct results &r, int64_t i)
{
    uint16_t bits;
    memcpy(&bits, r.host + i * (int64_t)sizeof(bits), sizeof(bits));
    uint32_t wide = (uint32_t)bits << 16;
    float v;
    memcpy(&v, &wide, sizeof(v));
    return (double)v;
}

static double lse_at(const struct results &r, int64_t i)
{
    float v;
    memcpy(&v, r.host + r.halves * (int64_t)sizeof(bf16) + i * (int64_t)sizeof(v), sizeof(v));
    return (double)v;
}

/*
 * Both round at the same places and sum in another order: that is worth a hundredth of the numbers'
 * size over all, and a few units in the last place of bf16 of any one. Anything that is not a
 * number fails too.
 */
static bool agree(const struct results &a, const struct results &b)
{
    double size = 0.0;
    double apart = 0.0;
    for (int64_t i = 0; i < a.halves; i++) {
        double d = half_at(a, i) - half_at(b, i);
        size += half_at(a, i) * half_at(a, i);
        apart += d * d;
    }
    if (!(apart <= 1e-4 * size)) {
        return false;
    }
    const double typical = sqrt(size / (double)a.halves);
    for (int64_t i = 0; i < a.halves; i++) {
        double one = fabs(half_at(a, i));
        if (!(fabs(half_at(a, i) - half_at(b, i)) <= (one + typical) / 16.0)) {
            return false;
        }
    }
    for (int64_t i = 0; i < a.floats; i++) {
        if (!(fabs(lse_at(a, i) - lse_at(b, i)) <= 3e-4)) { // biases to 180, rounded twice: 1e-4
            return false;
        }
    }
    return true;
}

/* Without ALiBi and with it, steep enough for tiles to be skipped. */
static bool trial_runs(struct cuda *c, const struct results r[3], const void *qkv, const void *dout,
                       const float *slopes, int64_t D)
{
    for (int alibi = 0; alibi < 2; alibi++) {
        const struct attn x = describe(alibi ? slopes : nullptr, TRIAL_T, TRIAL_H, D);
        results_make(c, r[0], ATTN_MMA, qkv, dout, x);
        results_make(c, r[1], ATTN_WGMMA, qkv, dout, x);
        results_make(c, r[2], ATTN_WGMMA, qkv, dout, x);
        if (c->failed || memcmp(r[1].host, r[2].host, results_size(r[1])) != 0 ||
            !agree(r[0], r[1])) {
            return false;
        }
    }
    return true;
}

static bool trial(struct cuda *c, int64_t D)
{
    const int64_t n = TRIAL_B * TRIAL_T * TRIAL_H * D;
    struct results r[3];
    char *in = nullptr; // qkv, then do, then slopes
    const size_t halves = (size_t)(4 * n) * sizeof(bf16);
    float slopes[TRIAL_H];
    bool good = cudaMalloc((void **)&in, halves + sizeof(slopes)) == cudaSuccess;
    for (struct results &one : r) {
        one = {nullptr, nullptr, 4 * n, TRIAL_B * TRIAL_H * TRIAL_T};
        one.host = new (std::nothrow) char[results_size(one)];
        good =
            good && one.host && cudaMalloc((void **)&one.device, results_size(one)) == cudaSuccess;
    }
    if (good) {
        for (int64_t h = 0; h < TRIAL_H; h++) {
            slopes[h] = exp2f(0.5f - (float)h);
        }
        cuda_fill(c, in, DTYPE_BF16, 4 * n, 2.0f);
        cuda_check(c, cudaMemcpyAsync(in + halves, slopes, sizeof(slopes), cudaMemcpyHostToDevice,
                                      c->stream));
        good = trial_runs(c, r, in, in + 3 * n * (int64_t)sizeof(bf16),
                          (const float *)(const void *)(in + halves), D);
    }
    for (struct results &one : r) {
        (void)cudaFree(one.device);
        delete[] one.host;
    }
    (void)cudaFree(in);
    (void)cudaGetLastError();
    return good;
}

// ---- choosing -----------------------------------------------------------------------------------

const char *attn_open(struct cuda *c)
{
    static const struct {
        const char *name;
        enum attn_kind kind;
    } wishes[] = {
        {"", ATTN_OPEN}, {"mma", ATTN_MMA}, {"wgmma", ATTN_WGMMA}, {"wgmma-untried", ATTN_UNTRIED}};
    const char *wish = getenv("PHOTON_CUDA_ATTN");
    wish = wish ? wish : "";
    for (const auto &w : wishes) {
        if (strcmp(wish, w.name) == 0) {
            c->attn_wish = w.kind;
            // Code for sm_90a runs on nothing older and nothing newer.
            return w.kind == ATTN_UNTRIED && c->capability != 90
                       ? "PHOTON_CUDA_ATTN asks for what takes compute capability 9.0"
                       : nullptr;
        }
    }
    // An error that sticks: one of opening would have "auto" go on without the GPU.
    cuda_fail(c, "PHOTON_CUDA_ATTN is neither mma nor wgmma; try it unset");
    return nullptr;
}

static enum attn_kind choose(struct cuda *c, int64_t D)
{
    if (c->attn_wish == ATTN_MMA || c->capability != 90) {
        return ATTN_MMA;
    }
    if (c->attn_wish == ATTN_UNTRIED) {
        return ATTN_WGMMA;
    }
    char name[PIN_LINE];
    char value[PIN_LINE];
    (void)snprintf(name, sizeof(name), "%s attn:%d:%d", c->machine, (int)WGMMA_REVISION, (int)D);
    FILE *f = pins_lock(c);
    if (c->failed) {
        pins_unlock(f);
        return ATTN_OPEN; // nothing can be learnt now
    }
    enum attn_kind kind =
        pins_find(f, name, value) && strcmp(value, "wgmma") == 0 ? ATTN_WGMMA : ATTN_MMA;
    if (kind == ATTN_MMA && c->attn_wish == ATTN_WGMMA) {
        pins_note(f, name, "mma");
        if (trial(c, D)) {
            kind = ATTN_WGMMA;
            pins_note(f, name, "wgmma");
        } else {
            c->failed =
                "the wgmma attention failed its trial on this GPU; try PHOTON_CUDA_ATTN=mma";
        }
    }
    pins_unlock(f);
    return kind;
}

/* Tiles move 16 bytes at a time. */
static bool tiled(enum dtype at, int64_t D, const void *qkv, const void *o)
{
    return at == DTYPE_BF16 && (D == 64 || D == 128) && moves_wide<bf16>(D, qkv, o);
}

static enum attn_kind kind_for(struct cuda *c, int64_t D)
{
    enum attn_kind *kind = &c->attn[D == 128];
    if (*kind == ATTN_OPEN && c->recording) {
        c->spoiled = true; // a trial cannot be kept
    } else if (*kind == ATTN_OPEN) {
        *kind = choose(c, D);
    }
    return *kind;
}

void cuda_attn_fwd(struct backend *be, enum dtype at, void *o, void *lse, const void *qkv,
                   const float *slopes, int64_t B, int64_t T, int64_t H, int64_t D)
{
    struct cuda *c = cuda_of(be);
    const struct attn x = describe(slopes, T, H, D);
    if (tiled(at, D, qkv, o)) {
        forward(c, kind_for(c, D), o, (float *)lse, qkv, x, B);
    } else {
        attn_fwd_plain(c, at, o, lse, qkv, x, B);
    }
}

void cuda_attn_bwd(struct backend *be, enum dtype at, void *dqkv, const void *qkv, const void *o,
                   const void *dout, const void *lse, const float *slopes, int64_t B, int64_t T,
                   int64_t H, int64_t D)
{
    struct cuda *c = cuda_of(be);
    const struct attn x = describe(slopes, T, H, D);
    if (tiled(at, D, qkv, dout) && moves_wide<bf16>(D, dqkv)) {
        backward(c, kind_for(c, D), dqkv, qkv, o, dout, (const float *)lse, x, B);
        return;
    }
    float *delta = (float *)cuda_scratch(c, (size_t)(B * H * T) * sizeof(float));
    if (delta) {
        attn_delta(c, at, delta, o, dout, x, B);
        attn_bwd_plain(c, at, dqkv, qkv, dout, lse, delta, x, B);
    }
}
