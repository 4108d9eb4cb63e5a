#include "client/options.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/check.h"

struct values {
    bool json;
    const char *server;
    int64_t rounds;
    double rate;
    struct option_list sets;
    const char *args[2];
    int arg_count;
    char said[2048]; // stderr
};

/* Parses one command line with stderr caught. */
static enum options_end parse(struct values *v, int argc, const char **words)
{
    memset(v, 0, sizeof(*v));
    const struct option_row rows[] = {
        {"json", 'j', OPTION_FLAG, NULL, NULL, &v->json, 0, 0, "print JSON"},
        {"server", 's', OPTION_TEXT, "URL", "PHOTON_TEST_SERVER", &v->server, 0, 0, "where"},
        {"rounds", 'n', OPTION_INT, "N", NULL, &v->rounds, 1, 100, "how many"},
        {"rate", 0, OPTION_NUM, "R", NULL, &v->rate, 0, 1, "how fast"},
        {"set", 0, OPTION_LIST, "K=V", NULL, &v->sets, 0, 0, "change"},
        {0}};
    struct command_line c = {
        .program = "test", .args = "ARG", .about = "A test.", .rows = rows, .args_max = 2};
    static char words_copy[14][64]; // getopt wants words that may be changed
    char *argv[16];
    argv[0] = (char[]){"test"};
    for (int i = 0; i < argc; i++) {
        argv[i + 1] = words_copy[i];
        (void)snprintf(words_copy[i], sizeof(words_copy[i]), "%s", words[i]);
    }
    argv[argc + 1] = NULL;
    (void)fflush(stderr);
    int saved = dup(STDERR_FILENO);
    char path[] = "/tmp/photon-options-XXXXXX";
    int fd = mkstemp(path);
    (void)unlink(path);
    (void)dup2(fd, STDERR_FILENO);
    enum options_end end = options_parse(&c, argc + 1, argv, v->args, &v->arg_count);
    (void)fflush(stderr);
    (void)dup2(saved, STDERR_FILENO);
    ssize_t n = pread(fd, v->said, sizeof(v->said) - 1, 0);
    v->said[n > 0 ? n : 0] = '\0';
    (void)close(fd);
    (void)close(saved);
    return end;
}

#define PARSE(v, ...)                                                                              \
    parse(v, (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)),                        \
          (const char *[]){__VA_ARGS__})

static void values_go_where_the_table_says(void)
{
    struct values v;
    CHECK_INT(PARSE(&v, "--json", "-s", "http://a", "--rounds=7", "x", "--rate", "0.5", "y"),
              OPTIONS_GO);
    CHECK(v.json);
    CHECK_STR(v.server, "http://a");
    CHECK_INT(v.rounds, 7);
    CHECK_NEAR(v.rate, 0.5, 0);
    CHECK_INT(v.arg_count, 2);
    CHECK_STR(v.args[0], "x");
    CHECK_STR(v.args[1], "y");
}

static void a_list_keeps_its_order(void)
{
    struct values v;
    CHECK_INT(PARSE(&v, "--set", "a=1", "--set", "b=2"), OPTIONS_GO);
    CHECK_INT(v.sets.count, 2);
    CHECK_STR(v.sets.items[0], "a=1");
    CHECK_STR(v.sets.items[1], "b=2");
}

static void an_unknown_option_names_the_nearest(void)
{
    struct values v;
    CHECK_INT(PARSE(&v, "--jsno"), OPTIONS_USAGE);
    CHECK(strstr(v.said, "did you mean --json?") != NULL);
    CHECK_INT(PARSE(&v, "--sevrer=x"), OPTIONS_USAGE);
    CHECK(strstr(v.said, "unknown option '--sevrer'; did you mean --server?") != NULL);
    CHECK_INT(PARSE(&v, "--completely-different"), OPTIONS_USAGE);
    CHECK(strstr(v.said, "try --help") != NULL);
    CHECK_INT(PARSE(&v, "-x"), OPTIONS_USAGE);
    CHECK(strstr(v.said, "unknown option '-x'") != NULL);
}

static void a_missing_value_is_said(void)
{
    struct values v;
    CHECK_INT(PARSE(&v, "--server"), OPTIONS_USAGE);
    CHECK(strstr(v.said, "--server needs a value") != NULL);
}

static void numbers_are_bounded_and_whole(void)
{
    static const char *const bad[] = {"0", "101", "1.5", "x", "", "7x", "1e999", "nan"};
    struct values v;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(PARSE(&v, "--rounds", bad[i]), OPTIONS_USAGE);
        CHECK(strstr(v.said, "whole number from 1 to 100") != NULL);
    }
    CHECK_INT(PARSE(&v, "--rounds", "1"), OPTIONS_GO);
    CHECK_INT(PARSE(&v, "--rounds", "100"), OPTIONS_GO);
    CHECK_INT(PARSE(&v, "--rate", "1.01"), OPTIONS_USAGE);
}

static void too_many_arguments_are_refused(void)
{
    struct values v;
    CHECK_INT(PARSE(&v, "a", "b", "c"), OPTIONS_USAGE);
    CHECK(strstr(v.said, "too many arguments") != NULL);
}

static void the_environment_stands_behind_the_option(void)
{
    struct values v;
    (void)setenv("PHOTON_TEST_SERVER", "http://env", 1);
    CHECK_INT(PARSE(&v, "--json"), OPTIONS_GO);
    CHECK_STR(v.server, "http://env");
    CHECK_INT(PARSE(&v, "--server", "http://flag"), OPTIONS_GO);
    CHECK_STR(v.server, "http://flag");
    (void)unsetenv("PHOTON_TEST_SERVER");
}

static void help_shows_every_row(void)
{
    struct values v;
    bool flag = false;
    const struct option_row rows[] = {
        {"alpha", 'a', OPTION_FLAG, NULL, "PHOTON_A", &flag, 0, 0, "first"}, {0}};
    struct command_line c = {.program = "p", .args = "X", .about = "About.", .rows = rows};
    char text[1024] = "";
    FILE *f = fmemopen(text, sizeof(text), "w");
    options_help(&c, f);
    (void)fclose(f);
    CHECK(strstr(text, "Usage: p X") != NULL);
    CHECK(strstr(text, "-a, --alpha") != NULL);
    CHECK(strstr(text, "first [PHOTON_A]") != NULL);
    CHECK(strstr(text, "--help") != NULL);
    (void)v;
}

static void durations_have_units(void)
{
    CHECK_INT(options_duration_s("90"), 90);
    CHECK_INT(options_duration_s("90s"), 90);
    CHECK_INT(options_duration_s("15m"), 900);
    CHECK_INT(options_duration_s("12h"), 43200);
    CHECK_INT(options_duration_s("7d"), 604800);
    static const char *const bad[] = {"",    "d",   "-1d", "0",
                                      "7dd", "7 d", "1w",  "99999999999999999999"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(options_duration_s(bad[i]), -1);
    }
}

int main(void)
{
    RUN(values_go_where_the_table_says);
    RUN(a_list_keeps_its_order);
    RUN(an_unknown_option_names_the_nearest);
    RUN(a_missing_value_is_said);
    RUN(numbers_are_bounded_and_whole);
    RUN(too_many_arguments_are_refused);
    RUN(the_environment_stands_behind_the_option);
    RUN(help_shows_every_row);
    RUN(durations_have_units);
    return check_end();
}
