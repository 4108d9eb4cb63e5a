#include "common/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/limits.h"
#include "tests/support/check.h"

static unsigned char file[1 << 16];

/* A file of that JSON and so many zero bytes of data; its length. */
static int64_t make(const char *json, int64_t data)
{
    uint64_t n = strlen(json);
    memset(file, 0, sizeof(file));
    for (int i = 0; i < 8; i++) {
        file[i] = (unsigned char)(n >> (8 * i));
    }
    memcpy(file + 8, json, n);
    return 8 + (int64_t)n + data;
}

static enum status parse_as(struct st_header *h, struct arena *a, const char *json, int64_t data,
                            struct err *e)
{
    int64_t len = make(json, data);
    return st_parse(h, a, file, len, len, e);
}

static void refused(const char *json, int64_t data, const char *says)
{
    struct arena *a = arena_new(1 << 20);
    struct st_header h;
    struct st_header before;
    memset(&h, 0x5a, sizeof(h));
    memset(&before, 0x5a, sizeof(before));
    struct err e = {0};
    enum status st = parse_as(&h, a, json, data, &e);
    arena_free(a);
    CHECK_INT(st, ST_CORRUPT);
    if (!strstr(e.msg, says)) {
        CHECK_STR(e.msg, says);
    }
    CHECK_MEM(&h, &before, sizeof(h));
}

#define T(name, type, shape, at)                                                                   \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" at "}"

static void a_good_file_is_read_in_the_order_of_its_data(void)
{
    struct arena *a = arena_new(1 << 20);
    struct st_header h;
    struct err e = {0};
    CHECK_INT(
        parse_as(&h, a,
                 "{\"__metadata__\":{\"format\":\"pt\",\"run\":\"r\"}," T(
                     "b", "BF16", "[3]", "[24,30]") "," T("a", "F32", "[2,3]", "[0,24]") "}  ",
                 30, &e),
        ST_OK);
    CHECK_INT(h.tensor_count, 2);
    CHECK_STR(h.tensors[0].name, "a");
    CHECK_INT(h.tensors[0].rank, 2);
    CHECK_INT(h.tensors[0].shape[1], 3);
    CHECK_STR(h.tensors[1].dtype, "BF16");
    CHECK_INT(h.data_bytes, 30);
    CHECK_STR(st_meta_get(&h, "run"), "r");
    CHECK(st_meta_get(&h, "none") == NULL);
    arena_free(a);
}

static void scalars_and_empty_tensors_are_allowed(void)
{
    struct arena *a = arena_new(1 << 20);
    struct st_header h;
    struct err e = {0};
    CHECK_INT(parse_as(&h, a, "{" T("a", "F32", "[]", "[0,4]") "," T("z", "U8", "[0]", "[4,4]") "}",
                       4, &e),
              ST_OK);
    CHECK_INT(h.tensors[0].rank, 0);
    CHECK_INT(parse_as(&h, a, "{}", 0, &e), ST_OK);
    CHECK_INT(h.tensor_count, 0);
    arena_free(a);
}

static void hostile_files_are_refused(void)
{
    refused("{" T("a", "F32", "[1]", "[4,8]") "}", 8, "a hole");
    refused("{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[1]", "[4,8]") "}", 8,
            "an overlap");
    refused("{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[0,8]") "}", 8,
            "an overlap");
    refused("{" T("a", "F32", "[1]", "[0,4]") "}", 5, "left over");
    refused("{" T("a", "F32", "[1]", "[0,4]") "}", 3, "not two places");
    refused("{" T("a", "F32", "[2]", "[0,4]") "}", 4, "its shape needs 8");
    refused("{" T("a", "F32", "[1]", "[4,0]") "}", 4, "bytes of data");
    refused("{" T("a", "F32", "[-1]", "[0,4]") "}", 4, "no whole number");
    refused("{" T("a", "F32", "[1.5]", "[0,6]") "}", 6, "no whole number");
    refused("{" T("a", "F32", "[4294967296,4294967296]", "[0,0]") "}", 0, "too large");
    refused("{" T("a", "F32", "[9007199254740991,4096]", "[0,0]") "}", 0, "too large");
    refused("{" T("a", "F32", "[1,1,1,1,1]", "[0,4]") "}", 4, "at most 4");
    refused("{" T("a", "F16", "[2]", "[0,4]") "}", 4, "no known dtype");
    refused("{" T("a", "F32", "[1]", "[0]") "}", 4, "not two places");
    refused("{" T("a/../b", "F32", "[1]", "[0,4]") "}", 4, "'..'");
    refused("{" T("a\\u0000b", "F32", "[1]", "[0,4]") "}", 4, "NUL");
    refused("{" T("a\\n", "F32", "[1]", "[0,4]") "}", 4, "control character");
    refused("{" T("", "F32", "[1]", "[0,4]") "}", 4, "without a name");
    refused("{" T("a", "F32", "[1]", "[0,4]") "," T("a", "F32", "[1]", "[0,4]") "}", 4, "twice");
    refused("{\"a\":1}", 0, "must hold dtype");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "alone");
    refused("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "needs a shape");
    refused("{\"__metadata__\":{\"n\":1}}", 0, "no string");
    refused("{\"__metadata__\":[]}", 0, "must be an object");
    refused(" {}", 0, "padded with spaces");
    refused("{}\n", 0, "padded with spaces");
    refused("[]", 0, "padded with spaces");
    refused("{} {}", 0, "follows the document");
    refused("    ", 0, "padded with spaces");
}

static void lengths_that_lie_are_refused(void)
{
    struct arena *a = arena_new(1 << 20);
    struct st_header h;
    struct err e = {0};
    int64_t len = make("{}", 0);
    for (int64_t cut = 0; cut < len; cut++) {
        CHECK_INT(st_parse(&h, a, file, cut, cut, &e), ST_CORRUPT);
        CHECK_INT(st_parse(&h, a, file, cut, len, &e), ST_CORRUPT);
    }
    static const uint64_t lies[] = {0, 1, 3, LIMIT_ST_HEADER + 1, 1ULL << 63, UINT64_MAX};
    for (size_t k = 0; k < sizeof(lies) / sizeof(lies[0]); k++) {
        for (int i = 0; i < 8; i++) {
            file[i] = (unsigned char)(lies[k] >> (8 * i));
        }
        CHECK_INT(st_parse(&h, a, file, len, len, &e), ST_CORRUPT);
    }
    arena_free(a);
}

static void tensors_are_bounded_in_number(void)
{
    static char json[LIMIT_ST_HEADER];
    size_t n = (size_t)snprintf(json, sizeof(json), "{");
    for (int i = 0; i <= LIMIT_ST_TENSORS; i++) {
        n += (size_t)snprintf(json + n, sizeof(json) - n,
                              "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                              i > 0 ? "," : "", i);
    }
    (void)snprintf(json + n, sizeof(json) - n, "}");
    size_t len = strlen(json);
    static unsigned char big[LIMIT_ST_HEADER + 8];
    for (int i = 0; i < 8; i++) {
        big[i] = (unsigned char)(len >> (8 * i));
    }
    memcpy(big + 8, json, len);
    struct arena *a = arena_new(1 << 20);
    struct st_header h;
    struct err e = {0};
    CHECK_INT(st_parse(&h, a, big, (int64_t)len + 8, (int64_t)len + 8, &e), ST_CORRUPT);
    CHECK(strstr(e.msg, "over the limit") != NULL);
    arena_free(a);
}

static const struct model_spec TINY = {.d_model = 8,
                                       .n_heads = 2,
                                       .n_layers = 2,
                                       .vocab_size = 320,
                                       .seq_len = 16,
                                       .position = POSITION_LEARNED,
                                       .bias = true};

static void what_is_written_reads_back_as_the_table(void)
{
    struct arena *a = arena_new(1 << 20);
    struct param_table t = params_table(a, &TINY);
    const struct st_meta meta[] = {{"kind", "checkpoint"}, {"round", "3"}};
    int64_t len = 0;
    void *bytes = st_params_header(a, &t, meta, 2, &len);
    CHECK_INT(len % 8, 0);

    char path[] = "/tmp/photon-st-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK_INT(write(fd, bytes, (size_t)len), len);
    CHECK_INT(ftruncate(fd, len + t.total * 4), 0);
    struct st_header h;
    struct err e = {0};
    CHECK_INT(st_read(&h, a, fd, &e), ST_OK);
    CHECK_INT(h.data_offset, len);
    CHECK_STR(h.meta[0].key, "format");
    CHECK_STR(h.meta[2].value, "3");
    CHECK_INT(st_check_params(&h, &t, &e), ST_OK);

    struct model_spec other = TINY;
    other.n_layers = 3;
    struct param_table wrong = params_table(a, &other);
    CHECK_INT(st_check_params(&h, &wrong, &e), ST_CORRUPT);
    other = TINY;
    other.vocab_size = 384;
    wrong = params_table(a, &other);
    CHECK_INT(st_check_params(&h, &wrong, &e), ST_CORRUPT);
    CHECK(strstr(e.msg, "shape") != NULL);

    CHECK_INT(ftruncate(fd, len + t.total * 4 - 1), 0);
    CHECK_INT(st_read(&h, a, fd, &e), ST_CORRUPT);
    CHECK_INT(ftruncate(fd, 5), 0);
    CHECK_INT(st_read(&h, a, fd, &e), ST_CORRUPT);
    (void)close(fd);
    (void)unlink(path);
    arena_free(a);
}

int main(void)
{
    RUN(a_good_file_is_read_in_the_order_of_its_data);
    RUN(scalars_and_empty_tensors_are_allowed);
    RUN(hostile_files_are_refused);
    RUN(lengths_that_lie_are_refused);
    RUN(tensors_are_bounded_in_number);
    RUN(what_is_written_reads_back_as_the_table);
    return check_end();
}
