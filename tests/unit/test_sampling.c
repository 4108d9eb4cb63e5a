/* test_sampling.c - the draw of server/sampling.h. */
#include "server/sampling.h"

#include <string.h>

#include "tests/support/check.h"

enum { N = 12 };

static const char *const silos[N] = {"ash", "beech", "cedar", "dogwood", "elm",   "fir",
                                     "gum", "hazel", "iroko", "juniper", "kapok", "larch"};

static void draw(const char **out, uint64_t seed, int32_t round, int n)
{
    memcpy(out, silos, (size_t)n * sizeof(*out));
    sampling_draw(seed, round, out, n);
}

static void every_silo_is_drawn_exactly_once(void)
{
    for (int n = 0; n <= N; n++) {
        for (int32_t round = 1; round <= 50; round++) {
            const char *order[N];
            draw(order, 7, round, n);
            for (int i = 0; i < n; i++) {
                int seen = 0;
                for (int j = 0; j < n; j++) {
                    seen += order[j] == silos[i];
                }
                CHECK_INT(seen, 1);
            }
        }
    }
}

static void the_order_in_which_silos_came_does_not_matter(void)
{
    const char *a[N];
    const char *b[N];
    draw(a, 17, 3, N);
    for (int i = 0; i < N; i++) {
        b[i] = silos[(i * 5 + 2) % N]; // 5 is coprime to 12: another order of the same names
    }
    sampling_draw(17, 3, b, N);
    for (int i = 0; i < N; i++) {
        CHECK_STR(a[i], b[i]);
    }
}

static void seed_and_round_each_change_the_draw(void)
{
    int same_round = 0;
    int same_seed = 0;
    for (int32_t r = 1; r <= 100; r++) {
        const char *a[N];
        const char *b[N];
        const char *c[N];
        draw(a, 1, r, N);
        draw(b, 2, r, N);
        draw(c, 1, r + 1, N);
        same_round += memcmp(a, b, sizeof(a)) == 0;
        same_seed += memcmp(a, c, sizeof(a)) == 0;
    }
    CHECK_INT(same_round, 0);
    CHECK_INT(same_seed, 0);
}

static void over_many_rounds_everybody_gets_about_the_same_share_of_seats(void)
{
    enum { ROUNDS = 3000, SEATS = 4 };
    int seats[N] = {0};
    for (int32_t r = 1; r <= ROUNDS; r++) {
        const char *order[N];
        draw(order, 99, r, N);
        for (int i = 0; i < SEATS; i++) {
            for (int j = 0; j < N; j++) {
                seats[j] += order[i] == silos[j];
            }
        }
    }
    for (int j = 0; j < N; j++) { // mean 1000, standard deviation about 26
        CHECK(seats[j] > 870 && seats[j] < 1130);
    }
}

int main(void)
{
    RUN(every_silo_is_drawn_exactly_once);
    RUN(the_order_in_which_silos_came_does_not_matter);
    RUN(seed_and_round_each_change_the_draw);
    RUN(over_many_rounds_everybody_gets_about_the_same_share_of_seats);
    return check_end();
}
