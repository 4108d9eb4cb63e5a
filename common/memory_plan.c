#include "common/memory_plan.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/arena.h"

enum { ALIGN_BYTES = 256, LOGITS_MIN = 64 << 20 };

// A table of 256 layers' names takes about 400 KB.
#define TABLE_MAX ((size_t)4 << 20)

static int64_t round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

void memory_plan_offsets(const struct param_table *t, int64_t *offsets)
{
    int64_t at = 0;
    for (int32_t i = 0; i < t->count; i++) {
        offsets[i] = at;
        at += round_up(t->items[i].count, PLAN_ALIGN);
    }
}

/* Elements of all parameters with the gaps between them. */
static int64_t flat_count(const struct model_spec *m)
{
    struct arena *a = arena_new(TABLE_MAX);
    struct param_table t = params_table(a, m);
    int64_t sum = 0;
    for (int32_t i = 0; i < t.count; i++) {
        sum += round_up(t.items[i].count, PLAN_ALIGN);
    }
    arena_free(a);
    return sum;
}

/* Rows of logits at once: chunks about equal, of no more than max bytes unless one row is more. */
static int64_t chunk_rows(int64_t rows, int64_t row_size, int64_t max)
{
    int64_t most = max / row_size < 1 ? 1 : max / row_size;
    int64_t chunks = (rows + most - 1) / most;
    return (rows + chunks - 1) / chunks;
}

/* Is this tensor of a block still there when the backward pass comes to it? */
static bool is_kept(enum act id, enum recompute level)
{
    switch (level) {
    case RECOMPUTE_NONE:
        return true;
    case RECOMPUTE_GELU:
        return id != ACT_A;
    case RECOMPUTE_NORMS:
        return id != ACT_A && id != ACT_LN1 && id != ACT_LN2;
    case RECOMPUTE_BLOCK:
    case RECOMPUTE_COUNT:
        break;
    }
    return id == ACT_X;
}

static void size_activations(struct memory_plan *p)
{
    const struct plan_request *r = &p->request;
    int64_t N = (int64_t)r->micro_batch * r->model.seq_len;
    int64_t row = N * r->model.d_model * r->a_size; // (N, d)
    int64_t stat = N * r->g_size;                   // (N)
    const int64_t sizes[ACT_COUNT] = {
        [ACT_X] = row,      [ACT_MEAN1] = stat,  [ACT_RSTD1] = stat,
        [ACT_LN1] = row,    [ACT_QKV] = 3 * row, [ACT_LSE] = stat * r->model.n_heads,
        [ACT_O] = row,      [ACT_MID] = row,     [ACT_MEAN2] = stat,
        [ACT_RSTD2] = stat, [ACT_LN2] = row,     [ACT_H] = 4 * row,
        [ACT_A] = 4 * row,  [ACT_END] = row,     [ACT_MEANF] = stat,
        [ACT_RSTDF] = stat, [ACT_F] = row,       [ACT_Y] = row,
        [ACT_DX] = row,     [ACT_DY] = row,      [ACT_BIG] = 4 * row,
    };
    for (int i = 0; i < ACT_COUNT; i++) {
        p->act[i].size = sizes[i];
    }

    int64_t V = r->model.vocab_size;
    p->chunk_rows = chunk_rows(N, V * r->a_size, r->logits_max);
    p->chunk_rows_eval = chunk_rows(N, V * r->g_size, r->logits_max);
    const int64_t logits[] = {p->chunk_rows * V * r->a_size, p->chunk_rows_eval * V * r->g_size};
    for (int i = 0; i < 2; i++) {
        if (p->act[ACT_BIG].size < logits[i]) {
            p->act[ACT_BIG].size = logits[i];
        }
    }
}

/* Places: first what all layers share, then layer after layer what each keeps. */
static void place_activations(struct memory_plan *p)
{
    int64_t layer = 0; // bytes that one layer keeps
    int64_t shared = 0;
    for (int i = 0; i < ACT_COUNT; i++) {
        struct plan_tensor *t = &p->act[i];
        bool kept = i < ACT_BLOCK_COUNT && is_kept((enum act)i, p->request.recompute);
        int64_t *at = kept ? &layer : &shared;
        t->offset = *at;
        t->stride = kept; // for now: which of the two it is
        *at += round_up(t->size, ALIGN_BYTES);
    }
    for (int i = 0; i < ACT_COUNT; i++) {
        if (p->act[i].stride) {
            p->act[i].offset += shared;
            p->act[i].stride = layer;
        }
    }
    p->activations = shared + p->request.model.n_layers * layer;
}

static void plan_pass(struct memory_plan *p)
{
    size_activations(p);
    place_activations(p);
    p->total = p->weights + p->rest + p->grads + p->moments + p->activations + p->batch_data;
}

void memory_plan(struct memory_plan *out, const struct plan_request *r)
{
    assert(r->micro_batch >= 1 && r->micro_batch <= r->batch);
    struct memory_plan p = {.request = *r, .flat_count = flat_count(&r->model)};
    p.weights = p.flat_count * r->a_size;
    p.shards = shards_of(p.flat_count, r->ranks > 1 ? r->ranks : 1);
    int64_t kept = shards_count(&p.shards, 0);
    p.rest = kept * (r->g_size - r->a_size);
    p.grads = p.flat_count * r->g_size;
    p.moments = 2 * kept * r->g_size;
    int64_t tokens = (int64_t)r->batch * r->model.seq_len;
    p.batch_data = tokens * (2 * (int64_t)sizeof(int32_t) + r->g_size) +
                   (p.flat_count / 65536 + 1) * (int64_t)sizeof(double);
    plan_pass(&p);
    *out = p;
}

/* Does the plan fit with at most this much recomputation? Leaves it at the least that does. */
static bool fits(struct memory_plan *p, int64_t memory, enum recompute most)
{
    for (int level = 0; level <= (int)most; level++) {
        p->request.recompute = (enum recompute)level;
        plan_pass(p);
        if (p->total <= memory) {
            return true;
        }
    }
    return false;
}

/* Which part of it is the largest, and which micro-batch would fit. */
static enum status does_not_fit(struct memory_plan *p, int64_t memory, struct err *e)
{
    const double GIB = 1024.0 * 1024.0 * 1024.0;
    const struct memory_plan whole = *p;
    int64_t state = whole.weights + whole.rest + whole.grads + whole.moments;
    char remedy[64] = "a smaller model or sequence";
    int32_t b = p->request.micro_batch - 1;
    while (b > 0) {
        p->request.micro_batch = b;
        if (fits(p, memory, RECOMPUTE_BLOCK)) {
            break;
        }
        b--;
    }
    if (b > 0) {
        (void)snprintf(remedy, sizeof(remedy), "a micro-batch of %d", (int)b);
    }
    return err_set(
        e, ST_NOMEM,
        "micro-batch %d takes %.1f GiB (%.1f GiB weights, gradients and moments, %.1f GiB "
        "activations), %.1f GiB may be used; try %s",
        (int)whole.request.micro_batch, (double)whole.total / GIB, (double)state / GIB,
        (double)whole.activations / GIB, (double)memory / GIB, remedy);
}

enum status memory_plan_choose(struct memory_plan *out, const struct plan_request *r,
                               int64_t memory, int64_t pass_tokens, struct err *e)
{
    struct plan_request first = *r;
    first.micro_batch = r->micro_batch ? (int32_t)min64(r->micro_batch, r->batch) : 1;
    if (!first.logits_max) {
        first.logits_max = memory / 64 < LOGITS_MIN ? LOGITS_MIN : memory / 64;
    }
    struct memory_plan p;
    memory_plan(&p, &first);

    // The largest pass that needs no whole blocks again, else the smallest of all.
    int32_t most = first.micro_batch;
    if (!r->micro_batch) {
        int64_t useful = (pass_tokens + r->model.seq_len - 1) / r->model.seq_len;
        most = (int32_t)min64(useful < 1 ? 1 : useful, r->batch);
    }
    for (int32_t b = most; b >= first.micro_batch; b--) {
        p.request.micro_batch = b;
        bool even = r->batch % b == 0 || r->micro_batch;
        if (even && fits(&p, memory, RECOMPUTE_NORMS)) {
            *out = p;
            return ST_OK;
        }
    }
    p.request.micro_batch = first.micro_batch;
    if (fits(&p, memory, RECOMPUTE_BLOCK)) {
        *out = p;
        return ST_OK;
    }
    return does_not_fit(&p, memory, e);
}

void memory_plan_table(const struct memory_plan *p, char *out, size_t size)
{
    const struct {
        const char *name;
        int64_t bytes;
    } rows[] = {{"weights", p->weights}, {"master's rest", p->rest},      {"gradients", p->grads},
                {"moments", p->moments}, {"activations", p->activations}, {"batch", p->batch_data},
                {"total", p->total}};
    size_t at = 0;
    out[0] = '\0';
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]) && at < size; i++) {
        bool shared = p->shards.ranks > 1 && (i == 1 || i == 3);
        char share[48] = "";
        if (shared) {
            (void)snprintf(share, sizeof(share), "  a share of %d", (int)p->shards.ranks);
        }
        int n = snprintf(out + at, size - at, "%-14s %16" PRId64 "%s\n", rows[i].name,
                         rows[i].bytes, share);
        at += n > 0 ? (size_t)n : 0;
    }
}

int64_t memory_plan_silo(const struct model_spec *m, int32_t batch, int32_t micro_batch)
{
    struct plan_request r = {
        .model = *m,
        .batch = batch,
        .micro_batch = micro_batch < 1 ? 1 : (int32_t)min64(micro_batch, batch),
        .recompute = RECOMPUTE_NORMS,
        .a_size = 2,
        .g_size = 4,
        .logits_max = LOGITS_MIN,
    };
    struct memory_plan p;
    memory_plan(&p, &r);
    return p.total;
}
