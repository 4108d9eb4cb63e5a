/*
 * spec_words.h - the words of a run spec, for who reads one and who prints one.
 *
 * Each list is in the order of its enumeration and ends in NULL, as spec_word() takes it, so that
 * what is printed is read back as the same. The names of fields are common/run_spec.c's alone.
 */
#ifndef COMMON_SPEC_WORDS_H
#define COMMON_SPEC_WORDS_H

#include <stdbool.h>

#include "common/codec.h"
#include "common/inner.h"
#include "common/outer.h"
#include "common/params.h"
#include "common/run_spec.h"

extern const char *const SPEC_OPTIMIZERS[INNER_COUNT + 1];
extern const char *const SPEC_OUTERS[OUTER_COUNT + 1];
extern const char *const SPEC_POSITIONS[POSITION_COUNT + 1];
extern const char *const SPEC_WEIGHTS[WEIGHTS_COUNT + 1];
extern const char *const SPEC_STEPS[STEPS_COUNT + 1];
extern const char *const SPEC_INNER_STATES[INNER_STATE_COUNT + 1];
/* In the order of enum codec; what follows the last is auto, and another word for f32. */
extern const char *const SPEC_CODECS_UP[CODEC_COUNT + 2];
extern const char *const SPEC_CODECS_DOWN[CODEC_COUNT + 2];

/* Default of codec.share: of the compute time, for a transfer under auto. */
#define SPEC_LINK_SHARE 0.05

/* Does this outer optimizer have betas and eps? */
bool spec_outer_adaptive(enum outer_optimizer o);

#endif
