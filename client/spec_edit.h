/*
 * spec_edit.h - change single keys of a JSON document: what `--set outer.lr=0.7` does.
 */
#ifndef CLIENT_SPEC_EDIT_H
#define CLIENT_SPEC_EDIT_H

#include "common/arena.h"
#include "common/status.h"

/*
 * The document with each "a.b=value" applied in order: value is JSON where it parses as JSON, else
 * a string; objects on the way are made when missing. ST_INVALID: the text is no object, or a set
 * has no '=' or no key. The result lives in the arena.
 */
enum status spec_edit(struct arena *a, const char *text, const char *const *sets, int count,
                      const char **out, struct err *e) MUST_CHECK;

#endif
