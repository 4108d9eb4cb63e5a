/*
 * Matrix products through oneDNN's matmul primitive (C API of 2.6; oneDNN guide, "MatMul").
 *
 * A primitive is made once per shape, which compiles code for it, and kept with its memory handles.
 * oneDNN works in the caller's OpenMP threads and may split a long inner dimension among them over
 * a small output, so the bits hold for one number of threads: the one given at open. Where our own
 * product is faster, or oneDNN has only its reference in plain C for a shape, ours does it.
 */
#include <dnnl.h>
#include <string.h>

#include "common/mem.h"
#include "kernels/cpu/cpu.h"

#ifdef _OPENMP
#include <omp.h>
#endif

const char cpu_gemm_name[] = "oneDNN";

struct plan {
    struct plan *next;
    struct gemm key;
    dnnl_primitive_t prim; /* NULL: left to our own product */
    dnnl_memory_t src, weights, dst, bias, scratch;
    size_t scratch_size;
};

struct gemm_plans {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct plan *first;
};

/*
 * The OpenMP threads of the calling thread are what oneDNN looks at, whenever it looks. It shares
 * the work among that many: a team that turns out smaller, as OMP_DYNAMIC lets it, leaves some of
 * it undone.
 */
static void use_threads(const struct backend *be)
{
#ifdef _OPENMP
    if (omp_get_max_threads() != be->threads) {
        omp_set_num_threads(be->threads);
    }
    if (omp_get_dynamic()) {
        omp_set_dynamic(0);
    }
#else
    (void)be;
#endif
}

enum status cpu_gemm_open(struct cpu *c, struct err *e)
{
    struct gemm_plans *p = mem_alloc(sizeof(*p));
    if (dnnl_engine_create(&p->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags) != dnnl_success) {
        mem_free(p);
        return err_set(e, ST_DEVICE, "oneDNN has no CPU engine");
    }
    c->plans = p;
    return ST_OK;
}

static void plan_free(struct plan *p)
{
    dnnl_memory_t all[] = {p->src, p->weights, p->dst, p->bias, p->scratch};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (all[i]) {
            (void)dnnl_memory_destroy(all[i]);
        }
    }
    if (p->prim) {
        (void)dnnl_primitive_destroy(p->prim);
    }
    mem_free(p);
}

void cpu_gemm_close(struct cpu *c)
{
    struct gemm_plans *all = c->plans;
    for (struct plan *p = all->first; p;) {
        struct plan *next = p->next;
        plan_free(p);
        p = next;
    }
    (void)dnnl_stream_destroy(all->stream);
    (void)dnnl_engine_destroy(all->engine);
    mem_free(all);
}

/* The product in oneDNN's words: dst (m, n) = src (m, k) weights (k, n). */
struct shapes {
    dnnl_memory_desc_t src, weights, dst, bias;
    bool with_bias;
};

static dnnl_memory_desc_t matrix(int64_t rows, int64_t cols, bool f32, bool transposed)
{
    dnnl_memory_desc_t d;
    dnnl_dims_t dims = {rows, cols};
    memset(&d, 0, sizeof(d));
    (void)dnnl_memory_desc_init_by_tag(&d, 2, dims, f32 ? dnnl_f32 : dnnl_bf16,
                                       transposed ? dnnl_ba : dnnl_ab);
    return d;
}

static struct shapes shapes_of(const struct gemm *g)
{
    bool f32 = g->a_type == DTYPE_F32;
    struct shapes s = {.with_bias = g->bias};
    switch (g->use) {
    case GEMM_DGRAD:
        s.src = matrix(g->M, g->N, f32, false);
        s.weights = matrix(g->N, g->K, f32, false);
        s.dst = matrix(g->M, g->K, f32, false);
        break;
    case GEMM_WGRAD:
        s.src = matrix(g->N, g->M, f32, true);
        s.weights = matrix(g->M, g->K, f32, false);
        s.dst = matrix(g->N, g->K, true, false);
        break;
    case GEMM_FWD:
    case GEMM_USE_COUNT:
        s.src = matrix(g->M, g->K, f32, false);
        s.weights = matrix(g->K, g->N, f32, true);
        s.dst = matrix(g->M, g->N, f32 || g->out_f32, false);
        s.bias = matrix(1, g->N, f32, false);
        break;
    }
    return s;
}

/* The first implementation that is no reference; NULL when there is none. */
static dnnl_primitive_desc_t describe(struct gemm_plans *all, const struct gemm *g,
                                      const struct shapes *s)
{
    dnnl_matmul_desc_t d;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_primitive_desc_iterator_t it = NULL;
    dnnl_primitive_desc_t found = NULL;
    if (dnnl_matmul_desc_init(&d, &s->src, &s->weights, s->with_bias ? &s->bias : NULL, &s->dst) !=
            dnnl_success ||
        dnnl_primitive_attr_create(&attr) != dnnl_success) {
        return NULL;
    }
    (void)dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (g->accumulate && dnnl_post_ops_create(&post) == dnnl_success) {
        (void)dnnl_post_ops_append_sum(post, 1.0f);
        (void)dnnl_primitive_attr_set_post_ops(attr, post);
    }
    dnnl_status_t st = dnnl_primitive_desc_iterator_create(&it, &d, attr, all->engine, NULL);
    for (; st == dnnl_success && !found; st = dnnl_primitive_desc_iterator_next(it)) {
        dnnl_primitive_desc_t pd = dnnl_primitive_desc_iterator_fetch(it);
        const char *info = "ref";
        (void)dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&info);
        if (strstr(info, "ref")) {
            (void)dnnl_primitive_desc_destroy(pd);
        } else {
            found = pd;
        }
    }
    if (it) {
        (void)dnnl_primitive_desc_iterator_destroy(it);
    }
    if (post) {
        (void)dnnl_post_ops_destroy(post);
    }
    (void)dnnl_primitive_attr_destroy(attr);
    return found;
}

/* ST_OK with p->prim NULL: oneDNN would be slow here. */
static bool plan_build(struct gemm_plans *all, struct plan *p)
{
    struct shapes s = shapes_of(&p->key);
    dnnl_primitive_desc_t pd = describe(all, &p->key, &s);
    if (!pd) {
        return true;
    }
    const dnnl_memory_desc_t *scratch =
        dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    p->scratch_size = dnnl_memory_desc_get_size(scratch);
    bool ok =
        dnnl_primitive_create(&p->prim, pd) == dnnl_success &&
        dnnl_memory_create(&p->src, &s.src, all->engine, DNNL_MEMORY_NONE) == dnnl_success &&
        dnnl_memory_create(&p->weights, &s.weights, all->engine, DNNL_MEMORY_NONE) ==
            dnnl_success &&
        dnnl_memory_create(&p->dst, &s.dst, all->engine, DNNL_MEMORY_NONE) == dnnl_success &&
        dnnl_memory_create(&p->scratch, scratch, all->engine, DNNL_MEMORY_NONE) == dnnl_success &&
        (!s.with_bias ||
         dnnl_memory_create(&p->bias, &s.bias, all->engine, DNNL_MEMORY_NONE) == dnnl_success);
    (void)dnnl_primitive_desc_destroy(pd);
    return ok;
}

static bool same(const struct gemm *x, const struct gemm *y)
{
    return x->use == y->use && x->a_type == y->a_type && x->bias == y->bias &&
           x->accumulate == y->accumulate && x->out_f32 == y->out_f32 && x->M == y->M &&
           x->N == y->N && x->K == y->K;
}

/* The plan for this product, made when it is new; NULL when oneDNN fails. */
static struct plan *plan_for(struct backend *be, const struct gemm *g)
{
    struct cpu *c = (struct cpu *)be;
    for (struct plan *p = c->plans->first; p; p = p->next) {
        if (same(&p->key, g)) {
            return p;
        }
    }
    struct plan *p = mem_alloc(sizeof(*p));
    p->key = *g;
    use_threads(be);
    if (!plan_build(c->plans, p)) {
        plan_free(p);
        return NULL;
    }
    p->next = c->plans->first;
    c->plans->first = p;
    return p;
}

static bool is_ours(struct backend *be, const struct gemm *g)
{
    return ((const struct cpu *)be)->own_bf16 && g->a_type == DTYPE_BF16;
}

const char *cpu_plan_gemm(struct backend *be, const struct gemm *g)
{
    struct plan *p = is_ours(be, g) ? NULL : plan_for(be, g);
    if (is_ours(be, g) || (p && !p->prim)) {
        return cpu_plan_gemm_blocked(be, g);
    }
    if (!p) {
        return "oneDNN could not prepare a matrix product";
    }
    return cpu_scratch((struct cpu *)be, p->scratch_size) ? NULL : "out of memory";
}

static void *untyped(const void *p)
{
    union {
        const void *in;
        void *out;
    } u = {p}; // oneDNN's handles do not tell inputs from outputs
    return u.out;
}

void cpu_gemm(struct backend *be, const struct gemm *g, void *out, const void *a, const void *b,
              const void *bias)
{
    struct cpu *c = (struct cpu *)be;
    if (is_ours(be, g)) {
        cpu_gemm_blocked(be, g, out, a, b, bias);
        return;
    }
    struct plan *p = plan_for(be, g);
    if (!p) {
        cpu_fail(c, "oneDNN could not prepare a matrix product");
        return;
    }
    if (!p->prim) {
        cpu_gemm_blocked(be, g, out, a, b, bias);
        return;
    }
    void *scratch = cpu_scratch(c, p->scratch_size);
    if (!scratch) {
        return;
    }
    use_threads(be);
    (void)dnnl_memory_set_data_handle(p->src, untyped(a));
    (void)dnnl_memory_set_data_handle(p->weights, untyped(b));
    (void)dnnl_memory_set_data_handle(p->dst, out);
    (void)dnnl_memory_set_data_handle(p->scratch, scratch);
    dnnl_exec_arg_t args[5] = {{DNNL_ARG_SRC, p->src},
                               {DNNL_ARG_WEIGHTS, p->weights},
                               {DNNL_ARG_DST, p->dst},
                               {DNNL_ARG_SCRATCHPAD, p->scratch}};
    int count = 4;
    if (p->bias) {
        (void)dnnl_memory_set_data_handle(p->bias, untyped(bias));
        args[count++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, p->bias};
    }
    if (dnnl_primitive_execute(p->prim, c->plans->stream, count, args) != dnnl_success ||
        dnnl_stream_wait(c->plans->stream) != dnnl_success) {
        cpu_fail(c, "oneDNN failed in a matrix product");
    }
}
