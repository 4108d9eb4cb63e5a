/*
 * The layouts and the waiting of the Hopper attention (kernels/cuda/attn_ring.h) by themselves.
 * That the kernels use them rightly is shown by test_wgmma_emulated; here is why they may.
 */
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "kernels/cuda/attn_ring.h"
#include "tests/support/check.h"

// ---- tiles --------------------------------------------------------------------------------------

static void a_tile_has_a_place_for_each_element(void)
{
    static const int rows[] = {64, 128};
    static unsigned char seen[128 * 128];
    for (int i = 0; i < 2; i++) {
        for (int D = 64; D <= 128; D += 64) {
            memset(seen, 0, sizeof(seen));
            for (int r = 0; r < rows[i]; r++) {
                for (int c = 0; c < D; c++) {
                    uint32_t at = ring_at(3 * RING_ALIGN, rows[i], r, c) - 3 * RING_ALIGN;
                    CHECK(at % 2 == 0 && at < ring_tile_bytes(rows[i], D));
                    seen[at / 2]++;
                }
            }
            for (int n = 0; n < rows[i] * D; n++) {
                CHECK_INT(seen[n], 1);
            }
        }
    }
}

/* Eight rows at one chunk of 16 bytes, and eight chunks of one row: all 32 banks either way. */
static void eight_rows_and_eight_chunks_touch_every_bank_once(void)
{
    for (int n = 0; n < 8; n++) {
        int by_row = 0;
        int by_chunk = 0;
        for (int m = 0; m < 8; m++) {
            by_row |= 1 << ring_at(0, 64, 16 + m, 8 * n) / 16 % 8;
            by_chunk |= 1 << ring_at(0, 64, 16 + n, 8 * m) / 16 % 8;
        }
        CHECK_INT(by_row, 0xff);
        CHECK_INT(by_chunk, 0xff);
    }
    CHECK_INT(ring_align(1), RING_ALIGN);
    CHECK_INT(ring_align(RING_ALIGN), RING_ALIGN);
}

// ---- descriptors: the addresses that wgmma makes of them, from the PTX manual -------------------

struct view {
    uint32_t start, leading, stride;
};

static struct view view_of(uint64_t desc)
{
    CHECK_INT(desc >> 62, 1);          // the 128-byte swizzle
    CHECK_INT(desc >> 46 & 0xffff, 0); // base offset and all that is reserved
    return (struct view){(uint32_t)(desc & 0x3fff) << 4, (uint32_t)(desc >> 16 & 0x3fff) << 4,
                         (uint32_t)(desc >> 32 & 0x3fff) << 4};
}

static void a_step_by_rows_reads_sixteen_columns_of_the_tile(void)
{
    const uint32_t tile = 200 * RING_ALIGN; // beyond 2^16 bytes, as tiles come to lie
    for (int rows = 64; rows <= 128; rows += 64) {
        for (int row0 = 0; row0 < rows; row0 += WARPGROUP_ROWS) {
            for (int k = 0; k < 128 / 16; k++) {
                struct view v = view_of(ring_rows(tile, rows, row0, k));
                for (int r = 0; r < WARPGROUP_ROWS; r++) {
                    for (int c = 0; c < 16; c++) {
                        uint32_t at = v.start + (uint32_t)(r / 8) * v.stride +
                                      (uint32_t)(r % 8 * 128 + c * 2);
                        CHECK_INT(ring_swizzle(at), ring_at(tile, rows, row0 + r, 16 * k + c));
                    }
                }
            }
        }
    }
}

static void a_step_by_columns_reads_sixteen_rows_of_the_tile(void)
{
    const uint32_t tile = 200 * RING_ALIGN;
    for (int rows = 64; rows <= 128; rows += 64) {
        for (int k = 0; k < rows / 16; k++) {
            struct view v = view_of(ring_columns(tile, rows, k));
            for (int r = 0; r < 16; r++) {
                for (int c = 0; c < 128; c++) {
                    uint32_t at = v.start + (uint32_t)(c / 64) * v.leading +
                                  (uint32_t)(c % 64 * 2) + (uint32_t)(r / 8) * v.stride +
                                  (uint32_t)(r % 8 * 128);
                    CHECK_INT(ring_swizzle(at), ring_at(tile, rows, 16 * k + r, c));
                }
            }
        }
    }
}

// ---- the ring -----------------------------------------------------------------------------------

/* mbarrier, from the PTX manual: a phase is over when all it expects have arrived. */
struct bar {
    uint32_t expected, pending, phase;
};

static void bar_arrive(struct bar *b)
{
    CHECK(b->pending > 0);
    if (--b->pending == 0) {
        b->pending = b->expected;
        b->phase++;
    }
}

static bool bar_over(const struct bar *b, uint32_t parity)
{
    return (b->phase & 1) != parity;
}

enum { STAGES_MAX = 4, FILLS_MAX = 23 };

struct walk {
    uint32_t stages, fills;
    struct bar full[STAGES_MAX], empty[STAGES_MAX];
    uint32_t holds[STAGES_MAX];      /* the fill each slot holds */
    uint32_t written;                /* fills so far */
    uint32_t read[RING_READERS];     /* so far, by each warp */
    uint32_t released[RING_READERS]; /* at most one behind */
};

/* One move of the producer, number RING_READERS, or of a warp, if it can: did it? */
static bool walk_step(struct walk *w, uint32_t who)
{
    if (who == RING_READERS) {
        uint32_t slot = ring_slot(w->written, w->stages);
        if (w->written == w->fills ||
            !bar_over(&w->empty[slot], ring_freed(w->written, w->stages))) {
            return false;
        }
        for (int r = 0; r < RING_READERS && w->written >= w->stages; r++) {
            CHECK(w->released[r] > w->written - w->stages); // nobody still needs what goes
        }
        w->holds[slot] = w->written++;
        bar_arrive(&w->full[slot]);
        return true;
    }
    uint32_t n = w->read[who];
    uint32_t slot = ring_slot(n, w->stages);
    // A consumer gives the fill before back only when it has this one, as the kernels do.
    if (n < w->fills && bar_over(&w->full[slot], ring_filled(n, w->stages)) &&
        w->released[who] + 1 >= n) {
        CHECK_INT(w->holds[slot], n);
        w->read[who]++;
        if (n > 0) {
            w->released[who] = n;
            bar_arrive(&w->empty[ring_slot(n - 1, w->stages)]);
        }
        return true;
    }
    return false;
}

static void every_fill_is_read_once_and_nothing_is_overwritten_in_any_order(void)
{
    uint64_t draw = 0;
    for (uint32_t stages = 2; stages <= STAGES_MAX; stages++) {
        for (uint32_t fills = 1; fills <= FILLS_MAX; fills++) {
            struct walk w = {.stages = stages, .fills = fills};
            for (uint32_t s = 0; s < stages; s++) {
                w.full[s] = (struct bar){1, 1, 0};
                w.empty[s] = (struct bar){RING_READERS, RING_READERS, 0};
            }
            for (bool moved = true; moved;) {
                moved = false;
                // Who comes first is drawn; some stay away for long.
                for (int i = 0; i < 40; i++) {
                    uint32_t who = (uint32_t)(rng_u64(7, draw++) % (RING_READERS + 1));
                    who = who % 3 == 0 && i < 30 ? RING_READERS : who;
                    moved = walk_step(&w, who) || moved;
                }
                for (uint32_t who = 0; who <= RING_READERS; who++) {
                    moved = walk_step(&w, who) || moved;
                }
            }
            for (int r = 0; r < RING_READERS; r++) {
                CHECK_INT(w.read[r], fills); // nobody waits for ever
            }
        }
    }
}

static void a_word_says_which_tile_and_whether_it_is_the_last(void)
{
    for (int tile = 0; tile < 600; tile += 7) {
        for (int last = 0; last < 2; last++) {
            CHECK_INT(ring_word_tile(ring_word(tile, last)), tile);
            CHECK_INT(ring_word_last(ring_word(tile, last)), last);
        }
    }
}

// ---- turns --------------------------------------------------------------------------------------

/* Whatever the order: both get through, alternately, and no gift is left. */
static void consumers_take_turns_and_leave_none_behind(void)
{
    for (int steps = 1; steps < 12; steps++) {
        for (uint64_t seed = 0; seed < 40; seed++) {
            int step[CONSUMERS] = {0};
            int gifts[CONSUMERS] = {0};
            int issued = 0;
            for (uint64_t i = 0; i < 400; i++) {
                int who = (int)(rng_u64(seed, i) % CONSUMERS);
                if (step[who] == steps || (turn_waits(who, step[who]) && gifts[who] == 0)) {
                    continue;
                }
                gifts[who] -= turn_waits(who, step[who]);
                CHECK_INT(who, issued % CONSUMERS);
                issued++;
                if (turn_gives(who, step[who] == steps - 1)) {
                    CHECK_INT(++gifts[1 - who], 1); // a barrier holds one
                }
                step[who]++;
            }
            CHECK(step[0] == steps && step[1] == steps);
            CHECK(gifts[0] == 0 && gifts[1] == 0);
        }
    }
}

/* PTX manual, setmaxnreg: multiples of 8 from 24 to 256; they come out of what the block has. */
static void registers_are_shared_out_and_none_invented(void)
{
    const int start = START_REGISTERS;
    CHECK_INT(65536 / RING_THREADS / 8 * 8, start);
    CHECK(PRODUCER_REGISTERS % 8 == 0 && PRODUCER_REGISTERS >= 24 && PRODUCER_REGISTERS <= start);
    CHECK(CONSUMER_REGISTERS % 8 == 0 && CONSUMER_REGISTERS <= 256);
    CHECK(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <= (1 + CONSUMERS) * start);
}

int main(void)
{
    RUN(a_tile_has_a_place_for_each_element);
    RUN(eight_rows_and_eight_chunks_touch_every_bank_once);
    RUN(a_step_by_rows_reads_sixteen_columns_of_the_tile);
    RUN(a_step_by_columns_reads_sixteen_rows_of_the_tile);
    RUN(every_fill_is_read_once_and_nothing_is_overwritten_in_any_order);
    RUN(a_word_says_which_tile_and_whether_it_is_the_last);
    RUN(consumers_take_turns_and_leave_none_behind);
    RUN(registers_are_shared_out_and_none_invented);
    return check_end();
}
