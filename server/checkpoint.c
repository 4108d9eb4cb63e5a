#include "server/checkpoint.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/arena.h"
#include "common/fault.h"
#include "common/id.h"
#include "common/layout.h"
#include "common/limits.h"
#include "common/mem.h"
#include "common/safetensors.h"
#include "common/schedule.h"
#include "server/update.h"

enum {
    READ_SIZE = 1 << 20,
    DRAW_COUNT = 1 << 18, // values one thread draws at a time
    DRAW_THREADS = 8,
    META_COUNT = 4,
    TMP_NAME = 8 + ID_LEN,
};

void checkpoint_spec_digest(const struct run_spec *spec, struct digest *out)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    const char *text = run_spec_json(a, spec);
    sha256_of(text, strlen(text), out);
    arena_free(a);
}

/* ---- writing ---- */

/* A file on its way into the blob store. */
struct output {
    struct blob_store *blobs;
    char tmp[TMP_NAME + 1];
    int fd;
    int64_t bytes;
    int64_t data_offset;
    struct sha256 *hash;
    const struct digest *want; // it must be this one, and takes its place; NULL: whatever it is
};

static enum status write_full(int fd, const void *data, size_t size, int64_t offset, struct err *e)
{
    const char *p = data;
    while (size > 0) {
        ssize_t n = FAULT_ERR("checkpoint.write") ? -1 : pwrite(fd, p, size, offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return err_set(e, errno == ENOSPC ? ST_LIMIT : ST_IO, "cannot write a checkpoint: %s",
                           strerror(errno));
        }
        p += n;
        offset += n;
        size -= (size_t)n;
    }
    return ST_OK;
}

static void *make_header(struct arena *a, const struct run_spec *spec,
                         const struct param_table *table, const char *kind, int32_t round,
                         int64_t *len)
{
    struct digest d;
    checkpoint_spec_digest(spec, &d);
    char *hex = arena_alloc(a, DIGEST_HEX + 1);
    digest_hex(&d, hex);
    const struct st_meta meta[META_COUNT] = {{"kind", kind},
                                             {"run", spec->name},
                                             {"round", arena_fmt(a, "%08" PRId32, round)},
                                             {"spec_sha256", hex}};
    return st_params_header(a, table, meta, META_COUNT, len);
}

/* Tensors of an outer state: each array whole, one after the other, its name before the tensors'.
 */
static struct param_table state_table(struct arena *a, const struct param_table *t,
                                      enum outer_optimizer o)
{
    int arrays = outer_arrays(o);
    struct param *items = arena_alloc(a, ((size_t)(arrays * t->count) + 1) * sizeof(*items));
    for (int i = 0; i < arrays * t->count; i++) {
        int array = i / t->count;
        items[i] = t->items[i % t->count];
        items[i].name = arena_fmt(a, "%s.%s", outer_array_name(o, array), items[i].name);
        items[i].offset += array * t->total;
    }
    return (struct param_table){
        .count = arrays * t->count, .total = arrays * t->total, .items = items};
}

static enum status output_open(struct output *o, struct blob_store *blobs,
                               const struct run_spec *spec, const struct param_table *table,
                               const char *kind, int32_t round, struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    int64_t len = 0;
    const void *header = make_header(a, spec, table, kind, round, &len);
    char id[ID_LEN + 1];
    id_new('c', id);
    o->blobs = blobs;
    o->data_offset = len;
    o->bytes = len + table->total * (int64_t)sizeof(float);
    (void)snprintf(o->tmp, sizeof(o->tmp), "file-%s", id);
    enum status st = blob_tmp_create(blobs, o->tmp, o->bytes, &o->fd, e);
    if (st) {
        o->fd = -1;
    } else {
        o->hash = sha256_new();
        sha256_add(o->hash, header, (size_t)len);
        st = write_full(o->fd, header, (size_t)len, 0, e);
    }
    arena_free(a);
    return st;
}

/* Gives the file its name. Afterwards nothing of it is left to release. */
static enum status output_place(struct output *o, struct digest *d, struct err *e)
{
    sha256_end(o->hash, d);
    FAULT("checkpoint.written");
    if (o->want && !digest_equal(d, o->want)) {
        return err_set(e, ST_CORRUPT, "what it was made of gives another file now");
    }
    TRY(o->want ? blob_replace(o->blobs, o->tmp, d, e) : blob_place(o->blobs, o->tmp, d, e));
    FAULT("checkpoint.placed");
    return ST_OK;
}

static void output_release(struct output *o)
{
    if (o->fd >= 0) {
        (void)close(o->fd);
        blob_tmp_remove(o->blobs, o->tmp); // absent once placed
        o->fd = -1;
    }
    sha256_free(o->hash);
    o->hash = NULL;
}

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
static enum status zeros(struct output *o, enum layout_part part, int64_t total, struct err *e)
{
    float *block = mem_alloc(DRAW_COUNT * sizeof(*block));
    enum status st = ST_OK;
    for (int64_t at = 0; at < total && !st; at += DRAW_COUNT) {
        size_t size = (size_t)(total - at < DRAW_COUNT ? total - at : DRAW_COUNT) * sizeof(float);
        sha256_add(o->hash, block, size);
        st = write_full(o->fd, block, size,
                        o->data_offset + (part * total + at) * (int64_t)sizeof(float), e);
    }
    mem_free(block);
    return st;
}

/* Into the file from element `first` on. */
static enum status draw_all(struct output *o, int64_t first, const struct param_table *table,
                            uint64_t seed, struct sha256 *data_hash, struct err *e)
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
            st = write_full(o->fd, wave[i].out, size,
                            o->data_offset + (first + wave[i].start) * (int64_t)sizeof(float), e);
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
    struct output o = {.fd = -1, .want = want};
    struct sha256 *data_hash = sha256_new();
    struct checkpoint_files f = {.params = table.total};

    enum status st = output_open(&o, blobs, spec, &layout.table, "checkpoint", 0, e);
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
        st = output_place(&o, &f.weights, e);
    }
    output_release(&o);
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

/* ---- the next checkpoint ---- */

/* A file that is read: first whole against its digest, then its header, then its data. */
struct input {
    struct digest want;
    int fd;
    int64_t bytes;
    int64_t data_offset;
    enum status st;
    struct err err;
};

struct check_work {
    struct blob_store *blobs;
    struct input *inputs;
    int count;
    int next;
    pthread_mutex_t lock;
};

static enum status check_open(struct blob_store *blobs, struct input *in, struct err *e)
{
    enum status st = blob_open(blobs, &in->want, &in->fd, &in->bytes, e);
    if (st) {
        in->fd = -1;
        return st == ST_NOT_FOUND ? err_set(e, ST_CORRUPT, "the file is missing") : st;
    }
    struct sha256 *h = sha256_new();
    unsigned char *block = mem_alloc(READ_SIZE);
    int64_t at = 0;
    while (!st) {
        ssize_t n = pread(in->fd, block, READ_SIZE, at);
        if (n == 0) {
            break;
        }
        if (n > 0) {
            sha256_add(h, block, (size_t)n);
            at += n;
        } else if (errno == EIO) {
            st = err_set(e, ST_CORRUPT, "the disk cannot read byte %" PRId64, at);
        } else if (errno != EINTR) {
            st = err_set(e, ST_IO, "cannot read: %s", strerror(errno));
        }
    }
    struct digest got;
    sha256_end(h, &got);
    if (!st && !digest_equal(&got, &in->want)) {
        st = err_set(e, ST_CORRUPT, "the file is not what it was when it was stored");
    }
    mem_free(block);
    sha256_free(h);
    return st;
}

/* A copy that was kept here may be damaged while what it is a copy of is sound. */
static enum status check_digest(struct blob_store *blobs, struct input *in, struct err *e)
{
    enum status st = check_open(blobs, in, e);
    if (st == ST_CORRUPT && in->fd >= 0 && blob_distrust(blobs, &in->want)) {
        (void)close(in->fd);
        st = check_open(blobs, in, e);
    }
    return st;
}

static void *check_some(void *arg)
{
    struct check_work *w = arg;
    for (;;) {
        (void)pthread_mutex_lock(&w->lock);
        int i = w->next < w->count ? w->next++ : -1;
        (void)pthread_mutex_unlock(&w->lock);
        if (i < 0) {
            return NULL;
        }
        w->inputs[i].st = check_digest(w->blobs, &w->inputs[i], &w->inputs[i].err);
    }
}

static void check_digests(struct blob_store *blobs, struct input *inputs, int count, int threads)
{
    enum { MOST = 16 };
    struct check_work w = {.blobs = blobs, .inputs = inputs, .count = count};
    (void)pthread_mutex_init(&w.lock, NULL);
    pthread_t ids[MOST];
    int started = 0;
    int wanted = threads < count ? threads : count;
    while (started < wanted - 1 && started < MOST &&
           pthread_create(&ids[started], NULL, check_some, &w) == 0) {
        started++;
    }
    (void)check_some(&w);
    for (int i = 0; i < started; i++) {
        (void)pthread_join(ids[i], NULL);
    }
    (void)pthread_mutex_destroy(&w.lock);
}

/* ---- checkpoint 0 of a fork ---- */

/* The data section of a file under a new header. data_hash may be NULL. */
static enum status copy_data(const struct input *in, struct output *o, struct sha256 *data_hash,
                             struct err *e)
{
    unsigned char *block = mem_alloc(READ_SIZE);
    int64_t left = o->bytes - o->data_offset;
    int64_t from = in->bytes - left;
    int64_t to = o->data_offset;
    enum status st = from > 0 ? ST_OK : err_set(e, ST_CORRUPT, "the file is too small");
    while (!st && left > 0) {
        size_t want = left < READ_SIZE ? (size_t)left : READ_SIZE;
        ssize_t n = pread(in->fd, block, want, from);
        if (n <= 0) {
            st = n < 0 && errno == EINTR ? ST_OK : err_set(e, ST_IO, "cannot read a checkpoint");
            continue;
        }
        sha256_add(o->hash, block, (size_t)n);
        if (data_hash) {
            sha256_add(data_hash, block, (size_t)n);
        }
        st = write_full(o->fd, block, (size_t)n, to, e);
        from += n;
        to += n;
        left -= n;
    }
    mem_free(block);
    return st;
}

/* One file of the fork: whole against its digest first, as everything that is summed. */
static enum status fork_file(struct blob_store *blobs, const struct run_spec *spec,
                             const struct param_table *table, const char *kind,
                             const struct digest *from, const struct digest *want,
                             struct sha256 *data_hash, struct digest *made, int64_t *bytes,
                             struct err *e)
{
    struct input in = {.want = *from, .fd = -1};
    struct output o = {.fd = -1, .want = want};
    enum status st = check_digest(blobs, &in, e);
    st = st ? st : output_open(&o, blobs, spec, table, kind, 0, e);
    st = st ? st : copy_data(&in, &o, data_hash, e);
    *bytes = o.bytes;
    st = st ? st : output_place(&o, made, e);
    output_release(&o);
    if (in.fd >= 0) {
        (void)close(in.fd);
    }
    return st;
}

enum status checkpoint_fork(struct blob_store *blobs, const struct run_spec *spec,
                            const struct checkpoint_source *from,
                            const struct checkpoint_files *again, struct checkpoint_files *out,
                            struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct param_table table = params_table(a, &spec->model);
    struct param_table state = state_table(a, &table, spec->outer.name);
    struct sha256 *data_hash = sha256_new();
    struct checkpoint_files f = {.params = table.total,
                                 .has_state = from->has_state && state.count > 0};
    enum status st =
        fork_file(blobs, spec, &table, "checkpoint", &from->weights, again ? &again->weights : NULL,
                  data_hash, &f.weights, &f.weights_bytes, e);
    sha256_end(data_hash, &f.weights_digest);
    if (!st && f.has_state) {
        st = fork_file(blobs, spec, &state, "outer_state", &from->state,
                       again ? &again->state : NULL, NULL, &f.state, &f.state_bytes, e);
    }
    sha256_free(data_hash);
    arena_free(a);
    if (!st) {
        *out = f;
    }
    return st;
}

/* A file of our own: damaged or of another run is the same to us. */
static enum status check_own_header(struct input *in, const struct run_spec *spec,
                                    const struct param_table *table, const char *kind,
                                    int32_t round, struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    int64_t len = 0;
    const char *want = make_header(a, spec, table, kind, round, &len);
    char *got = arena_alloc(a, (size_t)len);
    enum status st = ST_OK;
    if (in->bytes != len + table->total * (int64_t)sizeof(float) ||
        pread(in->fd, got, (size_t)len, 0) != len || memcmp(got, want, (size_t)len) != 0) {
        st = err_set(e, ST_CORRUPT, "not the %s of round %" PRId32 " of this run", kind, round);
    }
    in->data_offset = len;
    arena_free(a);
    return st;
}

/* Everything one call of checkpoint_next() holds. */
struct next {
    const struct checkpoint_job *job;
    struct arena *arena;
    struct param_table table;
    struct param_table state_table;
    struct layout update_layout, checkpoint_layout;
    int count;
    struct input *inputs; // base, [state], updates
    struct input *base, *state, *updates;
    struct coded_file *coded; // of the updates
    struct output out, out_state;
    bool keeps_state;
};

static void next_init(struct next *n, const struct checkpoint_job *job)
{
    n->job = job;
    n->arena = arena_new(LIMIT_REQUEST_ARENA);
    n->table = params_table(n->arena, &job->spec->model);
    n->out.fd = n->out_state.fd = -1;
    n->out.want = job->again ? &job->again->weights : NULL;
    n->out_state.want = job->again ? &job->again->state : NULL;
    n->update_layout = layout_update(n->arena, job->spec, job->round);
    n->checkpoint_layout = layout_checkpoint(n->arena, job->spec);
    n->state_table = state_table(n->arena, &n->table, job->spec->outer.name);
    n->keeps_state = n->state_table.count > 0;
    bool state = n->keeps_state && job->state;
    n->count = 1 + (state ? 1 : 0) + job->update_count;
    n->inputs = mem_alloc((size_t)n->count * sizeof(*n->inputs));
    n->coded = arena_alloc(n->arena, ((size_t)job->update_count + 1) * sizeof(*n->coded));
    n->base = &n->inputs[0];
    n->base->want = job->base;
    n->state = state ? &n->inputs[1] : NULL;
    if (state) {
        n->state->want = *job->state;
    }
    n->updates = &n->inputs[state ? 2 : 1];
    for (int k = 0; k < job->update_count; k++) {
        n->updates[k].want = job->updates[k].sha256;
    }
    for (int i = 0; i < n->count; i++) {
        n->inputs[i].fd = -1;
    }
}

static void next_release(struct next *n)
{
    for (int i = 0; i < n->count; i++) {
        if (n->inputs[i].fd >= 0) {
            (void)close(n->inputs[i].fd);
        }
    }
    output_release(&n->out);
    output_release(&n->out_state);
    mem_free(n->inputs);
    arena_free(n->arena);
}

/* Are all files what they were when they were accepted? The first bad one in order is reported. */
static enum status next_check(struct next *n, int *corrupt, struct err *e)
{
    const struct checkpoint_job *j = n->job;
    check_digests(j->blobs, n->inputs, n->count, j->threads);
    for (int i = 0; i < n->count; i++) {
        if (n->inputs[i].st) {
            *corrupt = n->inputs[i].st == ST_CORRUPT && &n->inputs[i] >= n->updates
                           ? (int)(&n->inputs[i] - n->updates)
                           : -1;
            if (e) {
                *e = n->inputs[i].err;
            }
            return n->inputs[i].st;
        }
    }
    TRY(check_own_header(n->base, j->spec, &n->checkpoint_layout.table, "checkpoint", j->round - 1,
                         e));
    if (n->state) {
        TRY(check_own_header(n->state, j->spec, &n->state_table, "outer_state", j->round - 1, e));
    }
    for (int k = 0; k < j->update_count; k++) {
        struct update_expected want = {.run_name = j->spec->name,
                                       .round = j->round,
                                       .base = j->base,
                                       .silo_name = j->updates[k].silo_name,
                                       .tokens = j->updates[k].tokens,
                                       .steps = -1,
                                       .codec = j->updates[k].codec,
                                       .k = j->spec->codec.up_k};
        enum status st = update_open(&n->coded[k], n->arena, n->updates[k].fd,
                                     &n->update_layout.table, &want, e);
        if (st) {
            *corrupt = st == ST_CORRUPT ? k : -1;
            return st;
        }
    }
    return ST_OK;
}

static enum status next_aggregate(struct next *n, struct aggregate_stats *stats,
                                  struct checkpoint_files *f, int *corrupt, struct err *e)
{
    const struct checkpoint_job *j = n->job;
    size_t inputs = (size_t)j->update_count;
    struct aggregate_input *in = arena_alloc(n->arena, (inputs + 1) * sizeof(*in));
    for (int k = 0; k < j->update_count; k++) {
        in[k].fd = n->updates[k].fd;
        in[k].data_offset = n->coded[k].data_offset;
        in[k].coded = &n->coded[k];
        in[k].weight = j->spec->weights == WEIGHTS_UNIFORM ? 1.0 : (double)j->updates[k].tokens;
    }
    const int64_t *part = n->checkpoint_layout.part_at;
    int64_t weights = part[LAYOUT_WEIGHTS] * (int64_t)sizeof(float);
    struct sha256 *data_hash = sha256_new();
    struct aggregate_job job = {.spec = j->spec,
                                .table = &n->table,
                                .round = schedule_outer_step(j->spec, j->round) + j->outer_before,
                                .base_fd = n->base->fd,
                                .base_offset = n->base->data_offset + weights,
                                .state_fd = n->state ? n->state->fd : -1,
                                .state_offset = n->state ? n->state->data_offset : 0,
                                .layout = &n->update_layout,
                                .inputs = in,
                                .input_count = j->update_count,
                                .out_fd = n->out.fd,
                                .out_offset = n->out.data_offset + weights,
                                .out_state_fd = n->out_state.fd,
                                .out_state_offset = n->out_state.data_offset,
                                .out_hash = n->out.hash,
                                .out_data_hash = data_hash,
                                .out_state_hash = n->out_state.hash,
                                .threads = j->threads};
    for (int i = 0; i < LAYOUT_PARTS; i++) {
        job.out_moments[i] = n->out.data_offset + part[i] * (int64_t)sizeof(float);
    }
    enum status st = aggregate_run(&job, stats, corrupt, e);
    sha256_end(data_hash, &f->weights_digest);
    sha256_free(data_hash);
    if (!st && !stats->finite) {
        st = err_set(e, ST_INVALID, "round %" PRId32 " would give weights that are not finite",
                     j->round);
    }
    return st;
}

static enum status next_make(struct next *n, struct aggregate_stats *stats,
                             struct checkpoint_files *f, int *corrupt, struct err *e)
{
    const struct checkpoint_job *j = n->job;
    TRY(next_check(n, corrupt, e));
    TRY(output_open(&n->out, j->blobs, j->spec, &n->checkpoint_layout.table, "checkpoint", j->round,
                    e));
    if (n->keeps_state) {
        TRY(output_open(&n->out_state, j->blobs, j->spec, &n->state_table, "outer_state", j->round,
                        e));
    }
    TRY(next_aggregate(n, stats, f, corrupt, e));
    f->params = n->table.total;
    f->weights_bytes = n->out.bytes;
    TRY(output_place(&n->out, &f->weights, e));
    if (n->keeps_state) {
        f->has_state = true;
        f->state_bytes = n->out_state.bytes;
        TRY(output_place(&n->out_state, &f->state, e));
    }
    return ST_OK;
}

enum status checkpoint_next(const struct checkpoint_job *job, struct checkpoint_files *out,
                            struct aggregate_stats *stats, int *corrupt_update, struct err *e)
{
    assert(job->round >= 1 && job->threads >= 1);
    struct next n = {0};
    struct checkpoint_files f = {0};
    *corrupt_update = -1;
    next_init(&n, job);
    enum status st = next_make(&n, stats, &f, corrupt_update, e);
    next_release(&n);
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
    (void)make_header(a, spec, &table, "checkpoint", 0, &len);
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
