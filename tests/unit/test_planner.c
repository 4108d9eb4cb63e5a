#include "common/planner.h"

#include <math.h>

#include "tests/support/check.h"

static struct run_spec preset(int32_t d, int32_t heads, int32_t layers)
{
    return (struct run_spec){.model = {.d_model = d,
                                       .n_heads = heads,
                                       .n_layers = layers,
                                       .vocab_size = 50368,
                                       .seq_len = 2048,
                                       .bias = true}};
}

static void a_transfer_weighs_what_its_rung_says(void)
{
    // MB of one transfer, rank-1 tensors counted; topk keeps 64 of 4096.
    static const struct {
        int32_t d, heads, layers;
        double mb[CODEC_COUNT];
    } rows[] = {
        {768, 12, 12, {501, 251, 126, 63.7, 32.4, 2.47}},
        {2048, 16, 24, {5264, 2632, 1326, 669, 340, 25.3}},
        {4096, 32, 32, {26635, 13318, 6711, 3382, 1718, 126.5}},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct run_spec s = preset(rows[i].d, rows[i].heads, rows[i].layers);
        for (int c = 0; c < CODEC_COUNT; c++) {
            double mb = plan_update_bytes(&s, (enum codec)c, 64) / 1e6;
            CHECK_NEAR(mb / rows[i].mb[c], 1.0, 0.004);
        }
    }
}

static void tensors_that_do_not_travel_cost_nothing(void)
{
    struct run_spec s = preset(768, 12, 12);
    double all = plan_update_bytes(&s, CODEC_F32, 0);
    CHECK_NEAR(plan_checkpoint_bytes(&s), all, 0.0);
    s.freeze = (struct patterns){1, {"wte.*"}};
    CHECK_NEAR(all - plan_update_bytes(&s, CODEC_F32, 0), 50368.0 * 768.0 * 4.0, 0.0);
    s.inner_state = INNER_STATE_AVERAGE;
    CHECK_NEAR(plan_checkpoint_bytes(&s), 3.0 * all, 0.0);
}

/* By hand: 4 silos, 10 MB up, 30 MB down, 20 MB/s, 50 ms, 100 s of compute. */
static const struct plan_round ROUND = {.silos = 4,
                                        .up_bytes = 1e7,
                                        .down_bytes = 3e7,
                                        .link = 2e7,
                                        .latency_s = 0.05,
                                        .compute_s = 100.0,
                                        .fold_s = 1.0};

static void every_topology_costs_what_its_formula_says(void)
{
    struct plan_cost c = plan_cost(PLAN_SERVER, &ROUND, 10);
    CHECK_NEAR(c.comm_s, 4 * 4e7 / 2e7 + 0.1, 1e-12); // 8.1 s
    CHECK_NEAR(c.total_s, 10 * (100 + 1 + 8.1), 1e-12);
    CHECK_NEAR(c.round_s, 109.1, 1e-12);
    CHECK_NEAR(c.bytes, 10 * 4 * 4e7, 1e-12);
    CHECK_NEAR(c.utilisation, 100.0 / 109.1, 1e-12);
    c = plan_cost(PLAN_ALL_REDUCE, &ROUND, 1);
    CHECK_NEAR(c.comm_s, 3 * 3e7 / 2e7 + 0.05, 1e-12);
    CHECK_NEAR(c.bytes, 4 * 3 * 3e7, 1e-12);
    c = plan_cost(PLAN_RING, &ROUND, 1);
    CHECK_NEAR(c.comm_s, 2 * 3e7 * 3 / (4 * 2e7) + 6 * 0.05, 1e-12);
    CHECK_NEAR(c.bytes, 6 * 3e7, 1e-12);
}

static void one_silo_alone_needs_a_server_only(void)
{
    struct plan_round r = ROUND;
    r.silos = 1;
    CHECK(plan_cost(PLAN_RING, &r, 5).comm_s == 0.0);
    CHECK(plan_cost(PLAN_ALL_REDUCE, &r, 5).comm_s == 0.0);
    CHECK_NEAR(plan_cost(PLAN_SERVER, &r, 5).comm_s, 2.1, 1e-12);
}

static void the_slowest_silos_own_link_is_a_floor(void)
{
    struct plan_round r = ROUND;
    r.silo_link = 1e6;
    CHECK_NEAR(plan_cost(PLAN_SERVER, &r, 1).comm_s, 40.1, 1e-12);
    CHECK_NEAR(plan_cost(PLAN_RING, &r, 1).comm_s, 45.3, 1e-12);
    r.silo_link = 1e9;
    CHECK_NEAR(plan_cost(PLAN_SERVER, &r, 1).comm_s, 8.1, 1e-12);
}

static void what_is_hidden_costs_nothing_until_compute_is_shorter(void)
{
    struct plan_round r = ROUND;
    r.overlap = 1.0;
    CHECK_NEAR(plan_cost(PLAN_SERVER, &r, 10).total_s, 10 * 101.0, 1e-12);
    r.overlap = 0.5;
    CHECK_NEAR(plan_cost(PLAN_SERVER, &r, 10).total_s, 10 * (101.0 + 4.05), 1e-12);
    r.ahead_s = 3.0; // of the 5.05 s that a round waits
    CHECK_NEAR(plan_cost(PLAN_SERVER, &r, 10).total_s, 10 * (101.0 + 4.05 - 3.0), 1e-12);
    r.ahead_s = 100.0;
    CHECK_NEAR(plan_cost(PLAN_SERVER, &r, 10).total_s, 10 * 100.0, 1e-12);
    r.ahead_s = 0.0;
    r.overlap = 1.0;
    r.compute_s = 2.0; // 6.1 s stick out
    CHECK_NEAR(plan_cost(PLAN_SERVER, &r, 10).total_s, 10 * (2.0 + 1.0 + 6.1), 1e-12);
}

static void compute_is_six_flops_per_parameter_and_token(void)
{
    CHECK_NEAR(plan_compute_s(1000000000, 1000000, 0.4 * 1e15 * 2), 7.5, 1e-12);
}

/* Photon's 7B: 147.9 and 95.6 hours in all, of which 97 and .1 h communicating at 10 Gb/s, data-
 * parallel and federated: above about 22 Gb/s data-parallel is faster. */
static void photons_7b_breaks_even_at_22_gbit(void)
{
    CHECK_NEAR(plan_break_even(10.0, 147.9 - 97.0, 97.0, 95.6 - 0.1, 0.1), 21.7, 0.002);
    CHECK(plan_break_even(10.0, 50.0, 97.0, 50.0, 0.1) == (double)INFINITY);
    CHECK(plan_break_even(10.0, 50.0, 0.1, 60.0, 97.0) == 0.0);
}

static void a_median_is_the_middle(void)
{
    double odd[] = {3.0, 1.0, 2.0};
    double even[] = {4.0, 1.0, 2.0, 3.0};
    CHECK(plan_median(odd, 3) == 2.0);
    CHECK(plan_median(even, 4) == 2.5);
    CHECK(isnan(plan_median(NULL, 0)));
}

int main(void)
{
    RUN(a_transfer_weighs_what_its_rung_says);
    RUN(tensors_that_do_not_travel_cost_nothing);
    RUN(every_topology_costs_what_its_formula_says);
    RUN(one_silo_alone_needs_a_server_only);
    RUN(the_slowest_silos_own_link_is_a_floor);
    RUN(what_is_hidden_costs_nothing_until_compute_is_shorter);
    RUN(compute_is_six_flops_per_parameter_and_token);
    RUN(photons_7b_breaks_even_at_22_gbit);
    RUN(a_median_is_the_middle);
    return check_end();
}
