/* Several devices in one silo: opened, run side by side, averaged. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/trainer_int.h"

/* ---- side by side ---- */

struct job {
    struct trainer *t;
    int rank;
    rank_fn *fn;
    void *ctx;
    pthread_t thread;
    bool started;
    enum status st;
    struct err e;
};

static void *job_run(void *arg)
{
    struct job *j = arg;
    struct rank *r = &j->t->ranks[j->rank];
    r->ops->bind(r->be);
    j->st = j->fn(j->t, j->rank, j->ctx, &j->e);
    return NULL;
}

enum status ranks_run(struct trainer *t, rank_fn *fn, void *ctx, struct err *e)
{
    if (t->count == 1) {
        return fn(t, 0, ctx, e);
    }
    struct job jobs[BACKEND_RANKS_MAX] = {0};
    for (int i = 0; i < t->count; i++) {
        jobs[i] = (struct job){.t = t, .rank = i, .fn = fn, .ctx = ctx};
        // The others would wait at their meeting for ever: without its threads a silo cannot go on.
        if (pthread_create(&jobs[i].thread, NULL, job_run, &jobs[i])) {
            (void)fprintf(stderr, "photon: no thread for device %d; this machine is out of them\n",
                          i);
            abort();
        }
    }
    for (int i = 0; i < t->count; i++) {
        (void)pthread_join(jobs[i].thread, NULL);
    }
    for (int i = 0; i < t->count; i++) {
        if (jobs[i].st) {
            return err_set(e, jobs[i].st, "device %d: %s", i, jobs[i].e.msg);
        }
    }
    return ST_OK;
}

/* ---- opening ---- */

static bool one_of(const char *word, size_t len, const char *const *list)
{
    for (; *list; list++) {
        if (strlen(*list) == len && strncmp(word, *list, len) == 0) {
            return true;
        }
    }
    return false;
}

enum status trainer_words_check(const char *device, const char *dtype, struct err *e)
{
    static const char *const kinds[] = {"auto", "cpu", "ref", "cuda", NULL};
    static const char *const dtypes[] = {"auto", "f32", "bf16", NULL};
    size_t kind = strcspn(device, ":");
    bool good = one_of(device, kind, kinds);
    for (const char *at = device + kind; good && *at;) {
        size_t digits = strspn(at + 1, "0123456789");
        at += 1 + digits;
        good = digits > 0 && digits < 4 && (!*at || *at == ',');
    }
    if (!good) {
        return err_set(e, ST_INVALID,
                       "unknown device '%s'; try auto, cpu, ref, cuda, cuda:1 or cuda:0,1", device);
    }
    if (!one_of(dtype, strlen(dtype), dtypes)) {
        return err_set(e, ST_INVALID, "unknown dtype '%s'; try auto, f32 or bf16", dtype);
    }
    return ST_OK;
}

static enum status join(struct trainer *t, int rank, void *ctx, struct err *e)
{
    struct rank *r = &t->ranks[rank];
    const char *why = r->ops->join(r->be, ctx, rank, t->count);
    return why ? err_set(e, ST_DEVICE, "%s", why) : ST_OK;
}

/* "cuda:0,1" as one name a device; a name without numbers is one device. */
static enum status open_each(struct trainer *t, int threads, struct err *e)
{
    const char *device = t->config.device;
    size_t kind = strcspn(device, ":");
    const char *at = device + kind;
    do {
        if (t->count == BACKEND_RANKS_MAX) {
            return err_set(e, ST_INVALID, "more than %d devices", BACKEND_RANKS_MAX);
        }
        char name[32];
        size_t len = *at ? strcspn(at + 1, ",") : 0;
        (void)snprintf(name, sizeof(name), "%.*s%s%.*s", (int)kind, device, *at ? ":" : "",
                       (int)len, *at ? at + 1 : "");
        TRY(backend_open(&t->ranks[t->count].be, name, threads, e));
        t->ranks[t->count].ops = t->ranks[t->count].be->ops;
        t->count++;
        at += *at ? 1 + len : 0;
    } while (*at);
    return ST_OK;
}

static int devices_named(const char *device)
{
    int n = 1;
    for (const char *p = device; *p; p++) {
        n += *p == ',';
    }
    return n;
}

enum status ranks_open(struct trainer *t, struct err *e)
{
    TRY(trainer_words_check(t->config.device, t->config.dtype, e));
    int named = devices_named(t->config.device);
    int threads = t->config.threads;
    if (named > 1) {
        long cores = threads ? threads : sysconf(_SC_NPROCESSORS_ONLN);
        threads = cores > named ? (int)(cores / named) : 1;
    }
    TRY(open_each(t, threads, e));
    if (t->count == 1) {
        return ST_OK;
    }
    struct backend_meeting meeting;
    const char *why = lead(t)->ops->meet(lead(t)->be, &meeting);
    if (why) {
        return err_set(e, ST_DEVICE, "%s", why);
    }
    return ranks_run(t, join, &meeting, e);
}

/* ---- weights ---- */

void *rank_array(const struct rank *r, enum layout_part part)
{
    return part == LAYOUT_WEIGHTS ? model_flat(r->model).weights : part == LAYOUT_M ? r->m : r->v;
}

enum status ranks_get(struct trainer *t, enum layout_part part, int64_t start, int64_t count,
                      float *out, struct err *e)
{
    int of = shares_state(t) ? t->count : 1;
    for (int i = 0; i < of; i++) {
        struct rank *r = &t->ranks[i];
        r->ops->bind(r->be);
        model_get(r->model, out, rank_array(r, part), start, count);
        TRY(backend_sync(r->be, e));
    }
    lead(t)->ops->bind(lead(t)->be);
    return ST_OK;
}

void ranks_put(struct trainer *t, enum layout_part part, int64_t start, int64_t count,
               const float *in)
{
    for (int i = 0; i < t->count; i++) {
        struct rank *r = &t->ranks[i];
        r->ops->bind(r->be);
        model_put(r->model, rank_array(r, part), start, count, in);
    }
    lead(t)->ops->bind(lead(t)->be);
}

enum status ranks_sync(struct trainer *t, struct err *e)
{
    enum status st = ST_OK;
    for (int i = 0; i < t->count; i++) {
        t->ranks[i].ops->bind(t->ranks[i].be);
        enum status one = backend_sync(t->ranks[i].be, st ? NULL : e);
        st = st ? st : one;
    }
    lead(t)->ops->bind(lead(t)->be);
    return st;
}

/* Through the host: slow links are what this mode is for. */
enum status ranks_mean(struct trainer *t, enum layout_part part, int64_t start, int64_t count,
                       float *out, struct err *e)
{
    double *sum = t->sums;
    for (int i = 0; i < t->count; i++) {
        struct rank *r = &t->ranks[i];
        r->ops->bind(r->be);
        model_get(r->model, out, rank_array(r, part), start, count);
        TRY(backend_sync(r->be, e));
        for (int64_t k = 0; k < count; k++) {
            sum[k] = (i ? sum[k] : 0.0) + (double)out[k];
        }
    }
    for (int64_t k = 0; k < count; k++) {
        out[k] = (float)(sum[k] / t->count);
    }
    lead(t)->ops->bind(lead(t)->be);
    return ST_OK;
}

enum status ranks_average(struct trainer *t, struct err *e)
{
    if (!t->apart) {
        return ST_OK;
    }
    int64_t total = model_params(lead(t)->model)->total;
    for (int64_t at = 0; at < total; at += RANKS_PIECE) {
        int64_t n = total - at < RANKS_PIECE ? total - at : RANKS_PIECE;
        TRY(ranks_mean(t, LAYOUT_WEIGHTS, at, n, t->stage, e));
        ranks_put(t, LAYOUT_WEIGHTS, at, n, t->stage);
    }
    t->apart = false;
    return ranks_sync(t, e);
}
