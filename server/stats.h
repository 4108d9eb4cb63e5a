/*
 * stats.h - how many requests of which route were answered how, and how long they took.
 *
 * Counters of this process since it started, for /metrics. Lock-free; any thread may count.
 */
#ifndef SERVER_STATS_H
#define SERVER_STATS_H

#include "common/buf.h"

/* route is route_find()'s index, -1 for none. */
void stats_count(int route, int status, double seconds);

/* photon_http_requests_total and photon_http_request_duration_seconds in Prometheus' text form. */
void stats_print(struct buf *b);

#endif
