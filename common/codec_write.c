/* The writing half of codec_file.h: values into a scratch file, and from there into the file. */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "common/codec_file.h"
#include "common/codec_file_int.h"
#include "common/codec_int.h"
#include "common/mem.h"

enum { COPY_SIZE = 1 << 18, SAMPLE_BLOCKS = 64 };

static const double LEARN_FROM = 0.13; // a q4 tensor with more error gets levels of its own

static enum status write_full(int fd, const void *data, int64_t size, int64_t at, struct err *e)
{
    for (const char *p = data; size > 0;) {
        ssize_t n = pwrite(fd, p, (size_t)size, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            bool full = errno == ENOSPC || errno == EDQUOT;
            return err_set(e, full ? ST_LIMIT : ST_IO, "cannot write: %s", strerror(errno));
        }
        p += n;
        at += n;
        size -= n;
    }
    return ST_OK;
}

/* Sums over a tensor, or over all of them. */
struct sums {
    double diff, uu, vv, uv, fresh;
};

struct bench {
    struct coding *c;
    struct arena *a;
    const struct coded_source *source;
    int64_t at; // where the next tensor goes in the scratch file
    float *u;
    float *v;
    uint8_t *bytes;
};

static void add_sums(struct sums *s, const struct codec_sums *group)
{
    s->diff += group->diff;
    s->uu += group->uu;
    s->vv += group->vv;
    s->uv += group->uv;
}

/* Levels from blocks spread over the tensor. */
static enum status learn(struct bench *b, struct coded_tensor *ct, struct err *e)
{
    int64_t blocks = ct->count / CODEC_BLOCK;
    int64_t take = blocks < SAMPLE_BLOCKS ? blocks : SAMPLE_BLOCKS;
    double unused = 0.0;
    for (int64_t i = 0; i < take; i++) {
        int64_t block = i * blocks / take;
        TRY(b->source->read(b->source->ctx, ct->first + block * CODEC_BLOCK, CODEC_BLOCK,
                            b->u + i * CODEC_BLOCK, &unused, e));
    }
    if (codec_amax_bits(b->u, take * CODEC_BLOCK) <= CODEC_BITS_MAX) {
        codec_learn(&ct->rule, b->u, take * CODEC_BLOCK);
    }
    return ST_OK;
}

static enum status refuse(const struct bench *b, int32_t tensor, enum status st,
                          const struct err *why, struct err *e)
{
    return err_set(e, st, "tensor '%.60s': %.120s", b->c->file.table->items[tensor].name, why->msg);
}

static void add_gap(struct coded_tensor *ct, uint32_t *gap_at, int64_t g, int64_t size)
{
    if (gap_at) {
        gap_at[g + 1] = gap_at[g] + (uint32_t)size;
        ct->size[CODEC_GAP] = gap_at[g + 1];
    }
}

static enum status code_group(struct bench *b, struct coded_tensor *ct, int32_t tensor, int64_t g,
                              uint32_t *gap_at, struct sums *s, struct err *e)
{
    int64_t first = 0;
    int64_t n = 0;
    int64_t at[CODEC_PARTS];
    struct codec_bytes bytes;
    coded_group(b->c->file.table, tensor, g, &first, &n);
    TRY(b->source->read(b->source->ctx, first, n, b->u, &s->fresh, e));
    codec_sizes(&ct->rule, n, bytes.size);
    bytes.part[CODEC_MAIN] = b->bytes;
    bytes.part[CODEC_SIDE] = bytes.part[CODEC_MAIN] + bytes.size[CODEC_MAIN];
    bytes.part[CODEC_GAP] = bytes.part[CODEC_SIDE] + bytes.size[CODEC_SIDE];
    enum status st = codec_encode(&ct->rule, b->u, n, &bytes, e);
    if (st) {
        struct err why = e ? *e : (struct err){0};
        return refuse(b, tensor, st, &why, e);
    }
    TRY(codec_decode(&ct->rule, &bytes, n, b->v, e));
    struct codec_sums sums = codec_sums(b->u, b->v, n);
    add_sums(s, &sums);
    coded_group_at(&ct->rule, g, at);
    at[CODEC_GAP] = gap_at ? gap_at[g] : 0;
    for (int p = 0; p < CODEC_PARTS; p++) {
        TRY(write_full(b->c->fd, bytes.part[p], bytes.size[p], ct->at[p] + at[p], e));
    }
    add_gap(ct, gap_at, g, bytes.size[CODEC_GAP]);
    return b->source->wrote ? b->source->wrote(b->source->ctx, first, n, b->u, b->v, e) : ST_OK;
}

/* What a coder made, to where the groups' parts belong. */
static enum status place_piece(struct bench *b, struct coded_tensor *ct, int32_t tensor,
                               const struct coded_piece *p, uint32_t *gap_at, struct sums *s,
                               struct err *e)
{
    int64_t group = (p->first - ct->first) / CODEC_GROUP;
    int64_t groups = (p->n + CODEC_GROUP - 1) / CODEC_GROUP;
    int64_t begin[CODEC_PARTS];
    int64_t last[CODEC_PARTS];
    int64_t size[CODEC_PARTS];
    for (int64_t g = 0; g < groups; g++) {
        const struct codec_result *r = &p->results[g];
        if (r->most > CODEC_BITS_MAX) {
            struct err why = {0};
            enum status st = codec_refuse((int32_t)r->most, &why);
            return refuse(b, tensor, st, &why, e);
        }
        add_sums(s, &r->sums);
        s->fresh += r->fresh;
        if (gap_at) {
            add_gap(ct, gap_at, group + g, r->gap_size);
            TRY(write_full(b->c->fd, p->parts.part[CODEC_GAP] + g * p->parts.gap_stride,
                           r->gap_size, ct->at[CODEC_GAP] + gap_at[group + g], e));
        }
    }
    coded_group_at(&ct->rule, group, begin);
    coded_group_at(&ct->rule, group + groups - 1, last);
    codec_sizes(&ct->rule, p->n - (groups - 1) * CODEC_GROUP, size);
    for (int part = 0; part < CODEC_GAP; part++) {
        TRY(write_full(b->c->fd, p->parts.part[part], last[part] + size[part] - begin[part],
                       ct->at[part] + begin[part], e));
    }
    return ST_OK;
}

/* The same by the source's coder, which has the next piece in hand while one is written. */
static enum status code_pieces(struct bench *b, struct coded_tensor *ct, int32_t tensor,
                               uint32_t *gap_at, struct sums *s, struct err *e)
{
    const struct coded_coder *coder = b->source->coder;
    int64_t size = coder->groups * CODEC_GROUP;
    int64_t pieces = (ct->count + size - 1) / size;
    for (int64_t p = 0; p <= pieces; p++) {
        int64_t left = ct->count - p * size;
        if (p < pieces) {
            TRY(coder->begin(b->source->ctx, &ct->rule, ct->first + p * size,
                             left < size ? left : size, e));
        }
        if (p > 0) {
            struct coded_piece piece;
            TRY(coder->end(b->source->ctx, &piece, e));
            TRY(place_piece(b, ct, tensor, &piece, gap_at, s, e));
        }
    }
    return ST_OK;
}

/* A whole tensor into the scratch file: main, side, gaps one after the other from b->at on. */
static enum status code_tensor(struct bench *b, int32_t tensor, struct sums *s, struct err *e)
{
    struct coded_tensor *ct = &b->c->file.tensors[tensor];
    int64_t groups = coded_groups(b->c->file.table, tensor);
    uint32_t *gap_at = NULL;
    *s = (struct sums){0};
    coded_sizes(ct, groups);
    ct->at[CODEC_MAIN] = b->at;
    ct->at[CODEC_SIDE] = ct->at[CODEC_MAIN] + ct->size[CODEC_MAIN];
    ct->at[CODEC_GAP] = ct->at[CODEC_SIDE] + ct->size[CODEC_SIDE];
    ct->size[CODEC_GAP] = 0;
    ct->gap_at = NULL;
    if (ct->rule.codec == CODEC_TOPK) {
        gap_at = arena_alloc(b->a, (size_t)(groups + 1) * sizeof(*gap_at));
        gap_at[0] = 0;
        ct->gap_at = gap_at;
    }
    if (b->source->coder) {
        return code_pieces(b, ct, tensor, gap_at, s, e);
    }
    for (int64_t g = 0; g < groups; g++) {
        TRY(code_group(b, ct, tensor, g, gap_at, s, e));
    }
    return ST_OK;
}

static double error_of(const struct sums *s)
{
    return s->uu > 0.0 ? sqrt(s->diff / s->uu) : 0.0;
}

static double cosine_of(const struct sums *s)
{
    double both = sqrt(s->uu) * sqrt(s->vv);
    return s->uu <= 0.0 ? 1.0 : both > 0.0 ? s->uv / both : 0.0;
}

static double residual_of(const struct sums *s)
{
    return s->fresh > 0.0 ? sqrt(s->diff / s->fresh) : 0.0;
}

static bool in_bounds(enum codec c, const struct sums *s)
{
    static const double MOST[CODEC_COUNT] = {1.0, .005, .03, .16, .6, 0.0};
    return c == CODEC_TOPK ? cosine_of(s) >= .20 && residual_of(s) <= 15.0 : error_of(s) <= MOST[c];
}

/* On its own rung, with levels learnt where that helps, else one rung up. */
static enum status fit_tensor(struct bench *b, int32_t tensor, struct sums *s, struct err *e)
{
    struct coded_tensor *ct = &b->c->file.tensors[tensor];
    if (ct->rule.codec == CODEC_Q2) {
        TRY(learn(b, ct, e));
    }
    TRY(code_tensor(b, tensor, s, e));
    if (ct->rule.codec == CODEC_Q4 && error_of(s) > LEARN_FROM) {
        TRY(learn(b, ct, e));
        TRY(code_tensor(b, tensor, s, e));
    }
    if (in_bounds(ct->rule.codec, s)) {
        return ST_OK;
    }
    ct->rule = codec_rule(codec_up(ct->rule.codec), ct->rule.k);
    b->c->report.fallbacks++;
    b->c->report.fallback_share += (double)ct->count / (double)b->c->file.table->total;
    if (ct->rule.codec == CODEC_Q2) {
        TRY(learn(b, ct, e));
    }
    return code_tensor(b, tensor, s, e);
}

enum status coding_run(struct coding *c, struct arena *a, int fd, const struct param_table *t,
                       enum codec codec, int32_t k, const struct coded_source *source,
                       struct err *e)
{
    *c = (struct coding){.fd = fd};
    coded_init(&c->file, a, t, codec, k);
    struct bench b = {.c = c, .a = a, .source = source};
    b.u = mem_alloc(CODEC_GROUP * sizeof(*b.u));
    b.v = mem_alloc(CODEC_GROUP * sizeof(*b.v));
    b.bytes = mem_alloc(CODED_SCRATCH);
    struct sums all = {0};
    enum status st = ST_OK;
    for (int32_t i = 0; i < t->count && !st; i++) {
        struct sums s = {0};
        st = fit_tensor(&b, i, &s, e);
        all.diff += s.diff;
        all.uu += s.uu;
        all.vv += s.vv;
        all.uv += s.uv;
        all.fresh += s.fresh;
        const struct coded_tensor *ct = &c->file.tensors[i];
        b.at = ct->at[CODEC_GAP] + ct->size[CODEC_GAP];
    }
    c->report.error = error_of(&all);
    c->report.cosine = cosine_of(&all);
    c->report.residual_ratio = residual_of(&all);
    mem_free(b.u);
    mem_free(b.v);
    mem_free(b.bytes);
    return st;
}

/* A file being written, and its digest. */
struct placing {
    int from, to;
    int64_t at;
    struct sha256 *hash;
    uint8_t *block;
};

static enum status place_bytes(struct placing *p, const void *bytes, int64_t size, struct err *e)
{
    TRY(write_full(p->to, bytes, size, p->at, e));
    sha256_add(p->hash, bytes, (size_t)size);
    p->at += size;
    return ST_OK;
}

static enum status place_copy(struct placing *p, int64_t from, int64_t size, struct err *e)
{
    while (size > 0) {
        int64_t n = size < COPY_SIZE ? size : COPY_SIZE;
        TRY(coded_read_full(p->from, p->block, n, from, e));
        TRY(place_bytes(p, p->block, n, e));
        from += n;
        size -= n;
    }
    return ST_OK;
}

/* The part that belongs at p->at. scratch is the tensor as it lies in the scratch file, ct as it
 * shall lie. */
static enum status place_part(struct placing *p, const struct coded_tensor *scratch,
                              const struct coded_tensor *ct, const int64_t *at, int64_t size,
                              struct err *e)
{
    assert(*at == p->at);
    for (int part = 0; part < CODEC_PARTS; part++) {
        if (at == &ct->at[part]) {
            return place_copy(p, scratch->at[part], size, e);
        }
    }
    if (at == &ct->gap_at_at) {
        return place_bytes(p, scratch->gap_at, size, e);
    }
    uint8_t raw[2 * CODEC_LEVELS_MAX];
    for (int32_t j = 0; j < codec_level_count(ct->rule.codec); j++) {
        store_u16(raw + 2 * j, bf16_nearest(ct->rule.level[j]));
    }
    return place_bytes(p, raw, size, e);
}

/* Which tensor a noted place belongs to. */
static int32_t tensor_of(const struct coded_file *f, const int64_t *at)
{
    return (int32_t)(((const char *)at - (const char *)f->tensors) / (int64_t)sizeof(*f->tensors));
}

/* What was coded, to be given the places it shall have in the file. */
static struct coded_file file_to_be(const struct coding *c, struct arena *a)
{
    struct coded_file f = c->file;
    size_t size = (size_t)f.table->count * sizeof(*f.tensors);
    f.tensors = arena_alloc(a, size);
    memcpy(f.tensors, c->file.tensors, size);
    return f;
}

int64_t coding_bytes(const struct coding *c, struct arena *a, const struct coded_meta *meta)
{
    struct coded_file f = file_to_be(c, a);
    struct coded_part *parts = NULL;
    int count = 0;
    int64_t len = 0;
    (void)coded_lay_out(&f, a, meta, &parts, &count, &len);
    return f.bytes;
}

enum status coding_place(const struct coding *c, struct arena *a, int out_fd,
                         const struct coded_meta *meta, struct digest *digest, int64_t *bytes,
                         struct err *e)
{
    struct coded_file f = file_to_be(c, a);
    struct coded_part *parts = NULL;
    int count = 0;
    int64_t len = 0;
    const void *header = coded_lay_out(&f, a, meta, &parts, &count, &len);
    struct placing p = {
        .from = c->fd, .to = out_fd, .hash = sha256_new(), .block = mem_alloc(COPY_SIZE)};
    enum status st = place_bytes(&p, header, len, e);
    for (int i = 0; i < count && !st; i++) {
        int32_t tensor = tensor_of(&f, parts[i].at);
        st = place_part(&p, &c->file.tensors[tensor], &f.tensors[tensor], parts[i].at,
                        parts[i].t.end - parts[i].t.begin, e);
    }
    struct digest d;
    sha256_end(p.hash, &d);
    sha256_free(p.hash);
    mem_free(p.block);
    if (!st) {
        *digest = d;
        *bytes = f.bytes;
    }
    return st;
}
