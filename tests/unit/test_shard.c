#include "client/shard.h"

#include <string.h>

#include "tests/support/check.h"
#include "tests/support/tempdir.h"

static unsigned char file[SHARD_HEAD_BYTES + 64];

static int64_t make(int32_t width, int64_t tokens)
{
    memset(file, 0, sizeof(file));
    shard_head_write(&(struct shard_head){.width = width, .tokens = tokens}, file);
    return SHARD_HEAD_BYTES + width * tokens;
}

static void heads_of_both_widths_read_back(void)
{
    for (int32_t width = 2; width <= 4; width += 2) {
        struct shard_head h;
        struct err e = {0};
        int64_t size = make(width, 7);
        CHECK_INT(shard_head_parse(&h, file, size, size, &e), ST_OK);
        CHECK_INT(h.width, width);
        CHECK_INT(h.tokens, 7);
    }
}

static void heads_that_lie_are_refused(void)
{
    struct shard_head h = {.tokens = 99};
    struct err e = {0};
    int64_t size = make(2, 7);
    CHECK_INT(shard_head_parse(&h, file, size, size - 1, &e), ST_CORRUPT);
    CHECK_INT(shard_head_parse(&h, file, size, size + 1, &e), ST_CORRUPT);
    CHECK_INT(shard_head_parse(&h, file, 1023, size, &e), ST_CORRUPT);
    CHECK_INT(shard_head_parse(&h, file, 0, 0, &e), ST_CORRUPT);
    file[0] ^= 1;
    CHECK_INT(shard_head_parse(&h, file, size, size, &e), ST_CORRUPT);
    size = make(2, 7);
    file[4] = 7; // the version of the wider tokens
    CHECK_INT(shard_head_parse(&h, file, size, size, &e), ST_CORRUPT);
    size = make(4, 7);
    memset(file + 8, 0xff, 4);
    CHECK_INT(shard_head_parse(&h, file, size, size, &e), ST_CORRUPT);
    CHECK_INT(h.tokens, 99);
}

static void tokens_are_little_endian(void)
{
    struct tempdir t;
    struct shard s;
    struct err e = {0};
    int32_t got[2];
    tempdir_make(&t);
    int64_t size = make(2, 2);
    memcpy(file + SHARD_HEAD_BYTES, "\x01\x02\xff\xff", 4);
    tempdir_put(&t, "a", file, (size_t)size);
    CHECK_INT(shard_open(&s, tempdir_at(&t, "a"), &e), ST_OK);
    shard_read(&s, 0, 2, got);
    CHECK_INT(got[0], 0x201);
    CHECK_INT(got[1], 0xffff);
    shard_close(&s);

    size = make(4, 1);
    memcpy(file + SHARD_HEAD_BYTES, "\x01\x02\x03\x04", 4);
    tempdir_put(&t, "b", file, (size_t)size);
    CHECK_INT(shard_open(&s, tempdir_at(&t, "b"), &e), ST_OK);
    shard_read(&s, 0, 1, got);
    CHECK_INT(got[0], 0x04030201);
    shard_close(&s);

    CHECK_INT(shard_open(&s, tempdir_at(&t, "none"), &e), ST_NOT_FOUND);
    tempdir_put(&t, "c", file, 100);
    CHECK_INT(shard_open(&s, tempdir_at(&t, "c"), &e), ST_CORRUPT);
    CHECK_INT(shard_open(&s, t.path, &e), ST_CORRUPT);
    tempdir_remove(&t);
}

#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define HEAD                                                                                       \
    "\"version\":1,\"tokenizer_sha256\":\"\",\"ids\":258,\"vocab_size\":320,\"end_of_text\":0,"
#define SPLITS                                                                                     \
    "\"train\":{\"documents\":2,\"bytes\":9,\"tokens\":11},"                                       \
    "\"heldout\":{\"documents\":0,\"bytes\":0,\"tokens\":0},"
#define SHARDS                                                                                     \
    "\"shards\":[{\"file\":\"train-00000.bin\",\"split\":\"train\",\"tokens\":11,\"sha256\":"      \
    "\"" SHA "\"}]"

static enum status parse(struct manifest *m, struct arena *a, const char *text)
{
    struct err e = {0};
    return manifest_parse(m, a, text, strlen(text), &e);
}

static void a_manifest_prints_as_it_was_parsed(void)
{
    struct arena *a = arena_new(1 << 20);
    struct manifest m;
    CHECK_INT(parse(&m, a, "{" HEAD SPLITS SHARDS ",\"later\":1}"), ST_OK);
    CHECK_INT(m.splits[SPLIT_TRAIN].tokens, 11);
    CHECK_STR(m.shards[0].sha256, SHA);
    struct buf one;
    struct buf two;
    buf_init(&one, 1 << 16);
    buf_init(&two, 1 << 16);
    manifest_print(&one, &m);
    CHECK_INT(parse(&m, a, one.data), ST_OK);
    manifest_print(&two, &m);
    CHECK_STR(two.data, one.data);
    buf_release(&one);
    buf_release(&two);
    arena_free(a);
}

static void manifests_that_lie_are_refused(void)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{}",
        "{" HEAD SPLITS "}",
        "{" HEAD SHARDS "}",
        "{" SPLITS SHARDS "}",
        "{\"version\":2,\"tokenizer_sha256\":\"\",\"ids\":258,\"vocab_size\":320,\"end_of_text\":"
        "0," SPLITS SHARDS "}",
        "{\"version\":1,\"tokenizer_sha256\":\"abc\",\"ids\":258,\"vocab_size\":320,"
        "\"end_of_text\":0," SPLITS SHARDS "}",
        "{\"version\":1,\"tokenizer_sha256\":\"\",\"ids\":258,\"vocab_size\":257,"
        "\"end_of_text\":0," SPLITS SHARDS "}",
        "{\"version\":1,\"tokenizer_sha256\":\"\",\"ids\":258,\"vocab_size\":320,"
        "\"end_of_text\":258," SPLITS SHARDS "}",
        "{" HEAD SPLITS "\"shards\":[{\"file\":\"../train-00000.bin\",\"split\":\"train\","
        "\"tokens\":11,\"sha256\":\"" SHA "\"}]}",
        "{" HEAD SPLITS "\"shards\":[{\"file\":\"heldout-00000.bin\",\"split\":\"train\","
        "\"tokens\":11,\"sha256\":\"" SHA "\"}]}",
        "{" HEAD SPLITS "\"shards\":[{\"file\":\"train-00000.bin\",\"split\":\"train\","
        "\"tokens\":10,\"sha256\":\"" SHA "\"}]}",
        "{" HEAD SPLITS "\"shards\":[{\"file\":\"train-00000.bin\",\"split\":\"train\","
        "\"tokens\":11,\"sha256\":\"\"}]}",
        "{" HEAD SPLITS "\"shards\":[1]}",
        "{" HEAD "\"unicode\":\"cut\xdf\"," SPLITS SHARDS "}",
        "{" HEAD "\"unicode\":\"" SHA "\"," SPLITS SHARDS "}",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct arena *a = arena_new(1 << 20);
        struct manifest m;
        CHECK_INT(parse(&m, a, bad[i]), ST_CORRUPT);
        arena_free(a);
    }
}

int main(void)
{
    RUN(heads_of_both_widths_read_back);
    RUN(heads_that_lie_are_refused);
    RUN(tokens_are_little_endian);
    RUN(a_manifest_prints_as_it_was_parsed);
    RUN(manifests_that_lie_are_refused);
    return check_end();
}
