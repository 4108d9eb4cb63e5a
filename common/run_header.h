/*
 * run_header.h - headers of the files that are a run's own, as a function of its spec.
 *
 * A checkpoint and an outer state say in their metadata what they are, of which run and round, and
 * the digest of the spec; all else in them is values. So whoever has spec and values can make the
 * file, byte for byte, with its one digest: the aggregator, `photon train`, and a silo that takes a
 * step from one checkpoint to the next (common/step.h).
 */
#ifndef COMMON_RUN_HEADER_H
#define COMMON_RUN_HEADER_H

#include <stdint.h>

#include "common/arena.h"
#include "common/hash.h"
#include "common/params.h"
#include "common/run_spec.h"

/* SHA-256 of run_spec_json(), as the files' metadata carry it. */
void run_spec_digest(const struct run_spec *spec, struct digest *out);

/* The header, length word included, of the F32 file of these tensors; kind is "checkpoint" or
 * "outer_state". *len bytes in the arena. */
void *run_header(struct arena *a, const struct run_spec *spec, const struct param_table *table,
                 const char *kind, int32_t round, int64_t *len);

#endif
