/*
 * photon silo: who takes part, and the one line that lets a new silo in.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/cli/api.h"
#include "client/cli/cmd.h"
#include "client/cli/tokens.h"
#include "client/progress.h"

static bool print_silo(void *ctx, const struct json *s)
{
    struct api *api = ctx;
    if (api->json) {
        api_print_json(api, s);
        return true;
    }
    double rate = api_number(s, "tokens_per_s");
    char text[16] = "-";
    if (isfinite(rate)) {
        format_count(text, rate);
    }
    (void)printf("%-28s  %-20s %-11s %9s tok/s  %-26s %s\n", api_text(s, "id", "?"),
                 api_text(s, "name", "?"), api_text(s, "status", api_text(s, "state", "?")), text,
                 api_text(s, "device", "-"), api_text(s, "last_seen_at", "never"));
    return true;
}

static int list(int argc, char **argv)
{
    struct api_options o = {0};
    const struct option_row rows[] = {API_ROWS(&o), {0}};
    struct command_line c = {
        .program = "photon silo list",
        .about = "The silos the server knows: state, speed, device, when last heard of.",
        .examples = "  photon silo list\n  photon silo list --json",
        .rows = rows};
    struct api api;
    int rc = EXIT_DONE;
    if (api_begin(&api, &c, &o, argc, argv, NULL, &rc)) {
        rc = api_list(&api, "/api/v1/silos", print_silo, &api);
        api_close(&api);
    }
    return rc;
}

static int on_silo(int argc, char **argv, const char *action)
{
    struct api_options o = {0};
    const struct option_row rows[] = {API_ROWS(&o), {0}};
    char program[48];
    (void)snprintf(program, sizeof(program), "photon silo %s", argv[0]);
    struct command_line c = {.program = program,
                             .args = "SILO",
                             .about = action ? "Change a silo's state; SILO is its name or id."
                                             : "One silo in full; SILO is its name or id.",
                             .examples = "  photon silo show hospital-a\n"
                                         "  photon silo pause hospital-a",
                             .rows = rows,
                             .args_min = 1,
                             .args_max = 1};
    const char *word = NULL;
    struct api api;
    int rc = EXIT_DONE;
    if (!api_begin(&api, &c, &o, argc, argv, &word, &rc)) {
        return rc;
    }
    const char *id = NULL;
    struct reply r;
    rc = api_find(&api, "silo", word, &id);
    if (!rc && action) {
        rc = api_call(&api, "POST", arena_fmt(api.arena, "/api/v1/silos/%s/actions", id),
                      arena_fmt(api.arena, "{\"action\":\"%s\"}", action), &r);
    } else if (!rc) {
        rc = api_call(&api, "GET", arena_fmt(api.arena, "/api/v1/silos/%s", id), NULL, &r);
    }
    if (!rc) {
        (void)print_silo(&api, r.json);
    }
    api_close(&api);
    return rc;
}

static int show(int argc, char **argv)
{
    return on_silo(argc, argv, NULL);
}

static int act(int argc, char **argv)
{
    return on_silo(argc, argv, argv[0]);
}

/* Where the server says it is found, else where it was found; with the pin that its key needs. */
static void print_join_line(struct api *api, const struct reply *version, const char *name)
{
    const char *pin = api_text(version->json, "pin", NULL);
    (void)printf("photon-client join %s --name %s --state ./photon-silo%s%s\n",
                 api_text(version->json, "public_url", transport_url(api->transport)), name,
                 pin ? " --pin " : "", pin ? pin : "");
}

static int token_create(int argc, char **argv)
{
    struct api_options o = {0};
    const char *ttl = "7d";
    const struct option_row rows[] = {
        {"ttl", 0, OPTION_TEXT, "TIME", NULL, &ttl, 0, 0, "how long it may be used: 12h, 7d"},
        API_ROWS(&o),
        {0}};
    struct command_line c = {
        .program = "photon silo token create",
        .args = "NAME",
        .about = "A one-time token with which one new silo joins under this name. Prints the line "
                 "to send\nto the silo's operator, and the token apart from it, to be sent another "
                 "way.",
        .examples = "  photon silo token create hospital-a --ttl 7d",
        .rows = rows,
        .args_min = 1,
        .args_max = 1};
    const char *name = NULL;
    struct api api;
    int rc = EXIT_DONE;
    if (!api_begin(&api, &c, &o, argc, argv, &name, &rc)) {
        return rc;
    }
    struct reply about;
    struct reply r;
    rc = api_call(&api, "GET", "/version", NULL, &about);
    rc = rc ? rc : token_make(&api, "join", name, ttl, &r);
    if (!rc && api.json) {
        api_print_json(&api, r.json);
    } else if (!rc) {
        (void)fprintf(stderr, "Send this line to the silo; it asks for the token below:\n");
        print_join_line(&api, &about, name);
        (void)fprintf(stderr, "The token, shown once, used once, good for %s:\n", ttl);
        (void)printf("%s\n", api_text(r.json, "secret", "?"));
    }
    api_close(&api);
    return rc;
}

static int token_list(int argc, char **argv)
{
    return tokens_list(argc, argv, "photon silo token list", true);
}

static int token_revoke(int argc, char **argv)
{
    return tokens_revoke(argc, argv, "photon silo token revoke");
}

const struct cmd cmds_silo[] = {
    {"silo", "list", "the silos and what they do now", list},
    {"silo", "show", "one silo", show},
    {"silo", "pause", "give a silo no new tasks", act},
    {"silo", "resume", "let a paused silo work again", act},
    {"silo", "revoke", "end a silo's access for good", act},
    {"silo", "token create", "let a new silo join: prints its join line", token_create},
    {"silo", "token list", "join tokens, and silos' own", token_list},
    {"silo", "token revoke", "end one of them", token_revoke},
    {0}};
