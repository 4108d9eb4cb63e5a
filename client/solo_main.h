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

/* Rows of their option tables; o has device, dtype (text), threads (int64_t), json, quiet (bool).
 */
// clang-format off
#define TRAIN_ROWS(o)                                                                              \
    {"device", 0, OPTION_TEXT, "NAME", "PHOTON_DEVICE", &(o)->device, 0, 0,                        \
     "auto (default), cpu, ref, cuda, or several GPUs: cuda:0,1"},                                 \
    {"dtype", 0, OPTION_TEXT, "NAME", "PHOTON_DTYPE", &(o)->dtype, 0, 0,                           \
     "auto (default): bf16 where it is no slower, else f32; f32; bf16"},                                                                 \
    {"threads", 't', OPTION_INT, "N", "PHOTON_THREADS", &(o)->threads, 0, 1024,                    \
     "CPU threads; default all cores"},                                                            \
    {"json", 0, OPTION_FLAG, NULL, NULL, &(o)->json, 0, 0, "print the end as JSON on stdout"},     \
    {"quiet", 'q', OPTION_FLAG, NULL, NULL, &(o)->quiet, 0, 0, "no talk on stderr"}
// clang-format on

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
