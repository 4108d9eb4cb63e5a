#include "server/stats.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdint.h>

#include "server/route.h"

enum { ROUTES_MAX = 96 };

static const int statuses[] = {200, 201, 202, 204, 206, 304, 400, 401, 403, 404, 405, 408,
                               409, 410, 411, 413, 415, 416, 422, 429, 500, 503, 507, 0};

enum { STATUSES = sizeof(statuses) / sizeof(statuses[0]) };

/* Long polls end up in the last one. */
static const double bounds[] = {0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 30};

enum { BOUNDS = sizeof(bounds) / sizeof(bounds[0]) };

static _Atomic uint64_t counts[ROUTES_MAX + 1][STATUSES]; // the last row: no route
static _Atomic uint64_t buckets[ROUTES_MAX + 1][BOUNDS];
static _Atomic uint64_t micros[ROUTES_MAX + 1];

void stats_count(int route, int status, double seconds)
{
    int row = route >= 0 && route < ROUTES_MAX ? route : ROUTES_MAX;
    int col = 0;
    while (col < STATUSES - 1 && statuses[col] != status) {
        col++;
    }
    (void)atomic_fetch_add(&counts[row][col], 1);
    (void)atomic_fetch_add(&micros[row], (uint64_t)(seconds * 1e6));
    for (int i = 0; i < BOUNDS; i++) {
        if (seconds <= bounds[i]) {
            (void)atomic_fetch_add(&buckets[row][i], 1);
        }
    }
}

static void print_labels(struct buf *b, int row)
{
    const struct route *r = row < ROUTES_MAX ? route_at(row) : NULL;
    buf_fmt(b, "route=\"%s\",method=\"%s\"", r ? r->pattern : "none", r ? r->method : "none");
}

static uint64_t total_of(int row)
{
    uint64_t total = 0;
    for (int i = 0; i < STATUSES; i++) {
        total += atomic_load(&counts[row][i]);
    }
    return total;
}

static void print_duration(struct buf *b, int row)
{
    static const char name[] = "photon_http_request_duration_seconds";
    for (int i = 0; i < BOUNDS; i++) {
        buf_fmt(b, "%s_bucket{", name);
        print_labels(b, row);
        buf_fmt(b, ",le=\"%g\"} %" PRIu64 "\n", bounds[i], atomic_load(&buckets[row][i]));
    }
    buf_fmt(b, "%s_bucket{", name);
    print_labels(b, row);
    buf_fmt(b, ",le=\"+Inf\"} %" PRIu64 "\n%s_sum{", total_of(row), name);
    print_labels(b, row);
    buf_fmt(b, "} %.6f\n%s_count{", (double)atomic_load(&micros[row]) / 1e6, name);
    print_labels(b, row);
    buf_fmt(b, "} %" PRIu64 "\n", total_of(row));
}

void stats_print(struct buf *b)
{
    buf_str(b, "# HELP photon_http_requests_total Requests answered.\n"
               "# TYPE photon_http_requests_total counter\n");
    for (int row = 0; row <= ROUTES_MAX; row++) {
        for (int i = 0; i < STATUSES; i++) {
            uint64_t n = atomic_load(&counts[row][i]);
            if (n > 0) {
                buf_str(b, "photon_http_requests_total{");
                print_labels(b, row);
                buf_fmt(b, ",code=\"%d\"} %" PRIu64 "\n", statuses[i], n);
            }
        }
    }
    buf_str(b,
            "# HELP photon_http_request_duration_seconds From the request line to the last byte.\n"
            "# TYPE photon_http_request_duration_seconds histogram\n");
    for (int row = 0; row <= ROUTES_MAX; row++) {
        if (total_of(row) > 0) {
            print_duration(b, row);
        }
    }
}
