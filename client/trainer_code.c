#include "client/trainer_code.h"

#include <assert.h>

#include "client/trainer_int.h"
#include "common/mem.h"

enum { SLOTS = 2, VALUES = CODER_GROUPS * CODEC_GROUP, ALIGN = 256 };

/* One piece: what is sent, what is made of it, what comes back. */
enum part {
    PART_BASE = 0,
    PART_RESIDUAL,
    PART_U,
    PART_LEFT,
    PART_RESULTS,
    PART_CODES, // main, side, gap
    PART_COUNT = PART_CODES + CODEC_PARTS
};

struct slot {
    char *pinned, *device;
    int64_t n;
    int64_t gap_stride;
};

struct trainer_coder {
    struct rank *r;
    int64_t at[PART_COUNT]; // of a part within a slot
    int64_t size;
    int64_t begun, ended;
    struct slot slots[SLOTS];
};

bool trainer_codes_apart(struct trainer *t)
{
    struct backend_caps caps;
    lead(t)->ops->caps(lead(t)->be, &caps);
    return caps.apart && !shares_state(t);
}

/* Room for the largest of every rung. */
static int64_t code_room(int part)
{
    int64_t most = 0;
    for (int c = 0; c < CODEC_COUNT; c++) {
        for (int32_t k = 4; k <= CODEC_K_MAX; k += 4) {
            struct codec_rule rule = codec_rule((enum codec)c, k);
            int64_t size[CODEC_PARTS];
            codec_sizes(&rule, CODEC_GROUP, size);
            most = size[part] > most ? size[part] : most;
        }
    }
    return (most + 3) / 4 * 4 * CODER_GROUPS;
}

static void lay_out(struct trainer_coder *c)
{
    int64_t sizes[PART_COUNT];
    for (int i = 0; i < PART_COUNT; i++) {
        sizes[i] = i < PART_RESULTS    ? VALUES * (int64_t)sizeof(float)
                   : i == PART_RESULTS ? CODER_GROUPS * (int64_t)sizeof(struct codec_result)
                                       : code_room(i - PART_CODES);
        c->at[i] = c->size;
        c->size += (sizes[i] + ALIGN - 1) / ALIGN * ALIGN;
    }
}

enum status trainer_coder_open(struct trainer_coder **out, struct trainer *t, struct err *e)
{
    trainer_settle(t);
    TRY(ranks_average(t, e));
    struct trainer_coder *c = mem_alloc(sizeof(*c));
    c->r = lead(t);
    lay_out(c);
    for (int i = 0; i < SLOTS; i++) {
        c->slots[i].pinned = c->r->ops->pin(c->r->be, (size_t)c->size);
        c->slots[i].device = c->r->ops->alloc(c->r->be, (size_t)c->size);
        if (!c->slots[i].pinned || !c->slots[i].device) {
            trainer_coder_close(c);
            return err_set(e, ST_NOMEM, "no memory to code an update on the device");
        }
    }
    *out = c;
    return ST_OK;
}

void trainer_coder_close(struct trainer_coder *c)
{
    if (!c) {
        return;
    }
    struct err unused;
    enum status st = backend_sync(c->r->be, &unused); // what is under way uses this memory
    (void)st;
    for (int i = 0; i < SLOTS; i++) {
        if (c->slots[i].device) {
            c->r->ops->release(c->r->be, c->slots[i].device);
        }
        if (c->slots[i].pinned) {
            c->r->ops->unpin(c->r->be, c->slots[i].pinned);
        }
    }
    mem_free(c);
}

static struct slot *slot_at(struct trainer_coder *c, int64_t turn)
{
    return &c->slots[turn % SLOTS];
}

static void *device(const struct trainer_coder *c, const struct slot *s, int part)
{
    return s->device + c->at[part];
}

static void *pinned(const struct trainer_coder *c, const struct slot *s, int part)
{
    return s->pinned + c->at[part];
}

float *trainer_coder_base(struct trainer_coder *c)
{
    return pinned(c, slot_at(c, c->begun), PART_BASE);
}

float *trainer_coder_residual(struct trainer_coder *c)
{
    return pinned(c, slot_at(c, c->begun), PART_RESIDUAL);
}

static void send(struct trainer_coder *c, struct slot *s, int part, int64_t size)
{
    c->r->ops->send(c->r->be, QUEUE_COPY, device(c, s, part), pinned(c, s, part), (size_t)size);
}

static void fetch(struct trainer_coder *c, struct slot *s, int part, int64_t size)
{
    c->r->ops->fetch(c->r->be, QUEUE_COPY, pinned(c, s, part), device(c, s, part), (size_t)size);
}

static struct codec_parts parts_of(const struct trainer_coder *c, const struct slot *s, bool host)
{
    struct codec_parts p = {.gap_stride = s->gap_stride};
    for (int i = 0; i < CODEC_PARTS; i++) {
        p.part[i] = host ? pinned(c, s, PART_CODES + i) : device(c, s, PART_CODES + i);
    }
    return p;
}

/* Everything that comes back, whole groups where the last is not. */
static void fetch_all(struct trainer_coder *c, struct slot *s, const struct codec_rule *rule)
{
    int64_t groups = (s->n + CODEC_GROUP - 1) / CODEC_GROUP;
    int64_t size[CODEC_PARTS];
    codec_sizes(rule, CODEC_GROUP, size);
    size[CODEC_GAP] = s->gap_stride;
    fetch(c, s, PART_U, s->n * (int64_t)sizeof(float));
    fetch(c, s, PART_LEFT, s->n * (int64_t)sizeof(float));
    fetch(c, s, PART_RESULTS, groups * (int64_t)sizeof(struct codec_result));
    for (int i = 0; i < CODEC_PARTS; i++) {
        if (size[i] > 0) {
            fetch(c, s, PART_CODES + i, groups * size[i]);
        }
    }
}

void trainer_coder_begin(struct trainer_coder *c, const struct codec_rule *rule, int64_t start,
                         int64_t n, bool residual, float beta)
{
    assert(c->begun - c->ended < SLOTS && n > 0 && n <= VALUES);
    struct rank *r = c->r;
    int turn = (int)(c->begun % SLOTS);
    struct slot *s = slot_at(c, c->begun++);
    int64_t size[CODEC_PARTS];
    codec_sizes(rule, CODEC_GROUP, size);
    s->n = n;
    s->gap_stride = (size[CODEC_GAP] + 3) / 4 * 4;

    send(c, s, PART_BASE, n * (int64_t)sizeof(float));
    if (residual) {
        send(c, s, PART_RESIDUAL, n * (int64_t)sizeof(float));
    }
    r->ops->mark(r->be, QUEUE_COPY, MARK_CODE_IN + turn);
    r->ops->follow(r->be, QUEUE_OPS, MARK_CODE_IN + turn);
    struct model_flat flat = model_flat(r->model);
    int64_t at = model_place(r->model, start, n);
    struct codec_parts parts = parts_of(c, s, false);
    struct codec_result *results = device(c, s, PART_RESULTS);
    r->ops->delta(r->be, device(c, s, PART_U), results,
                  (const char *)flat.weights + (size_t)at * (flat.rest ? 2 : 4),
                  flat.rest ? (const uint16_t *)flat.rest + at : NULL, device(c, s, PART_BASE),
                  residual ? device(c, s, PART_RESIDUAL) : NULL, beta, n);
    r->ops->encode(r->be, rule, &parts, results, device(c, s, PART_LEFT), device(c, s, PART_U), n);
    r->ops->mark(r->be, QUEUE_OPS, MARK_CODE_DONE + turn);
    r->ops->follow(r->be, QUEUE_COPY, MARK_CODE_DONE + turn);
    fetch_all(c, s, rule);
    r->ops->mark(r->be, QUEUE_COPY, MARK_CODE_OUT + turn);
}

enum status trainer_coder_end(struct trainer_coder *c, struct coder_piece *out, struct err *e)
{
    assert(c->ended < c->begun);
    struct rank *r = c->r;
    int turn = (int)(c->ended % SLOTS);
    struct slot *s = slot_at(c, c->ended++);
    const char *why = r->ops->reach(r->be, MARK_CODE_OUT + turn);
    if (why) {
        return err_set(e, ST_DEVICE, "%s: %s", r->ops->name, why);
    }
    *out = (struct coder_piece){.n = s->n,
                                .parts = parts_of(c, s, true),
                                .results = pinned(c, s, PART_RESULTS),
                                .u = pinned(c, s, PART_U),
                                .left = pinned(c, s, PART_LEFT)};
    return ST_OK;
}
