#include "server/checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "common/layout.h"
#include "common/limits.h"
#include "common/mem.h"
#include "common/safetensors.h"
#include "server/checkpoint_int.h"
#include "server/update.h"

enum {
    DRAW_COUNT = 1 << 18, // values one thread draws at a time
    DRAW_THREADS = 8,
};

/* ---- checkpoint 0 ---- */

struct draw {
    const struct param_table *table;
    uint64_t seed;
    int64_t start;
    int64_t count;
    float *out;
};

static void *draw_values(void *arg)
{
    struct draw *d = arg;
    params_init(d->table, d->seed, d->start, d->count, d->out);
    return NULL;
}

/* Element i is a function of the seed and i alone, so any split over
 * threads gives the same values. */
static int draw_wave(struct draw *wave, int threads, const struct param_table *table, uint64_t seed,
                     int64_t start)
{
    pthread_t ids[DRAW_THREADS];
    bool started[DRAW_THREADS] = {false};
    int used = 0;
    for (; used < threads && start < table->total; used++) {
        struct draw *d = &wave[used];
        int64_t left = table->total - start;
        d->table = table;
        d->seed = seed;
        d->start = start;
        d->count = left < DRAW_COUNT ? left : DRAW_COUNT;
        start += d->count;
        started[used] = pthread_create(&ids[used], NULL, draw_values, d) == 0;
        if (!started[used]) {
            (void)draw_values(d);
        }
    }
    for (int i = 0; i < used; i++) {
        if (started[i]) {
            (void)pthread_join(ids[i], NULL);
        }
    }
    return used;
}

/* Moments before the first step. */
static enum status zeros(struct checkpoint_out *o, enum layout_part part, int64_t total,
                         struct err *e)
{
    float *block = mem_alloc(DRAW_COUNT * sizeof(*block));
    enum status st = ST_OK;
    for (int64_t at = 0; at < total && !st; at += DRAW_COUNT) {
        size_t size = (size_t)(total - at < DRAW_COUNT ? total - at : DRAW_COUNT) * sizeof(float);
        sha256_add(o->hash, block, size);
        st = checkpoint_write(o->fd, block, size,
                              o->data_offset + (part * total + at) * (int64_t)sizeof(float), e);
    }
    mem_free(block);
    return st;
}

/* Into the file from element `first` on. */
static enum status draw_all(struct checkpoint_out *o, int64_t first,
                            const struct param_table *table, uint64_t seed,
                            struct sha256 *data_hash, struct err *e)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int threads = cpus < 1 ? 1 : cpus > DRAW_THREADS ? DRAW_THREADS : (int)cpus;
    struct draw wave[DRAW_THREADS] = {0};
    for (int i = 0; i < threads; i++) {
        wave[i].out = mem_alloc(DRAW_COUNT * sizeof(float));
    }
    enum status st = ST_OK;
    for (int64_t at = 0; at < table->total && !st;) {
        int used = draw_wave(wave, threads, table, seed, at);
        for (int i = 0; i < used && !st; i++) {
            size_t size = (size_t)wave[i].count * sizeof(float);
            sha256_add(o->hash, wave[i].out, size);
            sha256_add(data_hash, wave[i].out, size);
            st = checkpoint_write(o->fd, wave[i].out, size,
                                  o->data_offset + (first + wave[i].start) * (int64_t)sizeof(float),
                                  e);
            at += wave[i].count;
        }
    }
    for (int i = 0; i < threads; i++) {
        mem_free(wave[i].out);
    }
    return st;
}

static enum status draw_initial(struct blob_store *blobs, const struct run_spec *spec,
                                const struct digest *want, struct checkpoint_files *out,
                                struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct param_table table = params_table(a, &spec->model);
    struct layout layout = layout_checkpoint(a, spec);
    bool moments = layout.part_at[LAYOUT_M] >= 0;
    struct checkpoint_out o = {.fd = -1, .want = want};
    struct sha256 *data_hash = sha256_new();
    struct checkpoint_files f = {.params = table.total};

    enum status st = checkpoint_out_open(&o, blobs, spec, &layout.table, "checkpoint", 0, e);
    if (!st && moments) {
        st = zeros(&o, LAYOUT_M, table.total, e);
    }
    if (!st) {
        st = draw_all(&o, layout.part_at[LAYOUT_WEIGHTS], &table, spec->seed, data_hash, e);
    }
    if (!st && moments) {
        st = zeros(&o, LAYOUT_V, table.total, e);
    }
    if (!st) {
        sha256_end(data_hash, &f.weights_digest);
        f.weights_bytes = o.bytes;
        st = checkpoint_out_place(&o, &f.weights, e);
    }
    checkpoint_out_release(&o);
    sha256_free(data_hash);
    arena_free(a);
    if (!st) {
        *out = f;
    }
    return st;
}

enum status checkpoint_initial(struct blob_store *blobs, const struct run_spec *spec,
                               struct checkpoint_files *out, struct err *e)
{
    return draw_initial(blobs, spec, NULL, out, e);
}

enum status checkpoint_initial_again(struct blob_store *blobs, const struct run_spec *spec,
                                     const struct checkpoint_files *want, struct err *e)
{
    struct checkpoint_files f;
    return draw_initial(blobs, spec, &want->weights, &f, e);
}

/* ---- checkpoint 0 of a fork ---- */

/* Bytes [at, at + size) of a file to the end of another one, which has `done` by now. data_hash may
 * be NULL. */
static enum status copy_bytes(const struct checkpoint_in *in, int64_t at, int64_t size,
                              struct checkpoint_out *o, int64_t done, struct sha256 *data_hash,
                              struct err *e)
{
    unsigned char *block = mem_alloc(READ_SIZE);
    enum status st = at > 0 ? ST_OK : err_set(e, ST_CORRUPT, "the file is too small");
    while (!st && size > 0) {
        int64_t n = size < READ_SIZE ? size : READ_SIZE;
        st = checkpoint_read(in->fd, block, n, at, e);
        if (!st) {
            sha256_add(o->hash, block, (size_t)n);
            if (data_hash) {
                sha256_add(data_hash, block, (size_t)n);
            }
            st = checkpoint_write(o->fd, block, (size_t)n, done, e);
        }
        at += n;
        done += n;
        size -= n;
    }
    mem_free(block);
    return st;
}

/* The files of a parent, whole against their digests, as everything that is summed. */
struct parent {
    struct checkpoint_in weights, state; // state only where it is taken over
};

/* Where an array begins in the parent's file, by its first tensor's name; -1: it has none. */
static enum status find_array(const struct checkpoint_in *in, struct arena *a, const char *tensor,
                              int64_t *at, struct err *e)
{
    struct st_header h;
    TRY(st_read(&h, a, in->fd, e));
    *at = -1;
    for (int32_t i = 0; i < h.tensor_count; i++) {
        if (strcmp(h.tensors[i].name, tensor) == 0) {
            *at = h.data_offset + h.tensors[i].begin;
        }
    }
    return ST_OK;
}

/* Where the weights begin; means of moments may stand before and behind them. */
static enum status find_weights(const struct checkpoint_in *in, struct arena *a,
                                const struct param_table *table, int64_t *at, struct err *e)
{
    TRY(find_array(in, a, table->items[0].name, at, e));
    return *at < 0
               ? err_set(e, ST_CORRUPT, "the parent's file has no '%.80s'", table->items[0].name)
               : ST_OK;
}

/* A run begins without moments, whatever its parent had. */
static enum status fork_weights(struct blob_store *blobs, const struct run_spec *spec,
                                const struct param_table *table, const struct parent *p,
                                const struct digest *want, struct checkpoint_files *f,
                                struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct layout layout = layout_checkpoint(a, spec);
    bool moments = layout.part_at[LAYOUT_M] >= 0;
    struct checkpoint_out o = {.fd = -1, .want = want};
    struct sha256 *data_hash = sha256_new();
    int64_t size = table->total * (int64_t)sizeof(float);
    int64_t from = 0;
    enum status st = find_weights(&p->weights, a, table, &from, e);
    st = st ? st : checkpoint_out_open(&o, blobs, spec, &layout.table, "checkpoint", 0, e);
    if (!st && moments) {
        st = zeros(&o, LAYOUT_M, table->total, e);
    }
    if (!st) {
        int64_t to = o.data_offset + layout.part_at[LAYOUT_WEIGHTS] * (int64_t)sizeof(float);
        st = copy_bytes(&p->weights, from, size, &o, to, data_hash, e);
    }
    if (!st && moments) {
        st = zeros(&o, LAYOUT_V, table->total, e);
    }
    sha256_end(data_hash, &f->weights_digest);
    f->weights_bytes = o.bytes;
    st = st ? st : checkpoint_out_place(&o, &f->weights, e);
    checkpoint_out_release(&o);
    sha256_free(data_hash);
    arena_free(a);
    return st;
}

/*
 * Array by array, for one of the two runs may send its checkpoints down in steps and the other
 * whole: y is what the parent's optimizer moved, in its outer state if it has one there, else the
 * weights.
 */
static enum status fork_arrays(struct checkpoint_out *o, const struct param_table *table,
                               const struct param_table *state, const struct parent *p,
                               struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    int64_t size = table->total * (int64_t)sizeof(float);
    int64_t done = o->data_offset;
    enum status st = ST_OK;
    for (int32_t i = 0; i < state->count && !st; i += table->count) {
        const char *tensor = state->items[i].name;
        const struct checkpoint_in *in = &p->state;
        int64_t at = -1;
        st = find_array(in, a, tensor, &at, e);
        if (!st && at < 0 && tensor[0] == 'y') {
            in = &p->weights;
            st = find_weights(in, a, table, &at, e);
        }
        if (!st && at < 0) {
            st = err_set(e, ST_CORRUPT, "the parent's outer state has no '%.80s'", tensor);
        }
        st = st ? st : copy_bytes(in, at, size, o, done, NULL, e);
        done += size;
    }
    arena_free(a);
    return st;
}

static enum status fork_state(struct blob_store *blobs, const struct run_spec *spec,
                              const struct param_table *table, const struct param_table *state,
                              const struct parent *p, const struct digest *want,
                              struct checkpoint_files *f, struct err *e)
{
    struct checkpoint_out o = {.fd = -1, .want = want};
    enum status st = checkpoint_out_open(&o, blobs, spec, state, "outer_state", 0, e);
    st = st ? st : fork_arrays(&o, table, state, p, e);
    f->state_bytes = o.bytes;
    st = st ? st : checkpoint_out_place(&o, &f->state, e);
    checkpoint_out_release(&o);
    return st;
}

enum status checkpoint_fork(struct blob_store *blobs, const struct run_spec *spec,
                            const struct checkpoint_source *from,
                            const struct checkpoint_files *again, struct checkpoint_files *out,
                            struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct param_table table = params_table(a, &spec->model);
    struct param_table state = checkpoint_state_table(a, &table, spec);
    struct parent p = {.weights = {.want = from->weights, .fd = -1},
                       .state = {.want = from->state, .fd = -1}};
    struct checkpoint_files f = {.params = table.total,
                                 .has_state = from->has_state && state.count > 0};
    enum status st = checkpoint_in_check(blobs, &p.weights, e);
    st = st ? st : fork_weights(blobs, spec, &table, &p, again ? &again->weights : NULL, &f, e);
    if (!st && f.has_state) {
        st = checkpoint_in_check(blobs, &p.state, e);
        st = st ? st
                : fork_state(blobs, spec, &table, &state, &p, again ? &again->state : NULL, &f, e);
    }
    checkpoint_in_close(&p.weights);
    checkpoint_in_close(&p.state);
    arena_free(a);
    if (!st) {
        *out = f;
    }
    return st;
}

/* ---- sizes ---- */

int64_t checkpoint_weights_bytes(const struct run_spec *spec)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct param_table table = layout_checkpoint(a, spec).table;
    int64_t len = 0;
    (void)run_header(a, spec, &table, "checkpoint", 0, &len);
    int64_t bytes = len + table.total * (int64_t)sizeof(float);
    arena_free(a);
    return bytes;
}

int64_t checkpoint_update_bytes(const struct run_spec *spec, const char *silo_name,
                                enum codec codec, int32_t round)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct param_table table = layout_update(a, spec, round).table;
    struct update_expected u = {.run_name = spec->name, .silo_name = silo_name, .codec = codec};
    struct coded_meta meta = update_coded_meta(a, &u);
    int64_t bytes = coded_bytes_max(&table, codec, spec->codec.up_k, &meta);
    arena_free(a);
    return bytes;
}
