#include "kernels/group.h"

#include <pthread.h>
#include <string.h>

#include "common/mem.h"

struct group {
    pthread_mutex_t lock;
    pthread_cond_t turn;
    int size;    /* 0 until somebody has joined */
    int waiting; /* at the barrier */
    unsigned passed;
    int members; /* that have not left */
    void *x[BACKEND_RANKS_MAX];
};

const char *group_meet(struct backend *be, struct backend_meeting *out)
{
    (void)be;
    struct group *g = mem_alloc(sizeof(*g));
    (void)pthread_mutex_init(&g->lock, NULL);
    (void)pthread_cond_init(&g->turn, NULL);
    memset(out, 0, sizeof(*out));
    memcpy(out->bytes, &g, sizeof(g));
    return NULL;
}

/* All ranks have come this far. */
static void barrier(struct group *g)
{
    (void)pthread_mutex_lock(&g->lock);
    unsigned now = g->passed;
    if (++g->waiting == g->size) {
        g->waiting = 0;
        g->passed++;
        (void)pthread_cond_broadcast(&g->turn);
    }
    while (g->passed == now) {
        (void)pthread_cond_wait(&g->turn, &g->lock);
    }
    (void)pthread_mutex_unlock(&g->lock);
}

const char *group_join(struct backend *be, const struct backend_meeting *at, int rank, int size)
{
    struct group *g;
    memcpy(&g, at->bytes, sizeof(g));
    (void)pthread_mutex_lock(&g->lock);
    g->size = size;
    g->members++;
    (void)pthread_mutex_unlock(&g->lock);
    be->group = g;
    be->rank = rank;
    barrier(g);
    return NULL;
}

/* Where a rank's share of n begins; the last ones may have none. */
static int64_t share_at(int rank, int64_t n, int64_t share)
{
    return rank * share < n ? rank * share : n;
}

static void sum_f32(struct group *g, int64_t at, int64_t end, int64_t only)
{
    for (int64_t i = at; i < end; i++) {
        float sum = ((const float *)g->x[0])[i];
        for (int r = 1; r < g->size; r++) {
            sum += ((const float *)g->x[r])[i];
        }
        for (int r = 0; r < g->size; r++) {
            if (only < 0 || r == only) {
                ((float *)g->x[r])[i] = sum;
            }
        }
    }
}

static void sum_f64(struct group *g, int64_t at, int64_t end)
{
    for (int64_t i = at; i < end; i++) {
        double sum = ((const double *)g->x[0])[i];
        for (int r = 1; r < g->size; r++) {
            sum += ((const double *)g->x[r])[i];
        }
        for (int r = 0; r < g->size; r++) {
            ((double *)g->x[r])[i] = sum;
        }
    }
}

void group_all_reduce(struct backend *be, enum dtype t, void *x, int64_t n)
{
    struct group *g = be->group;
    if (!g) {
        return; // a rank alone
    }
    g->x[be->rank] = x;
    barrier(g);
    int64_t at = n * be->rank / g->size;
    int64_t end = n * (be->rank + 1) / g->size;
    if (t == DTYPE_F64) {
        sum_f64(g, at, end);
    } else {
        sum_f32(g, at, end, -1);
    }
    barrier(g);
}

void group_reduce_scatter(struct backend *be, float *x, int64_t n, int64_t share)
{
    struct group *g = be->group;
    if (!g) {
        return;
    }
    g->x[be->rank] = x;
    barrier(g);
    sum_f32(g, share_at(be->rank, n, share), share_at(be->rank + 1, n, share), be->rank);
    barrier(g);
}

void group_all_gather(struct backend *be, void *x, int64_t n, int64_t share)
{
    struct group *g = be->group;
    if (!g) {
        return;
    }
    g->x[be->rank] = x;
    barrier(g);
    for (int r = 0; r < g->size; r++) {
        int64_t at = share_at(r, n, share);
        if (r != be->rank) {
            memcpy((char *)x + at, (const char *)g->x[r] + at,
                   (size_t)(share_at(r + 1, n, share) - at));
        }
    }
    barrier(g);
}

void group_leave(struct backend *be)
{
    struct group *g = be->group;
    if (!g) {
        return;
    }
    be->group = NULL;
    (void)pthread_mutex_lock(&g->lock);
    bool last = --g->members == 0;
    (void)pthread_mutex_unlock(&g->lock);
    if (last) {
        (void)pthread_cond_destroy(&g->turn);
        (void)pthread_mutex_destroy(&g->lock);
        mem_free(g);
    }
}

void group_bind(struct backend *be)
{
    (void)be;
}
