#include <unistd.h>

#include "common/mem.h"
#include "kernels/group.h"
#include "kernels/host.h"
#include "kernels/ref/ops.h"

// What alloc() hands out begins at a multiple of this, and the block it lies in is noted before it.
enum { ALIGNMENT = 256 };

void *ref_alloc(struct backend *be, size_t size)
{
    (void)be;
    void *block = NULL;
    if (size > SIZE_MAX - 2 * ALIGNMENT ||
        mem_alloc_large(&block, size + 2 * ALIGNMENT, NULL) != ST_OK) {
        return NULL;
    }
    char *p = block;
    p += 2 * ALIGNMENT - (uintptr_t)block % ALIGNMENT;
    memcpy(p - sizeof(block), &block, sizeof(block));
    return p;
}

void ref_release(struct backend *be, void *p)
{
    (void)be;
    if (p) {
        void *block;
        memcpy(&block, (char *)p - sizeof(block), sizeof(block));
        mem_free(block);
    }
}

void ref_copy(struct backend *be, void *dst, const void *src, size_t size)
{
    (void)be;
    memcpy(dst, src, size);
}

void ref_zero(struct backend *be, void *p, size_t size)
{
    (void)be;
    memset(p, 0, size);
}

int64_t ref_memory(void)
{
    int64_t bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
    // A container may have less than the machine it runs on (cgroup v2; "max" is no number).
    FILE *f = fopen("/sys/fs/cgroup/memory.max", "r");
    if (f) {
        char text[32] = "";
        char *end = text;
        long long limit = fgets(text, sizeof(text), f) ? strtoll(text, &end, 10) : 0;
        if (end != text && limit > 0 && limit < bytes) {
            bytes = limit;
        }
        (void)fclose(f);
    }
    return bytes / 2;
}

static void ref_caps(struct backend *be, struct backend_caps *out)
{
    (void)be;
    *out = (struct backend_caps){.memory = ref_memory(), .pass_tokens = 512, .dtype = DTYPE_BF16};
}

static bool ref_supports(struct backend *be, enum dtype a_type)
{
    (void)be;
    return a_type >= 0 && a_type < DTYPE_COUNT;
}

static const char *ref_plan_gemm(struct backend *be, const struct gemm *g)
{
    (void)be;
    (void)g;
    return NULL; // nothing is slow once: everything is slow every time
}

static const char *ref_sync(struct backend *be)
{
    (void)be;
    return NULL;
}

static void ref_close(struct backend *be)
{
    group_leave(be);
    mem_free(be);
}

enum status ref_open(struct backend **out, struct err *e)
{
    static const struct backend_ops table = {
        .abi = BACKEND_ABI,
        .name = "ref",
        .close = ref_close,
        .caps = ref_caps,
        .alloc = ref_alloc,
        .release = ref_release,
        .put = ref_copy,
        .get = ref_copy,
        .pin = ref_alloc,
        .unpin = ref_release,
        .send = host_copy,
        .fetch = host_copy,
        .mark = host_mark,
        .follow = host_mark,
        .reach = host_reach,
        .record = host_record,
        .recorded = host_recorded,
        .replay = host_replay,
        .unrecord = host_unrecord,
        .sync = ref_sync,
        .supports = ref_supports,
        .plan_gemm = ref_plan_gemm,
        .embed_fwd = ref_embed_fwd,
        .embed_bwd = ref_embed_bwd,
        .norm_fwd = ref_norm_fwd,
        .norm_bwd = ref_norm_bwd,
        .gemm = ref_gemm,
        .bias_bwd = ref_bias_bwd,
        .gelu_fwd = ref_gelu_fwd,
        .gelu_bwd = ref_gelu_bwd,
        .attn_fwd = ref_attn_fwd,
        .attn_bwd = ref_attn_bwd,
        .xent = ref_xent,
        .sqnorm = ref_sqnorm,
        .clip = ref_clip,
        .optim = ref_optim,
        .zero = ref_zero,
        .delta = ref_delta,
        .encode = ref_encode,
        .meet = group_meet,
        .join = group_join,
        .bind = group_bind,
        .all_reduce = group_all_reduce,
        .reduce_scatter = group_reduce_scatter,
        .all_gather = group_all_gather,
    };
    void *be = NULL;
    TRY(mem_alloc_large(&be, sizeof(struct backend), e));
    *out = be;
    (*out)->ops = &table;
    (*out)->threads = 1;
    return ST_OK;
}
