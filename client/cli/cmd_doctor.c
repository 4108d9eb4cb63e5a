/*
 * photon doctor - is a server's store sound? The work is photon-server's own: this is its door.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/cmd.h"
#include "client/options.h"

/* photon-server is installed beside this program. */
static void server_path(char out[PATH_MAX])
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = '\0';
    const char *slash = strrchr(self, '/');
    (void)snprintf(out, PATH_MAX, "%.*s/photon-server", slash ? (int)(slash - self) : 0, self);
}

static int doctor(int argc, char **argv)
{
    const char *store = NULL;
    const char *database = NULL;
    const char *acks = NULL;
    const struct option_row rows[] = {
        {"store", 0, OPTION_TEXT, "DIR", NULL, &store, 0, 0, "the server's data folder"},
        {"database", 0, OPTION_TEXT, "URL", "PHOTON_DATABASE", &database, 0, 0,
         "its PostgreSQL, when it is not a private one"},
        {"acks", 0, OPTION_TEXT, "FILE", NULL, &acks, 0, 0,
         "what silos were told counts, as photon-client acks prints it"},
        {0}};
    struct command_line c = {
        .program = "photon doctor",
        .args = "--store DIR",
        .about = "Look whether a server's database and files are as they must be: photon-server "
                 "check.\nChanges nothing, and may run beside the server at any time. A silo has "
                 "photon-client doctor.",
        .examples = "  photon doctor --store /var/lib/photon",
        .rows = rows};
    enum options_end end = options_parse(&c, argc, argv, NULL, NULL);
    if (end) {
        return end == OPTIONS_DONE ? EXIT_DONE : EXIT_USAGE;
    }
    if (!store) {
        (void)fprintf(stderr, "photon doctor: try --store DIR, the server's data folder\n");
        return EXIT_USAGE;
    }
    char program[PATH_MAX];
    const char *args[10] = {"photon-server", "check", "--data", store};
    int n = 4;
    if (database) {
        args[n++] = "--database";
        args[n++] = database;
    }
    if (acks) {
        args[n++] = "--acks";
        args[n++] = acks;
    }
    char *plain[10] = {NULL};
    memcpy(plain, args, (size_t)n * sizeof(args[0]));
    server_path(program);
    (void)execv(program, plain);
    (void)fprintf(stderr,
                  "photon doctor: cannot start %s: %s; the doctor runs where the server is\n",
                  program, strerror(errno));
    return EXIT_CONFIG;
}

const struct cmd cmds_doctor[] = {{"doctor", NULL, "is a server's store sound", doctor}, {0}};
