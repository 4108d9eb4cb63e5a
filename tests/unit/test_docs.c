#include "client/docs.h"

#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "common/buf.h"
#include "common/mem.h"
#include "tests/support/check.h"
#include "tests/support/tempdir.h"

/* Everything a reader says, as text: documents in [ ], tokens as numbers. */
static struct buf said;
static struct doc_counts counts;

static enum status on_text(void *ctx, const char *bytes, size_t len, struct err *e)
{
    (void)ctx;
    (void)e;
    buf_add(&said, bytes, len);
    return ST_OK;
}

static enum status on_tokens(void *ctx, const int32_t *ids, int32_t count, struct err *e)
{
    (void)ctx;
    (void)e;
    for (int32_t i = 0; i < count; i++) {
        buf_fmt(&said, "%d ", ids[i]);
    }
    return ST_OK;
}

static enum status on_end(void *ctx, struct err *e)
{
    (void)ctx;
    (void)e;
    buf_str(&said, "|");
    return ST_OK;
}

static const struct doc_sink SINK = {.text = on_text, .tokens = on_tokens, .end = on_end};

static enum status read_as(const void *bytes, size_t len, enum doc_format format, bool gzip,
                           int64_t split, struct err *e)
{
    struct doc_options o = {.text_key = "text", .split = split, .end_of_text = 0};
    buf_clear(&said);
    counts = (struct doc_counts){0};
    return docs_read_bytes("file", bytes, len, format, gzip, &o, &SINK, &counts, e);
}

static void says(const char *text, enum doc_format format, int64_t split, const char *want)
{
    struct err e = {0};
    CHECK_INT(read_as(text, strlen(text), format, false, split, &e), ST_OK);
    CHECK_STR(said.data, want);
}

static size_t pack(const void *bytes, size_t len, unsigned char *out, size_t room)
{
    z_stream z = {0};
    CHECK_INT(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (unsigned char *)(uintptr_t)bytes;
    z.avail_in = (unsigned)len;
    z.next_out = out;
    z.avail_out = (unsigned)room;
    CHECK_INT(deflate(&z, Z_FINISH), Z_STREAM_END);
    size_t n = room - z.avail_out;
    (void)deflateEnd(&z);
    return n;
}

static void a_text_is_a_document_unless_it_is_to_be_cut(void)
{
    says("one\n\ntwo\n", DOC_TEXT, 0, "one\n\ntwo\n|");
    says("", DOC_TEXT, 0, "");
    says("\n\n", DOC_TEXT, 1, "");
}

static void long_texts_are_cut_at_blank_lines(void)
{
    says("one\n\ntwo\n \t\nthree", DOC_TEXT, 3, "one\n\n|two\n \t\n|three|");
    says("one\n\n\n\n\ntwo\n\n", DOC_TEXT, 3, "one\n\n|two\n\n|");
    says("a\n\nb\n\nc\n\nd", DOC_TEXT, 5, "a\n\nb\n\n|c\n\nd|"); // not before the size
    says("aaa\r\n\r\nb", DOC_TEXT, 3, "aaa\r\n\r\n|b|");
}

static void without_blank_lines_a_line_or_a_character_will_do(void)
{
    says("aa\nbb\ncc\ndd\nee", DOC_TEXT, 2, "aa\nbb\ncc\n|dd\nee|");
    says("0123456789abcdef\xc3\xa9g", DOC_TEXT, 1, "0123456789abcdef|\xc3\xa9g|");
}

static void json_lines_give_their_text_and_bad_ones_are_counted(void)
{
    says("{\"text\":\"a\\nb\"}\n\n{\"text\":\"\"}\r\n{\"x\":1,\"text\":\"c\"}", DOC_JSONL, 0,
         "a\nb|c|");
    says("{\"text\":\"a\"}\n{bad\n[1]\n{\"body\":\"x\"}\n{\"text\":1}\n{\"text\":\"b\"}\n",
         DOC_JSONL, 0, "a|b|");
    CHECK_INT(counts.bad_lines, 2);
    CHECK_INT(counts.keyless, 2);
    CHECK(strstr(counts.first_bad, "file:2:") != NULL);
    says("{\"body\":\"x\"}", DOC_JSONL, 0, "");
    CHECK(strstr(counts.first_bad, "its keys: body") != NULL);
}

static void lines_are_joined_over_blocks_and_bounded(void)
{
    static const size_t sizes[] = {300000, DOC_LINE_MAX - 11, DOC_LINE_MAX - 10};
    for (int i = 0; i < 3; i++) {
        size_t n = sizes[i];
        char *line = mem_alloc(n + 64);
        (void)snprintf(line, 16, "{\"text\":\"");
        memset(line + 9, 'x', n);
        (void)snprintf(line + 9 + n, 48, "\"}\n{\"text\":\"after\"}\n");
        struct err e = {0};
        CHECK_INT(read_as(line, strlen(line), DOC_JSONL, false, 0, &e), ST_OK);
        CHECK_INT(counts.bad_lines, i == 2 ? 1 : 0);
        CHECK_INT(said.len, i == 2 ? 6 : n + 1 + 6);
        CHECK_STR(said.data + said.len - 6, "after|");
        mem_free(line);
    }
}

static void gzip_is_read_member_after_member_and_must_be_whole(void)
{
    static const char text[] = "{\"text\":\"one\"}\n";
    unsigned char file[400];
    struct err e = {0};
    size_t n = pack(text, sizeof(text) - 1, file, sizeof(file));
    size_t first = n;
    n += pack(text, sizeof(text) - 1, file + n, sizeof(file) - n);
    CHECK_INT(read_as(file, n, DOC_JSONL, true, 0, &e), ST_OK);
    CHECK_STR(said.data, "one|one|");
    CHECK_INT(counts.consumed, n);
    for (size_t cut = 1; cut < n; cut++) {
        CHECK_INT(read_as(file, cut, DOC_JSONL, true, 0, &e), cut == first ? ST_OK : ST_CORRUPT);
    }
    file[first / 2] ^= 0x55;
    CHECK_INT(read_as(file, n, DOC_JSONL, true, 0, &e), ST_CORRUPT);
    CHECK_INT(read_as("plain", 5, DOC_TEXT, true, 0, &e), ST_CORRUPT);
    CHECK(strstr(e.msg, "no sound gzip file") != NULL);
}

static void tokens_of_others_are_cut_at_their_ends_of_text(void)
{
    struct err e = {0};
    CHECK_INT(read_as("\x05\x00\x06\x00\x00\x00\x00\x00\x07\x01", 10, DOC_RAW_U16, false, 0, &e),
              ST_OK);
    CHECK_STR(said.data, "5 6 |263 |");
    CHECK_INT(read_as("\x05\x00\x06", 3, DOC_RAW_U16, false, 0, &e), ST_CORRUPT);
    CHECK_INT(read_as("\x05\x00", 2, DOC_BIN, false, 0, &e), ST_CORRUPT);
}

/* ---- folders ---- */

static void list(struct doc_list *l, struct arena *a, const char *input, enum status want)
{
    struct err e = {0};
    CHECK_INT(docs_list(l, a, &input, 1, DOC_AUTO, NULL, &e), want);
}

static void folders_are_walked_in_order_and_binaries_are_counted(void)
{
    struct tempdir t;
    struct arena *a = arena_new(1 << 20);
    struct doc_list l;
    tempdir_make(&t);
    tempdir_text(&t, "b.txt", "text");
    tempdir_text(&t, "z.jsonl", "{}");
    tempdir_text(&t, "c4.json", "{\"text\":\"x\"}\n{");
    tempdir_text(&t, "conf.json", "{\n\"a\":1}");
    tempdir_text(&t, ".hidden", "text");
    tempdir_put(&t, "program",
                "\x7f"
                "ELF\0\0",
                6);
    tempdir_put(&t, "noise.txt", "\xff\xfe\x80\x90\xff", 5);
    tempdir_folder(&t, "a");
    tempdir_text(&t, "a/2.txt", "text");
    tempdir_text(&t, "a/10.txt", "text");
    CHECK_INT(symlink("b.txt", tempdir_at(&t, "link")), 0);
    list(&l, a, t.path, ST_OK);
    static const char *const want[] = {"a/10.txt", "a/2.txt",   "b.txt",
                                       "c4.json",  "conf.json", "z.jsonl"};
    CHECK_INT(l.count, 6);
    for (int i = 0; i < 6; i++) {
        CHECK_STR(l.files[i].path, tempdir_at(&t, want[i]));
    }
    CHECK_INT(l.files[3].format, DOC_JSONL);
    CHECK_INT(l.files[4].format, DOC_TEXT);
    CHECK_INT(l.binary, 2);
    CHECK_INT(l.other, 2);

    list(&l, a, tempdir_at(&t, "link"), ST_OK); // named, it is followed
    CHECK_INT(l.count, 1);
    list(&l, a, tempdir_at(&t, "program"), ST_INVALID);
    list(&l, a, tempdir_at(&t, "none"), ST_NOT_FOUND);
    tempdir_text(&t, "x.zst", "x");
    list(&l, a, tempdir_at(&t, "x.zst"), ST_INVALID);
    arena_free(a);
    tempdir_remove(&t);
}

static void the_output_folder_is_not_read(void)
{
    struct tempdir t;
    struct arena *a = arena_new(1 << 20);
    struct doc_list l;
    struct err e = {0};
    tempdir_make(&t);
    tempdir_text(&t, "a.txt", "text");
    tempdir_folder(&t, "out");
    tempdir_text(&t, "out/manifest.json", "{}");
    const char *input = t.path;
    CHECK_INT(docs_list(&l, a, &input, 1, DOC_AUTO, tempdir_at(&t, "out"), &e), ST_OK);
    CHECK_INT(l.count, 1);
    arena_free(a);
    tempdir_remove(&t);
}

static void few_files_and_long_texts_are_cut(void)
{
    struct doc_file files[30];
    for (int i = 0; i < 30; i++) {
        files[i] = (struct doc_file){.format = DOC_TEXT, .bytes = 5000};
    }
    struct doc_list l = {.files = files, .count = 1};
    CHECK_INT(docs_split_size(&l, &files[0]), 1024);
    l.count = 30;
    CHECK_INT(docs_split_size(&l, &files[0]), 0);
    files[0].bytes = 2 << 20;
    CHECK_INT(docs_split_size(&l, &files[0]), (2 << 20) / 256);
    files[0].bytes = 1 << 30;
    CHECK_INT(docs_split_size(&l, &files[0]), 16384);
    files[0].format = DOC_JSONL;
    CHECK_INT(docs_split_size(&l, &files[0]), 0);
}

int main(void)
{
    buf_init(&said, (size_t)1 << 28);
    RUN(a_text_is_a_document_unless_it_is_to_be_cut);
    RUN(long_texts_are_cut_at_blank_lines);
    RUN(without_blank_lines_a_line_or_a_character_will_do);
    RUN(json_lines_give_their_text_and_bad_ones_are_counted);
    RUN(lines_are_joined_over_blocks_and_bounded);
    RUN(gzip_is_read_member_after_member_and_must_be_whole);
    RUN(tokens_of_others_are_cut_at_their_ends_of_text);
    RUN(folders_are_walked_in_order_and_binaries_are_counted);
    RUN(the_output_folder_is_not_read);
    RUN(few_files_and_long_texts_are_cut);
    buf_release(&said);
    return check_end();
}
