/*
 * The small texts of a request: cookies, bearer tokens, event ids, listen addresses, paths. What is
 * accepted must print back to what was read; what is found must lie inside what was given.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/auth.h"
#include "server/http_listen.h"
#include "server/route.h"
#include "server/stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void cookies(const char *text)
{
    char value[SECRET_LEN + 1];
    if (cookie_get(text, "photon", value, sizeof(value))) {
        char pair[SECRET_LEN + 16];
        (void)snprintf(pair, sizeof(pair), "photon=%s", value);
        assert(value[0] && strstr(text, pair) && !strchr(value, ';'));
    }
    const char *secret = bearer_secret(text);
    assert(!secret || (secret > text && secret_valid(secret)));
}

static void event_ids(const char *text)
{
    struct event_cursor at;
    struct event_cursor again;
    struct err e = {0};
    if (event_cursor_parse(&at, text, &e) == ST_OK) {
        char printed[64];
        (void)snprintf(printed, sizeof(printed), "%" PRIu64 "-%" PRId64, at.xid, at.id);
        assert(event_cursor_parse(&again, printed, &e) == ST_OK);
        assert(again.xid == at.xid && again.id == at.id && at.id >= 0);
    }
}

static void addresses(const char *text)
{
    struct listen_address a;
    struct err e = {0};
    if (listen_address_parse(&a, text, &e) == ST_OK) {
        assert(a.port >= 0 && a.port <= 65535 && strlen(a.host) < strlen(text));
    } else {
        assert(e.msg[0] != '\0');
    }
}

static void paths(const char *text)
{
    static struct route_match m;
    route_find(&m, "GET", text, LISTENER_CONTROL);
    if (m.route) {
        assert(route_at(m.index) == m.route && route_matches(&m, m.route->pattern, text));
        for (int i = 0; i < m.param_count; i++) {
            assert(m.params[i][0] && strstr(text, m.params[i]));
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > 1024) {
        return 0;
    }
    char *text = malloc(size);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    switch (data[0] % 4) {
    case 0:
        cookies(text);
        break;
    case 1:
        event_ids(text);
        break;
    case 2:
        addresses(text);
        break;
    default:
        paths(text);
    }
    free(text);
    return 0;
}
