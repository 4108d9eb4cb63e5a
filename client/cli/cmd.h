/*
 * cmd.h - the commands of `photon`: each noun has a file of its own and a table of verbs.
 *
 * main.c finds noun and verb and calls run() with argv[0] = the verb; the command parses the rest
 * by its option table (client/options.h) and returns an exit code. stdout is for data, stderr for
 * talk; with --json stdout is JSON. Commands that speak to a server use client/cli/api.h.
 */
#ifndef CLIENT_CLI_CMD_H
#define CLIENT_CLI_CMD_H

#include <stdbool.h>

struct cmd {
    const char *noun;
    const char *verb; /* NULL: the noun is the whole command */
    const char *about;
    int (*run)(int argc, char **argv); /* an exit code (client/options.h) */
    bool trains;                       /* its threads should wait passively */
};

/* Tables end with a NULL noun. */
extern const struct cmd cmds_run[];
extern const struct cmd cmds_silo[];
extern const struct cmd cmds_token[];
extern const struct cmd cmds_model[];
extern const struct cmd cmds_demo[];
extern const struct cmd cmds_doctor[];
extern const struct cmd cmds_data[];
extern const struct cmd cmds_train[];
extern const struct cmd cmds_sim[];
extern const struct cmd cmds_plan[];
extern const struct cmd cmds_audit[];

#endif
