#include "client/rotate.h"

#include <stdio.h>
#include <string.h>

#include "client/options.h"
#include "client/state.h"
#include "client/transport.h"
#include "common/buf.h"

enum { GIVE_UP_S = 60 };

/* An agent at work reads the folder again before each claim, and when its token is refused: it goes
 * on with the new one. */
static enum status trade(struct arena *a, struct silo_identity *id, int64_t grace_s, int64_t ttl_s,
                         struct reply *r, struct err *e)
{
    struct transport_config c = {
        .url = id->url, .token = id->token, .ca_file = id->ca_file, .pin = id->pin};
    struct transport *t = NULL;
    struct buf body;
    TRY(transport_open(&t, &c, e));
    buf_init(&body, 256);
    jw_object(&body, NULL);
    jw_int(&body, "grace_s", grace_s);
    if (ttl_s > 0) {
        jw_int(&body, "ttl_s", ttl_s);
    }
    jw_end_object(&body);
    enum status st =
        transport_call_retry(t, a, "POST", "/silo/v1/token", body.data, (double)GIVE_UP_S, r, e);
    buf_release(&body);
    transport_close(t);
    const char *token = NULL;
    if (!st && (!r->json || json_kind(r->json) != JSON_OBJECT)) {
        st = err_set(e, ST_INVALID, "the answer is not JSON; is this a Photon server?");
    }
    st = st ? st : json_want_str(r->json, "token", &token, e);
    if (!st) {
        (void)snprintf(id->token, sizeof(id->token), "%s", token);
    }
    return st;
}

static int rotate(const char *state_dir, int64_t grace_s, int64_t ttl_s)
{
    struct silo_identity id;
    struct err e = {0};
    if (identity_read(state_dir, &id, &e)) {
        (void)fprintf(stderr, "photon-client: %s%s\n", e.msg,
                      e.st == ST_NOT_FOUND ? "; is --state right? try photon-client join" : "");
        return EXIT_CONFIG;
    }
    struct arena *a = arena_new(16 * 1024 * 1024);
    struct reply r = {.code = ""};
    int rc = EXIT_DONE;
    enum status st = trade(a, &id, grace_s, ttl_s, &r, &e);
    if (st) {
        (void)fprintf(stderr, "photon-client: %s\n", e.msg);
        rc = strcmp(r.code, "PROTOCOL_MISMATCH") == 0 ? EXIT_VERSION
             : st == ST_NET || st == ST_DENIED        ? EXIT_UNREACHABLE
             : st == ST_RETRY                         ? EXIT_TEMPORARY
                                                      : EXIT_FAILED;
    } else if (identity_write(state_dir, &id, &e)) {
        (void)fprintf(stderr, "photon-client: %s; the old token works on: try again\n", e.msg);
        rc = EXIT_CONFIG;
    } else {
        const char *until = json_str(json_get(r.json, "old_expires_at"));
        (void)fprintf(stderr, "%s has a new token; the old one works until %s\n", id.name,
                      until ? until : "its end");
    }
    arena_free(a);
    return rc;
}

int rotate_main(int argc, char **argv)
{
    const char *state_dir = NULL;
    const char *grace = "1d";
    const char *ttl = NULL;
    const struct option_row rows[] = {
        {"state", 0, OPTION_TEXT, "DIR", "PHOTON_STATE", &state_dir, 0, 0, "the silo's folder"},
        {"grace", 0, OPTION_TEXT, "TIME", NULL, &grace, 0, 0,
         "how long the old token still works: 1m to 7d (default 1d)"},
        {"ttl", 0, OPTION_TEXT, "TIME", NULL, &ttl, 0, 0,
         "how long the new one works: up to 400d (default: until it is revoked)"},
        {0}};
    struct command_line c = {
        .program = "photon-client rotate",
        .args = "--state DIR",
        .about = "A new token for this silo. An agent that works here takes it up before its next "
                 "task; the old\none works for a while, and when that ends within a task the new "
                 "one takes its place: nothing\nis interrupted.",
        .examples = "  photon-client rotate --state ~/photon",
        .rows = rows};
    enum options_end end = options_parse(&c, argc, argv, NULL, NULL);
    if (end) {
        return options_exit(end);
    }
    int64_t grace_s = options_duration_s(grace);
    int64_t ttl_s = ttl ? options_duration_s(ttl) : 0;
    if (!state_dir || grace_s < 0 || ttl_s < 0) {
        (void)fprintf(stderr, "photon-client: %s\n",
                      state_dir ? "--grace and --ttl are durations; try 12h or 7d"
                                : "try --state DIR");
        return EXIT_USAGE;
    }
    return rotate(state_dir, grace_s, ttl_s);
}
