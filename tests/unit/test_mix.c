/*
 * test_mix.c - shares of sources: they add up, say what their names promise, and repeat.
 */
#include "client/mix.h"

#include <math.h>

#include "tests/support/check.h"

enum { SOURCES = 5, SILOS = 400 };

static struct mix parsed(const char *text)
{
    struct mix m;
    struct err e = {0};
    CHECK_STR(mix_parse(&m, text, &e) ? e.msg : "", "");
    return m;
}

static void check_sum(const double *shares)
{
    double sum = 0.0;
    for (int i = 0; i < SOURCES; i++) {
        CHECK(shares[i] == 0.0 || shares[i] >= 1e-3);
        sum += shares[i];
    }
    CHECK_NEAR(sum, 1.0, 1e-12);
}

static void iid_gives_every_silo_all_sources_alike(void)
{
    struct mix m = parsed("iid");
    double shares[SOURCES];
    for (int silo = 0; silo < 3; silo++) {
        mix_shares(&m, 7, silo, SOURCES, shares);
        for (int i = 0; i < SOURCES; i++) {
            CHECK_NEAR(shares[i], 0.2, 1e-12);
        }
    }
}

static void genre_gives_every_silo_one_source(void)
{
    struct mix m = parsed("genre");
    double shares[SOURCES];
    for (int silo = 0; silo < 2 * SOURCES; silo++) {
        mix_shares(&m, 7, silo, SOURCES, shares);
        for (int i = 0; i < SOURCES; i++) {
            CHECK_NEAR(shares[i], i == silo % SOURCES ? 1.0 : 0.0, 0.0);
        }
    }
}

/* E[share] = 1/S and Var[share] = (S - 1) / (S^2 (S alpha + 1)). */
static void dirichlet_has_the_mean_and_the_variance_of_its_law(void)
{
    const double alphas[] = {0.3, 1.0, 5.0};
    const char *const texts[] = {"dirichlet:0.3", "dirichlet:1", "dirichlet:5"};
    for (int k = 0; k < 3; k++) {
        struct mix m = parsed(texts[k]);
        double sum = 0.0;
        double squares = 0.0;
        for (int silo = 0; silo < SILOS; silo++) {
            double shares[SOURCES];
            mix_shares(&m, 11, silo, SOURCES, shares);
            check_sum(shares);
            sum += shares[0];
            squares += shares[0] * shares[0];
        }
        double mean = sum / SILOS;
        double variance = squares / SILOS - mean * mean;
        double wanted = 4.0 / (25.0 * (SOURCES * alphas[k] + 1.0));
        CHECK(fabs(mean - 0.2) < 0.06);
        CHECK(variance > 0.7 * wanted && variance < 1.4 * wanted);
    }
}

static void a_small_alpha_still_gives_a_silo_something(void)
{
    struct mix m = parsed("dirichlet:0.001");
    double shares[SOURCES];
    for (int silo = 0; silo < 100; silo++) {
        mix_shares(&m, 3, silo, SOURCES, shares);
        check_sum(shares);
    }
}

static void shares_are_a_function_of_seed_silo_and_source(void)
{
    struct mix m = parsed("dirichlet:0.5");
    double a[SOURCES];
    double b[SOURCES];
    mix_shares(&m, 7, 3, SOURCES, a);
    mix_shares(&m, 7, 3, SOURCES, b);
    CHECK_MEM(a, b, sizeof(a));
    mix_shares(&m, 8, 3, SOURCES, b);
    CHECK(fabs(a[0] - b[0]) > 1e-6);
    mix_shares(&m, 7, 4, SOURCES, b);
    CHECK(fabs(a[0] - b[0]) > 1e-6);
}

static void what_is_no_mix_is_refused(void)
{
    const char *const bad[] = {"",
                               "iid ",
                               "dirichlet",
                               "dirichlet:",
                               "dirichlet:0",
                               "dirichlet:nan",
                               "dirichlet:0.5x",
                               "dirichlet:1e9"};
    struct mix m;
    for (int i = 0; i < (int)(sizeof(bad) / sizeof(bad[0])); i++) {
        CHECK_INT(mix_parse(&m, bad[i], NULL), ST_INVALID);
    }
}

int main(void)
{
    RUN(iid_gives_every_silo_all_sources_alike);
    RUN(genre_gives_every_silo_one_source);
    RUN(dirichlet_has_the_mean_and_the_variance_of_its_law);
    RUN(a_small_alpha_still_gives_a_silo_something);
    RUN(shares_are_a_function_of_seed_silo_and_source);
    RUN(what_is_no_mix_is_refused);
    return check_end();
}
