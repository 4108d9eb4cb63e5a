#include "common/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/json.h"
#include "common/limits.h"
#include "common/mem.h"

enum { LENGTH_WORD = 8, RANK_MAX = 4 };

static const struct dtype {
    const char *name;
    int size;
} DTYPES[] = {{"F64", 8}, {"F32", 4}, {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"I8", 1}, {"U8", 1}};

static const int64_t WHOLE_MAX = ((int64_t)1 << 53) - 1; // what JSON numbers hold exactly

static uint64_t length_word(const unsigned char *bytes)
{
    uint64_t n = 0;
    for (int i = LENGTH_WORD - 1; i >= 0; i--) {
        n = n << 8 | bytes[i];
    }
    return n;
}

static const struct dtype *dtype_find(const char *name)
{
    for (size_t i = 0; name && i < sizeof(DTYPES) / sizeof(DTYPES[0]); i++) {
        if (strcmp(DTYPES[i].name, name) == 0) {
            return &DTYPES[i];
        }
    }
    return NULL;
}

/* Names become file names and log lines somewhere: no control characters, no way up. */
static enum status check_name(const char *name, struct err *e)
{
    if (*name == '\0') {
        return err_set(e, ST_CORRUPT, "a tensor without a name");
    }
    for (const char *c = name; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            return err_set(e, ST_CORRUPT, "a control character in a tensor's name");
        }
    }
    if (strstr(name, "..")) {
        return err_set(e, ST_CORRUPT, "'..' in the tensor name '%.60s'", name);
    }
    return ST_OK;
}

/* Fills shape and rank; *size is the bytes they make. */
static enum status read_shape(struct st_tensor *t, const struct json *shape, int64_t *size,
                              struct err *e)
{
    if (!shape || json_kind(shape) != JSON_ARRAY || json_len(shape) > RANK_MAX) {
        return err_set(e, ST_CORRUPT, "tensor '%.60s' needs a shape of at most %d sizes", t->name,
                       RANK_MAX);
    }
    for (const struct json *d = json_first(shape); d; d = json_next(d)) {
        if (!json_is_int(d, 0, WHOLE_MAX) || __builtin_mul_overflow(*size, json_int(d), size)) {
            return err_set(e, ST_CORRUPT,
                           "a size of tensor '%.60s' is no whole number or too large", t->name);
        }
        t->shape[t->rank++] = json_int(d);
    }
    return ST_OK;
}

static enum status read_tensor(struct st_tensor *t, const struct json *v, int64_t data_bytes,
                               struct err *e)
{
    static const char *const KEYS[] = {"dtype", "shape", "data_offsets", NULL};
    t->name = json_key(v);
    TRY(check_name(t->name, e));
    if (json_kind(v) != JSON_OBJECT || json_only(v, KEYS, NULL)) {
        return err_set(e, ST_CORRUPT,
                       "tensor '%.60s' must hold dtype, shape and data_offsets alone", t->name);
    }
    const struct dtype *type = dtype_find(json_str(json_get(v, "dtype")));
    if (!type) {
        return err_set(e, ST_CORRUPT, "tensor '%.60s' has no known dtype", t->name);
    }
    t->dtype = type->name;
    int64_t size = type->size;
    TRY(read_shape(t, json_get(v, "shape"), &size, e));

    const struct json *at = json_get(v, "data_offsets");
    if (!at || json_kind(at) != JSON_ARRAY || json_len(at) != 2 ||
        !json_is_int(json_at(at, 0), 0, data_bytes) ||
        !json_is_int(json_at(at, 1), 0, data_bytes)) {
        return err_set(e, ST_CORRUPT, "the data_offsets of '%.60s' are not two places in the data",
                       t->name);
    }
    t->begin = json_int(json_at(at, 0));
    t->end = json_int(json_at(at, 1));
    if (t->end - t->begin != size) {
        return err_set(e, ST_CORRUPT,
                       "tensor '%.60s' has %" PRId64
                       " bytes of data where its shape needs %" PRId64,
                       t->name, t->end - t->begin, size);
    }
    return ST_OK;
}

static int by_begin(const void *a, const void *b)
{
    const struct st_tensor *x = a;
    const struct st_tensor *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    if (x->end != y->end) {
        return x->end < y->end ? -1 : 1;
    }
    return strcmp(x->name, y->name); // empty tensors alone get here
}

/* Each tensor begins where the one before it ends, and the last ends with the file. */
static enum status check_cover(const struct st_header *h, struct err *e)
{
    int64_t at = 0;
    for (int32_t i = 0; i < h->tensor_count; i++) {
        const struct st_tensor *t = &h->tensors[i];
        if (t->begin != at) {
            return err_set(e, ST_CORRUPT,
                           "%s before tensor '%.60s' at byte %" PRId64 " of the data",
                           t->begin > at ? "a hole" : "an overlap", t->name, t->begin);
        }
        at = t->end;
    }
    if (at != h->data_bytes) {
        return err_set(e, ST_CORRUPT, "%" PRId64 " bytes are left over after the last tensor",
                       h->data_bytes - at);
    }
    return ST_OK;
}

static enum status read_meta(struct st_header *h, struct arena *a, const struct json *v,
                             struct err *e)
{
    if (json_kind(v) != JSON_OBJECT || json_len(v) > LIMIT_ST_META) {
        return err_set(e, ST_CORRUPT, "__metadata__ must be an object of at most %d strings",
                       LIMIT_ST_META);
    }
    struct st_meta *meta = arena_alloc(a, ((size_t)json_len(v) + 1) * sizeof(*meta));
    for (const struct json *m = json_first(v); m; m = json_next(m)) {
        if (!json_str(m)) {
            return err_set(e, ST_CORRUPT, "__metadata__ holds something that is no string");
        }
        meta[h->meta_count++] = (struct st_meta){.key = json_key(m), .value = json_str(m)};
    }
    h->meta = meta;
    return ST_OK;
}

static enum status read_header(struct st_header *h, struct arena *a, const struct json *doc,
                               struct err *e)
{
    const struct json *meta = json_get(doc, "__metadata__");
    int count = json_len(doc) - (meta ? 1 : 0);
    if (count > LIMIT_ST_TENSORS) {
        return err_set(e, ST_CORRUPT, "%d tensors are over the limit of %d", count,
                       LIMIT_ST_TENSORS);
    }
    if (meta) {
        TRY(read_meta(h, a, meta, e));
    }
    struct st_tensor *tensors = arena_alloc(a, ((size_t)count + 1) * sizeof(*tensors));
    for (const struct json *v = json_first(doc); v; v = json_next(v)) {
        if (v != meta) {
            TRY(read_tensor(&tensors[h->tensor_count++], v, h->data_bytes, e));
        }
    }
    qsort(tensors, (size_t)count, sizeof(*tensors), by_begin);
    h->tensors = tensors;
    return check_cover(h, e);
}

/* The length word, checked against the bound and the file. */
static enum status read_length(int64_t *out, const unsigned char *bytes, int64_t file_bytes,
                               struct err *e)
{
    uint64_t n = length_word(bytes);
    if (n < 2 || n > LIMIT_ST_HEADER) {
        return err_set(e, ST_CORRUPT, "a header of %" PRIu64 " bytes is not from 2 to %d", n,
                       LIMIT_ST_HEADER);
    }
    if ((int64_t)n > file_bytes - LENGTH_WORD) {
        return err_set(e, ST_CORRUPT, "the file of %" PRId64 " bytes ends within its header",
                       file_bytes);
    }
    *out = (int64_t)n;
    return ST_OK;
}

enum status st_parse(struct st_header *out, struct arena *a, const void *bytes, int64_t len,
                     int64_t file_bytes, struct err *e)
{
    if (len < LENGTH_WORD || file_bytes < len) {
        return err_set(e, ST_CORRUPT, "%" PRId64 " bytes are too few for a safetensors file", len);
    }
    int64_t n = 0;
    TRY(read_length(&n, bytes, file_bytes, e));
    if (n > len - LENGTH_WORD) {
        return err_set(e, ST_CORRUPT, "the header of %" PRId64 " bytes is cut at %" PRId64, n,
                       len - LENGTH_WORD);
    }
    const char *text = (const char *)bytes + LENGTH_WORD;
    int64_t end = n;
    while (end > 0 && text[end - 1] == ' ') {
        end--;
    }
    if (text[0] != '{' || text[end - 1] != '}') {
        return err_set(e, ST_CORRUPT, "the header is not a JSON object padded with spaces");
    }
    struct err why = {0};
    const struct json *doc = NULL;
    if (json_parse(&doc, a, text, (size_t)end, &why)) {
        return err_set(e, ST_CORRUPT, "the header: %.180s", why.msg);
    }
    struct st_header h = {.data_offset = LENGTH_WORD + n,
                          .data_bytes = file_bytes - LENGTH_WORD - n};
    TRY(read_header(&h, a, doc, e));
    *out = h;
    return ST_OK;
}

static enum status read_at(int fd, void *out, int64_t count, int64_t offset, struct err *e)
{
    for (int64_t done = 0; done < count;) {
        ssize_t n = pread(fd, (char *)out + done, (size_t)(count - done), offset + done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_set(e, ST_IO, "cannot read the file: %s", strerror(errno));
        }
        if (n == 0) {
            return err_set(e, ST_CORRUPT, "the file ends at byte %" PRId64, offset + done);
        }
        done += n;
    }
    return ST_OK;
}

enum status st_read(struct st_header *out, struct arena *a, int fd, struct err *e)
{
    struct stat s;
    if (fstat(fd, &s)) {
        return err_set(e, ST_IO, "cannot look at the file: %s", strerror(errno));
    }
    if (s.st_size < LENGTH_WORD) {
        return err_set(e, ST_CORRUPT, "%" PRId64 " bytes are too few for a safetensors file",
                       (int64_t)s.st_size);
    }
    unsigned char word[LENGTH_WORD];
    int64_t n = 0;
    TRY(read_at(fd, word, LENGTH_WORD, 0, e));
    TRY(read_length(&n, word, s.st_size, e));

    void *bytes = NULL;
    TRY(mem_alloc_large(&bytes, (size_t)(LENGTH_WORD + n), e));
    enum status st = read_at(fd, bytes, LENGTH_WORD + n, 0, e);
    if (!st) {
        st = st_parse(out, a, bytes, LENGTH_WORD + n, s.st_size, e);
    }
    mem_free(bytes);
    return st;
}

const char *st_meta_get(const struct st_header *h, const char *key)
{
    for (int32_t i = 0; i < h->meta_count; i++) {
        if (strcmp(h->meta[i].key, key) == 0) {
            return h->meta[i].value;
        }
    }
    return NULL;
}

void *st_tensors_header(struct arena *a, const struct st_tensor *tensors, int32_t count,
                        const struct st_meta *meta, int meta_count, int64_t *len)
{
    struct buf b;
    buf_init(&b, LIMIT_ST_HEADER);
    jw_object(&b, NULL);
    jw_object(&b, "__metadata__");
    jw_str(&b, "format", "pt");
    for (int i = 0; i < meta_count; i++) {
        jw_str(&b, meta[i].key, meta[i].value);
    }
    jw_end_object(&b);
    for (int32_t i = 0; i < count; i++) {
        const struct st_tensor *t = &tensors[i];
        jw_object(&b, t->name);
        jw_str(&b, "dtype", t->dtype);
        jw_array(&b, "shape");
        for (int32_t d = 0; d < t->rank; d++) {
            jw_int(&b, NULL, t->shape[d]);
        }
        jw_end_array(&b);
        jw_array(&b, "data_offsets");
        jw_int(&b, NULL, t->begin);
        jw_int(&b, NULL, t->end);
        jw_end_array(&b);
        jw_end_object(&b);
    }
    jw_end_object(&b);
    while (b.len % 8 != 0) { // the data section is aligned for whoever maps the file
        buf_str(&b, " ");
    }
    assert(!b.full);
    unsigned char *out = arena_alloc(a, LENGTH_WORD + b.len);
    for (int i = 0; i < LENGTH_WORD; i++) {
        out[i] = (unsigned char)(b.len >> (8 * i) & 0xff);
    }
    memcpy(out + LENGTH_WORD, b.data, b.len);
    *len = (int64_t)(LENGTH_WORD + b.len);
    buf_release(&b);
    return out;
}

void *st_params_header(struct arena *a, const struct param_table *t, const struct st_meta *meta,
                       int meta_count, int64_t *len)
{
    struct st_tensor *tensors = arena_alloc(a, ((size_t)t->count + 1) * sizeof(*tensors));
    for (int32_t i = 0; i < t->count; i++) {
        const struct param *p = &t->items[i];
        tensors[i] = (struct st_tensor){.name = p->name,
                                        .dtype = "F32",
                                        .rank = p->rank,
                                        .shape = {p->shape[0], p->shape[1]},
                                        .begin = p->offset * (int64_t)sizeof(float),
                                        .end = (p->offset + p->count) * (int64_t)sizeof(float)};
    }
    return st_tensors_header(a, tensors, t->count, meta, meta_count, len);
}

static bool same_shape(const struct st_tensor *t, const struct param *p)
{
    if (t->rank != p->rank) {
        return false;
    }
    for (int32_t d = 0; d < p->rank; d++) {
        if (t->shape[d] != p->shape[d]) {
            return false;
        }
    }
    return true;
}

enum status st_check_params(const struct st_header *h, const struct param_table *t, struct err *e)
{
    for (int32_t i = 0; i < h->tensor_count && i < t->count; i++) {
        const struct st_tensor *have = &h->tensors[i];
        const struct param *want = &t->items[i];
        if (strcmp(have->name, want->name) != 0) {
            return err_set(e, ST_CORRUPT, "tensor '%.60s' stands where '%.60s' is wanted",
                           have->name, want->name);
        }
        if (strcmp(have->dtype, "F32") != 0) {
            return err_set(e, ST_CORRUPT, "tensor '%.60s' is %s, not F32", have->name, have->dtype);
        }
        if (!same_shape(have, want)) {
            return err_set(e, ST_CORRUPT, "tensor '%.60s' has not the shape of this model",
                           have->name);
        }
    }
    if (h->tensor_count != t->count) {
        return err_set(e, ST_CORRUPT, "the file has %d tensors, this model %d", h->tensor_count,
                       t->count);
    }
    return ST_OK;
}
