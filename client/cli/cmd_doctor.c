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
    enum { DATA, DATABASE, STORE, ENDPOINT, CREDENTIALS, CA, ACKS, COUNT };
    static const char *const names[COUNT] = {"--data",        "--database",       "--store",
                                             "--s3-endpoint", "--s3-credentials", "--s3-ca",
                                             "--acks"};
    const char *v[COUNT] = {NULL};
    const struct option_row rows[] = {
        {"data", 0, OPTION_TEXT, "DIR", NULL, &v[DATA], 0, 0, "the server's data folder"},
        {"database", 0, OPTION_TEXT, "URL", "PHOTON_DATABASE", &v[DATABASE], 0, 0,
         "its PostgreSQL, when it is not a private one"},
        {"store", 0, OPTION_TEXT, "s3://BUCKET/PREFIX", NULL, &v[STORE], 0, 0,
         "its bucket, when weights are in one (or DIR: the same as --data)"},
        {"s3-endpoint", 0, OPTION_TEXT, "URL", NULL, &v[ENDPOINT], 0, 0,
         "the bucket's address, when it is not AWS"},
        {"s3-credentials", 0, OPTION_TEXT, "FILE", NULL, &v[CREDENTIALS], 0, 0,
         "as the AWS tools have it (default: AWS_ACCESS_KEY_ID and others)"},
        {"s3-ca", 0, OPTION_TEXT, "FILE", NULL, &v[CA], 0, 0,
         "authorities that vouch for the bucket's certificate, PEM"},
        {"acks", 0, OPTION_TEXT, "FILE", NULL, &v[ACKS], 0, 0,
         "what silos were told counts, as photon-client acks prints it"},
        {0}};
    struct command_line c = {
        .program = "photon doctor",
        .args = "--data DIR",
        .about = "Look whether a server's database and files are as they must be: photon-server "
                 "check.\nChanges nothing, and may run beside the server at any time. A silo has "
                 "photon-client doctor.",
        .examples = "  photon doctor --data /var/lib/photon\n"
                    "  photon doctor --data /var/lib/photon --store s3://bucket/prefix",
        .rows = rows};
    enum options_end end = options_parse(&c, argc, argv, NULL, NULL);
    if (end) {
        return end == OPTIONS_DONE ? EXIT_DONE : EXIT_USAGE;
    }
    if (!v[DATA] && v[STORE] && strstr(v[STORE], "://") == NULL) {
        v[DATA] = v[STORE];
        v[STORE] = NULL;
    }
    if (!v[DATA]) {
        (void)fprintf(stderr, "photon doctor: try --data DIR, the server's data folder\n");
        return EXIT_USAGE;
    }
    char program[PATH_MAX];
    const char *args[2 + 2 * COUNT + 1] = {"photon-server", "check"};
    int n = 2;
    for (int i = 0; i < COUNT; i++) {
        if (v[i]) {
            args[n++] = names[i];
            args[n++] = v[i];
        }
    }
    char *plain[2 + 2 * COUNT + 1] = {NULL};
    memcpy(plain, args, (size_t)n * sizeof(args[0]));
    server_path(program);
    (void)execv(program, plain);
    (void)fprintf(stderr,
                  "photon doctor: cannot start %s: %s; the doctor runs where the server is\n",
                  program, strerror(errno));
    return EXIT_CONFIG;
}

const struct cmd cmds_doctor[] = {{"doctor", NULL, "is a server's store sound", doctor}, {0}};
