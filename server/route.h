/*
 * route.h - from a method and a path to the handler that answers it.
 *
 * A pattern is matched segment by segment: {name} stands for one segment that is not empty, and
 * {*} at the end for all the rest. Routes are compared in the order of their tables; no two match
 * the same request.
 */
#ifndef SERVER_ROUTE_H
#define SERVER_ROUTE_H

#include <stdbool.h>

#include "server/http.h"

enum { ROUTE_PARAMS_MAX = 4, ROUTE_PARAM_LEN = 256 };

struct route_match {
    const struct route *route; /* NULL: 404, or 405 when allow is not empty */
    int index;                 /* of the route among all, for counters; -1 without one */
    int param_count;
    char params[ROUTE_PARAMS_MAX][ROUTE_PARAM_LEN];
    char allow[64]; /* without a route: the methods that this path knows, as the Allow header wants
                     */
};

/* HEAD finds GET's route. A parameter that is too long matches nothing. */
void route_find(struct route_match *out, const char *method, const char *path,
                enum listener listener);

/* Does the path match the pattern? Fills params and param_count only then. */
bool route_matches(struct route_match *out, const char *pattern, const char *path);

/* All routes, by index from 0; NULL beyond the last. */
const struct route *route_at(int index);

#endif
