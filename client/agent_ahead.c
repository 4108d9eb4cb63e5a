/*
 * agent_ahead.c - what a silo does while its update travels: it trains on, and is first in line.
 *
 * With federation.overlap_steps d the next round's first d steps need no checkpoint: they go on
 * from this silo's own weights (common/schedule.h). They are taken right after a round, while a
 * thread of its own, the courier, sends the update and then waits for the next task and fetches its
 * checkpoint. What they gave lives in the trainer's memory, or in a scratch file while another task
 * has the trainer. Nothing of it is durable and nothing needs to be: who has lost it takes the same
 * steps again from the state of the round's end, which gives the same bits.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/schedule.h"

enum { ASK_AGAIN_MS = 2000, SLICE_MS = 100 };

/* ---- the steps ---- */

static void scratch_path(const struct agent *a, char out[STATE_PATH_MAX])
{
    (void)snprintf(out, STATE_PATH_MAX, "%.800s/runs/%s/ahead.tmp", a->config->state_dir,
                   a->ahead.run);
}

void agent_ahead_drop(struct agent *a)
{
    char path[STATE_PATH_MAX];
    if (a->ahead.there && a->ahead.parked) {
        scratch_path(a, path);
        (void)unlink(path);
    }
    mem_free(a->ahead.taken);
    a->ahead = (struct ahead){0};
}

void agent_ahead_park(struct agent *a)
{
    char path[STATE_PATH_MAX];
    struct err e = {0};
    if (!a->ahead.there || a->ahead.parked) {
        return;
    }
    scratch_path(a, path);
    if (trainer_save_state(a->trainer, path, true, &e)) {
        log_warn("steps ahead are not kept, and taken again: %s", e.msg);
        agent_ahead_drop(a);
        return;
    }
    a->ahead.parked = true;
}

bool agent_ahead_take(struct agent *a, const struct task *t)
{
    char path[STATE_PATH_MAX];
    struct err e = {0};
    struct ahead *h = &a->ahead;
    if (!h->there || strcmp(h->run, t->run) != 0) {
        return false;
    }
    bool fits =
        h->round == t->round && h->global_step == t->global_step && h->ordinal == t->silo_ordinal;
    if (fits && h->parked) {
        scratch_path(a, path);
        fits = trainer_load_state(a->trainer, path, &e) == ST_OK;
    }
    if (!fits) {
        agent_ahead_drop(a);
    }
    return fits;
}

/* ---- the courier ---- */

struct courier {
    struct agent *a;
    const struct task *t;
    struct run_state *rs;
    struct beat *b;
    struct arena *arena;
    enum task_end end;
    atomic_bool useless;  // the update did not come to anything: nor would the steps ahead
    atomic_bool finished; // the steps ahead are taken
};

/* Waits for the next task, so that its checkpoint is here when the steps are taken. */
static void next_task(struct courier *c)
{
    while (!atomic_load(&c->finished) && !agent_stopping()) {
        enum claim_result got = agent_claim_held(c->a);
        if (got == CLAIM_GOT) {
            return;
        }
        int64_t until = clock_mono_ms() + (got == CLAIM_FAILED ? ASK_AGAIN_MS : 0);
        while (clock_mono_ms() < until && !atomic_load(&c->finished) && !agent_stopping()) {
            clock_sleep_ms(SLICE_MS);
        }
    }
}

static void *carry(void *arg)
{
    struct courier *c = arg;
    c->end = agent_upload(c->a, c->t, c->rs, c->b, c->arena);
    if (c->end == TASK_DONE || c->end == TASK_LATE) {
        next_task(c);
    } else {
        atomic_store(&c->useless, true);
    }
    return NULL;
}

/* From the end of the round in the trainer. Nothing that the courier writes is touched. */
static void take_steps(struct courier *c)
{
    struct agent *a = c->a;
    const struct run_spec *s = &c->t->spec;
    int32_t steps = s->federation.overlap_steps;
    struct ahead h = {.there = true,
                      .round = c->t->round + 1,
                      .global_step = c->t->global_step + s->federation.local_steps,
                      .ordinal = c->t->silo_ordinal};
    struct err e = {0};
    enum status st = ST_OK;
    (void)snprintf(h.run, sizeof(h.run), "%s", c->t->run);
    h.taken = mem_alloc((size_t)steps * sizeof(*h.taken));
    if (s->inner_state == INNER_STATE_RESET) {
        trainer_reset_state(a->trainer);
    }
    trainer_run_until(a->trainer, h.global_step + steps);
    while (h.count < steps && !st && !agent_stopping() && !atomic_load(&c->useless)) {
        double begin = clock_mono_s();
        struct taken_step *taken = &h.taken[h.count];
        st = trainer_step(a->trainer, h.global_step + h.count, &taken->report, &e);
        taken->seconds = clock_mono_s() - begin;
        agent_note_device(a, st);
        h.count++;
    }
    if (st) {
        log_warn("steps ahead of round %lld: %s", (long long)h.round, e.msg);
    }
    if (a->trainer) {
        trainer_run_until(a->trainer, 0);
    }
    agent_ahead_drop(a);
    a->ahead = h;
    if (st || h.count < steps || atomic_load(&c->useless)) {
        agent_ahead_drop(a);
    }
}

enum task_end agent_send(struct agent *a, const struct task *t, struct run_state *rs,
                         struct beat *b, struct arena *arena)
{
    struct courier c = {.a = a, .t = t, .rs = rs, .b = b, .arena = arena};
    pthread_t thread;
    bool goes_on = t->spec.federation.overlap_steps > 0 && t->round < t->rounds;
    if (!goes_on || pthread_create(&thread, NULL, carry, &c) != 0) {
        return agent_upload(a, t, rs, b, arena);
    }
    take_steps(&c);
    atomic_store(&c.finished, true);
    (void)pthread_join(thread, NULL);
    return c.end;
}
