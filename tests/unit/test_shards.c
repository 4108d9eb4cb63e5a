/* test_shards.c - every element has one place with one rank. */
#include "common/shards.h"

#include <stdbool.h>
#include <string.h>

#include "common/memory_plan.h"
#include "tests/support/check.h"

static void every_element_has_one_place(void)
{
    enum { U = SHARD_UNIT };
    static const int64_t totals[] = {1, U - 1, U, U + 1, 3 * U + 7, 16 * U, 100 * U + 5, 1000 * U};
    for (size_t i = 0; i < sizeof(totals) / sizeof(totals[0]); i++) {
        for (int32_t ranks = 1; ranks <= 9; ranks++) {
            struct shards s = shards_of(totals[i], ranks);
            int64_t next[9] = {0}; // what each rank has been given so far
            CHECK(s.piece % U == 0);
            for (int64_t at = 0; at < s.total;) {
                struct shard_run run = shards_run(&s, at, s.total);
                CHECK(run.rank >= 0 && run.rank < ranks && run.count > 0);
                CHECK(at % U == 0);
                CHECK_INT(run.at, next[run.rank]); // one behind the other
                struct shard_run inside = shards_run(&s, at + run.count / 2, 1);
                CHECK_INT(inside.rank, run.rank);
                CHECK_INT(inside.at, run.at + run.count / 2);
                CHECK_INT(inside.count, 1);
                next[run.rank] += run.count;
                at += run.count;
            }
            int64_t sum = 0;
            for (int32_t r = 0; r < ranks; r++) {
                CHECK_INT(shards_count(&s, r), next[r]);
                CHECK(next[r] <= next[0]);
                sum += next[r];
            }
            CHECK_INT(sum, totals[i]);
        }
    }
}

/* 7b on eight: 6 bytes a parameter are everybody's, 10 are shared. */
static void a_plan_counts_a_share(void)
{
    struct plan_request r = {.model = {.d_model = 4096,
                                       .n_heads = 32,
                                       .n_layers = 32,
                                       .vocab_size = 50368,
                                       .seq_len = 2048,
                                       .bias = true},
                             .batch = 8,
                             .micro_batch = 1,
                             .a_size = 2,
                             .g_size = 4,
                             .logits_max = 1 << 28};
    struct memory_plan whole;
    struct memory_plan share;
    memory_plan(&whole, &r);
    r.ranks = 8;
    memory_plan(&share, &r);
    CHECK_INT(share.weights, whole.weights);
    CHECK_INT(share.grads, whole.grads);
    CHECK_NEAR((double)share.moments / (double)whole.moments, 1.0 / 8, 1e-3);
    CHECK_NEAR((double)share.rest / (double)whole.rest, 1.0 / 8, 1e-3);
    double state = (double)(share.weights + share.rest + share.grads + share.moments);
    CHECK_NEAR(state / (1 << 30), 45.0, 0.5); // GiB
    char table[640];
    memory_plan_table(&share, table, sizeof(table));
    CHECK(strstr(table, "moments") && strstr(table, "a share of 8") && strstr(table, "total"));
    memory_plan_table(&whole, table, sizeof(table));
    CHECK(!strstr(table, "share of"));
}

int main(void)
{
    RUN(every_element_has_one_place);
    RUN(a_plan_counts_a_share);
    return check_end();
}
