#include "common/codec_file.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/codec_file_int.h"
#include "common/codec_int.h"
#include "common/limits.h"
#include "common/mem.h"

enum { PARTS_PER_TENSOR = 4, ANY_LEN = 16 };

static const char ANY[] = "0000000000000000";

/* ---- groups ---- */

int64_t coded_groups(const struct param_table *t, int32_t tensor)
{
    return (t->items[tensor].count + CODEC_GROUP - 1) / CODEC_GROUP;
}

void coded_group(const struct param_table *t, int32_t tensor, int64_t group, int64_t *first,
                 int64_t *n)
{
    int64_t skip = group * CODEC_GROUP;
    int64_t left = t->items[tensor].count - skip;
    *first = t->items[tensor].offset + skip;
    *n = left < CODEC_GROUP ? left : CODEC_GROUP;
}

void coded_group_at(const struct codec_rule *r, int64_t group, int64_t at[CODEC_PARTS])
{
    int64_t size[CODEC_PARTS];
    codec_sizes(r, CODEC_GROUP, size); // whole groups lie before it
    at[CODEC_MAIN] = group * size[CODEC_MAIN];
    at[CODEC_SIDE] = group * size[CODEC_SIDE];
    at[CODEC_GAP] = 0;
}

void coded_sizes(struct coded_tensor *ct, int64_t groups)
{
    int64_t last[CODEC_PARTS];
    int64_t at[CODEC_PARTS];
    codec_sizes(&ct->rule, ct->count - (groups - 1) * CODEC_GROUP, last);
    coded_group_at(&ct->rule, groups - 1, at);
    ct->size[CODEC_MAIN] = at[CODEC_MAIN] + last[CODEC_MAIN];
    ct->size[CODEC_SIDE] = at[CODEC_SIDE] + last[CODEC_SIDE];
}

/* ---- layout ---- */

static struct coded_part *add_part(struct coded_part *p, struct arena *a, const char *name,
                                   const char *suffix, const char *dtype, int element,
                                   int64_t count, int64_t *at)
{
    *p = (struct coded_part){.element = element, .at = at};
    p->t.name = *suffix ? arena_fmt(a, "%s:%s", name, suffix) : name;
    p->t.dtype = dtype;
    p->t.rank = 1;
    p->t.shape[0] = count;
    p->t.end = count * element; // its size, until it has a place
    return p + 1;
}

static void shape_as(struct coded_part *p, const struct param *param)
{
    p->t.rank = param->rank;
    p->t.shape[0] = param->shape[0];
    p->t.shape[1] = param->shape[1];
}

/* The parts of a tensor, by name within each element size. */
static struct coded_part *add_tensor(struct coded_part *p, struct arena *a,
                                     const struct param *param, struct coded_tensor *ct)
{
    const char *name = param->name;
    int64_t blocks = ct->size[CODEC_SIDE] / 2;
    int64_t main = ct->size[CODEC_MAIN];
    struct coded_part *first = p;
    switch (ct->rule.codec) {
    case CODEC_F32:
        p = add_part(p, a, name, "", "F32", 4, ct->count, &ct->at[CODEC_MAIN]);
        shape_as(first, param);
        return p;
    case CODEC_BF16:
        p = add_part(p, a, name, "", "BF16", 2, ct->count, &ct->at[CODEC_MAIN]);
        shape_as(first, param);
        return p;
    case CODEC_INT8:
        p = add_part(p, a, name, "q8", "I8", 1, main, &ct->at[CODEC_MAIN]);
        shape_as(first, param);
        return add_part(p, a, name, "scale", "BF16", 2, blocks, &ct->at[CODEC_SIDE]);
    case CODEC_Q4:
    case CODEC_Q2:
        p = add_part(p, a, name, "level", "BF16", 2, codec_level_count(ct->rule.codec),
                     &ct->level_at);
        p = add_part(p, a, name, codec_name(ct->rule.codec), "U8", 1, main, &ct->at[CODEC_MAIN]);
        return add_part(p, a, name, "scale", "BF16", 2, blocks, &ct->at[CODEC_SIDE]);
    case CODEC_TOPK:
        p = add_part(p, a, name, "gap", "U8", 1, ct->size[CODEC_GAP], &ct->at[CODEC_GAP]);
        p = add_part(p, a, name, "gap_at", "U32", 4, blocks / 2 + 1, &ct->gap_at_at);
        p = add_part(p, a, name, "mag", "BF16", 2, blocks, &ct->at[CODEC_SIDE]);
        p[-1].t.rank = 2;
        p[-1].t.shape[0] = blocks / 2;
        p[-1].t.shape[1] = 2;
        return add_part(p, a, name, "val", "U8", 1, main, &ct->at[CODEC_MAIN]);
    case CODEC_COUNT:
    default:
        assert(0);
        return p;
    }
}

static const char *fallback_text(struct arena *a, const struct coded_file *f)
{
    struct buf b;
    buf_init(&b, LIMIT_ST_HEADER);
    for (int32_t i = 0; i < f->table->count; i++) {
        const struct param *p = &f->table->items[i];
        if (f->tensors[i].rule.codec != codec_for_rank(f->codec, p->rank)) {
            buf_str(&b, b.len ? "," : "");
            buf_str(&b, p->name);
        }
    }
    const char *text = arena_fmt(a, "%s", b.len ? b.data : "");
    buf_release(&b);
    return text;
}

static const struct st_meta *all_meta(struct arena *a, const struct coded_file *f,
                                      const struct coded_meta *meta, int *count)
{
    struct st_meta *m =
        arena_alloc(a, (size_t)(meta->before_count + meta->after_count + 3) * sizeof(*m));
    int n = 0;
    for (int i = 0; i < meta->before_count; i++) {
        m[n++] = meta->before[i];
    }
    m[n++] = (struct st_meta){"codec", codec_name(f->codec)};
    if (f->codec != CODEC_F32) {
        m[n++] = (struct st_meta){"fallback", fallback_text(a, f)};
    }
    if (f->codec == CODEC_TOPK) {
        m[n++] = (struct st_meta){"k", arena_fmt(a, "%04" PRId32, f->k)};
    }
    for (int i = 0; i < meta->after_count; i++) {
        m[n++] = meta->after[i];
    }
    for (int i = 0; i < n; i++) {
        m[i].value = m[i].value ? m[i].value : ANY; // for its length
    }
    *count = n;
    return m;
}

void *coded_lay_out(struct coded_file *f, struct arena *a, const struct coded_meta *meta,
                    struct coded_part **parts_out, int *part_count, int64_t *len)
{
    const struct param_table *t = f->table;
    struct coded_part *parts = arena_alloc(a, (size_t)t->count * PARTS_PER_TENSOR * sizeof(*parts));
    struct coded_part *end = parts;
    for (int32_t i = 0; i < t->count; i++) {
        struct coded_tensor *ct = &f->tensors[i];
        ct->first = t->items[i].offset;
        ct->count = t->items[i].count;
        coded_sizes(ct, coded_groups(t, i));
        end = add_tensor(end, a, &t->items[i], ct);
    }
    int count = (int)(end - parts);
    struct coded_part *sorted = arena_alloc(a, (size_t)count * sizeof(*sorted));
    struct st_tensor *tensors = arena_alloc(a, (size_t)count * sizeof(*tensors));
    int n = 0;
    int64_t at = 0;
    for (int element = 4; element > 0; element /= 2) {
        for (int i = 0; i < count; i++) {
            if (parts[i].element == element) {
                sorted[n] = parts[i];
                sorted[n].t.begin = at;
                at = sorted[n].t.end += at;
                tensors[n] = sorted[n].t;
                n++;
            }
        }
    }
    int meta_count = 0;
    const struct st_meta *m = all_meta(a, f, meta, &meta_count);
    void *header = st_tensors_header(a, tensors, count, m, meta_count, len);
    for (int i = 0; i < count; i++) {
        *sorted[i].at = *len + sorted[i].t.begin;
    }
    f->data_offset = *len;
    f->bytes = *len + at;
    *parts_out = sorted;
    *part_count = count;
    return header;
}

void coded_init(struct coded_file *f, struct arena *a, const struct param_table *t,
                enum codec codec, int32_t k)
{
    *f = (struct coded_file){.table = t, .codec = codec, .k = k};
    f->tensors = arena_alloc(a, (size_t)t->count * sizeof(*f->tensors));
    for (int32_t i = 0; i < t->count; i++) {
        f->tensors[i] =
            (struct coded_tensor){.rule = codec_rule(codec_for_rank(codec, t->items[i].rank), k),
                                  .first = t->items[i].offset,
                                  .count = t->items[i].count};
    }
}

/* What the groups' gaps of a tensor can take at most. */
static int64_t gap_most(const struct param_table *t, int32_t i, const struct codec_rule *r)
{
    int64_t sum = 0;
    for (int64_t g = 0; g < coded_groups(t, i); g++) {
        int64_t first = 0;
        int64_t n = 0;
        int64_t size[CODEC_PARTS];
        coded_group(t, i, g, &first, &n);
        codec_sizes(r, n, size);
        sum += size[CODEC_GAP];
    }
    return sum;
}

/* Header and data of a file with every tensor on its own rung (up false) or one up. */
static void extreme(const struct param_table *t, enum codec codec, int32_t k, bool up,
                    const struct coded_meta *meta, int64_t *header, int64_t *data, int64_t *each)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct coded_file f;
    struct coded_part *parts = NULL;
    int count = 0;
    coded_init(&f, a, t, codec, k);
    for (int32_t i = 0; i < t->count; i++) {
        struct codec_rule *r = &f.tensors[i].rule;
        *r = codec_rule(up ? codec_up(r->codec) : r->codec, k);
        f.tensors[i].size[CODEC_GAP] = gap_most(t, i, r);
    }
    (void)coded_lay_out(&f, a, meta, &parts, &count, header);
    *data = f.bytes - *header;
    for (int32_t i = 0; i < t->count; i++) {
        const struct coded_tensor *ct = &f.tensors[i];
        int64_t groups = coded_groups(t, i);
        int64_t size = ct->size[CODEC_MAIN] + ct->size[CODEC_SIDE] + ct->size[CODEC_GAP] +
                       2 * codec_level_count(ct->rule.codec) +
                       (ct->rule.codec == CODEC_TOPK ? 4 * (groups + 1) : 0);
        each[i] = size > each[i] ? size : each[i];
    }
    arena_free(a);
}

static void bounds(const struct param_table *t, enum codec codec, int32_t k,
                   const struct coded_meta *meta, int64_t *header, int64_t *data)
{
    int64_t *each = mem_alloc((size_t)t->count * sizeof(*each));
    int64_t up_header = 0;
    int64_t up_data = 0;
    extreme(t, codec, k, false, meta, header, data, each);
    if (codec != CODEC_F32) {
        // Names of parts from one, the list of names from the other: no mixture is longer than
        // both.
        extreme(t, codec, k, true, meta, &up_header, &up_data, each);
        *header += up_header;
        *data = 0;
        for (int32_t i = 0; i < t->count; i++) {
            *data += each[i];
        }
    }
    mem_free(each);
}

int64_t coded_bytes_max(const struct param_table *t, enum codec codec, int32_t k,
                        const struct coded_meta *meta)
{
    int64_t header = 0;
    int64_t data = 0;
    bounds(t, codec, k, meta, &header, &data);
    return header + data;
}

/* ---- reading ---- */

enum status coded_read_full(int fd, void *out, int64_t size, int64_t at, struct err *e)
{
    for (char *p = out; size > 0;) {
        ssize_t n = pread(fd, p, (size_t)size, at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_set(e, ST_IO, "cannot read: %s", strerror(errno));
        }
        if (n == 0) {
            return err_set(e, ST_CORRUPT, "the file ends early, at byte %" PRId64, at);
        }
        p += n;
        at += n;
        size -= n;
    }
    return ST_OK;
}

static const struct st_tensor *find_part(const struct st_header *h, struct arena *a,
                                         const char *name, const char *suffix)
{
    const char *want = *suffix ? arena_fmt(a, "%s:%s", name, suffix) : name;
    for (int32_t i = 0; i < h->tensor_count; i++) {
        if (strcmp(h->tensors[i].name, want) == 0) {
            return &h->tensors[i];
        }
    }
    return NULL;
}

/* The rung a tensor is on, from its parts. */
static enum status find_rule(struct coded_tensor *ct, const struct st_header *h, struct arena *a,
                             const struct param *p, enum codec asked, int32_t k, struct err *e)
{
    static const char *const MAIN[CODEC_COUNT] = {"", "", "q8", "q4", "q2", "gap"};
    static const char *const DTYPE[CODEC_COUNT] = {"F32", "BF16", "I8", "U8", "U8", "U8"};
    enum codec own = codec_for_rank(asked, p->rank);
    enum codec try[] = {own, codec_up(own)};
    for (int i = 0; i < 2; i++) {
        const struct st_tensor *t = find_part(h, a, p->name, MAIN[try[i]]);
        if (t && strcmp(t->dtype, DTYPE[try[i]]) == 0) {
            ct->rule = codec_rule(try[i], k);
            ct->size[CODEC_GAP] = try[i] == CODEC_TOPK ? t->end - t->begin : 0;
            return ST_OK;
        }
    }
    return err_set(e, ST_CORRUPT, "tensor '%.60s' is not there as %s, nor one rung up", p->name,
                   codec_name(own));
}

static enum status read_levels(struct coded_tensor *ct, int fd, struct err *e)
{
    int32_t count = codec_level_count(ct->rule.codec);
    uint8_t raw[2 * CODEC_LEVELS_MAX];
    if (count == 0) {
        return ST_OK;
    }
    TRY(coded_read_full(fd, raw, 2 * count, ct->level_at, e));
    for (int32_t j = 0; j < count; j++) {
        ct->rule.level[j] = bf16_value(load_u16(raw + 2 * j));
    }
    return codec_check_levels(&ct->rule, e);
}

/* Looked at before a parser works on a header that no plan allows. */
static enum status check_length(int fd, int64_t most, bool exact, struct err *e)
{
    uint8_t word[8];
    uint64_t got = 0;
    TRY(coded_read_full(fd, word, sizeof(word), 0, e));
    for (int i = 7; i >= 0; i--) {
        got = got << 8 | word[i];
    }
    uint64_t want = (uint64_t)most - sizeof(word);
    if (exact ? got != want : got > want) {
        return err_set(e, ST_CORRUPT, "the header has %" PRIu64 " bytes, wanted %s%" PRIu64, got,
                       exact ? "" : "at most ", want);
    }
    return ST_OK;
}

static enum status check_meta(const struct st_header *h, const struct st_meta *want, int count,
                              struct err *e)
{
    const char *format = st_meta_get(h, "format");
    if (!format || strcmp(format, "pt") != 0) {
        return err_set(e, ST_CORRUPT, "the metadata must say format 'pt'");
    }
    for (int i = 0; i < count; i++) {
        const char *got = st_meta_get(h, want[i].key);
        if (!got) {
            return err_set(e, ST_CORRUPT, "the metadata lack '%s'", want[i].key);
        }
        if (!want[i].value && strlen(got) != ANY_LEN) {
            return err_set(e, ST_CORRUPT, "the metadata say %s in other than %d characters",
                           want[i].key, ANY_LEN);
        }
        if (want[i].value && strcmp(got, want[i].value) != 0) {
            return err_set(e, ST_CORRUPT, "the metadata say %s '%.64s', wanted '%s'", want[i].key,
                           got, want[i].value);
        }
    }
    return ST_OK;
}

/* Values that may be anything are what the file says. */
static const struct st_meta *filled(struct arena *a, const struct st_header *h,
                                    const struct st_meta *want, int count)
{
    struct st_meta *m = arena_alloc(a, (size_t)(count + 1) * sizeof(*m));
    for (int i = 0; i < count; i++) {
        m[i] = want[i];
        if (!m[i].value) {
            const char *got = st_meta_get(h, m[i].key);
            m[i].value = got ? got : "";
        }
    }
    return m;
}

/* Into f, whose tensors stand on the asked rung; a is for what is not kept. */
static enum status open_into(struct coded_file *f, struct arena *a, int fd,
                             const struct coded_meta *meta, struct err *e)
{
    const struct param_table *t = f->table;
    enum codec codec = f->codec;
    struct st_header h = {0};
    int64_t most = 0;
    int64_t unused = 0;
    bounds(t, codec, f->k, meta, &most, &unused);
    TRY(check_length(fd, most, codec == CODEC_F32, e));
    TRY(st_read(&h, a, fd, e));
    TRY(check_meta(&h, meta->before, meta->before_count, e));
    TRY(check_meta(&h, (struct st_meta[]){{"codec", codec_name(codec)}}, 1, e));
    TRY(check_meta(&h, meta->after, meta->after_count, e));
    if (codec == CODEC_F32) {
        TRY(st_check_params(&h, t, e)); // says which tensor is wrong, and how
    }
    for (int32_t i = 0; i < t->count; i++) {
        TRY(find_rule(&f->tensors[i], &h, a, &t->items[i], codec, f->k, e));
    }
    struct coded_meta full = {.before = filled(a, &h, meta->before, meta->before_count),
                              .before_count = meta->before_count,
                              .after = filled(a, &h, meta->after, meta->after_count),
                              .after_count = meta->after_count};
    struct coded_part *parts = NULL;
    int count = 0;
    int64_t len = 0;
    const void *want = coded_lay_out(f, a, &full, &parts, &count, &len);
    unsigned char *got = arena_alloc(a, (size_t)len);
    if (h.data_offset != len || h.data_offset + h.data_bytes != f->bytes) {
        return err_set(e, ST_CORRUPT, "the file's parts are not those of its rungs");
    }
    TRY(coded_read_full(fd, got, len, 0, e));
    if (memcmp(got, want, (size_t)len) != 0) {
        return err_set(e, ST_CORRUPT, "the header is not written as headers are");
    }
    for (int32_t i = 0; i < t->count; i++) {
        TRY(read_levels(&f->tensors[i], fd, e));
    }
    return ST_OK;
}

enum status coded_open(struct coded_file *out, struct arena *a, int fd, const struct param_table *t,
                       enum codec codec, int32_t k, const struct coded_meta *meta, struct err *e)
{
    struct coded_file f;
    struct arena *scratch = arena_new(LIMIT_REQUEST_ARENA);
    coded_init(&f, a, t, codec, k);
    enum status st = open_into(&f, scratch, fd, meta, e);
    arena_free(scratch);
    if (!st) {
        *out = f;
    }
    return st;
}

/* Where a group's gaps begin and end: the places rise from 0 to the part's size. */
static enum status read_gap_at(const struct coded_tensor *ct, int fd, int64_t group, bool last,
                               int64_t *at, int64_t *size, struct err *e)
{
    uint32_t place[2];
    TRY(coded_read_full(fd, place, sizeof(place), ct->gap_at_at + 4 * group, e));
    bool good = place[1] >= place[0] && place[1] <= ct->size[CODEC_GAP] &&
                (group > 0 || place[0] == 0) && (!last || place[1] == ct->size[CODEC_GAP]);
    if (!good || place[1] - place[0] > *size) {
        return err_set(e, ST_CORRUPT, "the places of a tensor's gaps are out of order");
    }
    *at = place[0];
    *size = place[1] - place[0];
    return ST_OK;
}

enum status coded_read(const struct coded_file *f, int fd, int32_t tensor, int64_t group,
                       uint8_t *scratch, float *out, struct err *e)
{
    const struct coded_tensor *ct = &f->tensors[tensor];
    struct codec_bytes b = {0};
    int64_t at[CODEC_PARTS];
    int64_t first = 0;
    int64_t n = 0;
    coded_group(f->table, tensor, group, &first, &n);
    codec_sizes(&ct->rule, n, b.size);
    coded_group_at(&ct->rule, group, at);
    if (ct->rule.codec == CODEC_TOPK) {
        bool last = group + 1 == coded_groups(f->table, tensor);
        TRY(read_gap_at(ct, fd, group, last, &at[CODEC_GAP], &b.size[CODEC_GAP], e));
    }
    int64_t used = 0;
    for (int p = 0; p < CODEC_PARTS; p++) {
        b.part[p] = scratch + used;
        used += b.size[p];
        TRY(coded_read_full(fd, b.part[p], b.size[p], ct->at[p] + at[p], e));
    }
    enum status st = codec_decode(&ct->rule, &b, n, out, e);
    if (st == ST_CORRUPT && e) {
        struct err why = *e;
        return err_set(e, st, "tensor '%.60s', near value %" PRId64 " of %" PRId64 ": %.100s",
                       f->table->items[tensor].name, group * CODEC_GROUP, ct->count, why.msg);
    }
    return st;
}

enum status coded_norm(const struct coded_file *f, int fd, double *norm, struct err *e)
{
    uint8_t *scratch = mem_alloc(CODED_SCRATCH);
    float *v = mem_alloc(CODEC_GROUP * sizeof(*v));
    double sum = 0.0;
    enum status st = ST_OK;
    for (int32_t i = 0; i < f->table->count && !st; i++) {
        for (int64_t g = 0; g < coded_groups(f->table, i) && !st; g++) {
            int64_t first = 0;
            int64_t n = 0;
            coded_group(f->table, i, g, &first, &n);
            st = coded_read(f, fd, i, g, scratch, v, e);
            double lane[8] = {0};
            for (int64_t j = 0; j < n && !st; j++) {
                lane[j % 8] += (double)v[j] * (double)v[j];
            }
            for (int l = 0; l < 8; l++) {
                sum += lane[l];
            }
        }
    }
    mem_free(scratch);
    mem_free(v);
    if (!st) {
        *norm = sqrt(sum);
    }
    return st;
}
