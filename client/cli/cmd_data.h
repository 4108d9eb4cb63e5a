/*
 * cmd_data.h - what the verbs of `photon data` share.
 */
#ifndef CLIENT_CLI_CMD_DATA_H
#define CLIENT_CLI_CMD_DATA_H

#include "client/docs.h"
#include "common/status.h"

/* Bounds of one command: what its list of files may take, and how many inputs it may name. */
enum { DATA_ARENA_MAX = 1 << 30, DATA_ARGS_MAX = 256 };

/* Says what failed; the exit code that belongs to it. */
int data_fail(const char *command, enum status st, const struct err *e);

/* --format by its name; an exit code, having said what is wrong. */
int data_format(const char *command, const char *text, enum doc_format *out);

/* The verb `tokenizer`. */
int data_tokenizer(int argc, char **argv);

#endif
