/*
 * solo_main.h - the command line of a centralized training: `photon train`, `photon-client train`.
 */
#ifndef CLIENT_SOLO_MAIN_H
#define CLIENT_SOLO_MAIN_H

#include <stdbool.h>

#include "client/data.h"
#include "client/options.h"
#include "common/arena.h"
#include "common/status.h"

/* argv[0] is the verb; an exit code (client/options.h). */
int solo_main(const char *program, int argc, char **argv);

/* What other commands that train share. */

/* The exit code that a failed training ends with. */
int solo_exit(enum status st);

/*
 * --device and --dtype as trainer_words_check() knows them. Exit code 0 and the name for a trainer,
 * or what was said on stderr.
 */
int solo_device(const char *program, const char *text, const char *dtype, const char **out);

/* DIR[:WEIGHT] of each item; exit code 0, or what was said on stderr. */
int solo_sources(const char *program, struct arena *a, const struct option_list *dirs,
                 struct data_source_arg *out);

/* Catches SIGINT and SIGTERM; solo_stopping() is true after the first, the second ends at once. */
void solo_catch_signals(void);
bool solo_stopping(void);

#endif
