#include "common/layout.h"

#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/schedule.h"

bool layout_trains(const struct run_spec *s, const char *tensor)
{
    return !patterns_match(&s->freeze, tensor);
}

bool layout_travels(const struct run_spec *s, const char *tensor)
{
    return layout_trains(s, tensor) && !patterns_match(&s->personal, tensor);
}

/* ---- fragments ---- */

/* What goes into one fragment as a whole: a block's tensors, or those of a module beside them. */
struct unit {
    int32_t block; // -1: beside the blocks
    const char *name;
    size_t len; // of the module's name
    int64_t count;
    int32_t fragment;
};

static struct unit unit_named(const char *tensor)
{
    static const char blocks[] = "transformer.blocks.";
    bool in_block = strncmp(tensor, blocks, sizeof(blocks) - 1) == 0;
    const char *dot = strrchr(tensor, '.');
    return (struct unit){.block =
                             in_block ? (int32_t)strtol(tensor + sizeof(blocks) - 1, NULL, 10) : -1,
                         .name = tensor,
                         .len = dot ? (size_t)(dot - tensor) : strlen(tensor)};
}

static bool same_unit(const struct unit *a, const struct unit *b)
{
    if (a->block >= 0 || b->block >= 0) {
        return a->block == b->block;
    }
    return a->len == b->len && memcmp(a->name, b->name, a->len) == 0;
}

static int32_t find_unit(const struct unit *units, int32_t count, const struct unit *u)
{
    int32_t i = 0;
    while (i < count && !same_unit(&units[i], u)) {
        i++;
    }
    return i;
}

/* Modules beside the blocks first, the largest of them foremost; then blocks by number. */
static int in_turn(const void *a, const void *b)
{
    const struct unit *x = a;
    const struct unit *y = b;
    if (x->block >= 0 || y->block >= 0) {
        return (x->block > y->block) - (x->block < y->block);
    }
    if (x->count != y->count) {
        return x->count > y->count ? -1 : 1;
    }
    return strcmp(x->name, y->name);
}

/* The units of what travels, in their turn. units has room for one a tensor. */
static int32_t list_units(struct unit *units, const struct run_spec *s,
                          const struct param_table *model)
{
    int32_t count = 0;
    for (int32_t i = 0; i < model->count; i++) {
        const struct param *p = &model->items[i];
        if (layout_travels(s, p->name)) {
            struct unit u = unit_named(p->name);
            int32_t at = find_unit(units, count, &u);
            if (at == count) {
                units[count++] = u;
            }
            units[at].count += p->count;
        }
    }
    qsort(units, (size_t)count, sizeof(*units), in_turn);
    return count;
}

const int32_t *layout_fragments(struct arena *a, const struct run_spec *s,
                                const struct param_table *model)
{
    size_t n = (size_t)model->count;
    int32_t parts = schedule_fragments(s);
    int32_t *fragment = arena_alloc(a, n * sizeof(*fragment));
    struct unit *units = arena_alloc(a, n * sizeof(*units));
    int64_t *sizes = arena_alloc(a, (size_t)parts * sizeof(*sizes));
    int32_t count = list_units(units, s, model);
    memset(sizes, 0, (size_t)parts * sizeof(*sizes));
    for (int32_t u = 0; u < count; u++) {
        int32_t least = 0;
        for (int32_t f = 1; f < parts; f++) {
            least = sizes[f] < sizes[least] ? f : least;
        }
        units[u].fragment = least;
        sizes[least] += units[u].count;
    }
    for (int32_t i = 0; i < model->count; i++) {
        struct unit u = unit_named(model->items[i].name);
        fragment[i] = layout_travels(s, model->items[i].name)
                          ? units[find_unit(units, count, &u)].fragment
                          : -1;
    }
    return fragment;
}

int32_t layout_fragments_max(const struct run_spec *s)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct param_table model = params_table(a, &s->model);
    struct unit *units = arena_alloc(a, (size_t)model.count * sizeof(*units));
    int32_t count = list_units(units, s, &model);
    arena_free(a);
    return count;
}

/* ---- files ---- */

static void add_span(struct layout *l, struct layout_span *spans, const struct param *p)
{
    struct layout_span *last = l->span_count ? &spans[l->span_count - 1] : NULL;
    if (last && last->model + last->count == p->offset) {
        last->count += p->count;
    } else {
        spans[l->span_count++] = (struct layout_span){p->offset, l->part_count, p->count};
    }
    l->part_count += p->count;
}

static void add_part(struct arena *a, struct layout *l, struct param *items,
                     const struct param_table *model, const bool *chosen, enum layout_part part)
{
    static const char *const PREFIX[LAYOUT_PARTS] = {"m.", "", "v."};
    int32_t *index = arena_alloc(a, (size_t)model->count * sizeof(*index));
    l->part_at[part] = l->table.total;
    l->index[part] = index;
    for (int32_t i = 0; i < model->count; i++) {
        const struct param *p = &model->items[i];
        index[i] = chosen[i] ? l->table.count : -1;
        if (chosen[i]) {
            struct param *q = &items[l->table.count++];
            *q = *p;
            q->name = PREFIX[part][0] ? arena_fmt(a, "%s%s", PREFIX[part], p->name) : p->name;
            q->offset = l->table.total;
            l->table.total += p->count;
        }
    }
}

static struct layout layout_of(struct arena *a, const struct param_table *model, const bool *chosen,
                               bool moments)
{
    size_t n = 0;
    for (int32_t i = 0; i < model->count; i++) {
        n += chosen[i];
    }
    struct layout l = {.part_at = {-1, -1, -1}};
    struct layout_span *spans = arena_alloc(a, n * sizeof(*spans));
    struct param *items = arena_alloc(a, (moments ? LAYOUT_PARTS : 1) * n * sizeof(*items));
    for (int32_t i = 0; i < model->count; i++) {
        if (chosen[i]) {
            add_span(&l, spans, &model->items[i]);
        }
    }
    l.spans = spans;
    l.table.items = items;
    for (int part = 0; part < LAYOUT_PARTS; part++) {
        if (moments || part == LAYOUT_WEIGHTS) {
            add_part(a, &l, items, model, chosen, (enum layout_part)part);
        }
    }
    return l;
}

static struct layout layout_due(struct arena *a, const struct run_spec *s, int64_t round,
                                bool moments)
{
    struct param_table model = params_table(a, &s->model);
    const int32_t *fragment = layout_fragments(a, s, &model);
    bool *chosen = arena_alloc(a, (size_t)model.count * sizeof(*chosen));
    for (int32_t i = 0; i < model.count; i++) {
        chosen[i] = fragment[i] == schedule_fragment(s, round);
    }
    return layout_of(a, &model, chosen, moments);
}

struct layout layout_update(struct arena *a, const struct run_spec *s, int64_t round)
{
    return layout_due(a, s, round, s->inner_state == INNER_STATE_AVERAGE);
}

struct layout layout_step(struct arena *a, const struct run_spec *s, int64_t round)
{
    return layout_due(a, s, round, false);
}

struct layout layout_checkpoint(struct arena *a, const struct run_spec *s)
{
    struct param_table model = params_table(a, &s->model);
    bool *chosen = arena_alloc(a, (size_t)model.count * sizeof(*chosen));
    for (int32_t i = 0; i < model.count; i++) {
        chosen[i] = true;
    }
    return layout_of(a, &model, chosen, s->inner_state == INNER_STATE_AVERAGE);
}

int64_t layout_model_at(const struct layout *l, int64_t at)
{
    int32_t i = 0;
    while (i + 1 < l->span_count && l->spans[i + 1].at <= at) {
        i++;
    }
    return l->spans[i].model + (at - l->spans[i].at);
}

struct layout layout_common(struct arena *a, const struct run_spec *s, int64_t kept, int64_t round)
{
    struct param_table model = params_table(a, &s->model);
    const int32_t *fragment = layout_fragments(a, s, &model);
    bool *chosen = arena_alloc(a, (size_t)model.count * sizeof(*chosen));
    for (int32_t i = 0; i < model.count; i++) {
        chosen[i] = fragment[i] >= 0 ? schedule_renewed(s, fragment[i], kept, round)
                                     : !patterns_match(&s->personal, model.items[i].name);
    }
    struct layout l = layout_of(a, &model, chosen, false);
    // Read from a whole part, so that places are the model's own.
    struct layout_span *spans = arena_alloc(a, (size_t)(l.span_count + 1) * sizeof(*spans));
    for (int32_t i = 0; i < l.span_count; i++) {
        spans[i] = l.spans[i];
        spans[i].at = spans[i].model;
    }
    l.spans = spans;
    return l;
}
