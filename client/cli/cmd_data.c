/*
 * photon data: text to token shards, a tokenizer of one's own, and a look at what is there.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/bpe_train.h"
#include "client/cli/cmd.h"
#include "client/options.h"
#include "client/prepare.h"
#include "client/progress.h"
#include "client/shard_writer.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/limits.h"
#include "common/nearest.h"

enum { ARENA_MAX = 1 << 30, ARGS_MAX = 256, REDRAW_MS = 200, QUIET_MS = 10000 };

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

static int fail(const char *command, enum status st, const struct err *e)
{
    (void)fprintf(stderr, "photon data %s: %s\n", command, e->msg);
    return exit_of(st);
}

/* ---- progress ---- */

/* How far a pass over files is, on one line of a terminal or on a line every ten seconds. */
struct meter {
    const char *what;
    bool quiet;
    bool terminal;
    int width; // of what stands on the line
    int64_t started_ms;
    int64_t spoke_ms;
};

static void meter_init(struct meter *m, const char *what, bool quiet)
{
    *m = (struct meter){.what = what, .quiet = quiet, .terminal = isatty(STDERR_FILENO) == 1};
    m->started_ms = m->spoke_ms = clock_mono_ms();
}

/* done of all says how much is left; text is the rest of the line, pairs the same as key=value. */
static void meter_show(struct meter *m, int64_t done, int64_t all, const char *text,
                       const char *pairs)
{
    int64_t now = clock_mono_ms();
    if (m->quiet || now - m->spoke_ms < (m->terminal ? REDRAW_MS : QUIET_MS)) {
        return;
    }
    m->spoke_ms = now;
    double share = all > 0 ? (double)done / (double)all : 0.0;
    double spent = (double)(now - m->started_ms) / 1000.0;
    double left = share > 0.0 ? spent / share - spent : 0.0;
    if (!m->terminal) {
        (void)fprintf(stderr, "%s percent=%.1f %s eta_s=%.0f\n", m->what, 100.0 * share, pairs,
                      left);
        return;
    }
    char line[256];
    char eta[16];
    format_seconds(eta, left);
    int n =
        snprintf(line, sizeof(line), "%s %3.0f%%  %s  eta %s", m->what, 100.0 * share, text, eta);
    (void)fprintf(stderr, "\r%-*s", m->width, line);
    (void)fflush(stderr);
    m->width = n;
}

static void meter_end(struct meter *m)
{
    if (m->width > 0) {
        (void)fprintf(stderr, "\r%-*s\r", m->width, "");
    }
}

static double seconds_of(const struct meter *m)
{
    return (double)(clock_mono_ms() - m->started_ms) / 1000.0;
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
    double spent = seconds_of(m);
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

static int parse_format(const char *command, const char *text, enum doc_format *out)
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
    int rc = parse_format("prepare", p->format, &o.format);
    if (rc) {
        return rc;
    }
    struct arena *a = arena_new(ARENA_MAX);
    struct prepare_report r;
    struct err e = {0};
    struct meter m;
    meter_init(&m, "prepare", p->quiet);
    enum status st = prepare(&r, a, &o, on_prepare, &m, &e);
    meter_end(&m);
    if (st) {
        rc = fail("prepare", st, &e);
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
        .args_max = ARGS_MAX};
    const char *inputs[ARGS_MAX];
    int count = 0;
    enum options_end end = options_parse(&c, argc, argv, inputs, &count);
    if (end) {
        return end == OPTIONS_DONE ? EXIT_DONE : EXIT_USAGE;
    }
    if (!p.out_dir) {
        (void)fprintf(stderr, "photon data prepare: no output folder; try -o DIR\n");
        return EXIT_USAGE;
    }
    return run_prepare(&p, inputs, count);
}

/* ---- tokenizer ---- */

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
    int rc = parse_format("tokenizer", p->format, &format);
    if (rc) {
        return rc;
    }
    struct arena *a = arena_new(ARENA_MAX);
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
        rc = fail("tokenizer", st, &e);
    } else {
        print_learned(p, &out, ids, &l);
    }
    buf_release(&out);
    bpe_trainer_free(l.trainer);
    arena_free(a);
    return rc;
}

static int cmd_tokenizer(int argc, char **argv)
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
        .args_max = ARGS_MAX};
    const char *inputs[ARGS_MAX];
    int count = 0;
    enum options_end end = options_parse(&c, argc, argv, inputs, &count);
    if (end) {
        return end == OPTIONS_DONE ? EXIT_DONE : EXIT_USAGE;
    }
    if (!p.out) {
        (void)fprintf(stderr, "photon data tokenizer: no output file; try -o tokenizer.json\n");
        return EXIT_USAGE;
    }
    return run_tokenizer(&p, inputs, count);
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
        return end == OPTIONS_DONE ? EXIT_DONE : EXIT_USAGE;
    }
    struct arena *a = arena_new(ARENA_MAX);
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
        rc = fail(command, st, &e);
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
    {"data", "tokenizer", "learn a tokenizer from text", cmd_tokenizer},
    {"data", "inspect", "what a prepared folder holds", cmd_inspect},
    {"data", "check", "read a prepared folder again, every byte", cmd_check},
    {0}};
