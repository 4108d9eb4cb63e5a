/*
 * spec_file.h - a run spec from a file, for commands that train without a server.
 */
#ifndef CLIENT_SPEC_FILE_H
#define CLIENT_SPEC_FILE_H

#include "common/run_spec.h"
#include "common/status.h"

/*
 * Parsed, checked and filled in; a spec without a name gets `name`. ST_NOT_FOUND, ST_IO; ST_INVALID
 * names the first problem by its JSON pointer.
 */
enum status spec_file_read(struct run_spec *out, const char *path, const char *name,
                           struct err *e) MUST_CHECK;

#endif
