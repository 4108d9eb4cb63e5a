/*
 * Matrix products by cuBLASLt.
 *
 * Its matrices are column-major, so our row-major operands are read as their own transposes, and
 * nothing is ever copied (M, N, K are those of the forward product):
 *
 *     fwd    Y (M, N)  = X W^T    op T, N    A = W, B = X    m, n, k = N, M, K   ld K, K, N
 *     dgrad  dX (M, K) = dY W     op N, N    A = W, B = dY   m, n, k = K, M, N   ld K, N, K
 *     wgrad  dW (N, K) = dY^T X   op N, T    A = X, B = dY   m, n, k = K, N, M   ld K, N, K
 *
 * The arithmetic is fp32 throughout: no TF32, and where a product is split along k the partial sums
 * stay fp32. What is slow, descriptors and the choice of an algorithm, is done once per product and
 * kept. The same algorithm on the same device gives the same bits.
 *
 * The algorithm is the first that cuBLASLt proposes. Where there is a file of choices (pins.cuh),
 * plan_gemm() times the first sixteen on random operands instead, and the winner is noted and used
 * from then on.
 */
#include <cublasLt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <new>

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/pins.cuh"

enum { CANDIDATES = 16, TIMINGS = 5 };

static const size_t WORKSPACE = (size_t)32 << 20;
static const size_t FLUSH = (size_t)128 << 20; // more than any L2 holds today

struct plan {
    struct plan *next;
    struct gemm g;
    int align;
    bool usable;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algo;
};

struct lt {
    cublasLtHandle_t handle;
    void *workspace;
    struct plan *plans;
};

// ---- opening ----------------------------------------------------------------------------------

const char *lt_open(struct cuda *c)
{
    c->lt = new (std::nothrow) lt{};
    struct lt *lt = c->lt;
    if (!lt) {
        return "out of memory";
    }
    cublasStatus_t st = cublasLtCreate(&lt->handle);
    if (st != CUBLAS_STATUS_SUCCESS) {
        lt->handle = nullptr;
        lt_close(c);
        return cublasLtGetStatusString(st);
    }
    if (cudaMalloc(&lt->workspace, WORKSPACE) != cudaSuccess) {
        (void)cudaGetLastError();
        lt_close(c);
        return "out of device memory";
    }
    return nullptr;
}

static void plan_free(struct plan *p)
{
    if (p->desc) {
        (void)cublasLtMatmulDescDestroy(p->desc);
    }
    const cublasLtMatrixLayout_t layouts[] = {p->a, p->b, p->d};
    for (cublasLtMatrixLayout_t l : layouts) {
        if (l) {
            (void)cublasLtMatrixLayoutDestroy(l);
        }
    }
    delete p;
}

void lt_close(struct cuda *c)
{
    struct lt *lt = c->lt;
    if (!lt) {
        return;
    }
    while (lt->plans) {
        struct plan *p = lt->plans;
        lt->plans = p->next;
        plan_free(p);
    }
    (void)cudaFree(lt->workspace);
    if (lt->handle) {
        (void)cublasLtDestroy(lt->handle);
    }
    delete lt;
    c->lt = nullptr;
}

// ---- describing -------------------------------------------------------------------------------

static cudaDataType_t type_of(enum dtype t)
{
    return t == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static enum dtype output_of(const struct gemm *g)
{
    return g->use == GEMM_WGRAD || g->out_f32 ? DTYPE_F32 : g->a_type;
}

static bool set(struct plan *p, cublasLtMatmulDescAttributes_t attr, const void *value, size_t size)
{
    return cublasLtMatmulDescSetAttribute(p->desc, attr, value, size) == CUBLAS_STATUS_SUCCESS;
}

/* The table at the head of this file. */
static bool describe(struct plan *p)
{
    const struct gemm *g = &p->g;
    cudaDataType_t in = type_of(g->a_type);
    cudaDataType_t out = type_of(output_of(g));
    cublasOperation_t op_a = g->use == GEMM_FWD ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t op_b = g->use == GEMM_WGRAD ? CUBLAS_OP_T : CUBLAS_OP_N;
    uint64_t M = (uint64_t)g->M;
    uint64_t N = (uint64_t)g->N;
    uint64_t K = (uint64_t)g->K;

    cublasStatus_t st = cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (st == CUBLAS_STATUS_SUCCESS && g->use == GEMM_FWD) {
        st = cublasLtMatrixLayoutCreate(&p->a, in, K, N, g->K);
    } else if (st == CUBLAS_STATUS_SUCCESS && g->use == GEMM_DGRAD) {
        st = cublasLtMatrixLayoutCreate(&p->a, in, K, N, g->K);
    } else if (st == CUBLAS_STATUS_SUCCESS) {
        st = cublasLtMatrixLayoutCreate(&p->a, in, K, M, g->K);
    }
    if (st == CUBLAS_STATUS_SUCCESS) {
        st = g->use == GEMM_FWD ? cublasLtMatrixLayoutCreate(&p->b, in, K, M, g->K)
                                : cublasLtMatrixLayoutCreate(&p->b, in, N, M, g->N);
    }
    if (st == CUBLAS_STATUS_SUCCESS) {
        st = g->use == GEMM_FWD     ? cublasLtMatrixLayoutCreate(&p->d, out, N, M, g->N)
             : g->use == GEMM_DGRAD ? cublasLtMatrixLayoutCreate(&p->d, out, K, M, g->K)
                                    : cublasLtMatrixLayoutCreate(&p->d, out, K, N, g->K);
    }
    if (st != CUBLAS_STATUS_SUCCESS || !set(p, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof(op_a)) ||
        !set(p, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof(op_b))) {
        return false;
    }
    if (!g->bias) {
        return true;
    }
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    return set(p, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)) &&
           set(p, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &in, sizeof(in));
}

static bool set_bias(struct plan *p, const void *bias)
{
    return !p->g.bias || set(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias));
}

// ---- choosing ---------------------------------------------------------------------------------

static int candidates(struct cuda *c, struct plan *p, cublasLtMatmulHeuristicResult_t *out, int max)
{
    cublasLtMatmulPreference_t pref = nullptr;
    if (cublasLtMatmulPreferenceCreate(&pref) != CUBLAS_STATUS_SUCCESS) {
        return 0;
    }
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t align = (uint32_t)p->align;
    const cublasLtMatmulPreferenceAttributes_t aligned[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    bool good =
        cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &WORKSPACE,
                                             sizeof(WORKSPACE)) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                             &schemes, sizeof(schemes)) == CUBLAS_STATUS_SUCCESS;
    for (cublasLtMatmulPreferenceAttributes_t attr : aligned) {
        good = good && cublasLtMatmulPreferenceSetAttribute(pref, attr, &align, sizeof(align)) ==
                           CUBLAS_STATUS_SUCCESS;
    }
    int found = 0;
    if (!good || cublasLtMatmulAlgoGetHeuristic(c->lt->handle, p->desc, p->a, p->b, p->d, p->d,
                                                pref, max, out, &found) != CUBLAS_STATUS_SUCCESS) {
        found = 0;
    }
    (void)cublasLtMatmulPreferenceDestroy(pref);
    int kept = 0;
    for (int i = 0; i < found; i++) {
        if (out[i].state == CUBLAS_STATUS_SUCCESS && out[i].workspaceSize <= WORKSPACE) {
            out[kept++] = out[i];
        }
    }
    return kept;
}

static cublasStatus_t multiply(struct cuda *c, const struct plan *p,
                               const cublasLtMatmulAlgo_t *algo, void *out, const void *a,
                               const void *b)
{
    // The inputs are named as in the head of this file: A is our b, and B our a.
    const float alpha = 1.0f;
    const float beta = p->g.accumulate ? 1.0f : 0.0f;
    return cublasLtMatmul(c->lt->handle, p->desc, &alpha, b, p->a, a, p->b, &beta, out, p->d, out,
                          p->d, algo, c->lt->workspace, WORKSPACE, c->stream);
}

/* The fastest of several runs, each with a cold L2. */
static float time_one(struct cuda *c, const struct plan *p, const cublasLtMatmulAlgo_t *algo,
                      void *const memory[4], cudaEvent_t begin, cudaEvent_t end)
{
    float best = INFINITY;
    for (int i = 0; i <= TIMINGS; i++) { // the first run warms up
        cuda_check(c, cudaMemsetAsync(memory[3], i, FLUSH, c->stream));
        cuda_check(c, cudaEventRecord(begin, c->stream));
        if (multiply(c, p, algo, memory[0], memory[1], memory[2]) != CUBLAS_STATUS_SUCCESS) {
            return INFINITY;
        }
        cuda_check(c, cudaEventRecord(end, c->stream));
        cuda_check(c, cudaEventSynchronize(end));
        float ms = INFINITY;
        cuda_check(c, cudaEventElapsedTime(&ms, begin, end));
        best = i > 0 && ms < best ? ms : best;
    }
    return best;
}

/* Which of the candidates is fastest; -1 where there is no memory to find out. */
static int fastest(struct cuda *c, struct plan *p, const cublasLtMatmulHeuristicResult_t *found,
                   int count)
{
    const struct gemm *g = &p->g;
    const enum dtype types[] = {output_of(g), g->a_type, g->a_type};
    const int64_t sizes[] = {g->use == GEMM_FWD     ? g->M * g->N
                             : g->use == GEMM_DGRAD ? g->M * g->K
                                                    : g->N * g->K,
                             g->use == GEMM_FWD ? g->M * g->K : g->M * g->N,
                             g->use == GEMM_WGRAD ? g->M * g->K : g->N * g->K};
    void *memory[4] = {};
    bool room = cudaMalloc(&memory[3], FLUSH) == cudaSuccess;
    for (int i = 0; i < 3 && room; i++) {
        room = cudaMalloc(&memory[i], (size_t)sizes[i] * dtype_size(types[i])) == cudaSuccess;
        if (room) {
            cuda_fill(c, memory[i], types[i], sizes[i], 1.0f);
        }
    }
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    room = room && cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess;
    int best = 0;
    float best_ms = INFINITY;
    for (int i = 0; i < count && room; i++) {
        float ms = time_one(c, p, &found[i].algo, memory, begin, end);
        if (ms < best_ms) {
            best_ms = ms;
            best = i;
        }
    }
    if (!room) {
        (void)cudaGetLastError();
    }
    cuda_check(c, cudaStreamSynchronize(c->stream));
    const cudaEvent_t events[] = {begin, end};
    for (cudaEvent_t e : events) {
        if (e) {
            (void)cudaEventDestroy(e);
        }
    }
    for (void *m : memory) {
        (void)cudaFree(m);
    }
    return room ? best : -1;
}

// ---- noted choices ----------------------------------------------------------------------------

static void name_product(char out[PIN_LINE], const struct cuda *c, const struct plan *p)
{
    const struct gemm *g = &p->g;
    (void)snprintf(out, PIN_LINE, "%s/%zu %d:%d:%d:%d:%d:%lld:%lld:%lld:%d", c->machine,
                   cublasLtGetVersion(), (int)g->use, (int)g->a_type, g->bias, g->accumulate,
                   g->out_f32, (long long)g->M, (long long)g->N, (long long)g->K, p->align);
}

static bool algo_read(FILE *f, const char *name, cublasLtMatmulAlgo_t *algo)
{
    char hex[PIN_LINE];
    unsigned char bytes[sizeof(*algo)];
    if (!pins_find(f, name, hex)) {
        return false;
    }
    size_t i = 0;
    for (unsigned v; i < sizeof(bytes) && sscanf(hex + 2 * i, "%2x", &v) == 1; i++) {
        bytes[i] = (unsigned char)v;
    }
    if (i < sizeof(bytes)) {
        return false;
    }
    memcpy(algo, bytes, sizeof(bytes));
    return true;
}

static void algo_write(FILE *f, const char *name, const cublasLtMatmulAlgo_t *algo)
{
    unsigned char bytes[sizeof(*algo)];
    char hex[2 * sizeof(bytes) + 1];
    memcpy(bytes, algo, sizeof(bytes));
    for (size_t i = 0; i < sizeof(bytes); i++) {
        (void)snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
    }
    pins_note(f, name, hex);
}

/* The noted algorithm, or the fastest now, noted; the first proposed where that cannot be found
 * out. */
static void choose_by_file(struct cuda *c, struct plan *p,
                           const cublasLtMatmulHeuristicResult_t *found, int count)
{
    FILE *f = pins_lock(c);
    if (!f) {
        return;
    }
    char name[PIN_LINE];
    name_product(name, c, p);
    cublasLtMatmulAlgo_t noted;
    cublasLtMatmulHeuristicResult_t checked;
    if (algo_read(f, name, &noted) &&
        cublasLtMatmulAlgoCheck(c->lt->handle, p->desc, p->a, p->b, p->d, p->d, &noted, &checked) ==
            CUBLAS_STATUS_SUCCESS &&
        checked.workspaceSize <= WORKSPACE) {
        p->algo = noted;
    } else {
        int best = fastest(c, p, found, count);
        p->algo = found[best < 0 ? 0 : best].algo;
        if (best >= 0) { // else it is tried again another time
            algo_write(f, name, &p->algo);
        }
    }
    pins_unlock(f);
}

// ---- preparing and doing ------------------------------------------------------------------------

static bool same(const struct gemm *x, const struct gemm *y)
{
    return x->use == y->use && x->a_type == y->a_type && x->bias == y->bias &&
           x->accumulate == y->accumulate && x->out_f32 == y->out_f32 && x->M == y->M &&
           x->N == y->N && x->K == y->K;
}

static struct plan *find(const struct lt *lt, const struct gemm *g, int align)
{
    struct plan *p = lt->plans;
    while (p && !(p->align == align && same(&p->g, g))) {
        p = p->next;
    }
    return p;
}

static struct plan *prepare(struct cuda *c, const struct gemm *g, int align)
{
    struct plan *p = find(c->lt, g, align);
    if (p) {
        return p;
    }
    p = new (std::nothrow) plan{};
    if (!p) {
        cuda_fail(c, "out of memory");
        return nullptr;
    }
    p->g = *g;
    p->align = align;
    p->next = c->lt->plans;
    c->lt->plans = p;
    if (g->bias && output_of(g) != g->a_type) {
        return p; // a bf16 bias on an fp32 result: not among its combinations
    }
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    // The heuristic looks at the bias's address: any that is aligned like the real one.
    bool good = describe(p) && set_bias(p, (const char *)c->lt->workspace + align % 256);
    int count = good ? candidates(c, p, found, c->pins ? (int)CANDIDATES : 1) : 0;
    if (count > 0) {
        p->usable = true;
        p->algo = found[0].algo;
        if (c->pins && align == 256) {
            choose_by_file(c, p, found, count);
        }
    }
    return p;
}

bool lt_plan(struct cuda *c, const struct gemm *g, int align)
{
    const struct plan *p = prepare(c, g, align);
    return p && p->usable;
}

bool lt_gemm(struct cuda *c, const struct gemm *g, void *out, const void *a, const void *b,
             const void *bias)
{
    uintptr_t bits = (uintptr_t)out | (uintptr_t)a | (uintptr_t)b | (uintptr_t)bias | 256;
    struct plan *p = prepare(c, g, (int)(bits & (~bits + 1)));
    if (!p || !p->usable) {
        return false;
    }
    cublasStatus_t st =
        set_bias(p, bias) ? multiply(c, p, &p->algo, out, a, b) : CUBLAS_STATUS_INVALID_VALUE;
    if (st == CUBLAS_STATUS_NOT_SUPPORTED) {
        p->usable = false; // accepted by the heuristic, refused by the kernel: take the other way
        return false;
    }
    if (st != CUBLAS_STATUS_SUCCESS) {
        cuda_fail(c, cublasLtGetStatusString(st));
    }
    return true;
}
