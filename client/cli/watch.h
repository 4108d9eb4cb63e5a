/*
 * watch.h - follow one run: a redrawn line while a round is under way, a line that stays per round.
 */
#ifndef CLIENT_CLI_WATCH_H
#define CLIENT_CLI_WATCH_H

#include <stdbool.h>

#include "client/cli/api.h"

struct watch {
    struct api *api;
    const char *run;         /* id */
    bool (*stop)(void *ctx); /* asked about twice a second; NULL: never */
    void (*round)(void *ctx, const struct json *round); /* each round closed from now on; NULL */
    void *ctx;
    double quiet_s; /* give up after so long without an answer; 0: 60 */
};

/*
 * Until the run is finished (EXIT_DONE), failed or stopped (EXIT_FAILED), stop() says so
 * (EXIT_TEMPORARY), or the server stays silent (EXIT_UNREACHABLE). With api->json: JSON Lines on
 * stdout ending in {"terminal":true,…}.
 */
int watch_run(const struct watch *w);

#endif
