/*
 * training.h - a trainer of a tiny model on made-up text, for the tests of trainer.h. One a
 * program.
 */
#ifndef TESTS_SUPPORT_TRAINING_H
#define TESTS_SUPPORT_TRAINING_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/trainer.h"
#include "tests/support/tiny.h"

struct text {
    bool same;   /* every step reads the rows of step 0 */
    int32_t bad; /* a token to put into the rows, or -1 */
    int32_t vocab;
};

static struct text text;

static inline enum status train_rows(void *ctx, int64_t step, int32_t rows, int32_t seq_len,
                                     int32_t *out, struct err *e)
{
    const struct text *x = ctx;
    (void)e;
    for (int32_t r = 0; r < rows; r++) {
        uint64_t key = (uint64_t)(x->same ? 0 : step) * 1000 + (uint64_t)r;
        tiny_row(key, x->vocab, seq_len + 1, out + (int64_t)r * (seq_len + 1));
    }
    if (x->bad >= 0) {
        out[seq_len] = x->bad;
    }
    return ST_OK;
}

static inline enum status heldout_row(void *ctx, int64_t i, int32_t seq_len, int32_t *out,
                                      int64_t *target_bytes, struct err *e)
{
    const struct text *x = ctx;
    if (i >= 7) {
        return err_set(e, ST_NOT_FOUND, "there are seven windows");
    }
    tiny_row(90000 + (uint64_t)i, x->vocab, seq_len + 1, out);
    *target_bytes = 3 * (int64_t)seq_len;
    return ST_OK;
}

static inline struct trainer_config config(void)
{
    text = (struct text){.bad = -1, .vocab = tiny_spec(0).vocab_size};
    return (struct trainer_config){
        .model = tiny_spec(0),
        .inner = {.optimizer = INNER_ADAMW,
                  .lr = 1e-2,
                  .beta1 = 0.9,
                  .beta2 = 0.95,
                  .eps = 1e-8,
                  .weight_decay = 0.01,
                  .clip_norm = 1.0,
                  .batch = 4,
                  .micro_batch = 2,
                  .warmup = 3,
                  .schedule_steps = 200,
                  .min_lr_ratio = 0.1},
        .rows = {.ctx = &text, .train = train_rows, .heldout = heldout_row},
        .device = engine.device,
        .dtype = engine.dtype_name,
        .threads = 2,
    };
}

/* A file as a checkpoint is: something before the data, then fp32 in flat order. */
enum { BEFORE = 24 };

static inline int weights_file(const struct param_table *t, int64_t count)
{
    float *w = tiny_weights(t);
    int fd = memfd_create("weights", 0);
    CHECK(fd >= 0);
    char before[BEFORE] = "a safetensors header";
    CHECK_INT(write(fd, before, sizeof(before)), BEFORE);
    size_t size = (size_t)count * sizeof(float);
    CHECK_INT(write(fd, w, size), (long long)size);
    mem_free(w);
    return fd;
}

static inline struct trainer *opened(const struct trainer_config *c)
{
    struct trainer *t = NULL;
    struct err e = {0};
    if (trainer_open(&t, c, &e) != ST_OK) {
        (void)printf("  %s\n", e.msg);
        CHECK(t != NULL);
    }
    int fd = weights_file(trainer_params(t), trainer_params(t)->total);
    CHECK_INT(trainer_load_weights(t, fd, BEFORE, &e), ST_OK);
    (void)close(fd);
    return t;
}

static inline struct step_report step(struct trainer *t, int64_t at)
{
    struct step_report r;
    struct err e = {0};
    if (trainer_step(t, at, &r, &e) != ST_OK) {
        (void)printf("  %s\n", e.msg);
        CHECK(e.msg[0] == '\0');
    }
    return r;
}

/* All weights; the caller frees them. */
static inline float *weights(struct trainer *t)
{
    int64_t total = trainer_params(t)->total;
    float *w = mem_alloc((size_t)total * sizeof(float));
    CHECK_INT(trainer_weights(t, 0, total, w, NULL), ST_OK);
    return w;
}

static inline void check_same_weights(struct trainer *a, struct trainer *b)
{
    float *wa = weights(a);
    float *wb = weights(b);
    CHECK_MEM(wa, wb, (size_t)trainer_params(a)->total * sizeof(float));
    mem_free(wa);
    mem_free(wb);
}

static char folder[] = "/tmp/photon-trainer-XXXXXX";

static inline void folder_make(void)
{
    CHECK(mkdtemp(folder) != NULL);
}

static inline const char *in_folder(const char *name)
{
    static char path[2][128];
    static int turn;
    turn = !turn;
    (void)snprintf(path[turn], sizeof(path[turn]), "%s/%s", folder, name);
    return path[turn];
}

static inline void folder_remove(void)
{
    static const char *const left[] = {"mid", "round", "whole", "cut", "other", "old", "ranks"};
    for (size_t i = 0; i < sizeof(left) / sizeof(left[0]); i++) {
        (void)unlink(in_folder(left[i]));
    }
    (void)rmdir(folder);
}

#endif
