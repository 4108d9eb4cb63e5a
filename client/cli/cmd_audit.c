/*
 * photon audit: who changed what on the server, newest first.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "client/cli/api.h"
#include "client/cli/cmd.h"

struct listing {
    struct api *api;
    int64_t left; // rows still to print; negative: all
};

static bool print_row(void *ctx, const struct json *r)
{
    struct listing *l = ctx;
    if (l->api->json) {
        api_print_json(l->api, r);
    } else {
        double left_out = api_number(r, "left_out");
        (void)printf("%s  %3.0f  %-6s %-20s %-15s  %-20s %s", api_text(r, "at", "?"),
                     api_number(r, "status"), api_text(r, "role", "?"), api_text(r, "name", ""),
                     api_text(r, "address", ""), api_text(r, "action", "?"),
                     api_text(r, "object", ""));
        if (left_out > 0.0) {
            (void)printf("  (and %.0f more refused before it)", left_out);
        }
        (void)printf("\n");
    }
    l->left -= l->left > 0;
    return l->left != 0;
}

static int audit(int argc, char **argv)
{
    struct api_options o = {0};
    int64_t count = 50;
    const char *action = NULL;
    const char *token = NULL;
    bool all = false;
    const struct option_row rows[] = {
        {"count", 'n', OPTION_INT, "N", NULL, &count, 1, 1e9, "rows to show (default 50)"},
        {"all", 0, OPTION_FLAG, NULL, NULL, &all, 0, 0, "every row"},
        {"action", 0, OPTION_TEXT, "ACTION", NULL, &action, 0, 0, "only these: run_pause, login"},
        {"token", 0, OPTION_TEXT, "ID", NULL, &token, 0, 0, "only what this token did"},
        API_ROWS(&o),
        {0}};
    struct command_line c = {
        .program = "photon audit",
        .about = "Who changed what, from where, and the answer's status; newest first. Refusals\n"
                 "come in a trickle, with the number of those left out.",
        .examples = "  photon audit\n  photon audit --action token_create --all --json",
        .rows = rows};
    struct api api;
    int rc = EXIT_DONE;
    if (api_begin(&api, &c, &o, argc, argv, NULL, &rc)) {
        struct listing l = {.api = &api, .left = all ? -1 : count};
        int64_t page = all || count > 1000 ? 1000 : count;
        const char *path = arena_fmt(api.arena, "/api/v1/audit?limit=%" PRId64 "%s%s%s%s", page,
                                     action ? "&action=" : "", action ? action : "",
                                     token ? "&token=" : "", token ? token : "");
        rc = api_list(&api, path, print_row, &l);
        api_close(&api);
    }
    return rc;
}

const struct cmd cmds_audit[] = {{"audit", NULL, "who changed what, newest first", audit}, {0}};
