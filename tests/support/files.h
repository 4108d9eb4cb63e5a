/*
 * files.h - small models, blob folders and update files for tests of the server's file side.
 *
 * All of it in the header, so that the kit stays free of libraries.
 */
#ifndef TESTS_SUPPORT_FILES_H
#define TESTS_SUPPORT_FILES_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/arena.h"
#include "common/id.h"
#include "common/rng.h"
#include "common/run_spec.h"
#include "server/blob.h"
#include "server/update.h"
#include "tests/support/check.h"

/* A blob store in a folder of its own below /tmp; removed by files_close(). */
struct files {
    struct blob_store *blobs;
    char dir[64];
};

/* A run of a few thousand parameters; more is JSON to put inside the spec, like ",\"seed\":3". */
static inline struct run_spec files_spec(const char *more)
{
    struct arena *a = arena_new(1 << 20);
    const char *text =
        arena_fmt(a,
                  "{\"name\":\"tiny\",\"model\":{\"d_model\":16,\"n_heads\":2,\"n_layers\":2,"
                  "\"vocab_size\":320,\"seq_len\":8},\"federation\":{\"rounds\":4,"
                  "\"silos_per_round\":3,\"local_steps\":2},\"inner\":{\"batch\":4}%s}",
                  more);
    const struct json *doc = NULL;
    struct err e = {0};
    struct run_spec spec = {0};
    struct spec_problem problems[SPEC_PROBLEMS_MAX];
    int count = 0;
    enum status st = json_parse(&doc, a, text, strlen(text), &e);
    if (!st) {
        st = run_spec_parse(&spec, doc, problems, &count, &e);
    }
    if (st) {
        (void)printf("%s: %s %s\n", e.msg, count ? problems[0].pointer : "",
                     count ? problems[0].detail : "");
    }
    arena_free(a);
    CHECK_INT(st, ST_OK);
    return spec;
}

static inline void files_open(struct files *f)
{
    (void)snprintf(f->dir, sizeof(f->dir), "/tmp/test_files_XXXXXX");
    CHECK(mkdtemp(f->dir) != NULL);
    CHECK_INT(blob_store_open(&f->blobs, f->dir, NULL), ST_OK);
}

static inline void files_close(struct files *f)
{
    blob_store_close(f->blobs);
    char cmd[96];
    (void)snprintf(cmd, sizeof(cmd), "rm -rf %s", f->dir);
    CHECK_INT(system(cmd), 0);
}

/* An update file in memory: header, and values drawn from the seed with that scale. */
static inline unsigned char *files_update(struct arena *a, const struct param_table *t,
                                          const struct update_expected *u, uint64_t seed,
                                          double scale, int64_t *len)
{
    int64_t head = 0;
    const void *header = st_params_header(a, t, update_meta(a, u), UPDATE_META_COUNT, &head);
    *len = head + t->total * (int64_t)sizeof(float);
    unsigned char *file = arena_alloc(a, (size_t)*len);
    memcpy(file, header, (size_t)head);
    for (int64_t i = 0; i < t->total; i++) {
        float v = (float)(scale * rng_normal(seed, (uint64_t)i));
        memcpy(file + head + i * (int64_t)sizeof(v), &v, sizeof(v));
    }
    return file;
}

/* Bytes as an unlinked file. */
static inline int files_temp(const void *bytes, int64_t len)
{
    char path[] = "/tmp/test_files_XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    (void)unlink(path);
    CHECK_INT(pwrite(fd, bytes, (size_t)len, 0), len);
    return fd;
}

struct files_values { /* the values of files_update(), and what a reader of the file sees */
    uint64_t seed;
    double scale;
    float *seen; /* may be NULL */
};

static inline enum status files_read_values(void *ctx, int64_t first, int64_t n, float *u,
                                            double *fresh, struct err *e)
{
    const struct files_values *v = ctx;
    (void)e;
    (void)fresh;
    for (int64_t i = 0; i < n; i++) {
        u[i] = (float)(v->scale * rng_normal(v->seed, (uint64_t)(first + i)));
    }
    return ST_OK;
}

static inline enum status files_seen_values(void *ctx, int64_t first, int64_t n, const float *u,
                                            const float *seen, struct err *e)
{
    const struct files_values *v = ctx;
    (void)e;
    (void)u;
    if (v->seen) {
        memcpy(v->seen + first, seen, (size_t)n * sizeof(*seen));
    }
    return ST_OK;
}

/* The same update coded as u says, in memory. */
static inline unsigned char *files_coded_update(struct arena *a, const struct param_table *t,
                                                const struct update_expected *u,
                                                struct files_values *v, int64_t *len)
{
    struct coding c;
    struct digest d;
    int scratch = files_temp("", 0);
    int fd = files_temp("", 0);
    struct coded_source source = {v, files_read_values, files_seen_values};
    struct coded_meta meta = update_coded_meta(a, u);
    CHECK_INT(coding_run(&c, a, scratch, t, u->codec, u->k, &source, NULL), ST_OK);
    CHECK_INT(coding_place(&c, a, fd, &meta, &d, len, NULL), ST_OK);
    unsigned char *file = arena_alloc(a, (size_t)*len);
    CHECK_INT(pread(fd, file, (size_t)*len, 0), *len);
    CHECK_INT(close(scratch) | close(fd), 0);
    return file;
}

/* Bytes as a blob. */
static inline struct digest files_put(struct files *f, const void *bytes, int64_t len)
{
    char id[ID_LEN + 1];
    int fd = -1;
    id_new('u', id);
    CHECK_INT(blob_tmp_create(f->blobs, id, len, &fd, NULL), ST_OK);
    CHECK_INT(pwrite(fd, bytes, (size_t)len, 0), len);
    CHECK_INT(close(fd), 0);
    struct digest d;
    sha256_of(bytes, (size_t)len, &d);
    CHECK_INT(blob_place(f->blobs, id, &d, NULL), ST_OK);
    return d;
}

#endif
