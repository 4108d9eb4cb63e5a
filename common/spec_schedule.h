/*
 * spec_schedule.h - what of a run's schedule (common/schedule.h) does not go together.
 */
#ifndef COMMON_SPEC_SCHEDULE_H
#define COMMON_SPEC_SCHEDULE_H

#include "common/run_spec.h"
#include "common/spec_reader.h"

/* Complains, under `federation`; the whole spec has been read. */
void spec_schedule_check(const struct spec_part *federation, const struct run_spec *s);

#endif
