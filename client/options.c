#include "client/options.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_MAX = 64, WORD_MAX = 64, LONG_BASE = 1000, HELP_COLUMN = 28 };

/* ---- nearest word ---- */

static int min3(int a, int b, int c)
{
    int m = a < b ? a : b;
    return m < c ? m : c;
}

/* Edit distance in which a swap of neighbours counts once (optimal string alignment). */
static int edit_distance(const char *a, const char *b)
{
    int la = (int)strnlen(a, WORD_MAX);
    int lb = (int)strnlen(b, WORD_MAX);
    int d[WORD_MAX + 1][WORD_MAX + 1];
    for (int i = 0; i <= la; i++) {
        d[i][0] = i;
    }
    for (int j = 0; j <= lb; j++) {
        d[0][j] = j;
    }
    for (int i = 1; i <= la; i++) {
        for (int j = 1; j <= lb; j++) {
            int same = a[i - 1] == b[j - 1] ? 0 : 1;
            d[i][j] = min3(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + same);
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && d[i - 2][j - 2] + 1 < d[i][j]) {
                d[i][j] = d[i - 2][j - 2] + 1;
            }
        }
    }
    return d[la][lb];
}

const char *options_nearest(const char *word, const char *const *known, int count)
{
    const char *best = NULL;
    int best_distance = 0;
    for (int i = 0; i < count; i++) {
        int d = edit_distance(word, known[i]);
        // A long common start means the same even when the ends differ a lot.
        size_t n = strlen(word);
        if (n >= 3 && strncmp(word, known[i], n) == 0) {
            d = 1;
        }
        if (!best || d < best_distance) {
            best = known[i];
            best_distance = d;
        }
    }
    int limit = (int)strlen(word) / 3;
    return best && best_distance <= (limit > 2 ? limit : 2) ? best : NULL;
}

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
    const char *near = options_nearest(bare, g->names, g->count + 1);
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
