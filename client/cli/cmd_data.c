/*
 * photon data: text to token shards, and a look at what is there. `tokenizer` has its own file.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/cli/cmd.h"
#include "client/cli/cmd_data.h"
#include "client/cli/meter.h"
#include "client/options.h"
#include "client/prepare.h"
#include "client/progress.h"
#include "client/shard_writer.h"
#include "common/json.h"
#include "common/limits.h"
#include "common/nearest.h"

static int exit_of(enum status st)
{
    switch (st) {
    case ST_OK:
        return EXIT_DONE;
    case ST_INVALID:
    case ST_NOT_FOUND:
    case ST_CONFLICT:
    case ST_LIMIT:
    case ST_CORRUPT:
        return EXIT_CONFIG;
    case ST_NOMEM:
        return EXIT_NO_DEVICE;
    case ST_RETRY:
        return EXIT_TEMPORARY;
    case ST_DENIED:
    case ST_IO:
    case ST_DB:
    case ST_NET:
    case ST_DEVICE:
    case ST_COUNT:
        break;
    }
    return EXIT_FAILED;
}

int data_fail(const char *command, enum status st, const struct err *e)
{
    (void)fprintf(stderr, "photon data %s: %s\n", command, e->msg);
    return exit_of(st);
}

int data_format(const char *command, const char *text, enum doc_format *out)
{
    for (int i = 0; i < DOC_FORMAT_COUNT; i++) {
        if (strcmp(DOC_FORMAT_NAMES[i], text) == 0) {
            *out = (enum doc_format)i;
            return EXIT_DONE;
        }
    }
    const char *near = nearest(text, DOC_FORMAT_NAMES);
    (void)fprintf(stderr, "photon data %s: unknown format '%s'; ", command, text);
    (void)fprintf(stderr, near ? "did you mean '%s'?\n" : "try auto, text, jsonl, bin, raw-u16\n",
                  near);
    return EXIT_USAGE;
}

/* ---- prepare ---- */

static void on_prepare(void *ctx, const struct prepare_progress *p)
{
    struct meter *m = ctx;
    char done[16];
    char all[16];
    char docs[16];
    char tokens[16];
    char rate[16];
    char text[200];
    char pairs[200];
    double spent = meter_seconds(m);
    format_bytes(done, p->done_bytes);
    format_bytes(all, p->all_bytes);
    format_count(docs, (double)p->documents);
    format_count(tokens, (double)p->tokens);
    format_bytes(rate, spent > 0.0 ? (int64_t)((double)p->done_bytes / spent) : 0);
    (void)snprintf(text, sizeof(text), "%s of %s  %s documents  %s tokens  %s/s", done, all, docs,
                   tokens, rate);
    (void)snprintf(pairs, sizeof(pairs),
                   "bytes=%" PRId64 " of=%" PRId64 " documents=%" PRId64 " tokens=%" PRId64,
                   p->done_bytes, p->all_bytes, p->documents, p->tokens);
    meter_show(m, p->done_bytes, p->all_bytes, text, pairs);
}

static void print_json(const struct manifest *m, const char *dir, const struct prepare_report *r)
{
    struct buf b;
    struct buf manifest;
    buf_init(&b, 2 * (size_t)MANIFEST_MAX);
    buf_init(&manifest, MANIFEST_MAX);
    manifest_print(&manifest, m);
    jw_object(&b, NULL);
    jw_str(&b, "dir", dir);
    if (r) {
        jw_int(&b, "files", r->files);
        jw_int(&b, "skipped_binary", r->binary);
        jw_int(&b, "skipped_other", r->other);
        jw_int(&b, "bad_lines", r->counts.bad_lines);
        jw_int(&b, "lines_without_text", r->counts.keyless);
    }
    jw_raw(&b, "manifest", manifest.data);
    jw_end_object(&b);
    (void)printf("%s\n", b.data);
    buf_release(&b);
    buf_release(&manifest);
}

static void print_manifest(const struct manifest *m, const char *dir)
{
    (void)printf("%s\n", dir);
    if (*m->tokenizer_sha256) {
        (void)printf("  tokenizer   %s, %d ids: give a model vocab_size %d\n", m->tokenizer_sha256,
                     m->ids, m->vocab_size);
    } else {
        (void)printf("  tokenizer   bytes, %d ids: give a model vocab_size %d\n", m->ids,
                     m->vocab_size);
    }
    for (int i = 0; i < SPLIT_COUNT; i++) {
        const struct manifest_split *s = &m->splits[i];
        char bytes[16];
        format_bytes(bytes, s->bytes);
        int32_t shards = 0;
        for (int32_t k = 0; k < m->shard_count; k++) {
            shards += m->shards[k].split == (enum split)i;
        }
        (void)printf("  %-11s %" PRId64 " tokens in %d shard%s; %" PRId64
                     " document%s, %s of text, %.2f bytes per token\n",
                     SPLIT_NAMES[i], s->tokens, shards, shards == 1 ? "" : "s", s->documents,
                     s->documents == 1 ? "" : "s", bytes,
                     s->tokens > 0 ? (double)s->bytes / (double)s->tokens : 0.0);
    }
}

/* What was left aside, and what one would not expect of the result. */
static void warn(const struct prepare_report *r, double heldout)
{
    const struct doc_counts *c = &r->counts;
    if (r->binary > 0) {
        (void)fprintf(stderr, "skipped %" PRId64 " binary file%s\n", r->binary,
                      r->binary == 1 ? "" : "s");
    }
    if (r->other > 0) {
        (void)fprintf(stderr, "skipped %" PRId64 " hidden, linked or unreadable file%s\n", r->other,
                      r->other == 1 ? "" : "s");
    }
    if (c->bad_lines + c->keyless > 0) {
        (void)fprintf(
            stderr, "skipped %" PRId64 " bad line%s and %" PRId64 " without text; the first: %s\n",
            c->bad_lines, c->bad_lines == 1 ? "" : "s", c->keyless, c->first_bad);
    }
    if (heldout > 0.0 && r->manifest.splits[SPLIT_HELDOUT].tokens == 0) {
        (void)fprintf(stderr, "nothing is held out: the text is one document, so this silo cannot "
                              "evaluate; try more text\n");
    }
}

struct prepare_args {
    const char *out_dir;
    const char *tokenizer;
    double heldout;
    const char *text_key;
    const char *format;
    int64_t shard_tokens;
    bool force;
    bool json;
    bool quiet;
};

static int run_prepare(const struct prepare_args *p, const char *const *inputs, int count)
{
    struct prepare_options o = {.inputs = inputs,
                                .input_count = count,
                                .out_dir = p->out_dir,
                                .tokenizer = p->tokenizer,
                                .heldout = p->heldout,
                                .text_key = p->text_key,
                                .shard_tokens = p->shard_tokens,
                                .force = p->force};
    int rc = data_format("prepare", p->format, &o.format);
    if (rc) {
        return rc;
    }
    struct arena *a = arena_new(DATA_ARENA_MAX);
    struct prepare_report r;
    struct err e = {0};
    struct meter m;
    meter_init(&m, "prepare", p->quiet);
    enum status st = prepare(&r, a, &o, on_prepare, &m, &e);
    meter_end(&m);
    if (st) {
        rc = data_fail("prepare", st, &e);
    } else {
        if (p->json) {
            print_json(&r.manifest, p->out_dir, &r);
        } else {
            print_manifest(&r.manifest, p->out_dir);
        }
        if (!p->quiet) {
            warn(&r, p->heldout);
        }
    }
    arena_free(a);
    return rc;
}

static int cmd_prepare(int argc, char **argv)
{
    struct prepare_args p = {
        .heldout = 0.05, .text_key = "text", .format = "auto", .shard_tokens = 100000000};
    const struct option_row rows[] = {
        {"output", 'o', OPTION_TEXT, "DIR", NULL, &p.out_dir, 0, 0,
         "the folder to write (required)"},
        {"tokenizer", 't', OPTION_TEXT, "FILE", NULL, &p.tokenizer, 0, 0,
         "a tokenizer.json; without one, bytes are tokens"},
        {"heldout", 0, OPTION_NUM, "SHARE", NULL, &p.heldout, 0, 0.9,
         "documents kept for evaluation (default 0.05)"},
        {"text-key", 0, OPTION_TEXT, "KEY", NULL, &p.text_key, 0, 0,
         "where JSON lines have their text (default text)"},
        {"format", 0, OPTION_TEXT, "NAME", NULL, &p.format, 0, 0,
         "auto, text, jsonl, bin (llm.c), raw-u16 (nanoGPT)"},
        {"shard-tokens", 0, OPTION_INT, "N", NULL, &p.shard_tokens, 1024, 2e9,
         "tokens in one file (default 100000000)"},
        {"force", 'f', OPTION_FLAG, NULL, NULL, &p.force, 0, 0, "replace a folder that is there"},
        {"json", 0, OPTION_FLAG, NULL, NULL, &p.json, 0, 0, "print JSON on stdout"},
        {"quiet", 'q', OPTION_FLAG, NULL, NULL, &p.quiet, 0, 0, "no talk on stderr"},
        {0}};
    struct command_line c = {
        .program = "photon data prepare",
        .args = "IN... -o DIR",
        .about =
            "Turn text into the token shards that a silo trains on. IN is a file or a folder:\n"
            "text, JSON lines (also .gz), or token shards of llm.c and nanoGPT. The text never\n"
            "leaves this machine.",
        .examples = "  photon data prepare ~/books -o data/books\n"
                    "  photon data prepare c4-*.json.gz -t tokenizer.json -o data/c4",
        .rows = rows,
        .args_min = 1,
        .args_max = DATA_ARGS_MAX};
    const char *inputs[DATA_ARGS_MAX];
    int count = 0;
    enum options_end end = options_parse(&c, argc, argv, inputs, &count);
    if (end) {
        return options_exit(end);
    }
    if (!p.out_dir) {
        (void)fprintf(stderr, "photon data prepare: no output folder; try -o DIR\n");
        return EXIT_USAGE;
    }
    return run_prepare(&p, inputs, count);
}

/* ---- inspect and check ---- */

static void on_check(void *ctx, int64_t done, int64_t all)
{
    char text[100];
    char pairs[100];
    char tokens[16];
    format_count(tokens, (double)done);
    (void)snprintf(text, sizeof(text), "%s tokens", tokens);
    (void)snprintf(pairs, sizeof(pairs), "tokens=%" PRId64 " of=%" PRId64, done, all);
    meter_show(ctx, done, all, text, pairs);
}

/* Both read a folder; check reads every byte of it. */
static int look(int argc, char **argv, const char *command, const struct command_line *line,
                bool *json, bool *quiet)
{
    const char *dir = NULL;
    int count = 0;
    enum options_end end = options_parse(line, argc, argv, &dir, &count);
    if (end) {
        return options_exit(end);
    }
    struct arena *a = arena_new(DATA_ARENA_MAX);
    struct manifest m;
    struct err e = {0};
    struct meter meter;
    bool check = strcmp(command, "check") == 0;
    meter_init(&meter, "check", *quiet);
    enum status st =
        check ? prepare_check(&m, a, dir, on_check, &meter, &e) : manifest_read(&m, a, dir, &e);
    meter_end(&meter);
    int rc = EXIT_DONE;
    if (st) {
        rc = data_fail(command, st, &e);
    } else if (*json) {
        print_json(&m, dir, NULL);
    } else {
        print_manifest(&m, dir);
        if (check) {
            (void)printf("  sound       every shard has the digest of the manifest, every token an "
                         "id of the tokenizer\n");
        }
    }
    arena_free(a);
    return rc;
}

static int cmd_inspect(int argc, char **argv)
{
    bool json = false;
    bool quiet = false;
    const struct option_row rows[] = {
        {"json", 0, OPTION_FLAG, NULL, NULL, &json, 0, 0, "print JSON on stdout"}, {0}};
    struct command_line c = {
        .program = "photon data inspect",
        .args = "DIR",
        .about = "What a prepared folder holds: tokenizer, documents, bytes, tokens, shards.",
        .examples = "  photon data inspect data/books\n  photon data inspect data/books --json",
        .rows = rows,
        .args_min = 1,
        .args_max = 1};
    return look(argc, argv, "inspect", &c, &json, &quiet);
}

static int cmd_check(int argc, char **argv)
{
    bool json = false;
    bool quiet = false;
    const struct option_row rows[] = {
        {"json", 0, OPTION_FLAG, NULL, NULL, &json, 0, 0, "print JSON on stdout"},
        {"quiet", 'q', OPTION_FLAG, NULL, NULL, &quiet, 0, 0, "no progress on stderr"},
        {0}};
    struct command_line c = {
        .program = "photon data check",
        .args = "DIR",
        .about =
            "Read a prepared folder again: every shard's SHA-256 and every token. Exit code 3\n"
            "and the file's name when something is wrong.",
        .examples = "  photon data check data/books\n  photon data check data/books --json",
        .rows = rows,
        .args_min = 1,
        .args_max = 1};
    return look(argc, argv, "check", &c, &json, &quiet);
}

const struct cmd cmds_data[] = {
    {"data", "prepare", "text to the token shards a silo trains on", cmd_prepare},
    {"data", "tokenizer", "learn a tokenizer from text", data_tokenizer},
    {"data", "inspect", "what a prepared folder holds", cmd_inspect},
    {"data", "check", "read a prepared folder again, every byte", cmd_check},
    {0}};
