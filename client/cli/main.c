/*
 * photon - the operator's tool: runs, silos, tokens, data, models, and the demo.
 */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "client/cli/cmd.h"
#include "client/options.h"
#include "client/passive_wait.h"
#include "common/log.h"
#include "common/nearest.h"
#include "common/version.h"

static const struct cmd *const tables[] = {cmds_demo, cmds_run,   cmds_silo,  cmds_token,
                                           cmds_data, cmds_model, cmds_train, cmds_sim,
                                           cmds_plan, cmds_audit, cmds_doctor};

enum { TABLES = sizeof(tables) / sizeof(tables[0]), WORDS_MAX = 64 };

static void help(FILE *to)
{
    (void)fprintf(to, "Usage: photon COMMAND [OPTIONS]\n\n"
                      "Federated pre-training of language models: runs, silos, data, models.\n\n"
                      "Examples:\n"
                      "  photon demo --rounds 5\n"
                      "  photon run submit -f spec.json --dry-run\n\n"
                      "What asks a server takes --server and --token-file, or PHOTON_SERVER and "
                      "PHOTON_TOKEN_FILE\n(the first token is the file admin-token in the "
                      "server's data folder).\n\n"
                      "Commands:\n");
    for (int t = 0; t < TABLES; t++) {
        for (const struct cmd *c = tables[t]; c->noun; c++) {
            char name[48];
            (void)snprintf(name, sizeof(name), "%s%s%s", c->noun, c->verb ? " " : "",
                           c->verb ? c->verb : "");
            (void)fprintf(to, "  %-26s %s\n", name, c->about);
        }
    }
    (void)fprintf(to, "  %-26s %s\n", "version", "what this build is");
    (void)fprintf(to, "\nEvery command has --help. Exit codes: 0 done, 1 failed, 2 usage, 3 "
                      "configuration or spec,\n4 unreachable or not allowed, 6 incompatible "
                      "version, 7 no device, 70 bug, 75 try again.\n");
}

static int add_word(const char **words, int count, const char *word)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(words[i], word) == 0) {
            return count;
        }
    }
    words[count] = word;
    return count + 1;
}

/* noun NULL: the nouns; else the verbs of that noun. */
static int known_words(const char *noun, const char **words)
{
    int count = 0;
    for (int t = 0; t < TABLES; t++) {
        for (const struct cmd *c = tables[t]; c->noun && count < WORDS_MAX; c++) {
            if (!noun) {
                count = add_word(words, count, c->noun);
            } else if (c->verb && strcmp(c->noun, noun) == 0) {
                count = add_word(words, count, c->verb);
            }
        }
    }
    if (!noun && count < WORDS_MAX) {
        count = add_word(words, count, "version");
    }
    return count;
}

static int unknown(const char *noun, const char *word)
{
    const char *words[WORDS_MAX + 1];
    int count = known_words(noun, words);
    words[count] = NULL;
    const char *near = nearest(word, words);
    const char *lead = noun ? noun : "";
    const char *gap = noun ? " " : "";
    if (near) {
        (void)fprintf(stderr, "photon: unknown command '%s%s%s'; did you mean '%s%s%s'?\n", lead,
                      gap, word, lead, gap, near);
        return EXIT_USAGE;
    }
    (void)fprintf(stderr, "photon: unknown command '%s%s%s'; try:", lead, gap, word);
    for (int i = 0; i < count; i++) {
        (void)fprintf(stderr, "%s %s", i ? "," : "", words[i]);
    }
    (void)fprintf(stderr, "\n");
    return EXIT_USAGE;
}

static int noun_help(const char *noun, FILE *to)
{
    bool found = false;
    for (int t = 0; t < TABLES; t++) {
        for (const struct cmd *c = tables[t]; c->noun; c++) {
            if (c->verb && strcmp(c->noun, noun) == 0) {
                if (!found) {
                    (void)fprintf(to, "Usage: photon %s VERB [OPTIONS]\n\n", noun);
                }
                (void)fprintf(to, "  %-22s %s\n", c->verb, c->about);
                found = true;
            }
        }
    }
    return found;
}

/* A verb may be two words ("silo token create", "run checkpoint download");
 * the longest match wins. */
static const struct cmd *find(int argc, char **argv, int *used)
{
    for (int words = 3; words >= 1; words--) {
        for (int t = 0; argc > words && t < TABLES; t++) {
            for (const struct cmd *c = tables[t]; c->noun; c++) {
                char verb[64] = "";
                for (int i = 2; i <= words; i++) {
                    size_t n = strlen(verb);
                    (void)snprintf(verb + n, sizeof(verb) - n, "%s%s", i > 2 ? " " : "", argv[i]);
                }
                if (strcmp(c->noun, argv[1]) == 0 && strcmp(c->verb ? c->verb : "", verb) == 0) {
                    *used = words;
                    return c;
                }
            }
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    log_setup(LOG_INFO, false, "photon");
    if (argc < 2) {
        help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        help(stdout);
        return EXIT_DONE;
    }
    if (strcmp(argv[1], "version") == 0 || strcmp(argv[1], "--version") == 0) {
        (void)printf("photon " PHOTON_VERSION " (silo protocol " PHOTON_PROTOCOL ")\n");
        return EXIT_DONE;
    }
    int used = 0;
    const struct cmd *c = find(argc, argv, &used);
    if (c) {
        if (c->trains) {
            passive_wait(argv); // before any thread, and before anything is read or written
        }
        return c->run(argc - used, argv + used);
    }
    const char *words[WORDS_MAX];
    bool known_noun = known_words(argv[1], words) > 0;
    if (known_noun && (argc == 2 || argv[2][0] == '-')) {
        bool asked = argc > 2 && (strcmp(argv[2], "--help") == 0 || strcmp(argv[2], "-h") == 0);
        (void)noun_help(argv[1], asked ? stdout : stderr);
        return asked ? EXIT_DONE : EXIT_USAGE;
    }
    return known_noun ? unknown(argv[1], argv[2]) : unknown(NULL, argv[1]);
}
