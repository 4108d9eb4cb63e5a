/*
 * options.h - command lines: one table makes the getopt_long arrays and the --help text.
 *
 * Each command has a table of rows; a row names the option, its kind, where its value goes and what
 * --help says about it, so the parser and the manual cannot differ. An unknown option is answered
 * with the nearest known one and exit code 2. A row may name an environment variable, which gives
 * the value when the option is absent. Values are borrowed from argv and the environment.
 */
#ifndef CLIENT_OPTIONS_H
#define CLIENT_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* What the programs' exit codes mean; documented in docs/OPERATIONS.md, asserted by tests. */
enum exit_code {
    EXIT_DONE = 0,
    EXIT_FAILED = 1,      /* the run or job failed */
    EXIT_USAGE = 2,       /* the command line is wrong */
    EXIT_CONFIG = 3,      /* a spec, a file or a configuration is wrong */
    EXIT_UNREACHABLE = 4, /* no server, or not allowed */
    EXIT_VERSION = 6,     /* the two sides speak different protocols */
    EXIT_NO_DEVICE = 7,   /* no usable device, or out of memory */
    EXIT_BUG = 70,
    EXIT_TEMPORARY = 75 /* try again later */
};

enum option_kind { OPTION_FLAG = 0, OPTION_TEXT, OPTION_INT, OPTION_NUM, OPTION_LIST };

enum { OPTION_LIST_MAX = 64 };

struct option_list { /* an option that may be given several times */
    const char *items[OPTION_LIST_MAX];
    int count;
};

struct option_row {
    const char *name; /* long name without its dashes; NULL ends the table */
    char letter;      /* or 0 */
    enum option_kind kind;
    const char *arg; /* what --help calls the value; NULL for a flag */
    const char *env; /* environment variable that gives the value, or NULL */
    void *out;       /* bool, const char *, int64_t, double or struct option_list */
    double min, max; /* of numbers */
    const char *help;
};

struct command_line {
    const char *program;  /* "photon run submit" */
    const char *args;     /* the rest of the usage line: "-f FILE" */
    const char *about;    /* one or more sentences */
    const char *examples; /* lines, or NULL */
    const struct option_row *rows;
    int args_min, args_max; /* positional arguments */
};

enum options_end {
    OPTIONS_GO = 0, /* run the command */
    OPTIONS_DONE,   /* --help was printed: exit 0 */
    OPTIONS_USAGE   /* said what is wrong on stderr: exit 2 */
};

/*
 * Parse argv[1..argc). args receives up to args_max positional arguments. On OPTIONS_USAGE values
 * may have been written in part; the caller only exits.
 */
enum options_end options_parse(const struct command_line *c, int argc, char **argv,
                               const char **args, int *arg_count);

/* The exit code of a command whose line was not to be run. */
enum exit_code options_exit(enum options_end end);

void options_help(const struct command_line *c, FILE *to);

/* "90", "15m", "12h", "7d" as seconds, > 0; -1 when it is no duration. */
int64_t options_duration_s(const char *text);

#endif
