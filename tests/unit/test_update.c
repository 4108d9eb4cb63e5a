#include "server/update.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/support/check.h"
#include "tests/support/files.h"

struct bed {
    struct arena *a;
    struct run_spec spec;
    struct param_table table;
    struct update_expected want;
    unsigned char *file;
    int64_t len;
    int64_t data_offset;
    double norm;
    struct err e;
};

static struct bed bed_new(void)
{
    struct bed b = {.a = arena_new(16 << 20), .spec = files_spec("")};
    b.table = params_table(b.a, &b.spec.model);
    b.want = (struct update_expected){
        .run_name = "tiny", .round = 3, .silo_name = "hospital-a", .tokens = 64, .steps = 2};
    memset(b.want.base.bytes, 0xab, DIGEST_SIZE);
    b.file = files_update(b.a, &b.table, &b.want, 7, 0.01, &b.len);
    return b;
}

static void bed_free(struct bed *b)
{
    arena_free(b->a);
}

static enum status judge(struct bed *b)
{
    int fd = files_temp(b->file, b->len);
    struct coded_file f = {0};
    enum status st = update_open(&f, b->a, fd, &b->table, &b->want, &b->e);
    if (!st) {
        b->data_offset = f.data_offset;
        st = coded_norm(&f, fd, &b->norm, &b->e);
    }
    CHECK_INT(close(fd), 0);
    return st;
}

static void the_update_that_was_asked_for_is_taken(void)
{
    struct bed b = bed_new();
    CHECK_INT(judge(&b), ST_OK);
    double sum = 0.0;
    for (int64_t i = 0; i < b.table.total; i++) {
        float v;
        memcpy(&v, b.file + b.data_offset + i * 4, sizeof(v));
        sum += (double)v * (double)v;
    }
    CHECK_NEAR(b.norm, sqrt(sum), 1e-12);
    bed_free(&b);
}

static void an_update_for_something_else_is_refused_and_told_why(void)
{
    static const struct {
        struct update_expected is;
        const char *says;
    } rows[] = {
        {{.run_name = "tina", .round = 3, .silo_name = "hospital-a", .tokens = 64, .steps = 2},
         "run"},
        {{.run_name = "tiny", .round = 2, .silo_name = "hospital-a", .tokens = 64, .steps = 2},
         "round"},
        {{.run_name = "tiny", .round = 3, .silo_name = "hospital-b", .tokens = 64, .steps = 2},
         "silo"},
        {{.run_name = "tiny", .round = 3, .silo_name = "hospital-a", .tokens = 65, .steps = 2},
         "tokens"},
        {{.run_name = "tiny", .round = 3, .silo_name = "hospital-a", .tokens = 64, .steps = 3},
         "steps"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct bed b = bed_new();
        struct update_expected is = rows[i].is;
        is.base = b.want.base;
        b.file = files_update(b.a, &b.table, &is, 7, 0.01, &b.len);
        CHECK_INT(judge(&b), ST_CORRUPT);
        CHECK(strstr(b.e.msg, rows[i].says) != NULL);
        bed_free(&b);
    }
    struct bed b = bed_new();
    struct update_expected is = b.want;
    is.base.bytes[31] ^= 1;
    b.file = files_update(b.a, &b.table, &is, 7, 0.01, &b.len);
    CHECK_INT(judge(&b), ST_CORRUPT);
    CHECK(strstr(b.e.msg, "base") != NULL);
    bed_free(&b);
}

static void tokens_and_steps_may_be_left_open(void)
{
    struct bed b = bed_new();
    b.want.tokens = b.want.steps = -1;
    CHECK_INT(judge(&b), ST_OK);
    bed_free(&b);
}

static void no_value_that_is_not_finite_passes(void)
{
    static const uint32_t bad[] = {0x7fc00000U, 0xffc00000U, 0x7f800001U, 0x7f800000U, 0xff800000U};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct bed b = bed_new();
        CHECK_INT(judge(&b), ST_OK);
        int64_t at = (int64_t)i * (b.table.total - 1) / 4;
        memcpy(b.file + b.data_offset + at * 4, &bad[i], 4);
        CHECK_INT(judge(&b), ST_CORRUPT);
        CHECK(strstr(b.e.msg, "not finite") != NULL);
        bed_free(&b);
    }
}

static void no_moment_that_is_not_finite_passes(void)
{
    static const float bad[] = {0.0F, NAN, INFINITY, -INFINITY};
    float v[100] = {1.0F, -2.0F, 2.0F, 0.0F};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        v[99] = bad[i];
        struct err e = {0};
        double norm = -1.0;
        int fd = files_temp((const unsigned char *)v, sizeof(v));
        CHECK_INT(update_check_values(fd, 0, 100, &norm, &e), i ? ST_CORRUPT : ST_OK);
        CHECK_NEAR(norm, i ? -1.0 : 3.0, 1e-12);
        CHECK(i == 0 || strstr(e.msg, "value 99 of 100 is not finite"));
        CHECK_INT(update_check_squares(fd, 96 * 4, 4, &e), i ? ST_CORRUPT : ST_OK);
        CHECK_INT(close(fd), 0);
    }
}

static void sums_of_squares_are_never_below_zero(void)
{
    struct bed b = bed_new();
    CHECK_INT(judge(&b), ST_OK);
    for (int64_t i = 0; i < b.table.total; i++) {
        float v;
        memcpy(&v, b.file + b.data_offset + i * 4, 4);
        v *= v;
        memcpy(b.file + b.data_offset + i * 4, &v, 4);
    }
    for (int bad = 0; bad <= 1; bad++) {
        if (bad) {
            const float minus = -1e-30F;
            memcpy(b.file + b.data_offset + (b.table.total - 1) * 4, &minus, 4);
        }
        int fd = memfd_create("squares", 0);
        CHECK_INT(write(fd, b.file, (size_t)b.len), b.len);
        CHECK_INT(update_check_squares(fd, b.data_offset, b.table.total, &b.e),
                  bad ? ST_CORRUPT : ST_OK);
        (void)close(fd);
    }
    CHECK(strstr(b.e.msg, "below zero") != NULL);
    bed_free(&b);
}

static void absurd_values_show_in_the_norm(void)
{
    struct bed b = bed_new();
    b.file = files_update(b.a, &b.table, &b.want, 7, 1e30, &b.len);
    CHECK_INT(judge(&b), ST_OK);
    CHECK(isfinite(b.norm) && b.norm > 1e30);
    bed_free(&b);
}

static void a_file_of_another_size_is_refused(void)
{
    for (int64_t cut = 0; cut < 400; cut += 7) {
        struct bed b = bed_new();
        b.len = cut < 200 ? cut : b.len - (cut - 199);
        CHECK_INT(judge(&b), ST_CORRUPT);
        bed_free(&b);
    }
    struct bed b = bed_new();
    unsigned char *longer = arena_alloc(b.a, (size_t)b.len + 4);
    memcpy(longer, b.file, (size_t)b.len);
    b.file = longer;
    b.len += 4;
    CHECK_INT(judge(&b), ST_CORRUPT);
    bed_free(&b);
}

static void a_header_of_another_length_is_not_even_parsed(void)
{
    static const unsigned char words[][8] = {
        {0, 0, 0, 0, 0, 0, 0, 0},
        {255, 255, 255, 255, 255, 255, 255, 255},
        {0, 0, 0, 0, 0, 0, 0, 128},
        {0, 0, 16, 0, 0, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        struct bed b = bed_new();
        memcpy(b.file, words[i], 8);
        CHECK_INT(judge(&b), ST_CORRUPT);
        CHECK(strstr(b.e.msg, "wanted") != NULL);
        bed_free(&b);
    }
}

static void any_byte_of_the_header_that_changes_is_noticed(void)
{
    struct bed b = bed_new();
    CHECK_INT(judge(&b), ST_OK);
    int64_t head = b.data_offset;
    while (head > 8 && b.file[head - 1] == ' ') {
        head--; // the padding may be anything that JSON calls space
    }
    for (int64_t i = 0; i < head; i++) {
        unsigned char was = b.file[i];
        b.file[i] = was == '5' ? '7' : was ^ 1;
        enum status st = judge(&b);
        b.file[i] = was;
        CHECK_INT(st, ST_CORRUPT);
    }
    bed_free(&b);
}

static void another_models_update_is_refused(void)
{
    struct bed b = bed_new();
    struct run_spec other = files_spec("");
    other.model.d_model = 12;
    other.model.n_heads = 2;
    struct param_table t = params_table(b.a, &other.model);
    b.file = files_update(b.a, &t, &b.want, 7, 0.01, &b.len);
    CHECK_INT(judge(&b), ST_CORRUPT);
    bed_free(&b);
}

int main(void)
{
    RUN(the_update_that_was_asked_for_is_taken);
    RUN(an_update_for_something_else_is_refused_and_told_why);
    RUN(tokens_and_steps_may_be_left_open);
    RUN(no_value_that_is_not_finite_passes);
    RUN(no_moment_that_is_not_finite_passes);
    RUN(sums_of_squares_are_never_below_zero);
    RUN(absurd_values_show_in_the_norm);
    RUN(a_file_of_another_size_is_refused);
    RUN(a_header_of_another_length_is_not_even_parsed);
    RUN(any_byte_of_the_header_that_changes_is_noticed);
    RUN(another_models_update_is_refused);
    return check_end();
}
