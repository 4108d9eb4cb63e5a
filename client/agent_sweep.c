/*
 * agent_sweep.c - what is kept for a run goes when the server says that it may.
 *
 * Nothing else counts: a server that does not answer, does not know the run, or is too old for the
 * question leaves the folder as it is. An update whose outcome was never learnt is asked for first,
 * so that the acknowledgement is noted. Personal tensors stay, for nobody else has them.
 */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/log.h"

enum { SWEEP_EVERY_MS = 3600 * 1000, SWEEP_ARENA_MAX = 16 * 1024 * 1024 };

/* *lost: the server does not answer, so there is no use in asking on. */
static bool may_forget(struct agent *a, const char *run, struct arena *arena, bool *lost)
{
    struct reply r;
    struct err e = {0};
    enum status st = transport_call(a->control, arena, "GET",
                                    arena_fmt(arena, "/silo/v1/runs/%s", run), NULL, &r, &e);
    *lost = r.http == 0;
    if (st || !r.json || json_kind(r.json) != JSON_OBJECT) {
        log_debug("run %s is kept: %s", run, st ? e.msg : "the answer is no object");
        return false;
    }
    const char *named = json_str(json_get(r.json, "run"));
    const struct json *forget = json_get(r.json, "forget");
    return named && strcmp(named, run) == 0 && forget && json_kind(forget) == JSON_BOOL &&
           json_bool(forget);
}

static bool is_own(const char *name)
{
    return strcmp(name, STATE_MOMENTS) == 0 || strcmp(name, "journal.json") == 0;
}

/* Bytes that are free now. A crash in between leaves the rest to the next time. */
static int64_t empty(const char *dir, bool keep_own)
{
    int64_t freed = 0;
    DIR *d = opendir(dir);
    for (struct dirent *f = d ? readdir(d) : NULL; f; f = readdir(d)) {
        struct stat s;
        bool kept = keep_own && is_own(f->d_name);
        if (!kept && fstatat(dirfd(d), f->d_name, &s, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(s.st_mode) && unlinkat(dirfd(d), f->d_name, 0) == 0) {
            freed += s.st_size;
        }
    }
    if (d) {
        (void)closedir(d);
    }
    if (!keep_own) {
        (void)rmdir(dir); // what is not ours in it keeps it
    }
    return freed;
}

static void forget(struct agent *a, const char *run, struct arena *arena)
{
    struct run_state rs;
    struct err e = {0};
    char moments[STATE_PATH_MAX];
    enum status st = run_state_open(&rs, a->config->state_dir, run, &e);
    if (!st && rs.j.phase == JOURNAL_TRAINED) {
        st = agent_resolve(a, &rs, arena, &e);
    }
    if (st) {
        log_warn("run %s is over, its state is kept: %s", run, e.msg);
        return;
    }
    run_state_path(&rs, STATE_MOMENTS, moments);
    bool personal = rs.j.personal && trainer_state_has_weights(moments);
    int64_t freed = empty(rs.dir, personal);
    if (freed > 0) {
        char size[16];
        format_bytes(size, freed);
        agent_say(a, "run %s is over: %s of its state are removed%s%s", run, size,
                  personal ? ", the tensors that are this silo's alone stay in " : "",
                  personal ? moments : "");
    }
}

void agent_sweep(struct agent *a)
{
    char path[STATE_PATH_MAX];
    if (clock_mono_ms() < a->sweep_ms) {
        return;
    }
    a->sweep_ms = clock_mono_ms() + SWEEP_EVERY_MS;
    (void)snprintf(path, sizeof(path), "%.900s/runs", a->config->state_dir);
    DIR *d = opendir(path);
    bool lost = false;
    for (struct dirent *f = d ? readdir(d) : NULL; f && !lost && !agent_stopping();
         f = readdir(d)) {
        if (!id_valid('r', f->d_name)) {
            continue;
        }
        struct arena *arena = arena_new(SWEEP_ARENA_MAX);
        const char *run = arena_fmt(arena, "%s", f->d_name);
        if (may_forget(a, run, arena, &lost)) {
            forget(a, run, arena);
        }
        arena_free(arena);
    }
    if (d) {
        (void)closedir(d);
    }
}
