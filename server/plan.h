/*
 * plan.h - what a run would cost before it is started: parameters, bytes, tokens, memory.
 */
#ifndef SERVER_PLAN_H
#define SERVER_PLAN_H

#include "common/arena.h"
#include "common/buf.h"
#include "common/run_spec.h"

/* The **plan** of docs/API.md as JSON. Pure. */
void plan_print(struct buf *b, struct arena *a, const struct run_spec *spec);

#endif
