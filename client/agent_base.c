/*
 * agent_base.c - checkpoints on this side: fetched once, or made from the one before by a step,
 * kept by digest, the two newest.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/rng.h"
#include "common/safetensors.h"
#include "common/step.h"

enum {
    CACHE_KEEP = 2, // the base of the round, and the checkpoint that is evaluated beside it
    DIGEST_TRIES = 3,
    TRY_ARENA_MAX = 2 * 1024 * 1024
};

void agent_cache_path(const struct agent *a, const char *sha256, char out[STATE_PATH_MAX])
{
    (void)snprintf(out, STATE_PATH_MAX, "%.800s/cache/%.64s.safetensors", a->config->state_dir,
                   sha256);
}

static bool is_part(const char *name)
{
    size_t len = strlen(name);
    return len > 5 && strcmp(name + len - 5, ".part") == 0;
}

/* How many checkpoints there are beside this one; *oldest is the one used longest ago. What is left
 * of other downloads would never be gone on with, and goes. */
static int others_cached(DIR *d, const char *sha256, char oldest[NAME_MAX + 1])
{
    int count = 0;
    int64_t least = INT64_MAX;
    rewinddir(d);
    for (struct dirent *f = readdir(d); f; f = readdir(d)) {
        struct stat s;
        if (f->d_name[0] == '.' || strncmp(f->d_name, sha256, DIGEST_HEX) == 0 ||
            fstatat(dirfd(d), f->d_name, &s, 0) != 0) {
            continue;
        }
        if (is_part(f->d_name)) {
            (void)unlinkat(dirfd(d), f->d_name, 0);
            continue;
        }
        int64_t used_ns = (int64_t)s.st_mtim.tv_sec * 1000000000 + s.st_mtim.tv_nsec;
        if (count++ == 0 || used_ns < least) {
            least = used_ns;
            (void)snprintf(oldest, NAME_MAX + 1, "%s", f->d_name);
        }
    }
    return count;
}

void agent_cache_trim(const struct agent *a, const char *sha256, int others)
{
    char dir[STATE_PATH_MAX];
    char oldest[NAME_MAX + 1];
    (void)snprintf(dir, sizeof(dir), "%.800s/cache", a->config->state_dir);
    DIR *d = opendir(dir);
    while (d && others_cached(d, sha256, oldest) > others && unlinkat(dirfd(d), oldest, 0) == 0) {
    }
    if (d) {
        (void)closedir(d);
    }
}

/* A base may be gigabytes: it is not fetched to its end for a round that is over, or a task that is
 * somebody else's. What is there of it stays, in case the next task has the same base. */
bool agent_fetch_over(const struct agent *a)
{
    return agent_stopping() || (a->fetching && beat_order(a->fetching) != BEAT_CONTINUE);
}

static bool bulk_is_over(void *ctx)
{
    return agent_fetch_over(ctx);
}

enum status agent_bulk(struct agent *a, struct err *e)
{
    transport_close(a->bulk);
    a->bulk = NULL;
    struct transport_config c = {.url = a->bulk_url,
                                 .token = a->id.token,
                                 .ca_file = a->id.ca_file,
                                 .pin = a->id.pin,
                                 .max_bytes_per_s = (int64_t)(a->config->max_mbps * 1e6 / 8.0),
                                 .fresh_token = agent_fresh_token,
                                 .fresh_ctx = &a->folder,
                                 .cancelled = bulk_is_over,
                                 .cancel_ctx = a};
    return transport_open(&a->bulk, &c, e);
}

/* Until it is whole, however often the link breaks. */
enum status agent_fetch(struct agent *a, struct download *d, int retries, struct err *e)
{
    int corrupt = 0;
    for (int attempt = 0;; attempt++) {
        struct reply r;
        d->received = 0;
        struct arena *one = arena_new(TRY_ARENA_MAX); // an outage may last for days
        enum status st = transport_download(a->bulk, one, d, &r, e);
        arena_free(one);
        a->received_bytes += d->received;
        a->fetched_bytes += d->received;
        corrupt += st == ST_CORRUPT ? 1 : 0;
        bool again = st == ST_NET || (st == ST_RETRY && retries-- != 0) ||
                     (st == ST_CORRUPT && corrupt < DIGEST_TRIES);
        if (!st || !again || r.cancelled) {
            return st;
        }
        if (d->received > 0) {
            attempt = 0; // it moves
        }
        uint64_t draw = 0;
        random_bytes(&draw, sizeof(draw));
        int64_t wait = retry_delay_ms(attempt, rng_unit(draw, 0), r.retry_after_s);
        log_info("%s; the download goes on in %.1f s", e->msg, (double)wait / 1000.0);
        for (int64_t until = clock_mono_ms() + wait; clock_mono_ms() < until;) {
            if (bulk_is_over(a)) {
                return err_set(e, ST_CONFLICT, "the task is not ours any more");
            }
            clock_sleep_ms(100);
        }
    }
}

static enum status fetch_base(struct agent *a, const struct task *t, const char *path,
                              struct arena *arena, struct err *e)
{
    struct download d = {.path = arena_fmt(arena, "/silo/v1/blobs/%s", t->base_sha256),
                         .file = path,
                         .digest = &t->base,
                         .bytes = t->base_bytes};
    agent_cache_trim(a, t->base_sha256, CACHE_KEEP);
    enum status st = agent_fetch(a, &d, -1, e);
    if (st == ST_LIMIT) { // the disk is full: this one is wanted, the others were
        agent_cache_trim(a, t->base_sha256, 0);
        st = agent_fetch(a, &d, -1, e);
    }
    return st;
}

static enum status have_base(struct agent *a, const struct task *t, struct beat *b,
                             const char *path, struct arena *arena, double *seconds, struct err *e)
{
    if (access(path, R_OK) == 0) {
        if (strcmp(a->verified, t->base_sha256) == 0) {
            *seconds = a->fetched_s; // fetched for the evaluation before this task, most often
            return ST_OK;
        }
        a->fetched_s = 0.0;
        struct digest d;
        struct err unused = {0};
        if (sha256_file(path, &d, NULL, &unused) == ST_OK && digest_equal(&d, &t->base)) {
            return ST_OK;
        }
        log_warn("a cached checkpoint is damaged and fetched again");
        (void)unlink(path);
    }
    double begin = clock_mono_s();
    bool made = false;
    a->fetched_bytes = 0;
    FAULT("base.fetch");
    a->fetching = b;
    enum status st = agent_step(a, t, path, arena, &made, e);
    if (!st && !made) {
        st = fetch_base(a, t, path, arena, e);
    }
    a->fetching = NULL;
    TRY(st);
    FAULT("base.fetched");
    *seconds = a->fetched_s = clock_mono_s() - begin;
    return ST_OK;
}

enum status agent_base(struct agent *a, const struct task *t, struct beat *b, struct arena *arena,
                       struct own_base *out, double *seconds, struct err *e)
{
    char path[STATE_PATH_MAX];
    agent_cache_path(a, t->base_sha256, path);
    agent_doing(a, t, "downloading", 0);
    *seconds = 0.0;
    TRY(have_base(a, t, b, path, arena, seconds, e));
    (void)snprintf(a->verified, sizeof(a->verified), "%s", t->base_sha256);
    (void)utimensat(AT_FDCWD, path, NULL, 0); // used now
    agent_cache_trim(a, t->base_sha256, CACHE_KEEP - 1);
    int f = open(path, O_RDONLY | O_CLOEXEC);
    if (f < 0) {
        return err_set(e, ST_IO, "cannot open %s: %s", path, strerror(errno));
    }
    struct st_header h;
    struct layout layout = layout_checkpoint(arena, &t->spec);
    enum status st = st_read(&h, arena, f, e);
    st = st ? st : st_check_params(&h, &layout.table, e);
    if (st) {
        (void)close(f);
        return st;
    }
    out->fd = f;
    out->offset = h.data_offset + layout.part_at[LAYOUT_WEIGHTS] * (int64_t)sizeof(float);
    return ST_OK;
}

/* "SHA-256 BYTES" of a header, with " BASE" behind them for a step. */
struct offer {
    char sha256[DIGEST_HEX + 1];
    char base[DIGEST_HEX + 1];
    struct digest digest;
    int64_t bytes;
};

static bool read_offer(struct offer *o, const char *text)
{
    struct digest unused;
    *o = (struct offer){.bytes = 0};
    int words = sscanf(text, "%64s %" SCNd64 " %64s", o->sha256, &o->bytes, o->base);
    return words >= 2 && o->bytes > 0 && !digest_parse(&o->digest, o->sha256, NULL) &&
           (words == 2 || !digest_parse(&unused, o->base, NULL));
}

/* Do the steps that wait give this checkpoint? */
static bool chain_gives(const struct agent *a, const char *sha256)
{
    char path[STATE_PATH_MAX];
    agent_cache_path(a, a->chain.from, path);
    return a->chain.to[0] && strcmp(a->chain.to, sha256) == 0 && access(path, R_OK) == 0;
}

/* Does the step begin where they end, and are they fewer bytes than the whole with it? */
static bool goes_on(const struct agent *a, const struct offer *whole, const struct offer *step)
{
    return chain_gives(a, step->base) && a->chain.count < STEP_CHAIN_MAX &&
           a->chain.bytes + step->bytes < whole->bytes;
}

/* The file that would help, and where it goes; false: what there is is enough. */
static bool choose_offer(const struct agent *a, const struct offer *whole, const char *step,
                         struct offer *out, char path[STATE_PATH_MAX])
{
    struct offer s;
    *out = *whole;
    agent_cache_path(a, whole->sha256, path);
    if (access(path, R_OK) == 0 || chain_gives(a, whole->sha256)) {
        return false;
    }
    if (read_offer(&s, step) && s.base[0]) {
        agent_cache_path(a, s.base, path);
        if (access(path, R_OK) == 0 || goes_on(a, whole, &s)) {
            *out = s; // the step is enough; a task says how to take it
            agent_step_path(a, s.sha256, path);
            return true;
        }
        agent_cache_path(a, whole->sha256, path);
    }
    return true;
}

void agent_prefetch(struct agent *a, const char *base, const char *step, struct arena *arena)
{
    struct err e = {0};
    struct reply r;
    struct offer whole;
    struct offer o;
    char path[STATE_PATH_MAX];
    if (!read_offer(&whole, base) || !choose_offer(a, &whole, step, &o, path)) {
        return;
    }
    if (!goes_on(a, &whole, &o)) {
        agent_clear_steps(a, o.base[0] ? o.sha256 : NULL); // others lead to a former one
        (void)snprintf(a->chain.from, sizeof(a->chain.from), "%s", o.base);
    }
    struct download d = {.path = arena_fmt(arena, "/silo/v1/blobs/%s", o.sha256),
                         .file = path,
                         .digest = &o.digest,
                         .bytes = o.bytes};
    agent_doing(a, NULL, "downloading", 0);
    double begin = clock_mono_s();
    const char *needed = o.base[0] ? a->chain.from : o.sha256;
    agent_cache_trim(a, needed, CACHE_KEEP);
    enum status st = access(path, R_OK) == 0 // before this process
                         ? ST_OK
                         : transport_download(a->bulk, arena, &d, &r, &e);
    if (st == ST_LIMIT) { // the disk is full
        agent_cache_trim(a, needed, 0);
        st = transport_download(a->bulk, arena, &d, &r, &e);
    }
    a->received_bytes += d.received;
    if (st) {
        log_debug("a checkpoint is not fetched ahead: %s", e.msg);
    } else if (o.base[0]) {
        (void)snprintf(a->chain.to, sizeof(a->chain.to), "%s", whole.sha256);
        a->chain.bytes += o.bytes;
        a->chain.count++;
        log_info("the step to checkpoint %.12s was fetched ahead", whole.sha256);
    } else {
        a->fetched_s = clock_mono_s() - begin;
        a->fetched_bytes = d.received;
        (void)snprintf(a->verified, sizeof(a->verified), "%s", o.sha256);
        agent_cache_trim(a, o.sha256, CACHE_KEEP - 1);
        log_info("checkpoint %.12s was fetched ahead", o.sha256);
    }
    agent_doing(a, NULL, "waiting", 0);
}
