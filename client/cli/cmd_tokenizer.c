/*
 * photon data tokenizer: a byte-level BPE tokenizer learned from one's own text.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client/bpe_train.h"
#include "client/cli/cmd_data.h"
#include "client/cli/meter.h"
#include "client/docs.h"
#include "client/options.h"
#include "client/progress.h"
#include "client/shard_writer.h"
#include "client/tokenizer.h"
#include "common/json.h"
#include "common/limits.h"

struct learning {
    struct bpe_trainer *trainer;
    struct meter meter;
    struct doc_list list;
    struct doc_counts counts;
    int64_t documents;
    int64_t max_bytes; // of text to learn from
    int64_t bytes;
    int32_t vocab;
};

static enum status learn_text(void *ctx, const char *bytes, size_t len, struct err *e)
{
    struct learning *l = ctx;
    l->bytes += (int64_t)len;
    return bpe_trainer_add(l->trainer, bytes, len, e);
}

static enum status learn_end(void *ctx, struct err *e)
{
    struct learning *l = ctx;
    char text[120];
    char pairs[120];
    char docs[16];
    l->documents++;
    format_count(docs, (double)l->documents);
    (void)snprintf(text, sizeof(text), "reading, %s documents", docs);
    (void)snprintf(pairs, sizeof(pairs), "phase=read documents=%" PRId64, l->documents);
    meter_show(&l->meter, l->counts.consumed, l->list.bytes, text, pairs);
    return bpe_trainer_end(l->trainer, e);
}

static enum status learn_tokens(void *ctx, const int32_t *ids, int32_t count, struct err *e)
{
    (void)ctx;
    (void)ids;
    (void)count;
    return err_set(e, ST_INVALID, "token shards hold no text to learn from");
}

static void on_learned(void *ctx, int32_t ids)
{
    struct learning *l = ctx;
    char text[120];
    char pairs[120];
    (void)snprintf(text, sizeof(text), "learning, %d of %d ids", ids, l->vocab);
    (void)snprintf(pairs, sizeof(pairs), "phase=learn ids=%d of=%d", ids, l->vocab);
    meter_show(&l->meter, ids, l->vocab, text, pairs);
}

static enum status read_all(struct learning *l, const char *text_key, struct err *e)
{
    const struct doc_list *list = &l->list;
    for (int32_t i = 0; i < list->count && l->bytes < l->max_bytes; i++) {
        struct doc_options d = {.text_key = text_key,
                                .split = docs_split_size(list, &list->files[i])};
        struct doc_sink sink = {
            .ctx = l, .text = learn_text, .tokens = learn_tokens, .end = learn_end};
        TRY(docs_read(&list->files[i], &d, &sink, &l->counts, e));
    }
    if (l->documents == 0) {
        return err_set(e, ST_NOT_FOUND, "no text found; %.180s", l->counts.first_bad);
    }
    return ST_OK;
}

static enum status write_file(const char *path, const struct buf *text, struct err *e)
{
    char dir[512];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (n >= sizeof(dir)) {
        return err_set(e, ST_INVALID, "the path %.100s is too long", path);
    }
    (void)snprintf(dir, sizeof(dir), "%.*s", (int)n, path);
    return folder_put(slash ? (n > 0 ? dir : "/") : ".", slash ? slash + 1 : path, text->data,
                      text->len, e);
}

struct tokenizer_args {
    const char *out;
    int64_t vocab;
    const char *text_key;
    const char *format;
    double max_mb;
    bool json;
    bool quiet;
};

static enum status learn(struct learning *l, struct arena *a, const struct tokenizer_args *p,
                         enum doc_format format, const char *const *inputs, int count,
                         struct buf *out, int32_t *ids, struct err *e)
{
    TRY(docs_list(&l->list, a, inputs, count, format, NULL, e));
    TRY(read_all(l, p->text_key, e));
    meter_end(&l->meter);
    meter_init(&l->meter, "tokenizer", p->quiet);
    TRY(bpe_trainer_learn(l->trainer, l->vocab, on_learned, l, out, ids, e));
    return write_file(p->out, out, e);
}

static void print_learned(const struct tokenizer_args *p, const struct buf *text, int32_t ids,
                          const struct learning *l)
{
    struct tokenizer *t = NULL;
    struct err e = {0};
    struct tokenizer_info info = {0};
    if (!tokenizer_parse(&t, text->data, text->len, &e)) {
        tokenizer_info(t, &info);
        tokenizer_free(t);
    }
    if (p->json) {
        struct buf b;
        buf_init(&b, 4096);
        jw_object(&b, NULL);
        jw_str(&b, "file", p->out);
        jw_str(&b, "sha256", info.sha256);
        jw_int(&b, "ids", ids);
        jw_int(&b, "vocab_size", info.vocab_size);
        jw_int(&b, "documents", l->documents);
        jw_int(&b, "bytes", l->bytes);
        jw_end_object(&b);
        (void)printf("%s\n", b.data);
        buf_release(&b);
    } else {
        (void)printf("%s\n  sha256      %s\n  ids         %d: give a model vocab_size %d\n", p->out,
                     info.sha256, ids, info.vocab_size);
    }
    if (ids < p->vocab && !p->quiet) {
        (void)fprintf(stderr,
                      "the text has no more pairs that come twice: %d ids instead of %" PRId64 "\n",
                      ids, p->vocab);
    }
}

static int run_tokenizer(const struct tokenizer_args *p, const char *const *inputs, int count)
{
    enum doc_format format = DOC_AUTO;
    int rc = data_format("tokenizer", p->format, &format);
    if (rc) {
        return rc;
    }
    struct arena *a = arena_new(DATA_ARENA_MAX);
    struct learning l = {.trainer = bpe_trainer_new(),
                         .vocab = (int32_t)p->vocab,
                         .max_bytes = (int64_t)(p->max_mb * 1e6)};
    struct buf out;
    struct err e = {0};
    int32_t ids = 0;
    buf_init(&out, TOKENIZER_FILE_MAX);
    meter_init(&l.meter, "tokenizer", p->quiet);
    enum status st = learn(&l, a, p, format, inputs, count, &out, &ids, &e);
    meter_end(&l.meter);
    if (st) {
        rc = data_fail("tokenizer", st, &e);
    } else {
        print_learned(p, &out, ids, &l);
    }
    buf_release(&out);
    bpe_trainer_free(l.trainer);
    arena_free(a);
    return rc;
}

int data_tokenizer(int argc, char **argv)
{
    struct tokenizer_args p = {
        .vocab = 8192, .text_key = "text", .format = "auto", .max_mb = 1000.0};
    const struct option_row rows[] = {
        {"output", 'o', OPTION_TEXT, "FILE", NULL, &p.out, 0, 0, "the tokenizer.json (required)"},
        {"vocab", 'n', OPTION_INT, "N", NULL, &p.vocab, BYTE_IDS, LIMIT_VOCAB,
         "how many ids (default 8192)"},
        {"text-key", 0, OPTION_TEXT, "KEY", NULL, &p.text_key, 0, 0,
         "where JSON lines have their text (default text)"},
        {"format", 0, OPTION_TEXT, "NAME", NULL, &p.format, 0, 0, "auto, text, jsonl"},
        {"max-mb", 0, OPTION_NUM, "MB", NULL, &p.max_mb, 0.001, 1e6,
         "text to learn from, in whole files (default 1000)"},
        {"json", 0, OPTION_FLAG, NULL, NULL, &p.json, 0, 0, "print JSON on stdout"},
        {"quiet", 'q', OPTION_FLAG, NULL, NULL, &p.quiet, 0, 0, "no talk on stderr"},
        {0}};
    struct command_line c = {
        .program = "photon data tokenizer",
        .args = "IN... -o FILE",
        .about =
            "Learn a byte-level BPE tokenizer from text and write it as a tokenizer.json. The\n"
            "same text gives the same file. All silos of a run must use one file.",
        .examples = "  photon data tokenizer ~/books --vocab 8192 -o tokenizer.json\n"
                    "  photon data tokenizer c4-*.json.gz --vocab 50257 -o tokenizer.json",
        .rows = rows,
        .args_min = 1,
        .args_max = DATA_ARGS_MAX};
    const char *inputs[DATA_ARGS_MAX];
    int count = 0;
    enum options_end end = options_parse(&c, argc, argv, inputs, &count);
    if (end) {
        return options_exit(end);
    }
    if (!p.out) {
        (void)fprintf(stderr, "photon data tokenizer: no output file; try -o tokenizer.json\n");
        return EXIT_USAGE;
    }
    return run_tokenizer(&p, inputs, count);
}
