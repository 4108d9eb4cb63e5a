/*
 * The state file: head, then first moments, second moments and perhaps weights, each as fp32 in the
 * flat order of params.h, then a checksum of all before it. Little-endian, like the machines it is
 * for; it never leaves the silo.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/trainer.h"
#include "client/trainer_int.h"
#include "common/log.h"

enum { STATE_VERSION = 2, PATH_MAX_BYTES = 4096 };

static const char MAGIC[8] = {'P', 'H', 'O', 'T', 'O', 'N', 'S', 'T'};

struct state_head {
    char magic[8];
    uint32_t version;
    uint32_t size;                /* of this head */
    int64_t total;                /* elements of each array */
    int64_t t[BACKEND_RANKS_MAX]; /* steps the moments have seen, of each set */
    int32_t d_model, n_heads, n_layers, vocab_size, seq_len, position, bias;
    int32_t optimizer;
    /* What the bits of further steps depend on beside the above. */
    int32_t dtype;
    int32_t threads;
    int32_t micro_batch;
    int32_t ranks;
    int32_t sets;   /* of arrays: one, or one of each rank that trains apart */
    int32_t arrays; /* in a set, 2: moments; 3: weights too */
    char device[16];
};

_Static_assert(sizeof(struct state_head) == 224 &&
                   sizeof(struct state_head) % sizeof(uint32_t) == 0,
               "the head has no gaps and is whole words");

/*
 * Four lanes of FNV-1a over 32-bit words. Each step is a bijection of the lane, so that no change
 * of one word goes unseen, and the lanes keep a processor's multiplier busy. It guards against torn
 * writes and rot, not against forgery.
 */
struct sum {
    uint64_t lane[4];
    uint64_t words;
};

static void sum_add(struct sum *s, const void *bytes, size_t size)
{
    const unsigned char *p = bytes;
    for (size_t i = 0; i < size; i += sizeof(uint32_t)) {
        uint32_t word;
        memcpy(&word, p + i, sizeof(word));
        uint64_t *lane = &s->lane[s->words++ & 3];
        *lane = (*lane ^ word) * 0x100000001b3U;
    }
}

static uint64_t sum_end(const struct sum *s)
{
    uint64_t h = 0xcbf29ce484222325U ^ s->words;
    for (int i = 0; i < 4; i++) {
        h = (h ^ s->lane[i]) * 0x9e3779b97f4a7c15U;
        h ^= h >> 29;
    }
    return h;
}

/* Ranks in data parallel hold the same numbers, so one of them is saved for all. */
static int sets_of(const struct trainer *t)
{
    return t->config.sync_every ? t->count : 1;
}

static struct state_head describe(const struct trainer *t, bool with_weights)
{
    const struct rank *first = &t->ranks[0];
    const struct model_spec *m = &t->config.model;
    struct state_head h = {
        .version = STATE_VERSION,
        .size = sizeof(h),
        .total = model_params(first->model)->total,
        .d_model = m->d_model,
        .n_heads = m->n_heads,
        .n_layers = m->n_layers,
        .vocab_size = m->vocab_size,
        .seq_len = m->seq_len,
        .position = (int32_t)m->position,
        .bias = m->bias,
        .optimizer = (int32_t)t->config.inner.optimizer,
        .dtype = (int32_t)t->dtype,
        .threads = first->be->threads,
        .micro_batch = model_plan(first->model)->request.micro_batch,
        .ranks = t->count,
        .sets = sets_of(t),
        .arrays = with_weights ? 3 : 2,
    };
    memcpy(h.magic, MAGIC, sizeof(h.magic));
    (void)snprintf(h.device, sizeof(h.device), "%s", first->ops->name);
    for (int i = 0; i < h.sets; i++) {
        h.t[i] = t->ranks[i].t;
    }
    return h;
}

/* ---- saving ---- */

static enum status io_failed(const char *what, const char *path, struct err *e)
{
    enum status st = errno == ENOSPC || errno == EDQUOT ? ST_LIMIT : ST_IO;
    return err_set(e, st, "cannot %s '%s': %s", what, path, strerror(errno));
}

static enum status write_all(int fd, const void *bytes, size_t size, const char *path,
                             struct err *e)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)bytes + done, size - done);
        if (n < 0 && errno != EINTR) {
            return io_failed("write", path, e);
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return ST_OK;
}

/* The order of a set's arrays in the file. */
static const enum layout_part ORDER[] = {LAYOUT_M, LAYOUT_V, LAYOUT_WEIGHTS};

static enum status write_state(struct trainer *t, int fd, bool with_weights, const char *path,
                               struct err *e)
{
    struct sum sum = {{0}, 0};
    struct state_head head = describe(t, with_weights);
    sum_add(&sum, &head, sizeof(head));
    TRY(write_all(fd, &head, sizeof(head), path, e));
    for (int i = 0; i < head.sets * head.arrays; i++) {
        struct rank *r = &t->ranks[i / head.arrays];
        r->ops->bind(r->be);
        for (int64_t at = 0; at < head.total; at += STAGE_COUNT) {
            int64_t n = head.total - at < STAGE_COUNT ? head.total - at : STAGE_COUNT;
            size_t size = (size_t)n * sizeof(float);
            if (shares_state(t)) {
                TRY(ranks_get(t, ORDER[i % head.arrays], at, n, t->stage, e));
            } else {
                model_get(r->model, t->stage, rank_array(r, ORDER[i % head.arrays]), at, n);
                TRY(backend_sync(r->be, e));
            }
            sum_add(&sum, t->stage, size);
            TRY(write_all(fd, t->stage, size, path, e));
        }
    }
    uint64_t end = sum_end(&sum);
    TRY(write_all(fd, &end, sizeof(end), path, e));
    return fsync(fd) == 0 ? ST_OK : io_failed("sync", path, e);
}

/* The new name is on disk only once its folder is. */
static enum status sync_folder(const char *path, struct err *e)
{
    char folder[PATH_MAX_BYTES];
    const char *slash = strrchr(path, '/');
    int len = slash == path ? 1 : slash ? (int)(slash - path) : 1;
    (void)snprintf(folder, sizeof(folder), "%.*s", len, slash ? path : ".");
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return io_failed("open", folder, e);
    }
    enum status st = fsync(fd) == 0 ? ST_OK : io_failed("sync", folder, e);
    (void)close(fd);
    return st;
}

enum status trainer_save_state(struct trainer *t, const char *path, bool with_weights,
                               struct err *e)
{
    char tmp[PATH_MAX_BYTES];
    if (snprintf(tmp, sizeof(tmp), "%s.tmp", path) >= (int)sizeof(tmp)) {
        return err_set(e, ST_INVALID, "the path of the state is too long");
    }
    trainer_settle(t);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return io_failed("create", tmp, e);
    }
    enum status st = write_state(t, fd, with_weights, tmp, e);
    if (close(fd) != 0 && !st) {
        st = io_failed("close", tmp, e);
    }
    if (!st && rename(tmp, path) != 0) {
        st = io_failed("rename", tmp, e);
    }
    if (st) {
        (void)unlink(tmp);
        return st;
    }
    return sync_folder(path, e);
}

/* ---- loading ---- */

/* A state file being read, and the sum of what was read. */
struct reader {
    int fd;
    const char *path;
    struct sum sum;
};

static enum status read_all(struct reader *r, void *out, size_t size, struct err *e)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = read(r->fd, (char *)out + done, size - done);
        if (n < 0 && errno != EINTR) {
            return io_failed("read", r->path, e);
        }
        if (n == 0) {
            return err_set(e, ST_CORRUPT, "'%s' ends early", r->path);
        }
        done += n > 0 ? (size_t)n : 0;
    }
    sum_add(&r->sum, out, size);
    return ST_OK;
}

static bool same_model(const struct state_head *a, const struct state_head *b)
{
    return a->total == b->total && a->d_model == b->d_model && a->n_heads == b->n_heads &&
           a->n_layers == b->n_layers && a->vocab_size == b->vocab_size &&
           a->seq_len == b->seq_len && a->position == b->position && a->bias == b->bias;
}

static enum status check_head(const struct trainer *t, const struct state_head *h, const char *path,
                              struct err *e)
{
    struct state_head want = describe(t, false);
    if (memcmp(h->magic, MAGIC, sizeof(MAGIC)) != 0) {
        return err_set(e, ST_CORRUPT, "'%s' is no training state", path);
    }
    if (h->version != STATE_VERSION || h->size != sizeof(*h)) {
        return err_set(e, ST_CONFLICT, "'%s' has version %" PRIu32 ", this program writes %d", path,
                       h->version, STATE_VERSION);
    }
    if (!same_model(h, &want)) {
        return err_set(e, ST_CONFLICT, "'%s' is of another model", path);
    }
    if (h->optimizer != want.optimizer) {
        return err_set(e, ST_CONFLICT, "'%s' is of another inner optimizer", path);
    }
    if (h->sets != want.sets) {
        return err_set(e, ST_CONFLICT,
                       "'%s' is of %" PRId32 " devices that train apart, now %" PRId32, path,
                       h->sets, want.sets);
    }
    bool sound = h->arrays == 2 || h->arrays == 3;
    for (int i = 0; i < h->sets; i++) {
        sound = sound && h->t[i] >= 0;
    }
    if (!sound) {
        return err_set(e, ST_CORRUPT, "'%s' has a damaged head", path);
    }
    return ST_OK;
}

/* The trainings are equally good, but their bits differ: worth a line in the log. */
static void tell_difference(const struct trainer *t, const struct state_head *h)
{
    struct state_head now = describe(t, false);
    if (h->dtype != now.dtype || h->threads != now.threads || h->micro_batch != now.micro_batch ||
        h->ranks != now.ranks || strncmp(h->device, now.device, sizeof(h->device)) != 0) {
        log_warn("state was saved by %.15s in %s with %d threads, now %s in %s with %d; steps go "
                 "on, but "
                 "not with the bits of an undisturbed run",
                 h->device, dtype_name((enum dtype)h->dtype), h->threads, now.device,
                 dtype_name(t->dtype), now.threads);
    }
}

/* Into the rank of this set, or into all where one set is everybody's. */
static void put_array(struct trainer *t, int set, int array, int64_t at, int64_t n)
{
    for (int i = 0; i < t->count; i++) {
        struct rank *r = &t->ranks[i];
        if (i == set || sets_of(t) == 1) {
            r->ops->bind(r->be);
            model_put(r->model, rank_array(r, ORDER[array]), at, n, t->stage);
        }
    }
}

/* Once through the file: to check it, or, when `put`, to take its arrays over. */
static enum status read_arrays(struct trainer *t, struct reader *r, struct state_head *head,
                               bool put, struct err *e)
{
    if (lseek(r->fd, 0, SEEK_SET) != 0) {
        return io_failed("read", r->path, e);
    }
    r->sum = (struct sum){{0}, 0};
    TRY(read_all(r, head, sizeof(*head), e));
    TRY(check_head(t, head, r->path, e));
    for (int i = 0; i < head->sets * head->arrays; i++) {
        for (int64_t at = 0; at < head->total; at += STAGE_COUNT) {
            int64_t n = head->total - at < STAGE_COUNT ? head->total - at : STAGE_COUNT;
            TRY(read_all(r, t->stage, (size_t)n * sizeof(float), e));
            if (put) {
                put_array(t, i / head->arrays, i % head->arrays, at, n);
            }
        }
    }
    uint64_t want = sum_end(&r->sum);
    uint64_t got = 0;
    TRY(read_all(r, &got, sizeof(got), e));
    char more;
    if (got != want || read(r->fd, &more, 1) != 0) {
        return err_set(e, ST_CORRUPT, "'%s' is damaged: its checksum differs", r->path);
    }
    return ST_OK;
}

enum status trainer_load_state(struct trainer *t, const char *path, struct err *e)
{
    trainer_settle(t);
    struct reader r = {.fd = open(path, O_RDONLY | O_CLOEXEC), .path = path};
    if (r.fd < 0) {
        return errno == ENOENT ? err_set(e, ST_NOT_FOUND, "there is no state '%s'", path)
                               : io_failed("open", path, e);
    }
    // Twice, so that a damaged file is found out before anything has changed.
    struct state_head head;
    enum status st = read_arrays(t, &r, &head, false, e);
    if (!st) {
        st = read_arrays(t, &r, &head, true, e);
    }
    (void)close(r.fd);
    if (st) {
        return st;
    }
    tell_difference(t, &head);
    for (int i = 0; i < t->count; i++) {
        t->ranks[i].ops->bind(t->ranks[i].be);
        rank_count(&t->ranks[i], head.t[sets_of(t) == 1 ? 0 : i]);
    }
    t->apart = t->apart || (head.arrays == 3 && head.sets > 1);
    return ranks_sync(t, e);
}

bool trainer_state_has_weights(const char *path)
{
    struct state_head head;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool whole = fd >= 0 && read(fd, &head, sizeof(head)) == (ssize_t)sizeof(head);
    if (fd >= 0) {
        (void)close(fd);
    }
    return whole && memcmp(head.magic, MAGIC, sizeof(MAGIC)) == 0 && head.arrays == 3;
}

enum status trainer_state_weights(struct trainer *t, const char *path, int *fd, int64_t *offset,
                                  struct err *e)
{
    struct reader r = {.fd = open(path, O_RDONLY | O_CLOEXEC), .path = path};
    struct state_head head;
    if (r.fd < 0) {
        return io_failed("open", path, e);
    }
    enum status st = read_all(&r, &head, sizeof(head), e);
    st = st ? st : check_head(t, &head, path, e);
    if (!st && head.arrays != 3) {
        st = err_set(e, ST_CORRUPT, "'%s' has no weights", path);
    }
    if (st) {
        (void)close(r.fd);
        return st;
    }
    *fd = r.fd;
    *offset = (int64_t)sizeof(head) + 2 * head.total * (int64_t)sizeof(float); // behind m and v
    return ST_OK;
}
