/*
 * trickle.h - what comes in any number and passes in a bounded one: a few at once, then one each so
 * many milliseconds. A trickle that is all zeros begins full. Rules alone: no clock, no lock.
 */
#ifndef SERVER_TRICKLE_H
#define SERVER_TRICKLE_H

#include <stdbool.h>
#include <stdint.h>

struct trickle_rule {
    int64_t burst, every_ms;
};

struct trickle {
    int64_t used;     /* of the burst */
    int64_t at_ms;    /* when used was true */
    int64_t left_out; /* since one was let through */
};

/* May one more pass at this time? Then left_out is what did not since the last one. */
bool trickle_take(struct trickle *t, const struct trickle_rule *r, int64_t now_ms,
                  int64_t *left_out);

/* A trickle for each name: those that asked last, as many as there is room for. */
enum { TRICKLE_NAMES = 2048, TRICKLE_NAME = 32 };

struct trickles {
    struct {
        char name[TRICKLE_NAME];
        struct trickle trickle;
    } of[TRICKLE_NAMES];
};

/* As above, of that name's. One that is forgotten for another begins anew: full. */
bool trickles_take(struct trickles *t, const char *name, const struct trickle_rule *r,
                   int64_t now_ms);

#endif
