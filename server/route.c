#include "server/route.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

static const struct route *const tables[] = {
    routes_runs,   routes_silos, routes_tokens, routes_audit,
    routes_series, routes_misc,  routes_silo,   routes_bulk,
};

enum { TABLES = sizeof(tables) / sizeof(tables[0]) };

const struct route *route_at(int index)
{
    for (int t = 0; t < TABLES; t++) {
        for (const struct route *r = tables[t]; r->method; r++) {
            if (index-- == 0) {
                return r;
            }
        }
    }
    return NULL;
}

bool route_matches(struct route_match *out, const char *pattern, const char *path)
{
    int count = 0;
    const char *p = pattern;
    const char *s = path;
    while (*p) {
        if (*p != '{') {
            if (*p++ != *s++) {
                return false;
            }
            continue;
        }
        bool rest = strncmp(p, "{*}", 3) == 0;
        size_t len = rest ? strlen(s) : strcspn(s, "/");
        if (len == 0 || len >= ROUTE_PARAM_LEN || count == ROUTE_PARAMS_MAX) {
            return false;
        }
        memcpy(out->params[count], s, len);
        out->params[count][len] = '\0';
        count++;
        s += len;
        p += strcspn(p, "}") + 1;
    }
    if (*s) {
        return false;
    }
    out->param_count = count;
    return true;
}

static void allow(struct route_match *out, const char *method)
{
    size_t len = strlen(out->allow);
    (void)snprintf(out->allow + len, sizeof(out->allow) - len, "%s%s", len ? ", " : "", method);
    if (strcmp(method, "GET") == 0) {
        allow(out, "HEAD");
    }
}

void route_find(struct route_match *out, const char *method, const char *path,
                enum listener listener)
{
    const char *wanted = strcmp(method, "HEAD") == 0 ? "GET" : method;
    out->route = NULL;
    out->index = -1;
    out->allow[0] = '\0';

    int index = 0;
    for (int t = 0; t < TABLES; t++) {
        for (const struct route *r = tables[t]; r->method; r++, index++) {
            if (!(r->listeners & (unsigned)listener) || !route_matches(out, r->pattern, path)) {
                continue;
            }
            if (strcmp(r->method, wanted) == 0) {
                out->route = r;
                out->index = index;
                return;
            }
            allow(out, r->method);
        }
    }
}
