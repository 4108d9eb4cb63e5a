/*
 * api_run.h - handlers of what lies below one run; their routes are in api_runs.c.
 */
#ifndef SERVER_API_RUN_H
#define SERVER_API_RUN_H

#include "server/http.h"

handler_fn api_rounds;
handler_fn api_round;
handler_fn api_run_silos;
handler_fn api_checkpoints;
handler_fn api_checkpoint;
handler_fn api_weights;
handler_fn api_metrics;
handler_fn api_events;
handler_fn api_diff;

#endif
