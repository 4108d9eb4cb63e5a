/*
 * photon token: access for people and their tools.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client/cli/cmd.h"
#include "client/cli/tokens.h"
#include "common/buf.h"

enum { BODY_MAX = 4096 };

int token_make(struct api *api, const char *role, const char *name, const char *ttl,
               struct reply *out)
{
    int64_t ttl_s = options_duration_s(ttl);
    if (ttl_s < 0) {
        (void)fprintf(stderr, "photon: --ttl '%s' is no duration; try 12h or 7d\n", ttl);
        return EXIT_USAGE;
    }
    struct buf b;
    buf_init(&b, BODY_MAX);
    jw_object(&b, NULL);
    jw_str(&b, "role", role);
    jw_str(&b, "name", name);
    jw_int(&b, "ttl_s", ttl_s);
    jw_end_object(&b);
    int rc = api_call(api, "POST", "/api/v1/tokens", b.data, out);
    buf_release(&b);
    return rc;
}

static int create(int argc, char **argv)
{
    struct api_options o = {0};
    const char *ttl = "30d";
    const char *role = "viewer";
    const struct option_row rows[] = {
        {"role", 'r', OPTION_TEXT, "ROLE", NULL, &role, 0, 0, "viewer (default) or admin"},
        {"ttl", 0, OPTION_TEXT, "TIME", NULL, &ttl, 0, 0, "how long it is good: 12h, 7d, 30d"},
        API_ROWS(&o),
        {0}};
    struct command_line c = {.program = "photon token create",
                             .args = "NAME",
                             .about = "A token for a person or a tool. The secret is shown once.",
                             .examples = "  photon token create grafana\n"
                                         "  photon token create alice --role admin --ttl 7d",
                             .rows = rows,
                             .args_min = 1,
                             .args_max = 1};
    const char *name = NULL;
    enum options_end end = options_parse(&c, argc, argv, &name, NULL);
    if (end) {
        return options_exit(end);
    }
    if (strcmp(role, "viewer") != 0 && strcmp(role, "admin") != 0) {
        (void)fprintf(stderr,
                      "photon: --role is viewer or admin; silos: photon silo token create\n");
        return EXIT_USAGE;
    }
    struct api api;
    int rc = api_open(&api, &o);
    if (rc) {
        return rc;
    }
    struct reply r;
    rc = token_make(&api, role, name, ttl, &r);
    if (!rc && api.json) {
        api_print_json(&api, r.json);
    } else if (!rc) {
        (void)printf("%s\n", api_text(r.json, "secret", "?"));
    }
    api_close(&api);
    return rc;
}

struct listing {
    struct api *api;
    bool silos;
};

static bool print_token(void *ctx, const struct json *t)
{
    const struct listing *l = ctx;
    const char *role = api_text(t, "role", "?");
    bool of_silo = strcmp(role, "join") == 0 || strcmp(role, "silo") == 0;
    if (of_silo != l->silos) {
        return true;
    }
    if (l->api->json) {
        api_print_json(l->api, t);
        return true;
    }
    const char *revoked = api_text(t, "revoked_at", NULL);
    const char *used = api_text(t, "last_used_at", "never");
    (void)printf("%-28s  %-7s %-20s expires %s  last used %s%s%s\n", api_text(t, "id", "?"), role,
                 api_text(t, "name", "?"), api_text(t, "expires_at", "never"), used,
                 revoked ? "  revoked " : "", revoked ? revoked : "");
    return true;
}

int tokens_list(int argc, char **argv, const char *program, bool silos)
{
    struct api_options o = {0};
    const struct option_row rows[] = {API_ROWS(&o), {0}};
    struct command_line c = {
        .program = program, .about = "Tokens by their id; no secret is kept.", .rows = rows};
    struct api api;
    int rc = EXIT_DONE;
    if (api_begin(&api, &c, &o, argc, argv, NULL, &rc)) {
        struct listing l = {.api = &api, .silos = silos};
        rc = api_list(&api, "/api/v1/tokens", print_token, &l);
        api_close(&api);
    }
    return rc;
}

int tokens_revoke(int argc, char **argv, const char *program)
{
    struct api_options o = {0};
    const struct option_row rows[] = {API_ROWS(&o), {0}};
    struct command_line c = {.program = program,
                             .args = "ID",
                             .about = "End a token: what it holds open ends within a second.",
                             .rows = rows,
                             .args_min = 1,
                             .args_max = 1};
    const char *id = NULL;
    struct api api;
    int rc = EXIT_DONE;
    if (api_begin(&api, &c, &o, argc, argv, &id, &rc)) {
        struct reply r;
        rc = api_call(&api, "DELETE", arena_fmt(api.arena, "/api/v1/tokens/%s", id), NULL, &r);
        if (!rc && !api.quiet) {
            (void)fprintf(stderr, "%s is revoked\n", id);
        }
        api_close(&api);
    }
    return rc;
}

static int list(int argc, char **argv)
{
    return tokens_list(argc, argv, "photon token list", false);
}

static int revoke(int argc, char **argv)
{
    return tokens_revoke(argc, argv, "photon token revoke");
}

const struct cmd cmds_token[] = {{"token", "create", "a token for a person or a tool", create},
                                 {"token", "list", "who has access", list},
                                 {"token", "revoke", "take access away", revoke},
                                 {0}};
