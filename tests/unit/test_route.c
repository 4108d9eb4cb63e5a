#include "server/route.h"

#include <stddef.h>
#include <string.h>

#include "tests/support/check.h"

static struct route_match m;

static void a_parameter_stands_for_one_segment(void)
{
    CHECK(route_matches(&m, "/api/v1/runs/{run}/rounds/{n}", "/api/v1/runs/r_1/rounds/7"));
    CHECK_INT(m.param_count, 2);
    CHECK_STR(m.params[0], "r_1");
    CHECK_STR(m.params[1], "7");
    CHECK(!route_matches(&m, "/api/v1/runs/{run}", "/api/v1/runs/"));
    CHECK(!route_matches(&m, "/api/v1/runs/{run}", "/api/v1/runs/a/b"));
    CHECK(!route_matches(&m, "/api/v1/runs/{run}", "/api/v1/runs"));
    CHECK(!route_matches(&m, "/api/v1/runs/{run}/spec", "/api/v1/runs/a/spe"));
    CHECK(!route_matches(&m, "/api/v1/runs/{run}/spec", "/api/v1/runs/a/specs"));
}

static void a_star_takes_all_the_rest(void)
{
    CHECK(route_matches(&m, "/assets/{*}", "/assets/vendor/uplot-1.6.32/uPlot.esm.js"));
    CHECK_STR(m.params[0], "vendor/uplot-1.6.32/uPlot.esm.js");
    CHECK(!route_matches(&m, "/assets/{*}", "/assets/"));
}

static void a_parameter_that_is_too_long_matches_nothing(void)
{
    char path[ROUTE_PARAM_LEN + 8] = "/x/";
    memset(path + 3, 'a', ROUTE_PARAM_LEN - 1);
    CHECK(route_matches(&m, "/x/{y}", path));
    path[3 + ROUTE_PARAM_LEN - 1] = 'a';
    CHECK(!route_matches(&m, "/x/{y}", path));
}

static void head_finds_get_and_others_are_told_what_is_allowed(void)
{
    route_find(&m, "HEAD", "/api/v1/runs", LISTENER_CONTROL);
    CHECK(m.route != NULL);
    CHECK_STR(m.route->method, "GET");
    CHECK(route_at(m.index) == m.route);
    route_find(&m, "PUT", "/api/v1/runs", LISTENER_CONTROL);
    CHECK(m.route == NULL);
    CHECK_INT(m.index, -1);
    CHECK_STR(m.allow, "GET, HEAD, POST");
    route_find(&m, "GET", "/nowhere", LISTENER_CONTROL);
    CHECK(m.route == NULL);
    CHECK_STR(m.allow, "");
}

static void every_route_is_found_by_its_own_address_and_by_no_other(void)
{
    for (int i = 0; route_at(i); i++) {
        const struct route *r = route_at(i);
        // {x} is a good enough value for itself: a segment that is not empty.
        enum listener l = r->listeners & LISTENER_CONTROL ? LISTENER_CONTROL : LISTENER_BULK;
        route_find(&m, r->method, r->pattern, l);
        CHECK(m.route == r);
        CHECK_INT(m.index, i);
        CHECK(r->roles != 0 && r->listeners != 0 && r->handler != NULL);
        bool writes = strcmp(r->method, "POST") == 0;
        CHECK(writes ? r->body_max > 0 : r->body_max == 0);
    }
}

int main(void)
{
    RUN(a_parameter_stands_for_one_segment);
    RUN(a_star_takes_all_the_rest);
    RUN(a_parameter_that_is_too_long_matches_nothing);
    RUN(head_finds_get_and_others_are_told_what_is_allowed);
    RUN(every_route_is_found_by_its_own_address_and_by_no_other);
    return check_end();
}
