#include "common/params.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/rng.h"

static const char *const POSITION_NAMES[POSITION_COUNT] = {"learned", "alibi"};

enum status position_parse(enum position *out, const char *name, struct err *e)
{
    for (int i = 0; i < POSITION_COUNT; i++) {
        if (strcmp(name, POSITION_NAMES[i]) == 0) {
            *out = (enum position)i;
            return ST_OK;
        }
    }
    return err_set(e, ST_INVALID, "unknown position '%s'; try learned or alibi", name);
}

const char *position_name(enum position p)
{
    return POSITION_NAMES[p];
}

static enum status check_size(const char *field, int64_t value, int64_t max, struct err *e)
{
    if (value < 1 || value > max) {
        return err_set(e, ST_INVALID, "%s is %lld; try 1 to %lld", field, (long long)value,
                       (long long)max);
    }
    return ST_OK;
}

enum status model_spec_check(const struct model_spec *m, struct err *e)
{
    TRY(check_size("d_model", m->d_model, LIMIT_D_MODEL, e));
    TRY(check_size("n_heads", m->n_heads, LIMIT_HEADS, e));
    TRY(check_size("n_layers", m->n_layers, LIMIT_LAYERS, e));
    TRY(check_size("vocab_size", m->vocab_size, LIMIT_VOCAB, e));
    TRY(check_size("seq_len", m->seq_len, LIMIT_SEQ_LEN, e));
    if (m->d_model % m->n_heads != 0) {
        return err_set(e, ST_INVALID, "d_model %d is no multiple of n_heads %d", m->d_model,
                       m->n_heads);
    }
    if (m->d_model / m->n_heads % 2 != 0) {
        return err_set(e, ST_INVALID, "d_model / n_heads is %d; try an even head size",
                       m->d_model / m->n_heads);
    }
    if (m->position < 0 || m->position >= POSITION_COUNT) {
        return err_set(e, ST_INVALID, "position is none of learned and alibi");
    }
    return ST_OK;
}

int64_t model_param_count(const struct model_spec *m)
{
    int64_t d = m->d_model;
    int64_t layer = 12 * d * d + (m->bias ? 13 : 2) * d;
    int64_t positions = m->position == POSITION_LEARNED ? m->seq_len : 0;
    return (m->vocab_size + positions) * d + m->n_layers * layer + (m->bias ? 2 : 1) * d;
}

/* ---- the table ---- */

/* A table while it is filled, in the order in which a forward pass meets the tensors. */
struct filling {
    struct arena *arena;
    struct param *items;
    int32_t count;
};

static void add(struct filling *f, const char *name, int64_t rows, int64_t columns, double std,
                float constant)
{
    f->items[f->count++] = (struct param){
        .name = name,
        .rank = columns ? 2 : 1,
        .shape = {rows, columns ? columns : 1},
        .count = rows * (columns ? columns : 1),
        .init_std = std,
        .init_const = constant,
    };
}

/* A weight (rows, columns) whose fan-in is its columns, and its bias where the model has them. */
static void add_linear(struct filling *f, const struct model_spec *m, const char *name,
                       int64_t rows, int64_t columns, double divisor)
{
    double std = sqrt(2.0 / (double)columns) / divisor;
    add(f, arena_fmt(f->arena, "%s.weight", name), rows, columns, std, 0.0F);
    if (m->bias) {
        add(f, arena_fmt(f->arena, "%s.bias", name), rows, 0, 0.0, 0.0F);
    }
}

static void add_norm(struct filling *f, const struct model_spec *m, const char *name)
{
    add(f, arena_fmt(f->arena, "%s.weight", name), m->d_model, 0, 0.0, 1.0F);
    if (m->bias) {
        add(f, arena_fmt(f->arena, "%s.bias", name), m->d_model, 0, 0.0, 0.0F);
    }
}

static void add_block(struct filling *f, const struct model_spec *m, int32_t layer)
{
    int64_t d = m->d_model;
    // What is added to the residual stream 2 L times starts smaller by the root of that.
    double residual = sqrt(2.0 * m->n_layers);
    const char *block = arena_fmt(f->arena, "transformer.blocks.%d", layer);
    add_norm(f, m, arena_fmt(f->arena, "%s.norm_1", block));
    add_linear(f, m, arena_fmt(f->arena, "%s.attn.Wqkv", block), 3 * d, d, 1.0);
    add_linear(f, m, arena_fmt(f->arena, "%s.attn.out_proj", block), d, d, residual);
    add_norm(f, m, arena_fmt(f->arena, "%s.norm_2", block));
    add_linear(f, m, arena_fmt(f->arena, "%s.ffn.up_proj", block), 4 * d, d, 1.0);
    add_linear(f, m, arena_fmt(f->arena, "%s.ffn.down_proj", block), d, 4 * d, residual);
}

static int by_name(const void *a, const void *b)
{
    const struct param *x = a;
    const struct param *y = b;
    return strcmp(x->name, y->name);
}

struct param_table params_table(struct arena *a, const struct model_spec *m)
{
    int32_t count =
        (m->position == POSITION_LEARNED ? 2 : 1) + (m->bias ? 2 : 1) * (6 * m->n_layers + 1);
    struct filling f = {.arena = a, .items = arena_alloc(a, (size_t)count * sizeof(struct param))};
    double std = sqrt(2.0 / m->d_model);
    add(&f, "transformer.wte.weight", m->vocab_size, m->d_model, std, 0.0F);
    if (m->position == POSITION_LEARNED) {
        add(&f, "transformer.wpe.weight", m->seq_len, m->d_model, std, 0.0F);
    }
    for (int32_t layer = 0; layer < m->n_layers; layer++) {
        add_block(&f, m, layer);
    }
    add_norm(&f, m, "transformer.norm_f");
    assert(f.count == count);

    qsort(f.items, (size_t)count, sizeof(f.items[0]), by_name);
    int64_t offset = 0;
    for (int32_t i = 0; i < count; i++) {
        f.items[i].offset = offset;
        offset += f.items[i].count;
    }
    assert(offset == model_param_count(m));
    return (struct param_table){.count = count, .total = offset, .items = f.items};
}

const struct param *params_find(const struct param_table *t, const char *name)
{
    struct param key = {.name = name};
    return bsearch(&key, t->items, (size_t)t->count, sizeof(t->items[0]), by_name);
}

const struct param *params_at(const struct param_table *t, int64_t element)
{
    assert(element >= 0 && element < t->total);
    int32_t low = 0;
    int32_t high = t->count - 1;
    while (low < high) {
        int32_t middle = low + (high - low + 1) / 2;
        if (t->items[middle].offset <= element) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return &t->items[low];
}

/* ---- first values ---- */

void params_init(const struct param_table *t, uint64_t seed, int64_t start, int64_t count,
                 float *out)
{
    assert(start >= 0 && count >= 0 && start <= t->total - count);
    int64_t done = 0;
    while (done < count) {
        const struct param *p = params_at(t, start + done);
        int64_t first = start + done - p->offset;
        int64_t n = p->count - first < count - done ? p->count - first : count - done;
        uint64_t key = rng_key(seed, p->name);
        for (int64_t i = 0; i < n; i++) {
            double normal = p->init_std > 0.0 ? rng_normal(key, (uint64_t)(first + i)) : 0.0;
            out[done + i] = p->init_const + (float)(p->init_std * normal);
        }
        done += n;
    }
}
