/* The chance and the queue of sim_world.h. */
#include <stdio.h>
#include <string.h>

#include "tests/support/sim_world.h"

struct world w;

uint64_t sim_draw(void)
{
    uint64_t z = (w.state += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

double sim_unit(void)
{
    return (double)(sim_draw() >> 11) * 0x1p-53;
}

double sim_between(double a, double b)
{
    return a + (b - a) * sim_unit();
}

int sim_below(int n)
{
    return (int)(sim_draw() % (uint64_t)n);
}

bool sim_stormy(void)
{
    return w.now < w.calm_at;
}

void sim_note(const char *what, int a, int b)
{
    for (const char *p = what; *p; p++) {
        w.digest = (w.digest ^ (uint64_t)(unsigned char)*p) * 0x100000001b3U;
    }
    uint64_t bits = 0;
    memcpy(&bits, &w.now, sizeof(bits));
    w.digest = sim_mix(sim_mix(sim_mix(w.digest, bits), (uint64_t)a), (uint64_t)b);
    if (w.trace) {
        printf("%10.3f  %-24s %d %d\n", w.now, what, a, b);
    }
}

/* ---- the queue ---- */

static bool before(const struct event *a, const struct event *b)
{
    return a->at < b->at || (a->at <= b->at && a->order < b->order);
}

static void swap(int i, int j)
{
    struct event t = w.heap[i];
    w.heap[i] = w.heap[j];
    w.heap[j] = t;
}

void sim_push(struct event e, double in_s)
{
    if (w.events == SIM_EVENTS_MAX) {
        (void)snprintf(w.store->broken, sizeof(w.store->broken), "sim: too many events");
        return;
    }
    e.at = w.now + in_s;
    e.order = w.order++;
    int i = w.events++;
    w.heap[i] = e;
    while (i > 0 && before(&w.heap[i], &w.heap[(i - 1) / 2])) {
        swap(i, (i - 1) / 2);
        i = (i - 1) / 2;
    }
}

struct event sim_pop(void)
{
    struct event top = w.heap[0];
    w.heap[0] = w.heap[--w.events];
    for (int i = 0;;) {
        int least = i;
        for (int c = 2 * i + 1; c <= 2 * i + 2 && c < w.events; c++) {
            least = before(&w.heap[c], &w.heap[least]) ? c : least;
        }
        if (least == i) {
            return top;
        }
        swap(i, least);
        i = least;
    }
}
