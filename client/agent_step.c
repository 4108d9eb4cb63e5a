/*
 * agent_step.c - a checkpoint made from one that is here by the steps between them, not fetched
 * whole.
 *
 * Steps wait in STATE/steps and the new checkpoint grows beside them; only what has the digest that
 * was asked for gets its name in the cache. Whatever is wrong with base or steps shows there, and
 * the checkpoint is fetched whole instead.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "common/fault.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/schedule.h"
#include "common/step.h"

enum { RETRIES = 3 }; // of a step that the server is about to make again

void agent_step_path(const struct agent *a, const char *name, char out[STATE_PATH_MAX])
{
    (void)snprintf(out, STATE_PATH_MAX, "%.800s/steps/%.64s", a->config->state_dir, name);
}

void agent_clear_steps(struct agent *a, const char *but)
{
    char dir[STATE_PATH_MAX];
    memset(&a->chain, 0, sizeof(a->chain));
    agent_step_path(a, "", dir);
    DIR *d = opendir(dir);
    for (struct dirent *f = d ? readdir(d) : NULL; f; f = readdir(d)) {
        if (f->d_name[0] != '.' && (!but || strncmp(f->d_name, but, DIGEST_HEX) != 0)) {
            (void)unlinkat(dirfd(d), f->d_name, 0);
        }
    }
    if (d) {
        (void)closedir(d);
    }
}

/* The first step of the shortest chain that begins here and is fewer bytes than the whole; -1. */
static int chain_start(const struct agent *a, const struct task *t)
{
    char path[STATE_PATH_MAX];
    int64_t bytes = 0;
    for (int i = t->step_count - 1; i >= 0; i--) {
        bytes += t->steps[i].bytes;
        agent_cache_path(a, t->steps[i].base_sha256, path);
        if (bytes >= t->base_bytes) {
            return -1;
        }
        if (access(path, R_OK) == 0) {
            return i;
        }
    }
    return -1;
}

static enum status fetch_step(struct agent *a, const struct task_step *s, struct arena *arena,
                              struct err *e)
{
    char path[STATE_PATH_MAX];
    struct digest d;
    struct err unused = {0};
    agent_step_path(a, s->sha256, path);
    if (sha256_file(path, &d, NULL, &unused) == ST_OK && digest_equal(&d, &s->digest)) {
        return ST_OK; // fetched ahead, or before a crash
    }
    struct download down = {.path = arena_fmt(arena, "/silo/v1/blobs/%s", s->sha256),
                            .file = path,
                            .digest = &s->digest,
                            .bytes = s->bytes};
    return agent_fetch(a, &down, RETRIES, e);
}

struct chain {
    const struct task *t;
    int first;
    int base_fd, out_fd;
    struct step_file steps[STEP_CHAIN_MAX]; // of the task's from first on
};

static enum status open_file(const char *path, int flags, int *fd, struct err *e)
{
    *fd = open(path, flags | O_CLOEXEC, 0600);
    return *fd < 0 ? err_set(e, io_status(errno), "cannot open %s: %s", path, strerror(errno))
                   : ST_OK;
}

static enum status open_chain(const struct agent *a, struct chain *c, const char *made,
                              struct arena *arena, struct err *e)
{
    const struct task *t = c->t;
    char path[STATE_PATH_MAX];
    const int32_t parts = schedule_fragments(&t->spec);
    struct param_table *tables = arena_alloc(arena, STEP_CHAIN_MAX * sizeof(*tables));
    agent_cache_path(a, t->steps[c->first].base_sha256, path);
    TRY(open_file(path, O_RDONLY, &c->base_fd, e));
    TRY(open_file(made, O_RDWR | O_CREAT | O_TRUNC, &c->out_fd, e));
    for (int i = c->first; i < t->step_count; i++) {
        const struct task_step *s = &t->steps[i];
        const int at = i - c->first;
        struct step_file *f = &c->steps[at];
        struct step_id id = {.run_name = t->run_name,
                             .round = (int32_t)s->number,
                             .base = s->base,
                             .to = i + 1 < t->step_count ? s[1].base : t->base,
                             .codec = s->codec,
                             .k = t->spec.codec.down_k};
        agent_step_path(a, s->sha256, path);
        TRY(open_file(path, O_RDONLY, &f->fd, e));
        tables[at] = at < parts ? layout_step(arena, &t->spec, s->number).table
                                : tables[at - parts]; // the same fragment's
        TRY(step_open(&f->coded, arena, f->fd, &tables[at], &id, e));
    }
    return ST_OK;
}

/* The digest decides: a base that was damaged on this disk gives another one. */
static enum status apply_chain(struct chain *c, struct err *e)
{
    struct step_job job = {.spec = &c->t->spec,
                           .base_fd = c->base_fd,
                           .steps = c->steps,
                           .count = c->t->step_count - c->first,
                           .round = (int32_t)c->t->base_number,
                           .out_fd = c->out_fd};
    struct digest d;
    TRY(step_apply(&job, &d, e));
    return digest_equal(&d, &c->t->base)
               ? ST_OK
               : err_set(e, ST_CORRUPT, "the steps from %.12s do not give %.12s",
                         c->t->steps[c->first].base_sha256, c->t->base_sha256);
}

static void close_chain(struct chain *c)
{
    for (int i = 0; i < STEP_CHAIN_MAX; i++) {
        if (c->steps[i].fd >= 0) {
            (void)close(c->steps[i].fd);
        }
    }
    if (c->base_fd >= 0) {
        (void)close(c->base_fd);
    }
    if (c->out_fd >= 0) {
        (void)close(c->out_fd);
    }
}

static enum status take_chain(struct agent *a, const struct task *t, int first, const char *path,
                              struct arena *arena, struct err *e)
{
    char made[STATE_PATH_MAX];
    struct chain c = {.t = t, .first = first, .base_fd = -1, .out_fd = -1};
    for (int i = 0; i < STEP_CHAIN_MAX; i++) {
        c.steps[i].fd = -1;
    }
    agent_step_path(a, "made", made);
    FAULT("step.apply");
    enum status st = open_chain(a, &c, made, arena, e);
    st = st ? st : apply_chain(&c, e);
    close_chain(&c);
    FAULT("step.applied");
    return st ? st : file_place(made, path, e);
}

/* The steps that are not here yet, and the checkpoint that they give. */
static enum status go_by_steps(struct agent *a, const struct task *t, int first, const char *path,
                               struct arena *arena, struct err *e)
{
    for (int i = first; i < t->step_count; i++) {
        TRY(fetch_step(a, &t->steps[i], arena, e));
    }
    return agent_fetch_over(a) ? err_set(e, ST_CONFLICT, "the task is not ours any more")
                               : take_chain(a, t, first, path, arena, e);
}

enum status agent_step(struct agent *a, const struct task *t, const char *path, struct arena *arena,
                       bool *made, struct err *e)
{
    struct err why = {0};
    int first = chain_start(a, t);
    *made = false;
    if (first < 0) {
        agent_clear_steps(a, NULL);
        return ST_OK;
    }
    enum status st = go_by_steps(a, t, first, path, arena, &why);
    if (st == ST_LIMIT) { // the disk is full: of the checkpoints the steps need their first alone
        agent_cache_trim(a, t->steps[first].base_sha256, 0);
        st = go_by_steps(a, t, first, path, arena, &why);
    }
    if (st && agent_fetch_over(a)) {
        return err_set(e, ST_CONFLICT, "%s", why.msg);
    }
    if (st) {
        log_warn("checkpoint %" PRId64 " is fetched whole: %s", t->base_number, why.msg);
    } else {
        log_info("checkpoint %" PRId64 " was made by %d step%s", t->base_number,
                 t->step_count - first, t->step_count - first > 1 ? "s" : "");
    }
    agent_clear_steps(a, NULL); // of no use any more, nor is what is left of others
    *made = st == ST_OK;
    return ST_OK;
}
