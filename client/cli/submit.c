#include "client/cli/submit.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/api.h"
#include "client/progress.h"
#include "client/spec_edit.h"
#include "common/json.h"
#include "common/limits.h"

static enum status read_spec(struct arena *a, const char *file, const char **out, struct err *e)
{
    bool from_stdin = strcmp(file, "-") == 0;
    int fd = from_stdin ? STDIN_FILENO : open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, ST_NOT_FOUND, "cannot open %s: %s", file, strerror(errno));
    }
    char *text = arena_alloc(a, LIMIT_CONTROL_BODY + 1);
    size_t len = 0;
    ssize_t n = 0;
    while (len < LIMIT_CONTROL_BODY && (n = read(fd, text + len, LIMIT_CONTROL_BODY - len)) > 0) {
        len += (size_t)n;
    }
    if (!from_stdin) {
        (void)close(fd);
    }
    if (n < 0) {
        return err_set(e, ST_IO, "cannot read %s: %s", file, strerror(errno));
    }
    *out = text;
    return ST_OK;
}

static void print_plan(const struct json *plan)
{
    char a[16];
    char b[16];
    char c[16];
    char d[16];
    format_count(a, api_number(plan, "params"));
    format_count(b, api_number(plan, "tokens"));
    format_count(c, api_number(plan, "tokens_per_round"));
    (void)printf("parameters           %s\ntokens               %s (%s a round)\n", a, b, c);
    format_bytes(a, api_integer(plan, "checkpoint_bytes", 0));
    format_bytes(b, api_integer(plan, "upload_bytes_per_round", 0));
    format_bytes(c, api_integer(plan, "download_bytes_per_round", 0));
    format_bytes(d, api_integer(plan, "silo_memory_bytes", 0));
    (void)printf("checkpoint           %s\nup, a round          %s\ndown, a round        %s\n"
                 "memory, a silo       %s\n",
                 a, b, c, d);
    const struct json *warnings = json_get(plan, "warnings");
    int count = warnings && json_kind(warnings) == JSON_ARRAY ? json_len(warnings) : 0;
    for (int i = 0; i < count; i++) {
        const char *w = json_str(json_at(warnings, i));
        (void)fprintf(stderr, "warning: %s\n", w ? w : "");
    }
}

static int send_spec(struct api *api, const char *spec, bool dry_run)
{
    struct reply r;
    int rc = api_call(api, "POST", dry_run ? "/api/v1/runs?dry_run=1" : "/api/v1/runs", spec, &r);
    if (rc) {
        return rc;
    }
    if (api->json) {
        api_print_json(api, r.json);
    } else if (dry_run) {
        print_plan(r.json);
    } else {
        const char *name = api_text(r.json, "name", "?");
        (void)printf("%s\n", api_text(r.json, "id", "?"));
        if (!api->quiet) {
            (void)fprintf(stderr, "run %s is %s; follow it: photon run watch %s, or %s/runs/%s\n",
                          name, api_text(r.json, "state", "?"), name, transport_url(api->transport),
                          api_text(r.json, "id", ""));
        }
    }
    return EXIT_DONE;
}

int run_submit(int argc, char **argv)
{
    struct api_options o = {0};
    const char *file = NULL;
    bool dry_run = false;
    struct option_list sets = {0};
    const struct option_row rows[] = {
        {"file", 'f', OPTION_TEXT, "FILE", NULL, &file, 0, 0, "the spec, JSON; - is stdin"},
        {"set", 0, OPTION_LIST, "KEY=VALUE", NULL, &sets, 0, 0, "change one key: outer.lr=0.7"},
        {"dry-run", 0, OPTION_FLAG, NULL, NULL, &dry_run, 0, 0, "only say what it would cost"},
        API_ROWS(&o),
        {0}};
    struct command_line c = {
        .program = "photon run submit",
        .args = "-f FILE",
        .about = "Start a run. With --dry-run only parameters, memory, bytes and tokens are told.",
        .examples = "  photon run submit -f spec.json --dry-run\n"
                    "  photon run submit -f spec.json --set federation.rounds=50",
        .rows = rows};
    enum options_end end = options_parse(&c, argc, argv, NULL, NULL);
    if (end) {
        return options_exit(end);
    }
    if (!file) {
        (void)fprintf(stderr, "photon: no spec is given; try -f FILE\n");
        return EXIT_USAGE;
    }
    struct api api;
    int rc = api_open(&api, &o);
    if (rc) {
        return rc;
    }
    const char *text = NULL;
    const char *spec = NULL;
    struct err e = {0};
    if (read_spec(api.arena, file, &text, &e) ||
        spec_edit(api.arena, text, sets.items, sets.count, &spec, &e)) {
        (void)fprintf(stderr, "photon: %s\n", e.msg);
        rc = EXIT_CONFIG;
    }
    rc = rc ? rc : send_spec(&api, spec, dry_run);
    api_close(&api);
    return rc;
}
