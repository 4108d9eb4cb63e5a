/*
 * prepared.h - made-up text of different kinds, prepared as `photon data prepare` does it.
 */
#ifndef TESTS_SUPPORT_PREPARED_H
#define TESTS_SUPPORT_PREPARED_H

#include "client/prepare.h"
#include "common/rng.h"
#include "tests/support/tempdir.h"

/* A folder of byte tokens: sixty documents whose letters come from the kind's own small alphabet.
 */
static inline void prepared_text(const struct tempdir *t, const char *name, uint64_t kind)
{
    enum { DOCS = 60, LEN = 400 };
    char file[80];
    char text[DOCS * (LEN + 16)];
    size_t n = 0;
    for (int d = 0; d < DOCS; d++) {
        n += (size_t)snprintf(text + n, 16, "{\"text\":\"");
        for (int i = 0; i < LEN; i++) {
            uint64_t draw = rng_u64(kind * 1000 + (uint64_t)d, (uint64_t)i / 2);
            text[n++] = (char)('a' + (draw % 6 + kind * 5) % 26);
        }
        n += (size_t)snprintf(text + n, 16, "\"}\n");
    }
    (void)snprintf(file, sizeof(file), "%.60s.jsonl", name);
    tempdir_put(t, file, text, n);
    const char *input = tempdir_at(t, file);
    struct prepare_options o = {.inputs = &input,
                                .input_count = 1,
                                .out_dir = tempdir_at(t, name),
                                .heldout = 0.1,
                                .text_key = "text",
                                .shard_tokens = 1 << 20};
    struct arena *a = arena_new(64 << 20);
    struct prepare_report r;
    struct err e = {0};
    enum status st = prepare(&r, a, &o, NULL, NULL, &e);
    CHECK_STR(st ? e.msg : "", "");
    arena_free(a);
}

#endif
