#include "client/prepare.h"

#include <stdio.h>
#include <string.h>

#include "client/bpe_train.h"
#include "client/data.h"
#include "common/hash.h"
#include "common/mem.h"
#include "tests/support/check.h"
#include "tests/support/tempdir.h"

static struct arena *arena;

static enum status run(struct prepare_report *r, const char *input, const char *out,
                       const char *tokenizer, double heldout, bool force, struct err *e)
{
    struct prepare_options o = {.inputs = &input,
                                .input_count = 1,
                                .out_dir = out,
                                .tokenizer = tokenizer,
                                .heldout = heldout,
                                .text_key = "text",
                                .shard_tokens = 20000,
                                .force = force};
    *e = (struct err){0};
    return prepare(r, arena, &o, NULL, NULL, e);
}

static void good(struct prepare_report *r, const char *input, const char *out,
                 const char *tokenizer, double heldout)
{
    struct err e;
    enum status st = run(r, input, out, tokenizer, heldout, false, &e);
    CHECK_STR(st ? e.msg : "", "");
}

/* Documents of different sizes and contents, some of them in more than ASCII. */
static void write_docs(const struct tempdir *t, const char *name, int count)
{
    struct buf b;
    buf_init(&b, 1 << 24);
    for (int i = 0; i < count; i++) {
        buf_fmt(&b, "{\"text\":\"document %d says", i);
        for (int k = 0; k < i % 37; k++) {
            buf_fmt(&b, " caf\xc3\xa9 number %d", k * i);
        }
        buf_str(&b, "\"}\n");
    }
    tempdir_put(t, name, b.data, b.len);
    buf_release(&b);
}

static void text_becomes_shards_that_check_and_read_back(void)
{
    struct tempdir t;
    struct prepare_report r;
    struct err e = {0};
    tempdir_make(&t);
    write_docs(&t, "in.jsonl", 500);
    good(&r, tempdir_at(&t, "in.jsonl"), tempdir_at(&t, "out"), NULL, 0.1);
    const struct manifest_split *train = &r.manifest.splits[SPLIT_TRAIN];
    const struct manifest_split *held = &r.manifest.splits[SPLIT_HELDOUT];
    CHECK_INT(train->documents + held->documents, 500);
    CHECK(held->documents > 20 && held->documents < 100);
    CHECK_INT(train->tokens, train->bytes + train->documents); // bytes and the ends of text
    CHECK(r.manifest.shard_count >= 5);

    struct manifest m;
    CHECK_INT(prepare_check(&m, arena, tempdir_at(&t, "out"), NULL, NULL, &e), ST_OK);
    CHECK_INT(m.splits[SPLIT_TRAIN].tokens, train->tokens);

    struct data_source_arg arg = {tempdir_at(&t, "out"), 1};
    struct data *d = NULL;
    CHECK_INT(data_open(&d, &arg, 1, &e), ST_OK);
    int32_t row[65];
    int64_t bytes = 0;
    CHECK_INT(data_heldout_row(d, 0, 64, row, &bytes, &e), ST_OK);
    CHECK(bytes >= 60 && bytes <= 64);
    CHECK_INT(row[0], 'd' + 2); // "document"
    data_close(d);
    tempdir_remove(&t);
}

static const char *sha_of_first(const struct manifest *m, enum split split)
{
    int32_t i = 0;
    while (i < m->shard_count && m->shards[i].split != split) {
        i++;
    }
    return i < m->shard_count ? m->shards[i].sha256 : "none";
}

static void the_side_of_a_document_is_its_own(void)
{
    struct tempdir t;
    struct prepare_report all;
    struct prepare_report half;
    tempdir_make(&t);
    write_docs(&t, "all.jsonl", 4000);
    write_docs(&t, "half.jsonl", 3000);
    good(&all, tempdir_at(&t, "all.jsonl"), tempdir_at(&t, "a"), NULL, 0.1);
    good(&half, tempdir_at(&t, "half.jsonl"), tempdir_at(&t, "b"), NULL, 0.1);
    // The shorter text's held-out documents are the first of the longer one's.
    CHECK(half.manifest.splits[SPLIT_HELDOUT].documents > 200);
    CHECK_STR(sha_of_first(&half.manifest, SPLIT_HELDOUT),
              sha_of_first(&all.manifest, SPLIT_HELDOUT));
    CHECK_STR(sha_of_first(&half.manifest, SPLIT_TRAIN), sha_of_first(&all.manifest, SPLIT_TRAIN));
    tempdir_remove(&t);
}

static void small_texts_hold_something_out_too(void)
{
    for (int count = 2; count < 40; count += 7) {
        struct tempdir t;
        struct prepare_report r;
        tempdir_make(&t);
        write_docs(&t, "in.jsonl", count);
        good(&r, tempdir_at(&t, "in.jsonl"), tempdir_at(&t, "out"), NULL, 0.05);
        CHECK(r.manifest.splits[SPLIT_HELDOUT].documents > 0);
        CHECK(r.manifest.splits[SPLIT_TRAIN].documents > 0);
        CHECK_INT(r.manifest.splits[SPLIT_TRAIN].documents +
                      r.manifest.splits[SPLIT_HELDOUT].documents,
                  count);
        tempdir_remove(&t);
    }
}

static void the_same_text_gives_the_same_folder(void)
{
    struct tempdir t;
    struct prepare_report one;
    struct prepare_report two;
    tempdir_make(&t);
    write_docs(&t, "in.jsonl", 30);
    good(&one, tempdir_at(&t, "in.jsonl"), tempdir_at(&t, "a"), NULL, 0.05);
    good(&two, tempdir_at(&t, "in.jsonl"), tempdir_at(&t, "b"), NULL, 0.05);
    struct digest a;
    struct digest b;
    int64_t bytes = 0;
    CHECK_INT(sha256_file(tempdir_at(&t, "a/manifest.json"), &a, &bytes, NULL), ST_OK);
    CHECK_INT(sha256_file(tempdir_at(&t, "b/manifest.json"), &b, &bytes, NULL), ST_OK);
    CHECK_MEM(&a, &b, sizeof(a));
    tempdir_remove(&t);
}

/* A tokenizer.json learned from the documents. */
static void write_tokenizer(const struct tempdir *t, const char *name, int32_t vocab)
{
    struct bpe_trainer *tr = bpe_trainer_new();
    struct buf out;
    struct err e = {0};
    int32_t ids = 0;
    buf_init(&out, 1 << 20);
    for (int i = 0; i < 50; i++) {
        char text[100];
        (void)snprintf(text, sizeof(text), "document %d says caf\xc3\xa9 number %d", i, i * i);
        CHECK_INT(bpe_trainer_add(tr, text, strlen(text), &e), ST_OK);
        CHECK_INT(bpe_trainer_end(tr, &e), ST_OK);
    }
    CHECK_INT(bpe_trainer_learn(tr, vocab, NULL, NULL, &out, &ids, &e), ST_OK);
    tempdir_put(t, name, out.data, out.len);
    bpe_trainer_free(tr);
    buf_release(&out);
}

static void a_tokenizer_travels_with_the_folder(void)
{
    struct tempdir t;
    struct prepare_report r;
    struct err e = {0};
    tempdir_make(&t);
    write_docs(&t, "in.jsonl", 200);
    write_tokenizer(&t, "tok.json", 300);
    write_tokenizer(&t, "tok2.json", 290);
    good(&r, tempdir_at(&t, "in.jsonl"), tempdir_at(&t, "out"), tempdir_at(&t, "tok.json"), 0.1);
    CHECK(r.manifest.splits[SPLIT_TRAIN].tokens < r.manifest.splits[SPLIT_TRAIN].bytes);
    CHECK_INT(strlen(r.manifest.tokenizer_sha256), 64);
    CHECK(strstr(r.manifest.unicode, "14.0.0") != NULL);

    struct data_source_arg args[2] = {{tempdir_at(&t, "out"), 1}, {tempdir_at(&t, "bytes"), 1}};
    struct data *d = NULL;
    CHECK_INT(data_open(&d, args, 1, &e), ST_OK);
    struct data_info info;
    data_info(d, &info);
    CHECK_STR(info.tokenizer_sha256, r.manifest.tokenizer_sha256);
    CHECK_INT(info.vocab_size, 300);
    int64_t bytes = 0;
    int32_t row[33];
    CHECK_INT(data_heldout_row(d, 0, 32, row, &bytes, &e), ST_OK);
    CHECK(bytes > 32);
    data_close(d);

    good(&r, tempdir_at(&t, "in.jsonl"), tempdir_at(&t, "bytes"), NULL, 0.1);
    CHECK_INT(data_open(&d, args, 2, &e), ST_INVALID);
    CHECK(strstr(e.msg, "another tokenizer") != NULL);

    CHECK_INT(rename(tempdir_at(&t, "tok2.json"), tempdir_at(&t, "out/tokenizer.json")), 0);
    CHECK_INT(data_open(&d, args, 1, &e), ST_CORRUPT);
    struct manifest m;
    CHECK_INT(prepare_check(&m, arena, tempdir_at(&t, "out"), NULL, NULL, &e), ST_CORRUPT);
    CHECK_INT(unlink(tempdir_at(&t, "out/tokenizer.json")), 0);
    CHECK_INT(data_open(&d, args, 1, &e), ST_NOT_FOUND);
    tempdir_remove(&t);
}

static void the_name_of_the_end_in_a_document_is_only_text(void)
{
    struct tempdir t;
    struct prepare_report r;
    tempdir_make(&t);
    tempdir_text(&t, "in.jsonl", "{\"text\":\"a<|endoftext|>b\"}\n");
    write_tokenizer(&t, "tok.json", 280);
    good(&r, tempdir_at(&t, "in.jsonl"), tempdir_at(&t, "out"), tempdir_at(&t, "tok.json"), 0);
    struct shard s;
    struct err e = {0};
    int32_t ids[64];
    CHECK_INT(shard_open(&s, tempdir_at(&t, "out/train-00000.bin"), &e), ST_OK);
    shard_read(&s, 0, s.head.tokens, ids);
    for (int64_t i = 0; i + 1 < s.head.tokens; i++) {
        CHECK(ids[i] != 0);
    }
    CHECK_INT(ids[s.head.tokens - 1], 0);
    shard_close(&s);
    tempdir_remove(&t);
}

static void our_own_shards_can_be_read_in_again(void)
{
    struct tempdir t;
    struct prepare_report one;
    struct prepare_report two;
    struct err e = {0};
    tempdir_make(&t);
    write_docs(&t, "in.jsonl", 100);
    good(&one, tempdir_at(&t, "in.jsonl"), tempdir_at(&t, "a"), NULL, 0);
    CHECK_INT(
        run(&two, tempdir_at(&t, "a/train-00000.bin"), tempdir_at(&t, "b"), NULL, 0, false, &e),
        ST_OK);
    CHECK_INT(two.manifest.splits[SPLIT_TRAIN].tokens, 20001); // an end for the one cut through
    write_tokenizer(&t, "tok.json", 260);
    tempdir_put(&t, "wide.bin", "\xff\xff\x00\x00", 4);
    const char *input = tempdir_at(&t, "wide.bin");
    struct prepare_options o = {.inputs = &input,
                                .input_count = 1,
                                .out_dir = tempdir_at(&t, "c"),
                                .text_key = "text",
                                .format = DOC_RAW_U16,
                                .shard_tokens = 100};
    CHECK_INT(prepare(&two, arena, &o, NULL, NULL, &e), ST_INVALID);
    CHECK(strstr(e.msg, "65535 is no id") != NULL);
    tempdir_remove(&t);
}

static void a_finished_folder_is_only_replaced_when_asked(void)
{
    struct tempdir t;
    struct prepare_report r;
    struct err e = {0};
    tempdir_make(&t);
    write_docs(&t, "in.jsonl", 500);
    write_docs(&t, "less.jsonl", 20);
    good(&r, tempdir_at(&t, "in.jsonl"), tempdir_at(&t, "out"), NULL, 0.1);
    CHECK_INT(run(&r, tempdir_at(&t, "less.jsonl"), tempdir_at(&t, "out"), NULL, 0.1, false, &e),
              ST_CONFLICT);
    CHECK(strstr(e.msg, "--force") != NULL);
    CHECK_INT(access(tempdir_at(&t, "out/train-00001.bin"), F_OK), 0);
    tempdir_text(&t, "out/train-99999.bin.tmp", "left by a kill");
    tempdir_text(&t, "out/notes.txt", "mine");
    CHECK_INT(run(&r, tempdir_at(&t, "less.jsonl"), tempdir_at(&t, "out"), NULL, 0.1, true, &e),
              ST_OK);
    CHECK(access(tempdir_at(&t, "out/train-00001.bin"), F_OK) != 0);
    CHECK(access(tempdir_at(&t, "out/train-99999.bin.tmp"), F_OK) != 0);
    CHECK_INT(access(tempdir_at(&t, "out/notes.txt"), F_OK), 0);
    struct manifest m;
    CHECK_INT(prepare_check(&m, arena, tempdir_at(&t, "out"), NULL, NULL, &e), ST_OK);

    FILE *f = fopen(tempdir_at(&t, "out/train-00000.bin"), "r+b");
    CHECK(f != NULL);
    (void)fseek(f, 2000, SEEK_SET);
    (void)fputc(7, f);
    (void)fclose(f);
    CHECK_INT(prepare_check(&m, arena, tempdir_at(&t, "out"), NULL, NULL, &e), ST_CORRUPT);
    CHECK(strstr(e.msg, "train-00000.bin") != NULL);
    tempdir_remove(&t);
}

static void nothing_to_read_says_why(void)
{
    struct tempdir t;
    struct prepare_report r;
    struct err e = {0};
    tempdir_make(&t);
    tempdir_folder(&t, "empty");
    CHECK_INT(run(&r, tempdir_at(&t, "empty"), tempdir_at(&t, "o1"), NULL, 0.1, false, &e),
              ST_NOT_FOUND);
    tempdir_text(&t, "body.jsonl", "{\"body\":\"x\"}\n");
    CHECK_INT(run(&r, tempdir_at(&t, "body.jsonl"), tempdir_at(&t, "o2"), NULL, 0.1, false, &e),
              ST_NOT_FOUND);
    CHECK(strstr(e.msg, "its keys: body; try --text-key") != NULL);
    CHECK_INT(run(&r, tempdir_at(&t, "none"), tempdir_at(&t, "o3"), NULL, 0.1, false, &e),
              ST_NOT_FOUND);
    tempdir_text(&t, "a.txt", "text");
    CHECK_INT(run(&r, tempdir_at(&t, "a.txt"), tempdir_at(&t, "a.txt"), NULL, 0.1, false, &e),
              ST_IO);
    CHECK_INT(access(tempdir_at(&t, "o2/manifest.json"), F_OK), -1);
    tempdir_remove(&t);
}

static void a_document_of_any_length_passes_through(void)
{
    struct tempdir t;
    struct prepare_report r;
    tempdir_make(&t);
    size_t n = (size_t)3 << 20;
    char *text = mem_alloc(n + 32);
    size_t at = (size_t)snprintf(text, 16, "{\"text\":\"");
    memset(text + at, 'x', n);
    (void)snprintf(text + at + n, 8, "\"}\n");
    tempdir_text(&t, "in.jsonl", text);
    mem_free(text);
    good(&r, tempdir_at(&t, "in.jsonl"), tempdir_at(&t, "out"), NULL, 0);
    CHECK_INT(r.manifest.splits[SPLIT_TRAIN].documents, 1);
    CHECK_INT(r.manifest.splits[SPLIT_TRAIN].bytes, n);
    CHECK_INT(r.manifest.splits[SPLIT_TRAIN].tokens, n + 1);
    tempdir_remove(&t);
}

int main(void)
{
    arena = arena_new((size_t)1 << 28);
    RUN(text_becomes_shards_that_check_and_read_back);
    RUN(the_side_of_a_document_is_its_own);
    RUN(small_texts_hold_something_out_too);
    RUN(the_same_text_gives_the_same_folder);
    RUN(a_tokenizer_travels_with_the_folder);
    RUN(the_name_of_the_end_in_a_document_is_only_text);
    RUN(our_own_shards_can_be_read_in_again);
    RUN(a_finished_folder_is_only_replaced_when_asked);
    RUN(nothing_to_read_says_why);
    RUN(a_document_of_any_length_passes_through);
    arena_free(arena);
    return check_end();
}
