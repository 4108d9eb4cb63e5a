#include "client/model.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/model_int.h"
#include "common/arena.h"
#include "common/log.h"
#include "common/mem.h"

// A table of 256 layers with names and pointers takes under a megabyte.
#define TABLES_MAX ((size_t)8 << 20)

// Beyond the useful mantissa of any dtype: the pattern of a NaN in bf16, fp32 and fp64 alike.
enum { POISON = 0xff };

void model_alibi_slopes(float *out, int32_t heads)
{
    // The slopes of the next power of two n are 2^(-8 k / n), k = 1..n. Where heads is less, MPT
    // takes the even k first, then the odd ones.
    int32_t n = 1;
    while (n < heads) {
        n *= 2;
    }
    for (int32_t i = 0; i < heads; i++) {
        int32_t k = i + 1;
        if (n != heads) {
            k = i < n / 2 ? 2 * (i + 1) : 2 * (i - n / 2) + 1;
        }
        out[i] = (float)exp2(-8.0 * k / n);
    }
}

/* ---- tables ---- */

/* The parameter of this name; nothing where the spec has none. */
static struct weight find(const struct model *m, const char *name)
{
    const struct param *p = params_find(&m->params, name);
    if (!p) {
        return (struct weight){NULL, NULL};
    }
    size_t at = (size_t)m->offsets[p - m->params.items];
    const char *weights = m->weights;
    char *grads = m->grads;
    struct weight found = {
        .w = weights + at * dtype_size(m->at),
        .dw = grads + at * dtype_size(m->gt),
    };
    return found;
}

static struct norm find_norm(const struct model *m, const char *name)
{
    return (struct norm){.g = find(m, arena_fmt(m->arena, "%s.weight", name)),
                         .b = find(m, arena_fmt(m->arena, "%s.bias", name))};
}

static struct linear find_linear(const struct model *m, const char *name, int64_t N, int64_t K)
{
    return (struct linear){.w = find(m, arena_fmt(m->arena, "%s.weight", name)),
                           .b = find(m, arena_fmt(m->arena, "%s.bias", name)),
                           .N = N,
                           .K = K};
}

static void find_weights(struct model *m)
{
    int64_t d = m->spec.d_model;
    m->blocks = arena_alloc(m->arena, (size_t)m->spec.n_layers * sizeof(struct block));
    for (int32_t i = 0; i < m->spec.n_layers; i++) {
        const char *name = arena_fmt(m->arena, "transformer.blocks.%d", i);
        m->blocks[i] = (struct block){
            .norm_1 = find_norm(m, arena_fmt(m->arena, "%s.norm_1", name)),
            .norm_2 = find_norm(m, arena_fmt(m->arena, "%s.norm_2", name)),
            .qkv = find_linear(m, arena_fmt(m->arena, "%s.attn.Wqkv", name), 3 * d, d),
            .out = find_linear(m, arena_fmt(m->arena, "%s.attn.out_proj", name), d, d),
            .up = find_linear(m, arena_fmt(m->arena, "%s.ffn.up_proj", name), 4 * d, d),
            .down = find_linear(m, arena_fmt(m->arena, "%s.ffn.down_proj", name), d, 4 * d),
        };
    }
    m->wte = find(m, "transformer.wte.weight");
    m->wpe = find(m, "transformer.wpe.weight");
    m->norm_f = find_norm(m, "transformer.norm_f");
}

/* ---- opening ---- */

static enum status choose_plan(struct model *m, const struct model_config *c, struct err *e)
{
    struct backend_caps caps;
    m->ops->caps(m->be, &caps);
    struct plan_request r = {
        .model = c->spec,
        .batch = c->batch,
        .micro_batch = c->micro_batch,
        .a_size = (int32_t)dtype_size(m->at),
        .g_size = (int32_t)dtype_size(m->gt),
        .logits_max = c->logits_max,
        .ranks = c->ranks,
    };
    TRY(memory_plan_choose(&m->plan, &r, caps.memory, caps.pass_tokens, e));
    if (c->recompute >= 0) {
        r = m->plan.request;
        r.recompute = (enum recompute)c->recompute;
        memory_plan(&m->plan, &r);
    }
    return ST_OK;
}

static void tell_memory(const struct memory_plan *p)
{
    char text[640];
    memory_plan_table(p, text, sizeof(text));
    for (const char *line = text; *line;) {
        int len = (int)strcspn(line, "\n");
        log_info("memory of each device: %.*s", len, line);
        line += len + (line[len] == '\n');
    }
}

static enum status take(struct model *m, void **out, int64_t size, const char *what, struct err *e)
{
    *out = m->ops->alloc(m->be, (size_t)size);
    if (!*out) {
        return err_set(
            e, ST_NOMEM,
            "%s: no memory for %s, %lld MiB of %lld that were planned; try to end what else "
            "uses it, or a micro-batch below %d",
            m->ops->name, what, (long long)(size >> 20), (long long)(m->plan.total >> 20),
            (int)m->plan.request.micro_batch);
    }
    return ST_OK;
}

static enum status take_memory(struct model *m, struct err *e)
{
    TRY(take(m, &m->weights, m->plan.weights, "weights", e));
    if (m->plan.rest) {
        TRY(take(m, &m->rest, m->plan.rest, "weights", e));
    }
    TRY(take(m, &m->grads, m->plan.grads, "gradients", e));
    void *p = NULL;
    TRY(take(m, &p, m->plan.activations, "activations", e));
    m->activations = p;
    if (m->spec.position == POSITION_ALIBI) {
        TRY(take(m, &p, m->spec.n_heads * (int64_t)sizeof(float), "slopes", e));
        m->slopes = p;
        float *slopes = arena_alloc(m->arena, (size_t)m->spec.n_heads * sizeof(float));
        model_alibi_slopes(slopes, m->spec.n_heads);
        m->ops->put(m->be, m->slopes, slopes, (size_t)m->spec.n_heads * sizeof(float));
    }
    return ST_OK;
}

static enum status build(struct model *m, const struct model_config *c, struct err *e)
{
    if (!m->ops->supports(m->be, m->at)) {
        return err_set(e, ST_INVALID, "%s does not compute in this dtype here; try f32",
                       m->ops->name);
    }
    TRY(choose_plan(m, c, e));
    if (c->tell) {
        tell_memory(&m->plan); // before any of it is taken
    }
    m->params = params_table(m->arena, &m->spec);
    m->offsets = arena_alloc(m->arena, (size_t)m->params.count * sizeof(int64_t));
    memory_plan_offsets(&m->params, m->offsets);
    TRY(take_memory(m, e));
    find_weights(m);

    int32_t micro = m->plan.request.micro_batch;
    TRY(model_plan_products(m, micro, e));
    if (c->batch % micro != 0) {
        TRY(model_plan_products(m, c->batch % micro, e));
    }
    return backend_sync(m->be, e);
}

enum status model_open(struct model **out, struct backend *be, const struct model_config *c,
                       struct err *e)
{
    TRY(model_spec_check(&c->spec, e));
    if (c->batch < 1) {
        return err_set(e, ST_INVALID, "a batch of %d sequences", c->batch);
    }
    struct model *m = mem_alloc(sizeof(*m));
    m->be = be;
    m->ops = be->ops;
    m->spec = c->spec;
    m->at = c->dtype;
    m->gt = c->dtype == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
    m->rank = c->rank;
    m->arena = arena_new(TABLES_MAX);
    enum status st = build(m, c, e);
    if (st) {
        model_close(m);
        return st;
    }
    *out = m;
    return ST_OK;
}

void model_close(struct model *m)
{
    if (!m) {
        return;
    }
    void *const owned[] = {m->weights, m->rest, m->grads, m->activations, m->slopes};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++) {
        if (owned[i]) {
            m->ops->release(m->be, owned[i]);
        }
    }
    arena_free(m->arena);
    mem_free(m);
}

const struct param_table *model_params(const struct model *m)
{
    return &m->params;
}

const struct memory_plan *model_plan(const struct model *m)
{
    return &m->plan;
}

struct model_flat model_flat(const struct model *m)
{
    return (struct model_flat){.type = m->gt,
                               .count = m->plan.flat_count,
                               .weights = m->weights,
                               .rest = m->rest,
                               .grads = m->grads};
}

void model_watch(struct model *m, model_watch_fn *fn, void *ctx)
{
    m->watch = fn;
    m->watch_ctx = ctx;
}

int64_t model_layer(const struct model *m, int32_t param)
{
    static const char block[] = "transformer.blocks.";
    static const char norm[] = "transformer.norm_f.";
    const char *name = m->params.items[param].name;
    if (strncmp(name, block, sizeof(block) - 1) == 0) {
        return strtol(name + sizeof(block) - 1, NULL, 10);
    }
    return strncmp(name, norm, sizeof(norm) - 1) == 0 ? m->spec.n_layers : -1;
}

int64_t model_offset(const struct model *m, int32_t param)
{
    return m->offsets[param];
}

/* ---- between the flat order and memory ---- */

/* A run of elements that lies in one tensor, and where. */
struct piece {
    int64_t at; /* element of the array */
    int64_t count;
};

static struct piece piece_at(const struct model *m, int64_t start, int64_t count)
{
    const struct param *p = params_at(&m->params, start);
    int64_t into = start - p->offset;
    int64_t left = p->count - into;
    return (struct piece){m->offsets[p - m->params.items] + into, left < count ? left : count};
}

int64_t model_place(const struct model *m, int64_t start, int64_t count)
{
    struct piece p = piece_at(m, start, count);
    assert(p.count == count);
    return p.at;
}

/*
 * How a run of numbers goes into and out of memory: G as it is; double, and a split master, by way
 * of the stage.
 */
enum { STAGE = sizeof(((struct model *)0)->stage) / sizeof(double) };

static void put_f64(struct model *m, double *array, const float *in, int64_t count)
{
    for (int64_t done = 0; done < count; done += STAGE) {
        int64_t n = count - done < STAGE ? count - done : STAGE;
        for (int64_t i = 0; i < n; i++) {
            m->stage[i] = (double)in[done + i];
        }
        m->ops->put(m->be, array + done, m->stage, (size_t)n * sizeof(double));
    }
}

static void get_f64(struct model *m, float *out, const double *array, int64_t count)
{
    for (int64_t done = 0; done < count; done += STAGE) {
        int64_t n = count - done < STAGE ? count - done : STAGE;
        m->ops->get(m->be, m->stage, array + done, (size_t)n * sizeof(double));
        for (int64_t i = 0; i < n; i++) {
            out[done + i] = (float)m->stage[i];
        }
    }
}

/* What is kept here of elements [at, at + most): their place in rest and moments, or -1 for a run
 * that another rank keeps. */
static struct piece kept_at(const struct model *m, int64_t at, int64_t most)
{
    struct shard_run run = shards_run(&m->plan.shards, at, most);
    return (struct piece){run.rank == m->rank ? run.at : -1, run.count};
}

static void put_split(struct model *m, int64_t at, const float *in, int64_t count)
{
    uint16_t *high = (uint16_t *)(void *)m->stage;
    uint16_t *rest = high + STAGE;
    for (int64_t done = 0; done < count;) {
        int64_t left = count - done < STAGE ? count - done : STAGE;
        struct piece kept = kept_at(m, at + done, left);
        for (int64_t i = 0; i < kept.count; i++) {
            master_split(in[done + i], &high[i], &rest[i]);
        }
        size_t size = (size_t)kept.count * sizeof(*high);
        m->ops->put(m->be, (uint16_t *)m->weights + at + done, high, size);
        if (kept.at >= 0) {
            m->ops->put(m->be, (uint16_t *)m->rest + kept.at, rest, size);
        }
        done += kept.count;
    }
}

static void get_split(struct model *m, float *out, int64_t at, int64_t count)
{
    uint16_t *high = (uint16_t *)(void *)m->stage;
    uint16_t *rest = high + STAGE;
    for (int64_t done = 0; done < count;) {
        int64_t left = count - done < STAGE ? count - done : STAGE;
        struct piece kept = kept_at(m, at + done, left);
        size_t size = (size_t)kept.count * sizeof(*high);
        if (kept.at >= 0) {
            m->ops->get(m->be, high, (const uint16_t *)m->weights + at + done, size);
            m->ops->get(m->be, rest, (const uint16_t *)m->rest + kept.at, size);
        }
        for (int64_t i = 0; kept.at >= 0 && i < kept.count; i++) {
            out[done + i] = master_join(high[i], rest[i]);
        }
        done += kept.count;
    }
}

/* Moments. */
static void put_kept(struct model *m, float *array, int64_t at, const float *in, int64_t count)
{
    for (int64_t done = 0; done < count;) {
        struct piece kept = kept_at(m, at + done, count - done);
        if (kept.at >= 0) {
            m->ops->put(m->be, array + kept.at, in + done, (size_t)kept.count * sizeof(float));
        }
        done += kept.count;
    }
}

static void get_kept(struct model *m, float *out, const float *array, int64_t at, int64_t count)
{
    for (int64_t done = 0; done < count;) {
        struct piece kept = kept_at(m, at + done, count - done);
        if (kept.at >= 0) {
            m->ops->get(m->be, out + done, array + kept.at, (size_t)kept.count * sizeof(float));
        }
        done += kept.count;
    }
}

static bool is_whole(const struct model *m, const void *array)
{
    return array == m->weights || array == m->grads || m->plan.shards.ranks == 1;
}

void model_put(struct model *m, void *array, int64_t start, int64_t count, const float *in)
{
    assert(start >= 0 && count >= 0 && start <= m->params.total - count);
    for (int64_t done = 0; done < count;) {
        struct piece p = piece_at(m, start + done, count - done);
        if (m->rest && array == m->weights) {
            put_split(m, p.at, in + done, p.count);
        } else if (m->gt == DTYPE_F64) {
            put_f64(m, (double *)array + p.at, in + done, p.count);
        } else if (!is_whole(m, array)) {
            put_kept(m, array, p.at, in + done, p.count);
        } else {
            m->ops->put(m->be, (float *)array + p.at, in + done, (size_t)p.count * sizeof(float));
        }
        done += p.count;
    }
}

void model_get(struct model *m, float *out, const void *array, int64_t start, int64_t count)
{
    assert(start >= 0 && count >= 0 && start <= m->params.total - count);
    for (int64_t done = 0; done < count;) {
        struct piece p = piece_at(m, start + done, count - done);
        if (m->rest && array == m->weights) {
            get_split(m, out + done, p.at, p.count);
        } else if (m->gt == DTYPE_F64) {
            get_f64(m, out + done, (const double *)array + p.at, p.count);
        } else if (!is_whole(m, array)) {
            get_kept(m, out + done, array, p.at, p.count);
        } else {
            m->ops->get(m->be, out + done, (const float *)array + p.at,
                        (size_t)p.count * sizeof(float));
        }
        done += p.count;
    }
}

static void poison(struct model *m, char *p, int64_t size)
{
    memset(m->stage, POISON, sizeof(m->stage));
    for (int64_t done = 0; done < size; done += (int64_t)sizeof(m->stage)) {
        int64_t n =
            size - done < (int64_t)sizeof(m->stage) ? size - done : (int64_t)sizeof(m->stage);
        m->ops->put(m->be, p + done, m->stage, (size_t)n);
    }
}

void model_poison(struct model *m)
{
    poison(m, m->activations, m->plan.activations);
    // The gaps between gradients stay zero by contract, so only the tensors are filled.
    for (int32_t i = 0; i < m->params.count; i++) {
        size_t size = dtype_size(m->gt);
        poison(m, (char *)m->grads + (size_t)m->offsets[i] * size,
               m->params.items[i].count * (int64_t)size);
    }
}
