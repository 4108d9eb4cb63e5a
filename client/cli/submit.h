/*
 * submit.h - a run spec from a file, changed by --set, sent to the server.
 */
#ifndef CLIENT_CLI_SUBMIT_H
#define CLIENT_CLI_SUBMIT_H

#include "client/options.h"
#include "common/arena.h"
#include "common/status.h"

/*
 * The document with each "a.b=value" applied: value is JSON where it parses as JSON, else a string;
 * objects on the way are made when missing. The text lives in the arena.
 */
enum status spec_with_sets(struct arena *a, const char *text, const struct option_list *sets,
                           const char **out, struct err *e) MUST_CHECK;

int run_submit(int argc, char **argv);

#endif
