#include "client/weights_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "client/durable.h"
#include "common/limits.h"
#include "common/mem.h"
#include "common/run_header.h"
#include "common/safetensors.h"

enum { BLOCK = 1 << 18 };

/* Fills out with elements [start, start + count) of the flat order. */
typedef enum status weights_fn(void *ctx, int64_t start, int64_t count, float *out, struct err *e);

static enum status write_all(int fd, const void *bytes, size_t size, struct err *e)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)bytes + done, size - done);
        if (n < 0 && errno != EINTR) {
            return err_set(e, io_status(errno), "cannot write weights: %s", strerror(errno));
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return ST_OK;
}

static enum status write_file(const struct run_spec *spec, int64_t round, const char *path,
                              weights_fn *fn, void *ctx, struct err *e)
{
    char tmp[STATE_PATH_MAX];
    (void)snprintf(tmp, sizeof(tmp), "%.1000s.tmp", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        return err_set(e, io_status(errno), "cannot create %s: %s", tmp, strerror(errno));
    }
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct param_table table = params_table(a, &spec->model);
    float *block = mem_alloc(BLOCK * sizeof(float));
    int64_t len = 0;
    const void *header = run_header(a, spec, &table, "checkpoint", (int32_t)round, &len);
    enum status st = write_all(fd, header, (size_t)len, e);
    for (int64_t at = 0; at < table.total && !st; at += BLOCK) {
        int64_t n = table.total - at < BLOCK ? table.total - at : BLOCK;
        st = fn(ctx, at, n, block, e);
        st = st ? st : write_all(fd, block, (size_t)n * sizeof(float), e);
    }
    mem_free(block);
    arena_free(a);
    if (close(fd) != 0 && !st) {
        st = err_set(e, io_status(errno), "cannot close %s: %s", tmp, strerror(errno));
    }
    return st ? st : file_place(tmp, path, e);
}

static enum status of_trainer(void *ctx, int64_t start, int64_t count, float *out, struct err *e)
{
    return trainer_weights(ctx, start, count, out, e);
}

enum status weights_file_write(struct trainer *t, const struct run_spec *spec, int64_t round,
                               const char *path, struct err *e)
{
    return write_file(spec, round, path, of_trainer, t, e);
}

struct first {
    struct param_table table;
    uint64_t seed;
};

static enum status of_seed(void *ctx, int64_t start, int64_t count, float *out, struct err *e)
{
    const struct first *f = ctx;
    (void)e;
    params_init(&f->table, f->seed, start, count, out);
    return ST_OK;
}

enum status weights_file_first(const struct run_spec *spec, const char *path, struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct first f = {.table = params_table(a, &spec->model), .seed = spec->seed};
    enum status st = write_file(spec, 0, path, of_seed, &f, e);
    arena_free(a);
    return st;
}

enum status weights_file_load(struct trainer *t, const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, ST_NOT_FOUND, "cannot open %s: %s", path, strerror(errno));
    }
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct st_header h;
    enum status st = st_read(&h, a, fd, e);
    st = st ? st : st_check_params(&h, trainer_params(t), e);
    st = st ? st : trainer_load_weights(t, fd, h.data_offset, e);
    arena_free(a);
    (void)close(fd);
    return st;
}
