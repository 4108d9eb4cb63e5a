#include "common/outer.h"

#include <math.h>
#include <string.h>

#include "common/rng.h"
#include "tests/support/check.h"

enum { N = 4, ROUNDS = 3 };

static const double X0[N] = {0.5, -1.25, 0.001, 3.0};
static const double DELTAS[ROUNDS][N] = {
    {0.01, -0.02, 0.0, 1e-7}, {-0.03, -0.015, 0.25, 1e-7}, {0.002, 0.04, -0.5, -3e-7}};

/* Printed by golden_outer.py beside this file: x, then the arrays, after each round. */
// clang-format off
static const struct golden {
    enum outer_optimizer name;
    double want[ROUNDS][1 + OUTER_ARRAYS_MAX][N];
} GOLDEN[] = {
    {OUTER_FEDAVG,
     {{{0.492, -1.234, 0.001, 2.99999992}},
      {{0.516, -1.222, -0.199, 2.99999984}},
      {{0.5144, -1.254, 0.201, 3.00000008}}}},
    {OUTER_FEDNESTEROV,
     {{{0.4867, -1.2234, 0.001, 2.999999867},
          {0.01, -0.02, 0.0, 1e-07}},
      {{0.52093, -1.19211, -0.33149999999999996, 2.9999996773},
          {-0.020999999999999998, -0.033, 0.25, 1.8999999999999998e-07}},
      {{0.530177, -1.226599, 0.19174999999999998, 2.99999996857},
          {-0.0169, 0.0103, -0.275, -1.2899999999999998e-07}}}},
    {OUTER_FEDMOM,
     {{{0.4867, -1.2234, 0.001, 2.999999867},
          {0.493, -1.236, 0.001, 2.99999993}},
      {{0.52093, -1.19211, -0.33149999999999996, 2.9999996773},
          {0.5077, -1.2129, -0.174, 2.999999797}},
      {{0.530177, -1.226599, 0.19174999999999998, 2.99999996857},
          {0.51953, -1.22011, 0.018499999999999996, 2.9999998873}}}},
    {OUTER_FEDADAM,
     {{{0.4909090909090909, -1.2404761904761905, 0.001, 2.99999900009999},
          {0.0009999999999999998, -0.0019999999999999996, 0.0, 9.999999999999997e-09},
          {1.000000000000001e-06, 4.000000000000004e-06, 0.0, 1.0000000000000008e-16}},
      {{0.49563131151157347, -1.231170962330109, -0.006382938219945494, 2.99999800019998},
          {-0.0020999999999999994, -0.003299999999999999, 0.024999999999999994, 1.8999999999999995e-08},
          {9.990000000000008e-06, 6.210000000000006e-06, 0.0006250000000000006, 1.9900000000000015e-16}},
      {{0.49886502299404356, -1.2325136270474668, -0.0032610274181949332, 2.9999984761232747},
          {-0.0016899999999999994, 0.0010299999999999997, -0.027499999999999993, -1.2899999999999996e-08},
          {9.930100000000008e-06, 2.214790000000002e-05, 0.0031187500000000026, 1.0970100000000008e-15}}}},
    {OUTER_FEDYOGI,
     {{{0.4909090909090909, -1.2404761904761905, 0.001, 2.99999900009999},
          {0.0009999999999999998, -0.0019999999999999996, 0.0, 9.999999999999997e-09},
          {1.000000000000001e-06, 4.000000000000004e-06, 0.0, 1.0000000000000008e-16}},
      {{0.49562905066571294, -1.2311991938382854, -0.006382938219945494, 2.999998000200231},
          {-0.0020999999999999994, -0.003299999999999999, 0.024999999999999994, 1.8999999999999995e-08},
          {1.0000000000000008e-05, 6.250000000000005e-06, 0.0006250000000000006, 2.0000000000000017e-16}},
      {{0.4988581562069885, -1.2325388831374624, -0.003264141291730238, 2.9999984761234013},
          {-0.0016899999999999994, 0.0010299999999999997, -0.027499999999999993, -1.2899999999999996e-08},
          {9.960000000000008e-06, 2.225000000000002e-05, 0.0031250000000000028, 1.100000000000001e-15}}}},
};
// clang-format on

static struct outer_spec settings(enum outer_optimizer o)
{
    return (struct outer_spec){.name = o,
                               .lr = o == OUTER_FEDAVG      ? 0.8
                                     : outer_arrays(o) == 1 ? 0.7
                                                            : 0.01,
                               .momentum = outer_arrays(o) == 1 ? 0.9 : 0.0,
                               .beta1 = 0.9,
                               .beta2 = 0.99,
                               .eps = 0.001};
}

static void close_to(double got, double want)
{
    CHECK_NEAR(got, want, 1e-15);
    if (want != 0.0) { // the small ones too
        CHECK_NEAR(got / want, 1.0, 1e-12);
    }
}

static void every_rule_gives_its_golden_values(void)
{
    for (size_t g = 0; g < sizeof(GOLDEN) / sizeof(GOLDEN[0]); g++) {
        struct outer_spec o = settings(GOLDEN[g].name);
        double x[N];
        double m[N];
        double v[N];
        double *arrays[OUTER_ARRAYS_MAX] = {m, v};
        memcpy(x, X0, sizeof(x));
        outer_begin(o.name, x, arrays, N);
        for (int t = 0; t < ROUNDS; t++) {
            outer_step(&o, t + 1, x, arrays, DELTAS[t], N);
            for (int i = 0; i < N; i++) {
                close_to(x[i], GOLDEN[g].want[t][0][i]);
                for (int a = 0; a < outer_arrays(o.name); a++) {
                    close_to(arrays[a][i], GOLDEN[g].want[t][1 + a][i]);
                }
            }
        }
    }
}

static void every_rule_descends(void)
{
    for (int o = 0; o < OUTER_COUNT; o++) {
        struct outer_spec s = settings((enum outer_optimizer)o);
        double x[2] = {1.0, 1.0};
        double m[2];
        double v[2];
        double *arrays[OUTER_ARRAYS_MAX] = {m, v};
        outer_begin(s.name, x, arrays, 2);
        for (int t = 1; t <= 5; t++) {
            double before[2] = {x[0], x[1]};
            const double delta[2] = {0.1, -0.1};
            outer_step(&s, t, x, arrays, delta, 2);
            CHECK(x[0] < before[0] && x[1] > before[1]);
        }
    }
}

static void fedmom_and_fednesterov_walk_the_same_way(void)
{
    enum { MANY = 64, STEPS = 20 };
    struct outer_spec nesterov = settings(OUTER_FEDNESTEROV);
    struct outer_spec mom = settings(OUTER_FEDMOM);
    double x[2][MANY];
    double state[2][MANY];
    double *arrays[2][OUTER_ARRAYS_MAX] = {{state[0], NULL}, {state[1], NULL}};
    for (int i = 0; i < MANY; i++) {
        x[0][i] = x[1][i] = rng_normal(1, (uint64_t)i);
    }
    outer_begin(OUTER_FEDNESTEROV, x[0], arrays[0], MANY);
    outer_begin(OUTER_FEDMOM, x[1], arrays[1], MANY);
    for (int t = 1; t <= STEPS; t++) {
        double delta[MANY];
        for (int i = 0; i < MANY; i++) {
            delta[i] = 0.01 * rng_normal(2, (uint64_t)(t * MANY + i));
        }
        outer_step(&nesterov, t, x[0], arrays[0], delta, MANY);
        outer_step(&mom, t, x[1], arrays[1], delta, MANY);
    }
    for (int i = 0; i < MANY; i++) {
        CHECK_NEAR(x[0][i], x[1][i], 1e-12);
    }
}

/* With one sign and size of delta, the correction leaves exactly that, from the first round. */
static void the_moments_are_unbiased_from_the_first_round(void)
{
    struct outer_spec s = settings(OUTER_FEDADAM);
    double x = 0.0;
    double m;
    double v;
    double *arrays[OUTER_ARRAYS_MAX] = {&m, &v};
    outer_begin(s.name, &x, arrays, 1);
    for (int t = 1; t <= 10; t++) {
        double delta = 0.004;
        outer_step(&s, t, &x, arrays, &delta, 1);
        CHECK_NEAR(x, -0.01 * t * 0.004 / (0.004 + 0.001), 1e-12);
    }
}

static void no_norm_exceeds_its_multiple_of_the_median(void)
{
    double f[5];
    outer_clip(2.0, (const double[]){1.0, 3.0, 1.5, 100.0, 1.2}, 5, f); // median 1.5
    CHECK(f[0] == 1.0 && f[1] == 1.0 && f[2] == 1.0 && f[4] == 1.0);
    CHECK_NEAR(f[3], 0.03, 1e-15);
    outer_clip(1.5, (const double[]){1.0, 3.0}, 2, f); // median 2: exactly at the bound
    CHECK(f[0] == 1.0 && f[1] == 1.0);
    outer_clip(1.0, (const double[]){1.0, 3.0}, 2, f);
    CHECK(f[0] == 1.0);
    CHECK_NEAR(f[1], 2.0 / 3.0, 1e-15);
}

static void nothing_is_clipped_without_a_bound_or_a_median(void)
{
    double f[3];
    outer_clip(0.0, (const double[]){1.0, 1.0, 1e9}, 3, f);
    CHECK(f[0] == 1.0 && f[1] == 1.0 && f[2] == 1.0);
    outer_clip(3.0, (const double[]){0.0, 0.0, 5.0}, 3, f);
    CHECK(f[0] == 1.0 && f[1] == 1.0 && f[2] == 1.0);
    outer_clip(1.0, (const double[]){7.0}, 1, f);
    CHECK(f[0] == 1.0);
}

int main(void)
{
    RUN(every_rule_gives_its_golden_values);
    RUN(every_rule_descends);
    RUN(fedmom_and_fednesterov_walk_the_same_way);
    RUN(the_moments_are_unbiased_from_the_first_round);
    RUN(no_norm_exceeds_its_multiple_of_the_median);
    RUN(nothing_is_clipped_without_a_bound_or_a_median);
    return check_end();
}
