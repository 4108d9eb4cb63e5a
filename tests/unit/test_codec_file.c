#include "common/codec_file.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "tests/support/files.h"

enum { K = 64 };

struct bed {
    struct arena *a;
    struct param_table table;
    float *u; // what is coded
    float *v; // what a reader sees, as the writer was told
    double fresh;
    int scratch, fd;
    struct coding c;
    struct coded_file f;
    int64_t bytes;
    struct digest digest;
    struct err e;
};

static const struct st_meta BEFORE[] = {{"kind", "update"}, {"run", "r"}};
static const struct st_meta AFTER[] = {{"silo", "s"}, {"tokens", "0000000000000064"}};
static const struct coded_meta META = {BEFORE, 2, AFTER, 2};

static enum status read_u(void *ctx, int64_t first, int64_t n, float *u, double *fresh,
                          struct err *e)
{
    struct bed *b = ctx;
    (void)e;
    memcpy(u, b->u + first, (size_t)n * sizeof(*u));
    for (int64_t i = 0; i < n; i++) {
        *fresh += (double)u[i] * (double)u[i];
    }
    return ST_OK;
}

static enum status wrote_v(void *ctx, int64_t first, int64_t n, const float *u, const float *v,
                           struct err *e)
{
    struct bed *b = ctx;
    (void)e;
    (void)u;
    memcpy(b->v + first, v, (size_t)n * sizeof(*v));
    return ST_OK;
}

/* A model whose embedding is more than one group. */
static struct bed bed_new(void)
{
    struct bed b = {.a = arena_new(64 << 20)};
    struct model_spec m = {
        .d_model = 64, .n_heads = 2, .n_layers = 1, .vocab_size = 1500, .seq_len = 9, .bias = true};
    b.table = params_table(b.a, &m);
    b.u = arena_alloc(b.a, (size_t)b.table.total * sizeof(float));
    b.v = arena_alloc(b.a, (size_t)b.table.total * sizeof(float));
    for (int64_t i = 0; i < b.table.total; i++) {
        b.u[i] = (float)(1e-3 * rng_normal(3, (uint64_t)i));
    }
    b.scratch = files_temp("", 0);
    b.fd = files_temp("", 0);
    return b;
}

static void bed_free(struct bed *b)
{
    CHECK_INT(close(b->scratch), 0);
    CHECK_INT(close(b->fd), 0);
    arena_free(b->a);
}

static void write_file(struct bed *b, enum codec codec)
{
    struct coded_source source = {b, read_u, wrote_v};
    CHECK_INT(coding_run(&b->c, b->a, b->scratch, &b->table, codec, K, &source, &b->e), ST_OK);
    CHECK_INT(ftruncate(b->fd, 0), 0);
    CHECK_INT(coding_place(&b->c, b->a, b->fd, &META, &b->digest, &b->bytes, &b->e), ST_OK);
}

static enum status read_all(struct bed *b, enum codec codec, float *out)
{
    uint8_t *scratch = mem_alloc(CODED_SCRATCH);
    float *v = mem_alloc(CODEC_GROUP * sizeof(*v));
    enum status st = coded_open(&b->f, b->a, b->fd, &b->table, codec, K, &META, &b->e);
    for (int32_t i = 0; i < b->table.count && !st; i++) {
        for (int64_t g = 0; g < coded_groups(&b->table, i) && !st; g++) {
            int64_t first = 0;
            int64_t n = 0;
            coded_group(&b->table, i, g, &first, &n);
            st = coded_read(&b->f, b->fd, i, g, scratch, v, &b->e);
            memcpy(out + first, v, (size_t)n * sizeof(*v));
        }
    }
    mem_free(scratch);
    mem_free(v);
    return st;
}

static void what_is_written_reads_back_on_every_rung(void)
{
    static const double LEAST[CODEC_COUNT] = {1, 2, 3.9, 7.2, 13, 60};
    for (int c = 0; c < CODEC_COUNT; c++) {
        struct bed b = bed_new();
        write_file(&b, (enum codec)c);
        float *back = arena_alloc(b.a, (size_t)b.table.total * sizeof(float));
        CHECK_INT(read_all(&b, (enum codec)c, back), ST_OK);
        CHECK_MEM(back, b.v, (size_t)b.table.total * sizeof(float));
        CHECK_INT(b.f.bytes, b.bytes);
        CHECK_INT(lseek(b.fd, 0, SEEK_END), b.bytes);
        CHECK(b.bytes <= coded_bytes_max(&b.table, (enum codec)c, K, &META));
        // Headers are a kilobyte or three of this small file.
        double data = (double)(b.bytes - b.f.data_offset);
        CHECK((double)b.table.total * 4.0 / data >= LEAST[c] * 0.9);
        CHECK_INT(b.c.report.fallbacks, 0);
        double norm = 0.0;
        double sum = 0.0;
        CHECK_INT(coded_norm(&b.f, b.fd, &norm, &b.e), ST_OK);
        for (int64_t i = 0; i < b.table.total; i++) {
            sum += (double)back[i] * (double)back[i];
        }
        CHECK_NEAR(norm, sqrt(sum), 1e-12);
        bed_free(&b);
    }
}

static void an_f32_file_is_what_it_was_before_codecs(void)
{
    struct bed b = bed_new();
    write_file(&b, CODEC_F32);
    const struct st_meta meta[] = {BEFORE[0], BEFORE[1], {"codec", "f32"}, AFTER[0], AFTER[1]};
    int64_t len = 0;
    void *want = st_params_header(b.a, &b.table, meta, 5, &len);
    unsigned char *got = arena_alloc(b.a, (size_t)b.bytes);
    CHECK_INT(pread(b.fd, got, (size_t)b.bytes, 0), b.bytes);
    CHECK_MEM(got, want, (size_t)len);
    CHECK_MEM(got + len, b.u, (size_t)b.table.total * sizeof(float));
    CHECK_INT(b.bytes, coded_bytes_max(&b.table, CODEC_F32, K, &META));
    struct digest d;
    sha256_of(got, (size_t)b.bytes, &d);
    CHECK(digest_equal(&d, &b.digest));
    bed_free(&b);
}

/* Rungs fail in different ways: int8 on large values that hide all others of their block, top-k
 * where nothing stands out. The file is written, sound, and says which tensor went up. */
static void a_tensor_that_a_rung_cannot_hold_goes_one_up(void)
{
    for (int c = CODEC_INT8; c <= CODEC_TOPK; c += CODEC_TOPK - CODEC_INT8) {
        struct bed b = bed_new();
        const struct param *p = params_find(&b.table, "transformer.blocks.0.ffn.down_proj.weight");
        CHECK(p != NULL && p->rank == 2);
        for (int64_t i = 0; i < p->count; i++) {
            float outlier = i % 256 == 77 ? 1.0F : 3e-3F;
            b.u[p->offset + i] = c == CODEC_INT8 ? outlier : i % 2 ? 1e-3F : -1e-3F;
        }
        write_file(&b, (enum codec)c);
        float *back = arena_alloc(b.a, (size_t)b.table.total * sizeof(float));
        CHECK_INT(read_all(&b, (enum codec)c, back), ST_OK);
        CHECK_MEM(back, b.v, (size_t)b.table.total * sizeof(float));
        for (int32_t i = 0; i < b.table.count; i++) {
            enum codec own = codec_for_rank((enum codec)c, b.table.items[i].rank);
            CHECK_INT(b.f.tensors[i].rule.codec, &b.table.items[i] == p ? codec_up(own) : own);
        }
        CHECK_INT(b.c.report.fallbacks, 1);
        CHECK_NEAR(b.c.report.fallback_share, (double)p->count / (double)b.table.total, 1e-12);
        CHECK(b.bytes <= coded_bytes_max(&b.table, (enum codec)c, K, &META));
        struct arena *a = arena_new(1 << 22);
        struct st_header h;
        CHECK_INT(st_read(&h, a, b.fd, &b.e), ST_OK);
        CHECK_STR(st_meta_get(&h, "fallback"), p->name);
        arena_free(a);
        bed_free(&b);
    }
}

static void what_is_not_finite_is_not_coded(void)
{
    struct bed b = bed_new();
    struct coded_source source = {&b, read_u, NULL};
    b.u[b.table.total - 5] = NAN;
    CHECK_INT(coding_run(&b.c, b.a, b.scratch, &b.table, CODEC_Q4, K, &source, &b.e), ST_INVALID);
    CHECK(strstr(b.e.msg, "not finite") != NULL);
    bed_free(&b);
}

static void any_byte_of_a_header_that_changes_is_noticed(void)
{
    struct bed b = bed_new();
    write_file(&b, CODEC_TOPK);
    float *back = arena_alloc(b.a, (size_t)b.table.total * sizeof(float));
    CHECK_INT(read_all(&b, CODEC_TOPK, back), ST_OK);
    for (int64_t at = 0; at < b.f.data_offset; at += 7) {
        unsigned char was = 0;
        CHECK_INT(pread(b.fd, &was, 1, at), 1);
        unsigned char is = was ^ 0x11;
        CHECK_INT(pwrite(b.fd, &is, 1, at), 1);
        struct coded_file f;
        CHECK_INT(coded_open(&f, b.a, b.fd, &b.table, CODEC_TOPK, K, &META, &b.e), ST_CORRUPT);
        CHECK_INT(pwrite(b.fd, &was, 1, at), 1);
    }
    bed_free(&b);
}

static void a_file_of_another_codec_or_k_or_run_is_refused(void)
{
    struct bed b = bed_new();
    struct coded_file f;
    write_file(&b, CODEC_TOPK);
    CHECK_INT(coded_open(&f, b.a, b.fd, &b.table, CODEC_TOPK, 32, &META, &b.e), ST_CORRUPT);
    CHECK_INT(coded_open(&f, b.a, b.fd, &b.table, CODEC_Q2, K, &META, &b.e), ST_CORRUPT);
    CHECK_INT(coded_open(&f, b.a, b.fd, &b.table, CODEC_F32, K, &META, &b.e), ST_CORRUPT);
    struct st_meta other[] = {{"kind", "update"}, {"run", "q"}};
    struct coded_meta meta = {other, 2, AFTER, 2};
    CHECK_INT(coded_open(&f, b.a, b.fd, &b.table, CODEC_TOPK, K, &meta, &b.e), ST_CORRUPT);
    CHECK(strstr(b.e.msg, "run 'r'") != NULL);
    bed_free(&b);
}

static void places_of_gaps_that_lie_are_refused(void)
{
    struct bed b = bed_new();
    write_file(&b, CODEC_TOPK);
    float *back = arena_alloc(b.a, (size_t)b.table.total * sizeof(float));
    CHECK_INT(read_all(&b, CODEC_TOPK, back), ST_OK);
    int32_t wte = (int32_t)(params_find(&b.table, "transformer.wte.weight") - b.table.items);
    int64_t at = b.f.tensors[wte].gap_at_at;
    uint32_t was[3];
    CHECK_INT(pread(b.fd, was, sizeof(was), at), sizeof(was));
    static const uint32_t LIE[] = {0, 1, 0x7fffffff, 0xffffffff};
    for (size_t i = 0; i < 3; i++) {
        for (size_t l = 0; l < sizeof(LIE) / sizeof(LIE[0]); l++) {
            if (LIE[l] == was[i]) {
                continue;
            }
            CHECK_INT(pwrite(b.fd, &LIE[l], 4, at + 4 * (int64_t)i), 4);
            CHECK_INT(read_all(&b, CODEC_TOPK, back), ST_CORRUPT);
            CHECK_INT(pwrite(b.fd, &was[i], 4, at + 4 * (int64_t)i), 4);
        }
    }
    CHECK_INT(read_all(&b, CODEC_TOPK, back), ST_OK);
    CHECK_INT(ftruncate(b.fd, b.bytes - 1), 0);
    CHECK_INT(read_all(&b, CODEC_TOPK, back), ST_CORRUPT);
    bed_free(&b);
}

int main(void)
{
    RUN(what_is_written_reads_back_on_every_rung);
    RUN(an_f32_file_is_what_it_was_before_codecs);
    RUN(a_tensor_that_a_rung_cannot_hold_goes_one_up);
    RUN(what_is_not_finite_is_not_coded);
    RUN(any_byte_of_a_header_that_changes_is_noticed);
    RUN(a_file_of_another_codec_or_k_or_run_is_refused);
    RUN(places_of_gaps_that_lie_are_refused);
    return check_end();
}
