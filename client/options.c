#include "client/options.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/nearest.h"

enum { ROWS_MAX = 64, WORD_MAX = 64, LONG_BASE = 1000, HELP_COLUMN = 28 };

int64_t options_duration_s(const char *text)
{
    char *end = NULL;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (errno || end == text || n <= 0 || n > 1000000000) {
        return -1;
    }
    int64_t unit = 1;
    switch (*end) {
    case '\0':
        return n;
    case 's':
        break;
    case 'm':
        unit = 60;
        break;
    case 'h':
        unit = 3600;
        break;
    case 'd':
        unit = 86400;
        break;
    default:
        return -1;
    }
    return end[1] == '\0' ? n * unit : -1;
}

/* ---- help ---- */

static void help_row(const struct option_row *r, FILE *to)
{
    char left[96];
    char letter[8] = "    ";
    if (r->letter) {
        (void)snprintf(letter, sizeof(letter), "-%c, ", r->letter);
    }
    (void)snprintf(left, sizeof(left), "  %s--%s%s%s", letter, r->name, r->arg ? " " : "",
                   r->arg ? r->arg : "");
    (void)fprintf(to, "%-*s  %s%s%s%s\n", HELP_COLUMN, left, r->help, r->env ? " [" : "",
                  r->env ? r->env : "", r->env ? "]" : "");
}

enum exit_code options_exit(enum options_end end)
{
    return end == OPTIONS_DONE ? EXIT_DONE : EXIT_USAGE;
}

void options_help(const struct command_line *c, FILE *to)
{
    (void)fprintf(to, "Usage: %s%s%s\n\n%s\n", c->program, c->args && *c->args ? " " : "",
                  c->args ? c->args : "", c->about);
    if (c->examples) {
        (void)fprintf(to, "\nExamples:\n%s\n", c->examples);
    }
    (void)fprintf(to, "\nOptions:\n");
    for (const struct option_row *r = c->rows; r && r->name; r++) {
        help_row(r, to);
    }
    (void)fprintf(to, "%-*s  %s\n", HELP_COLUMN, "  -h, --help", "this text");
}

/* ---- parsing ---- */

static bool parse_number(const struct option_row *r, const char *text, double *out)
{
    char *end = NULL;
    errno = 0;
    double v = strtod(text, &end);
    bool whole = r->kind != OPTION_INT || v == floor(v);
    if (errno || end == text || *end || !isfinite(v) || !whole || v < r->min || v > r->max) {
        return false;
    }
    *out = v;
    return true;
}

static bool store(const struct command_line *c, const struct option_row *r, const char *text)
{
    double v = 0.0;
    switch (r->kind) {
    case OPTION_FLAG:
        *(bool *)r->out = true;
        return true;
    case OPTION_TEXT:
        *(const char **)r->out = text;
        return true;
    case OPTION_LIST: {
        struct option_list *l = r->out;
        if (l->count == OPTION_LIST_MAX) {
            (void)fprintf(stderr, "%s: --%s is given more than %d times\n", c->program, r->name,
                          OPTION_LIST_MAX);
            return false;
        }
        l->items[l->count++] = text;
        return true;
    }
    case OPTION_INT:
    case OPTION_NUM:
    default:
        break;
    }
    if (!parse_number(r, text, &v)) {
        (void)fprintf(stderr, "%s: --%s '%s' is not a %s from %g to %g\n", c->program, r->name,
                      text, r->kind == OPTION_INT ? "whole number" : "number", r->min, r->max);
        return false;
    }
    if (r->kind == OPTION_INT) {
        *(int64_t *)r->out = (int64_t)v;
    } else {
        *(double *)r->out = v;
    }
    return true;
}

struct getopt_arrays {
    char letters[2 * ROWS_MAX + 4];
    struct option longs[ROWS_MAX + 2];
    const char *names[ROWS_MAX + 2];
    int count; // rows
};

static void build_arrays(const struct command_line *c, struct getopt_arrays *g)
{
    memset(g, 0, sizeof(*g));
    size_t n = 0;
    g->letters[n++] = ':'; // a missing value is told apart from an unknown option
    for (const struct option_row *r = c->rows; r && r->name && g->count < ROWS_MAX; r++) {
        g->longs[g->count] =
            (struct option){r->name, r->kind == OPTION_FLAG ? no_argument : required_argument, NULL,
                            LONG_BASE + g->count};
        g->names[g->count] = r->name;
        if (r->letter) {
            g->letters[n++] = r->letter;
            if (r->kind != OPTION_FLAG) {
                g->letters[n++] = ':';
            }
        }
        g->count++;
    }
    g->longs[g->count] = (struct option){"help", no_argument, NULL, 'h'};
    g->names[g->count] = "help";
    g->letters[n++] = 'h';
}

static enum options_end unknown(const struct command_line *c, const struct getopt_arrays *g,
                                const char *given)
{
    char word[WORD_MAX + 1];
    (void)snprintf(word, sizeof(word), "%.*s", (int)strcspn(given, "="), given);
    const char *bare = word + strspn(word, "-");
    const char *near = nearest(bare, g->names);
    if (near && strlen(bare) > 1) {
        (void)fprintf(stderr, "%s: unknown option '%s'; did you mean --%s?\n", c->program, word,
                      near);
    } else {
        (void)fprintf(stderr, "%s: unknown option '%s'; try --help\n", c->program, word);
    }
    return OPTIONS_USAGE;
}

static const struct option_row *row_of(const struct command_line *c, int found)
{
    if (found >= LONG_BASE) {
        return &c->rows[found - LONG_BASE];
    }
    const struct option_row *r = c->rows;
    while (r->letter != found) {
        r++;
    }
    return r;
}

static enum options_end parse_options(const struct command_line *c, int argc, char **argv,
                                      const struct getopt_arrays *g, bool *given)
{
    optind = 0; // glibc: start anew, also its hidden state
    opterr = 0;
    for (;;) {
        int found = getopt_long(argc, argv, g->letters, g->longs, NULL);
        if (found == -1) {
            return OPTIONS_GO;
        }
        if (found == 'h') {
            options_help(c, stdout);
            return OPTIONS_DONE;
        }
        if (found == ':') {
            (void)fprintf(stderr, "%s: %s needs a value\n", c->program, argv[optind - 1]);
            return OPTIONS_USAGE;
        }
        if (found == '?') {
            char letter[3] = {'-', (char)optopt, '\0'};
            bool is_long = optopt == 0 || optopt >= LONG_BASE;
            return unknown(c, g, is_long ? argv[optind - 1] : letter);
        }
        const struct option_row *r = row_of(c, found);
        given[r - c->rows] = true;
        if (!store(c, r, optarg)) {
            return OPTIONS_USAGE;
        }
    }
}

enum options_end options_parse(const struct command_line *c, int argc, char **argv,
                               const char **args, int *arg_count)
{
    struct getopt_arrays g;
    build_arrays(c, &g);
    bool given[ROWS_MAX] = {false};
    enum options_end end = parse_options(c, argc, argv, &g, given);
    if (end) {
        return end;
    }
    for (int i = 0; i < g.count; i++) {
        const struct option_row *r = &c->rows[i];
        const char *value = r->env && !given[i] ? getenv(r->env) : NULL;
        if (value && *value && !store(c, r, value)) {
            return OPTIONS_USAGE;
        }
    }
    int count = argc - optind;
    if (count < c->args_min || count > c->args_max) {
        (void)fprintf(stderr, "%s: %s\nUsage: %s %s\n", c->program,
                      count < c->args_min ? "an argument is missing" : "too many arguments",
                      c->program, c->args ? c->args : "");
        return OPTIONS_USAGE;
    }
    for (int i = 0; i < count; i++) {
        args[i] = argv[optind + i];
    }
    if (arg_count) {
        *arg_count = count;
    }
    return OPTIONS_GO;
}
