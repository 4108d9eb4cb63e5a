/*
 * docs.h - documents out of files: plain text, JSON lines, gzip, token shards of others.
 *
 * A folder is walked in the order of its names; hidden files and links in it are left aside, so
 * are binary files (a NUL or much that is not UTF-8 in the first block), and counted. A document
 * reaches the sink in blocks of any size and may be of any length: nothing here holds a whole
 * document but that of a JSON line, which is bounded. The only door to zlib.
 */
#ifndef CLIENT_DOCS_H
#define CLIENT_DOCS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/status.h"

enum {
    DOC_LINE_MAX = 16 * 1024 * 1024, /* of JSON; longer ones are skipped and counted */
    DOC_FILES_MAX = 1 << 20
};

enum doc_format {
    DOC_AUTO = 0, /* by name and first bytes */
    DOC_TEXT,     /* a document a file, or see doc_options.split */
    DOC_JSONL,    /* a document a line, under text_key */
    DOC_BIN,      /* tokens, llm.c's format */
    DOC_RAW_U16,  /* tokens, nanoGPT's format: no head, so never guessed */
    DOC_FORMAT_COUNT
};
extern const char *const DOC_FORMAT_NAMES[DOC_FORMAT_COUNT + 1]; /* NULL-terminated */

struct doc_file {
    const char *path;
    int64_t bytes; /* as stored: compressed, if it is */
    enum doc_format format;
    bool gzip;
};

struct doc_list {
    struct doc_file *files; /* in the arena */
    int32_t count;
    int64_t bytes;
    int64_t binary; /* skipped as binary */
    int64_t other;  /* skipped: hidden, links, devices, unreadable ones in folders */
};

/*
 * Files named and files in folders named. skip (may be NULL) is a folder not to enter: the
 * output's. ST_NOT_FOUND, ST_IO; ST_INVALID for a named file that cannot be read
 * as the format says.
 */
enum status docs_list(struct doc_list *out, struct arena *a, const char *const *inputs, int count,
                      enum doc_format format, const char *skip, struct err *e) MUST_CHECK;

struct doc_options {
    const char *text_key; /* of JSON lines */
    int64_t split; /* 0: a text file is a document; else cut at blank lines from this size on */
    int32_t end_of_text; /* between the documents of token shards */
};

/* What a plan for cutting text files would be: long texts and few files are cut. */
int64_t docs_split_size(const struct doc_list *l, const struct doc_file *f);

struct doc_sink {
    void *ctx;
    enum status (*text)(void *ctx, const char *bytes, size_t len, struct err *e);
    enum status (*tokens)(void *ctx, const int32_t *ids, int32_t count, struct err *e);
    enum status (*end)(void *ctx, struct err *e); /* of a document that was not empty */
};

struct doc_counts {
    int64_t consumed;    /* bytes of files, as stored */
    int64_t bad_lines;   /* JSON lines that are no object, or too long */
    int64_t keyless;     /* objects without the text */
    char first_bad[400]; /* "file:line: why" */
};

/* ST_CORRUPT: a broken gzip stream or shard; ST_IO; what the sink returned. counts add up. */
enum status docs_read(const struct doc_file *f, const struct doc_options *o,
                      const struct doc_sink *sink, struct doc_counts *counts,
                      struct err *e) MUST_CHECK;

/* The same from memory; path is for messages. For tests and fuzzing. */
enum status docs_read_bytes(const char *path, const void *bytes, size_t len, enum doc_format format,
                            bool gzip, const struct doc_options *o, const struct doc_sink *sink,
                            struct doc_counts *counts, struct err *e) MUST_CHECK;

#endif
