/* Opening the CPU backend: which lanes, how many threads, where memory comes from. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/group.h"
#include "kernels/host.h"
#include "kernels/ref/ops.h" // the memory of this machine is the same for both

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* From here on an allocation asks for huge pages: at 4 KiB a page the TLB misses on every row. */
#define HUGE_PAGE ((size_t)2 << 20)

void cpu_fail(struct cpu *c, const char *why)
{
    if (!c->failed) {
        c->failed = why;
    }
}

/* Aligned memory; what mem_free() wants lies just before it. */
static void *aligned_new(size_t size)
{
    size_t align = size >= HUGE_PAGE ? HUGE_PAGE : 256;
    void *raw;
    struct err e;
    if (size > SIZE_MAX - 2 * HUGE_PAGE || mem_alloc_large(&raw, size + align + sizeof(raw), &e)) {
        return NULL;
    }
    uintptr_t at = ((uintptr_t)raw + sizeof(raw) + align - 1) / align * align;
    char *p = (char *)raw + (at - (uintptr_t)raw);
    memcpy(p - sizeof(raw), &raw, sizeof(raw));
#ifdef MADV_HUGEPAGE
    if (size >= HUGE_PAGE) {
        (void)madvise(p, size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); // a wish, not a need
    }
#endif
    return p;
}

static void aligned_free(void *p)
{
    if (p) {
        void *raw;
        memcpy(&raw, (char *)p - sizeof(raw), sizeof(raw));
        mem_free(raw);
    }
}

void *cpu_scratch(struct cpu *c, size_t size)
{
    if (size > c->scratch_size || !c->scratch) {
        aligned_free(c->scratch);
        c->scratch = aligned_new(size);
        c->scratch_size = c->scratch ? size : 0;
        if (!c->scratch) {
            cpu_fail(c, "out of memory for working space");
        }
    }
    return c->scratch;
}

static void cpu_close(struct backend *be)
{
    struct cpu *c = (struct cpu *)be;
    group_leave(be);
    cpu_gemm_close(c);
    aligned_free(c->scratch);
    mem_free(c);
}

static void cpu_caps(struct backend *be, struct backend_caps *out)
{
    *out = (struct backend_caps){.memory = ref_memory(),
                                 .pass_tokens = 4096,
                                 .dtype = ((const struct cpu *)be)->lanes->best};
}

static void *cpu_alloc(struct backend *be, size_t size)
{
    (void)be;
    return aligned_new(size);
}

static void cpu_release(struct backend *be, void *p)
{
    (void)be;
    aligned_free(p);
}

static void cpu_put(struct backend *be, void *dst, const void *src, size_t size)
{
    (void)be;
    memcpy(dst, src, size);
}

static const char *cpu_sync(struct backend *be)
{
    struct cpu *c = (struct cpu *)be;
    const char *why = c->failed;
    c->failed = NULL;
    return why;
}

static const char *cpu_reach(struct backend *be, int mark)
{
    (void)mark;
    return cpu_sync(be);
}

static bool cpu_supports(struct backend *be, enum dtype a_type)
{
    (void)be;
    return a_type == DTYPE_F32 || a_type == DTYPE_BF16;
}

static const struct backend_ops CPU_OPS = {
    .abi = BACKEND_ABI,
    .name = "cpu",
    .close = cpu_close,
    .caps = cpu_caps,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .put = cpu_put,
    .get = cpu_put,
    .pin = cpu_alloc,
    .unpin = cpu_release,
    .send = host_copy,
    .fetch = host_copy,
    .mark = host_mark,
    .follow = host_mark,
    .reach = cpu_reach,
    .record = host_record,
    .recorded = host_recorded,
    .replay = host_replay,
    .unrecord = host_unrecord,
    .sync = cpu_sync,
    .supports = cpu_supports,
    .plan_gemm = cpu_plan_gemm,
    .embed_fwd = cpu_embed_fwd,
    .embed_bwd = cpu_embed_bwd,
    .norm_fwd = cpu_norm_fwd,
    .norm_bwd = cpu_norm_bwd,
    .gemm = cpu_gemm,
    .bias_bwd = cpu_bias_bwd,
    .gelu_fwd = cpu_gelu_fwd,
    .gelu_bwd = cpu_gelu_bwd,
    .attn_fwd = cpu_attn_fwd,
    .attn_bwd = cpu_attn_bwd,
    .xent = cpu_xent,
    .sqnorm = cpu_sqnorm,
    .clip = cpu_clip,
    .optim = cpu_optim,
    .zero = cpu_zero,
    .delta = cpu_delta,
    .encode = cpu_encode,
    .meet = group_meet,
    .join = group_join,
    .bind = group_bind,
    .all_reduce = group_all_reduce,
    .reduce_scatter = group_reduce_scatter,
    .all_gather = group_all_gather,
};

#if defined(__x86_64__)
/* Tiles and their products of bf16 (Intel, Software Developer's Manual, CPUID leaf 7); clang 14
 * knows no name for them. */
static bool has_tiles(void)
{
    enum { BF16 = 1 << 22, TILE = 1 << 24 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILE);
}

/* Linux lets a process use the tiles when it has asked (Documentation/arch/x86/xstate.rst). */
static bool tiles_allowed(void)
{
    enum { ASK = 0x1023, TILES = 18 }; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ASK, TILES) == 0;
}

/*
 * Whether a product of pairs takes less time than two of floats. On AMD's since Zen 4 it does.
 * Intel's since Sapphire Rapids do two multiply-adds of 16 floats in a cycle, and one vdpbf16ps,
 * twice the work, in two (measured on Emerald Rapids): they have tiles for it, but not in each
 * virtual machine.
 */
static bool pairs_are_fast(void)
{
    return !__builtin_cpu_is("intel");
}
#endif

static const struct lanes *best_lanes(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) {
        if (has_tiles() && tiles_allowed()) {
            return &lanes_amx;
        }
        if (pairs_are_fast()) {
            return &lanes_bf16;
        }
    }
    if (avx512) {
        return &lanes_avx512;
    }
    if (avx2) {
        return &lanes_avx2;
    }
#endif
    return &lanes_base;
}

/*
 * The cores this process may use: under taskset or a cpuset fewer than the machine has, and in a
 * container with a quota (cgroup v2, "quota period"; "max" is no number) as many as it pays for.
 * OpenMP counts them, as with OMP_PROC_BIND this very thread is bound to one of them.
 */
static int cores(void)
{
#ifdef _OPENMP
    int n = omp_get_num_procs();
#else
    int n = 1;
#endif
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f) {
        char text[64] = "";
        char *end = text;
        long quota = fgets(text, sizeof(text), f) ? strtol(text, &end, 10) : 0;
        long period = strtol(end, NULL, 10);
        if (quota > 0 && period > 0 && (quota + period - 1) / period < n) {
            n = (int)((quota + period - 1) / period);
        }
        (void)fclose(f);
    }
    return n > 0 ? n : 1;
}

enum status cpu_open(struct backend **out, int threads, struct err *e)
{
    if (threads < 0 || threads > CPU_THREADS_MAX) {
        return err_set(e, ST_INVALID, "%d threads; try 0 for all cores, at most %d", threads,
                       CPU_THREADS_MAX);
    }
    struct cpu *c = mem_alloc(sizeof(*c));
    c->be.ops = &CPU_OPS;
    c->be.threads = threads ? threads : cores();
#ifdef _OPENMP
    if (c->be.threads > omp_get_thread_limit()) { // OMP_THREAD_LIMIT
        c->be.threads = omp_get_thread_limit();
    }
#else
    c->be.threads = 1;
#endif
    c->lanes = best_lanes();
    c->own_bf16 = c->lanes->own_bf16;
    enum status st = cpu_gemm_open(c, e);
    if (st) {
        mem_free(c);
        return st;
    }
    *out = &c->be;
    return ST_OK;
}
