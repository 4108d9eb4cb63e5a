#include "server/trickle.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum { LOOKS = 8 }; // at neighbours, where several names have one place

bool trickle_take(struct trickle *t, const struct trickle_rule *r, int64_t now_ms,
                  int64_t *left_out)
{
    int64_t back = (now_ms - t->at_ms) / r->every_ms;
    if (t->used == 0 || back >= t->used) {
        t->used = 0;
        t->at_ms = now_ms;
    } else {
        t->used -= back;
        t->at_ms += back * r->every_ms;
    }
    if (t->used == r->burst) {
        t->left_out++;
        return false;
    }
    t->used++;
    *left_out = t->left_out;
    t->left_out = 0;
    return true;
}

static size_t place_of(const char *name)
{
    uint32_t h = 2166136261U; // FNV-1a
    for (; *name; name++) {
        h = (h ^ (uint8_t)*name) * 16777619U;
    }
    return h % TRICKLE_NAMES;
}

bool trickles_take(struct trickles *t, const char *name, const struct trickle_rule *r,
                   int64_t now_ms)
{
    size_t first = place_of(name);
    size_t at = first;
    for (size_t i = 0; i < LOOKS; i++) {
        size_t here = (first + i) % TRICKLE_NAMES;
        if (strcmp(t->of[here].name, name) == 0) {
            at = here;
            break;
        }
        // Else that which was asked for longest ago: most likely it is full again.
        if (t->of[here].trickle.at_ms < t->of[at].trickle.at_ms) {
            at = here;
        }
    }
    if (strcmp(t->of[at].name, name) != 0) {
        t->of[at].trickle = (struct trickle){0};
        (void)snprintf(t->of[at].name, TRICKLE_NAME, "%s", name);
    }
    int64_t left_out = 0;
    return trickle_take(&t->of[at].trickle, r, now_ms, &left_out);
}
