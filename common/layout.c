#include "common/layout.h"

bool layout_trains(const struct run_spec *s, const char *tensor)
{
    return !patterns_match(&s->freeze, tensor);
}

bool layout_travels(const struct run_spec *s, const char *tensor)
{
    return layout_trains(s, tensor) && !patterns_match(&s->personal, tensor);
}

static bool chosen_all(const struct run_spec *s, const char *tensor)
{
    (void)s;
    (void)tensor;
    return true;
}

static bool chosen_common(const struct run_spec *s, const char *tensor)
{
    return !patterns_match(&s->personal, tensor);
}

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
                     const struct param_table *model, const struct run_spec *s,
                     bool (*chosen)(const struct run_spec *, const char *), enum layout_part part)
{
    static const char *const PREFIX[LAYOUT_PARTS] = {"m.", "", "v."};
    int32_t *index = arena_alloc(a, (size_t)model->count * sizeof(*index));
    l->part_at[part] = l->table.total;
    l->index[part] = index;
    for (int32_t i = 0; i < model->count; i++) {
        const struct param *p = &model->items[i];
        index[i] = chosen(s, p->name) ? l->table.count : -1;
        if (chosen(s, p->name)) {
            struct param *q = &items[l->table.count++];
            *q = *p;
            q->name = PREFIX[part][0] ? arena_fmt(a, "%s%s", PREFIX[part], p->name) : p->name;
            q->offset = l->table.total;
            l->table.total += p->count;
        }
    }
}

static struct layout layout_of(struct arena *a, const struct run_spec *s,
                               bool (*chosen)(const struct run_spec *, const char *), bool moments)
{
    struct param_table model = params_table(a, &s->model);
    size_t n = (size_t)model.count;
    struct layout l = {.part_at = {-1, -1, -1}};
    struct layout_span *spans = arena_alloc(a, n * sizeof(*spans));
    struct param *items = arena_alloc(a, LAYOUT_PARTS * n * sizeof(*items));
    for (int32_t i = 0; i < model.count; i++) {
        if (chosen(s, model.items[i].name)) {
            add_span(&l, spans, &model.items[i]);
        }
    }
    l.spans = spans;
    l.table.items = items;
    for (int part = 0; part < LAYOUT_PARTS; part++) {
        if (moments || part == LAYOUT_WEIGHTS) {
            add_part(a, &l, items, &model, s, chosen, (enum layout_part)part);
        }
    }
    return l;
}

struct layout layout_update(struct arena *a, const struct run_spec *s)
{
    return layout_of(a, s, layout_travels, s->inner_state == INNER_STATE_AVERAGE);
}

struct layout layout_checkpoint(struct arena *a, const struct run_spec *s)
{
    return layout_of(a, s, chosen_all, s->inner_state == INNER_STATE_AVERAGE);
}

struct layout layout_common(struct arena *a, const struct run_spec *s)
{
    struct layout l = layout_of(a, s, chosen_common, false);
    // Read from a whole part, so that places are the model's own.
    struct layout_span *spans = arena_alloc(a, (size_t)(l.span_count + 1) * sizeof(*spans));
    for (int32_t i = 0; i < l.span_count; i++) {
        spans[i] = l.spans[i];
        spans[i].at = spans[i].model;
    }
    l.spans = spans;
    return l;
}
