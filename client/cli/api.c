#include "client/cli/api.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/text.h"

static const char DEFAULT_SERVER[] = "http://127.0.0.1:8080";

/* Where `photon demo` leaves its address and token: here, or where it goes as root. */
static const char *const demo_dirs[] = {"photon-demo", "/var/lib/photon-demo"};

enum {
    SECRET_MAX = 4096,
    GIVE_UP_S = 20,
    ARENA_MAX = 256 * 1024 * 1024,
    REPLY_MAX = 16 * 1024 * 1024 /* the longest list of the API is far below */
};

int api_read_secret(struct arena *a, const char *file, const char **out)
{
    char *text = arena_alloc(a, SECRET_MAX);
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, SECRET_MAX - 1) : -1;
    if (fd >= 0) {
        (void)close(fd);
    }
    if (n < 0) {
        (void)fprintf(stderr, "photon: cannot read %s: %s\n", file, strerror(errno));
        return EXIT_CONFIG;
    }
    text[n] = '\0';
    char *start = text + strspn(text, " \t\r\n");
    start[strcspn(start, " \t\r\n")] = '\0';
    if (!*start) {
        (void)fprintf(stderr, "photon: %s holds no token\n", file);
        return EXIT_CONFIG;
    }
    *out = start;
    return EXIT_DONE;
}

static const char *find_demo(struct arena *a)
{
    for (size_t i = 0; i < sizeof(demo_dirs) / sizeof(demo_dirs[0]); i++) {
        if (access(arena_fmt(a, "%s/url", demo_dirs[i]), R_OK) == 0) {
            return demo_dirs[i];
        }
    }
    return NULL;
}

int api_open(struct api *api, const struct api_options *o)
{
    *api = (struct api){.json = o->json, .quiet = o->quiet, .arena = arena_new(ARENA_MAX)};
    const char *server = o->server;
    const char *token = NULL;
    int rc = EXIT_DONE;
    const char *demo = server ? NULL : find_demo(api->arena);
    const char *demo_token = demo ? arena_fmt(api->arena, "%s/admin-token", demo) : NULL;
    if (demo) {
        rc = api_read_secret(api->arena, arena_fmt(api->arena, "%s/url", demo), &server);
    }
    if (!rc && o->token_file) {
        rc = api_read_secret(api->arena, o->token_file, &token);
    } else if (!rc && getenv("PHOTON_TOKEN") && *getenv("PHOTON_TOKEN")) {
        token = getenv("PHOTON_TOKEN");
    } else if (!rc && demo && access(demo_token, R_OK) == 0) {
        rc = api_read_secret(api->arena, demo_token, &token);
    }
    if (!rc && !token) {
        (void)fprintf(stderr,
                      "photon: no token; try --token-file FILE or PHOTON_TOKEN (the server's "
                      "first is\nadmin-token in its data folder)\n");
        rc = EXIT_UNREACHABLE;
    }
    struct err e = {0};
    struct transport_config c = {.url = server ? server : DEFAULT_SERVER,
                                 .token = token,
                                 .ca_file = o->ca_file,
                                 .pin = o->pin,
                                 .reply_max = REPLY_MAX};
    if (!rc && transport_open(&api->transport, &c, &e)) {
        (void)fprintf(stderr, "photon: %s\n", e.msg);
        rc = EXIT_CONFIG;
    }
    if (rc) {
        api_close(api);
    }
    return rc;
}

void api_close(struct api *api)
{
    transport_close(api->transport);
    arena_free(api->arena);
    *api = (struct api){0};
}

bool api_begin(struct api *api, const struct command_line *c, const struct api_options *o, int argc,
               char **argv, const char **args, int *rc)
{
    enum options_end end = options_parse(c, argc, argv, args, NULL);
    if (end) {
        *rc = options_exit(end);
        return false;
    }
    *rc = api_open(api, o);
    return *rc == EXIT_DONE;
}

struct search {
    const char *word;
    const char *id;
};

static bool match(void *ctx, const struct json *item)
{
    struct search *f = ctx;
    if (strcmp(api_text(item, "id", ""), f->word) == 0 ||
        strcmp(api_text(item, "name", ""), f->word) == 0) {
        f->id = api_text(item, "id", NULL);
    }
    return f->id == NULL;
}

int api_find(struct api *api, const char *noun, const char *word, const char **id)
{
    struct search f = {.word = word};
    int rc = api_list(api, arena_fmt(api->arena, "/api/v1/%ss", noun), match, &f);
    if (!rc && !f.id) {
        (void)fprintf(stderr, "photon: no %s '%s'; try photon %s list\n", noun, word, noun);
        rc = EXIT_FAILED;
    }
    *id = f.id;
    return rc;
}

int api_exit_code(const struct reply *r, enum status st)
{
    if (!st) {
        return EXIT_DONE;
    }
    if (strcmp(r->code, "PROTOCOL_MISMATCH") == 0) {
        return EXIT_VERSION;
    }
    switch (r->http) {
    case 0:
    case 401:
    case 403:
        return EXIT_UNREACHABLE;
    case 400:
    case 413:
    case 422:
        return EXIT_CONFIG;
    default:
        return st == ST_RETRY ? EXIT_TEMPORARY : EXIT_FAILED;
    }
}

static void print_problem(const struct reply *r, const struct err *e)
{
    (void)fprintf(stderr, "photon: %s\n", e->msg);
    const struct json *errors = r->json && json_kind(r->json) == JSON_OBJECT && r->http >= 400
                                    ? json_get(r->json, "errors")
                                    : NULL;
    int count = errors && json_kind(errors) == JSON_ARRAY ? json_len(errors) : 0;
    for (int i = 1; i < count; i++) { // the first is in the message
        const struct json *one = json_at(errors, i);
        (void)fprintf(stderr, "  %s: %s\n", api_text(one, "pointer", ""),
                      api_text(one, "detail", ""));
    }
}

int api_call(struct api *api, const char *method, const char *path, const char *body,
             struct reply *out)
{
    struct err e = {0};
    enum status st = transport_call_retry(api->transport, api->arena, method, path, body,
                                          (double)GIVE_UP_S, out, &e);
    if (st) {
        print_problem(out, &e);
        return api_exit_code(out, st);
    }
    if (out->http != 204 && !out->json) {
        (void)fprintf(stderr, "photon: the server's answer is not JSON; is --server right?\n");
        return EXIT_VERSION;
    }
    return EXIT_DONE;
}

int api_list(struct api *api, const char *path, bool (*fn)(void *ctx, const struct json *item),
             void *ctx)
{
    const char *cursor = NULL;
    const char *mark = strchr(path, '?') ? "&" : "?";
    do {
        const char *url =
            cursor ? arena_fmt(api->arena, "%s%scursor=%s", path, mark, cursor) : path;
        struct reply r;
        int rc = api_call(api, "GET", url, NULL, &r);
        if (rc) {
            return rc;
        }
        const struct json *items = r.json ? json_get(r.json, "items") : NULL;
        int count = items && json_kind(items) == JSON_ARRAY ? json_len(items) : 0;
        for (int i = 0; i < count; i++) {
            if (!fn(ctx, json_at(items, i))) {
                return EXIT_DONE;
            }
        }
        cursor = r.json ? json_str(json_get(r.json, "next_cursor")) : NULL;
    } while (cursor);
    return EXIT_DONE;
}

void api_print_json(struct api *api, const struct json *v)
{
    (void)printf("%s\n", json_print(api->arena, v));
    (void)fflush(stdout);
}

const char *api_text(const struct json *o, const char *key, const char *absent)
{
    static char copies[8][512];
    static unsigned next;
    const char *s = json_str(json_get(o, key));
    if (!s) {
        return absent;
    }
    char *copy = copies[next % 8];
    (void)snprintf(copy, sizeof(copies[0]), "%s", s);
    if (text_plain(copy) == 0) {
        return s;
    }
    next++;
    return copy;
}

double api_number(const struct json *o, const char *key)
{
    const struct json *v = json_get(o, key);
    return v && json_kind(v) == JSON_NUMBER ? json_num(v) : (double)NAN;
}

int64_t api_integer(const struct json *o, const char *key, int64_t absent)
{
    const struct json *v = json_get(o, key);
    return json_is_int(v, INT64_MIN, INT64_MAX) ? json_int(v) : absent;
}
