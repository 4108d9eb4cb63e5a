#include "client/join.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "client/options.h"
#include "client/state.h"
#include "client/transport.h"
#include "common/buf.h"
#include "common/pin.h"

enum { TOKEN_MAX = 4096, GIVE_UP_S = 60 };

/* Typed without an echo, when somebody is there to type. */
static bool ask_token(char out[TOKEN_MAX])
{
    struct termios before;
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &before) != 0) {
        return false;
    }
    struct termios quiet = before;
    quiet.c_lflag &= ~(tcflag_t)ECHO;
    (void)fprintf(stderr, "Join token: ");
    (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &quiet);
    bool ok = fgets(out, TOKEN_MAX, stdin) != NULL;
    (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
    (void)fprintf(stderr, "\n");
    return ok;
}

static void trim(char *s)
{
    size_t lead = strspn(s, " \t\r\n");
    memmove(s, s + lead, strlen(s + lead) + 1);
    s[strcspn(s, " \t\r\n")] = '\0';
}

static int read_token(const char *file, char out[TOKEN_MAX])
{
    struct err e = {0};
    const char *env = getenv("PHOTON_TOKEN");
    out[0] = '\0';
    if (file) {
        if (file_read(file, out, TOKEN_MAX, &e)) {
            (void)fprintf(stderr, "photon-client: %s\n", e.msg);
            return EXIT_CONFIG;
        }
    } else if (env && *env) {
        (void)snprintf(out, TOKEN_MAX, "%s", env);
    } else if (!ask_token(out)) {
        (void)fprintf(stderr,
                      "photon-client: no join token; try --token-file FILE or PHOTON_TOKEN\n");
        return EXIT_USAGE;
    }
    trim(out);
    if (!out[0]) {
        (void)fprintf(stderr, "photon-client: the join token is empty\n");
        return EXIT_CONFIG;
    }
    return EXIT_DONE;
}

/* The machine's own name as a silo's name: lower case, what does not fit becomes a dash. */
static void default_name(char out[64])
{
    char host[64] = "silo";
    (void)gethostname(host, sizeof(host) - 1);
    host[strcspn(host, ".")] = '\0';
    size_t n = 0;
    for (const char *p = host; *p && n < 63; p++) {
        unsigned char c = (unsigned char)*p;
        out[n++] = isalnum(c) ? (char)tolower(c) : '-';
    }
    out[n] = '\0';
    if (!isalnum((unsigned char)out[0])) {
        (void)snprintf(out, 64, "silo");
    }
}

static enum status read_answer(const struct reply *r, struct silo_identity *id, struct err *e)
{
    const char *silo = NULL;
    const char *name = NULL;
    const char *token = NULL;
    if (!r->json || json_kind(r->json) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "the answer is not JSON; is this a Photon server?");
    }
    TRY(json_want_str(r->json, "silo", &silo, e));
    TRY(json_want_str(r->json, "name", &name, e));
    TRY(json_want_str(r->json, "token", &token, e));
    (void)snprintf(id->silo, sizeof(id->silo), "%s", silo);
    (void)snprintf(id->name, sizeof(id->name), "%s", name);
    (void)snprintf(id->token, sizeof(id->token), "%s", token);
    return ST_OK;
}

static int say(enum status st, const struct reply *r, const struct err *e)
{
    (void)fprintf(stderr, "photon-client: %s\n", e->msg);
    if (strcmp(r->code, "PROTOCOL_MISMATCH") == 0) {
        return EXIT_VERSION;
    }
    if (st == ST_NET || st == ST_DENIED) {
        return EXIT_UNREACHABLE;
    }
    return st == ST_RETRY ? EXIT_TEMPORARY : EXIT_FAILED;
}

static int trade_token(struct silo_identity *id, const char *token)
{
    struct arena *a = arena_new(16 * 1024 * 1024);
    struct transport_config c = {
        .url = id->url, .token = token, .ca_file = id->ca_file, .pin = id->pin};
    struct transport *t = NULL;
    struct reply r = {.code = ""};
    struct err e = {0};
    int rc = EXIT_DONE;
    if (transport_open(&t, &c, &e)) {
        (void)fprintf(stderr, "photon-client: %s\n", e.msg);
        rc = EXIT_CONFIG;
    } else {
        struct buf body;
        buf_init(&body, 1024);
        jw_object(&body, NULL);
        jw_str(&body, "name", id->name);
        jw_end_object(&body);
        enum status st = transport_call_retry(t, a, "POST", "/silo/v1/join", body.data,
                                              (double)GIVE_UP_S, &r, &e);
        buf_release(&body);
        st = st ? st : read_answer(&r, id, &e);
        rc = st ? say(st, &r, &e) : EXIT_DONE;
    }
    transport_close(t);
    arena_free(a);
    return rc;
}

/* A folder that is a silo already is only joined again on purpose: its token would be lost. */
static bool taken(const char *state_dir, bool again)
{
    struct silo_identity old;
    struct err unused = {0};
    if (again || identity_read(state_dir, &old, &unused)) {
        return false;
    }
    (void)fprintf(stderr,
                  "photon-client: %s is silo '%s' of %s already; try start, or join --again to "
                  "replace it\n",
                  state_dir, old.name, old.url);
    return true;
}

int join_main(int argc, char **argv)
{
    const char *state_dir = NULL;
    const char *name = NULL;
    const char *token_file = NULL;
    const char *ca_file = NULL;
    const char *pin = NULL;
    bool again = false;
    const struct option_row rows[] = {
        {"state", 0, OPTION_TEXT, "DIR", "PHOTON_STATE", &state_dir, 0, 0,
         "the silo's folder, made when missing"},
        {"name", 'n', OPTION_TEXT, "NAME", NULL, &name, 0, 0,
         "the silo's name, as the token was made for; default this machine's"},
        {"token-file", 0, OPTION_TEXT, "FILE", NULL, &token_file, 0, 0,
         "a file holding the join token; or PHOTON_TOKEN, or you are asked"},
        {"ca-file", 0, OPTION_TEXT, "FILE", "PHOTON_CA_FILE", &ca_file, 0, 0,
         "certificates to trust instead of the system's; remembered"},
        {"pin", 0, OPTION_TEXT, "PIN", "PHOTON_PIN", &pin, 0, 0,
         "the server's key, sha256//..., as the join line has it; remembered"},
        {"again", 0, OPTION_FLAG, NULL, NULL, &again, 0, 0, "replace what the folder holds"},
        {0}};
    struct command_line c = {.program = "photon-client join",
                             .args = "URL --state DIR",
                             .about = "Make a folder a silo of the server at URL.",
                             .examples =
                                 "  photon-client join https://agg.example.org:8443 --name "
                                 "hospital-a --state ~/photon \\\n"
                                 "    --pin sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hS"
                                 "uFU=",
                             .rows = rows,
                             .args_min = 1,
                             .args_max = 1};
    const char *url = NULL;
    enum options_end end = options_parse(&c, argc, argv, &url, NULL);
    if (end) {
        return options_exit(end);
    }
    if (!state_dir) {
        (void)fprintf(stderr, "photon-client: where shall the silo live? try --state DIR\n");
        return EXIT_USAGE;
    }
    struct silo_identity id = {0};
    struct err e = {0};
    char token[TOKEN_MAX];
    (void)snprintf(id.url, sizeof(id.url), "%s", url);
    (void)snprintf(id.name, sizeof(id.name), "%s", name ? name : "");
    static char full[PATH_MAX];
    if (ca_file && (!realpath(ca_file, full) || strlen(full) >= sizeof(id.ca_file))) {
        (void)fprintf(stderr, "photon-client: cannot read %s: %s\n", ca_file, strerror(errno));
        return EXIT_CONFIG;
    }
    (void)snprintf(id.ca_file, sizeof(id.ca_file), "%.1023s", full);
    (void)snprintf(id.pin, sizeof(id.pin), "%s", pin ? pin : "");
    if (!name) {
        default_name(id.name);
    }
    struct pin unused;
    if (transport_url_check(url, &e) || (id.pin[0] && pin_parse(&unused, id.pin, &e)) ||
        dir_make(state_dir, &e)) {
        (void)fprintf(stderr, "photon-client: %s\n", e.msg);
        return EXIT_CONFIG;
    }
    int rc = taken(state_dir, again) ? EXIT_FAILED : read_token(token_file, token);
    rc = rc ? rc : trade_token(&id, token);
    if (!rc && identity_write(state_dir, &id, &e)) {
        (void)fprintf(stderr, "photon-client: %s; the same join token works once more\n", e.msg);
        rc = EXIT_CONFIG;
    }
    if (!rc) {
        (void)fprintf(stderr, "joined %s as %s; next: photon-client start --state %s --data DIR\n",
                      id.url, id.name, state_dir);
        (void)printf("%s\n", id.silo);
    }
    return rc;
}

int leave_main(int argc, char **argv)
{
    const char *state_dir = NULL;
    bool yes = false;
    const struct option_row rows[] = {
        {"state", 0, OPTION_TEXT, "DIR", "PHOTON_STATE", &state_dir, 0, 0, "the silo's folder"},
        {"yes", 'y', OPTION_FLAG, NULL, NULL, &yes, 0, 0, "do not ask"},
        {0}};
    struct command_line c = {
        .program = "photon-client leave",
        .args = "--state DIR",
        .about = "Forget the silo's token. Optimizer state and cached checkpoints stay in the "
                 "folder; the operator\ncan revoke the silo on the server's side.",
        .rows = rows};
    enum options_end end = options_parse(&c, argc, argv, NULL, NULL);
    if (end) {
        return options_exit(end);
    }
    if (!state_dir || (!yes && !isatty(STDIN_FILENO))) {
        (void)fprintf(stderr, "photon-client: %s\n",
                      state_dir ? "leaving cannot be undone; try --yes" : "try --state DIR");
        return EXIT_USAGE;
    }
    struct silo_identity id;
    struct err e = {0};
    int lock = -1;
    if (identity_read(state_dir, &id, &e) || state_lock(state_dir, &lock, &e)) {
        (void)fprintf(stderr, "photon-client: %s%s\n", e.msg,
                      e.st == ST_NOT_FOUND ? "; is --state right, or did it leave already?" : "");
        return e.st == ST_CONFLICT ? EXIT_FAILED : EXIT_CONFIG;
    }
    char answer[16] = "y";
    if (!yes) {
        (void)fprintf(stderr, "Forget silo %s of %s? [y/N] ", id.name, id.url);
        answer[0] = '\0';
        (void)!fgets(answer, sizeof(answer), stdin);
    }
    int rc = EXIT_FAILED;
    if (answer[0] == 'y' || answer[0] == 'Y') {
        char path[STATE_PATH_MAX];
        (void)snprintf(path, sizeof(path), "%.900s/silo.json", state_dir);
        rc = unlink(path) == 0 ? EXIT_DONE : EXIT_CONFIG;
        (void)fprintf(stderr, "%s\n",
                      rc ? strerror(errno) : "left; ask the operator to revoke the silo");
    }
    (void)close(lock);
    return rc;
}
