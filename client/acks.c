#include "client/acks.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "client/durable.h"
#include "client/options.h"
#include "common/fault.h"
#include "common/hash.h"
#include "common/id.h"

enum { LINE_MAX_BYTES = 256 };

static void acks_path(const char *state_dir, char out[STATE_PATH_MAX])
{
    (void)snprintf(out, STATE_PATH_MAX, "%.*s/acks", STATE_PATH_MAX - 16, state_dir);
}

static enum status append(int fd, const char *line, size_t len, struct err *e)
{
    char last = '\n';
    off_t end = lseek(fd, 0, SEEK_END);
    if (end > 0 && pread(fd, &last, 1, end - 1) != 1) {
        return err_set(e, ST_IO, "cannot read the acknowledgements: %s", strerror(errno));
    }
    // After a line that a crash has torn a new one begins; the torn one is no line of ours.
    bool torn = last != '\n' && write(fd, "\n", 1) != 1;
    ssize_t n = torn || FAULT_ERR("acks.write") ? -1 : write(fd, line, len);
    if (n == (ssize_t)len && !FAULT_ERR("acks.sync") && fdatasync(fd) == 0) {
        return ST_OK;
    }
    return err_set(e, n < 0 ? io_status(errno) : ST_LIMIT, "cannot note an acknowledgement: %s",
                   strerror(errno));
}

static enum status sync_folder(const char *state_dir, struct err *e)
{
    int fd = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd >= 0 ? fsync(fd) : -1;
    if (fd >= 0) {
        (void)close(fd);
    }
    return rc == 0 ? ST_OK : err_set(e, ST_IO, "cannot sync %s: %s", state_dir, strerror(errno));
}

enum status acks_note(const char *state_dir, const char *upload, const char *sha256,
                      const char *run, int64_t round, struct err *e)
{
    char path[STATE_PATH_MAX];
    char line[LINE_MAX_BYTES];
    acks_path(state_dir, path);
    int len = snprintf(line, sizeof(line), "%s %s %s %" PRId64 "\n", upload, sha256, run, round);
    int fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        return err_set(e, io_status(errno), "cannot open %s: %s", path, strerror(errno));
    }
    enum status st = append(fd, line, (size_t)len, e);
    if (close(fd) != 0 && !st) {
        st = err_set(e, ST_IO, "cannot close %s: %s", path, strerror(errno));
    }
    TRY(st);
    return sync_folder(state_dir, e); // the file's own name, the first time
}

static bool whole(const char *line)
{
    char upload[64] = "";
    char hex[80] = "";
    struct digest d;
    return strchr(line, '\n') && sscanf(line, "%63s %79s", upload, hex) == 2 &&
           id_valid('u', upload) && digest_parse(&d, hex, NULL) == ST_OK;
}

enum status acks_print(const char *state_dir, FILE *out, int64_t *count, struct err *e)
{
    char path[STATE_PATH_MAX];
    char line[LINE_MAX_BYTES];
    *count = 0;
    acks_path(state_dir, path);
    FILE *f = fopen(path, "re");
    if (!f && errno == ENOENT) {
        return ST_OK;
    }
    if (!f) {
        return err_set(e, ST_IO, "cannot read %s: %s", path, strerror(errno));
    }
    while (fgets(line, sizeof(line), f)) {
        if (whole(line)) {
            (void)fputs(line, out);
            ++*count;
        }
    }
    bool bad = ferror(f) != 0;
    (void)fclose(f);
    return bad ? err_set(e, ST_IO, "cannot read %s", path) : ST_OK;
}

int acks_main(int argc, char **argv)
{
    const char *state_dir = NULL;
    const struct option_row rows[] = {
        {"state", 0, OPTION_TEXT, "DIR", "PHOTON_STATE", &state_dir, 0, 0, "the silo's folder"},
        {0}};
    struct command_line c = {
        .program = "photon-client acks",
        .args = "--state DIR",
        .about = "What the server told this silo counts, one update a line: upload, SHA-256, run, "
                 "round.\nThe operator compares with photon-server check --acks FILE.",
        .examples = "  photon-client acks --state ~/photon > acks",
        .rows = rows};
    enum options_end end = options_parse(&c, argc, argv, NULL, NULL);
    if (end) {
        return end == OPTIONS_DONE ? EXIT_DONE : EXIT_USAGE;
    }
    if (!state_dir) {
        (void)fprintf(stderr, "photon-client: try --state DIR\n");
        return EXIT_USAGE;
    }
    struct err e = {0};
    int64_t count = 0;
    if (access(state_dir, R_OK | X_OK) != 0) {
        (void)fprintf(stderr, "photon-client: '%s' is no folder; try another --state\n", state_dir);
        return EXIT_CONFIG;
    }
    if (acks_print(state_dir, stdout, &count, &e)) {
        (void)fprintf(stderr, "photon-client: %s\n", e.msg);
        return EXIT_CONFIG;
    }
    return EXIT_DONE;
}
