/*
 * The layouts and predicates of tiled attention (kernels/cuda/attn_tile.h) by themselves. That the
 * kernels use them rightly is shown by test_cuda_emulated; here is why they may.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"
#include "kernels/attn_skip.h"
#include "kernels/cuda/attn_tile.h"
#include "tests/support/check.h"

static void lanes_hold_every_accumulator_once(void)
{
    int seen[16][8] = {0};
    for (int lane = 0; lane < 32; lane++) {
        for (int e = 0; e < 4; e++) {
            seen[tile_row(lane, e)][tile_col(lane, e)]++;
        }
    }
    for (int i = 0; i < 16 * 8; i++) {
        CHECK_INT(seen[i / 8][i % 8], 1);
    }
}

/* What lets probabilities go from one product into the next without leaving their lane. */
static void accumulators_of_two_tiles_are_an_a_operand(void)
{
    for (int lane = 0; lane < 32; lane++) {
        for (int reg = 0; reg < 4; reg++) {
            // PTX manual: A register reg of a lane has row g or g + 8, columns 2 t + 0, 1, from 8
            // on for registers 2 and 3. The kernel fills it from tile reg / 2, elements 2 (reg % 2)
            // and the next.
            for (int half = 0; half < 2; half++) {
                int row = lane / 4 + 8 * (reg % 2);
                int column = 2 * (lane % 4) + half + 8 * (reg / 2);
                int e = 2 * (reg % 2) + half;
                CHECK_INT(tile_row(lane, e), row);
                CHECK_INT(tile_col(lane, e) + 8 * (reg / 2), column);
            }
        }
    }
}

static void a_tile_in_shared_memory_has_a_place_for_each_chunk(void)
{
    static const int sizes[] = {64, 128};
    for (int s = 0; s < 2; s++) {
        int D = sizes[s];
        char seen[64 * 128 / 8] = {0};
        for (int row = 0; row < 64; row++) {
            for (int chunk = 0; chunk < D / 8; chunk++) {
                int at = tile_at(row, chunk, D);
                CHECK(at % 16 == 0 && at >= 0 && at < 64 * D * 2);
                seen[at / 16]++;
            }
        }
        for (int i = 0; i < 64 * D / 8; i++) {
            CHECK_INT(seen[i], 1);
        }
    }
}

/* Eight lanes of ldmatrix read 8 chunks: 128 bytes, all 32 banks, each once. */
static void reading_a_column_of_chunks_touches_every_bank_once(void)
{
    for (int D = 64; D <= 128; D += 64) {
        for (int chunk = 0; chunk < D / 8; chunk++) {
            for (int row0 = 0; row0 < 64; row0 += 8) {
                int banks = 0;
                for (int row = row0; row < row0 + 8; row++) {
                    banks |= 1 << tile_at(row, chunk, D) / 16 % 8;
                }
                CHECK_INT(banks, 0xff);
            }
        }
    }
}

/* The four matrices of each load are the four quarters of a 16 x 16 piece. */
static void each_load_addresses_sixteen_rows_and_two_chunks(void)
{
    int a[16][2] = {{0}};
    int b[16][2] = {{0}};
    int t[16][2] = {{0}};
    for (int lane = 0; lane < 32; lane++) {
        a[tile_a_row(lane)][tile_a_chunk(lane)]++;
        b[tile_b_row(lane)][tile_b_chunk(lane)]++;
        t[tile_t_row(lane)][tile_t_chunk(lane)]++;
    }
    for (int i = 0; i < 32; i++) {
        CHECK_INT(a[i / 2][i % 2], 1);
        CHECK_INT(b[i / 2][i % 2], 1);
        CHECK_INT(t[i / 2][i % 2], 1);
    }
}

/* Every pair j <= i lies in a tile that is visited, and a tile without the mask hides nothing. */
static void tiles_cover_the_causal_triangle_and_masks_cut_it_out(void)
{
    static const int lengths[] = {1, 63, 64, 65, 127, 128, 129, 257, 300};
    static const int rows[] = {16, 64, 128};
    for (int l = 0; l < 9; l++) {
        for (int q = 0; q < 3; q++) {
            int T = lengths[l];
            for (int i0 = 0; i0 < T; i0 += rows[q]) {
                for (int keys = 32; keys <= 64; keys += 32) {
                    int count = tile_key_count(i0 + rows[q] - 1, T, keys);
                    CHECK((count - 1) * keys < T); // none lies wholly beyond the end
                    for (int i = i0; i < i0 + rows[q] && i < T; i++) {
                        CHECK(i < count * keys);
                        for (int j = 0; j < count * keys; j++) {
                            bool mask = tile_needs_mask(i0, j / keys * keys + keys - 1);
                            CHECK_INT(mask && tile_hidden(i, j), j > i);
                        }
                    }
                }
            }
        }
    }
}

/* Column part and row part together are the bias, for scores and for the log-sum-exp. */
static void the_bias_in_two_parts_is_the_bias(void)
{
    static const float slopes[] = {0.0F, 0.70710678F, 0.5F, 0.00390625F};
    for (int s = 0; s < 4; s++) {
        for (int i = 1920; i < 2048; i += 7) {
            const int r = 2047;
            for (int j = 1800; j <= i; j += 13) {
                // One key alone: its probability is 1 and the log-sum-exp is its score.
                double want = 0.25 + (double)slopes[s] * (j - i);
                float t = 0.25F * TILE_LOG2E + tile_bias(slopes[s] * TILE_LOG2E, j, r);
                float lse = tile_lse(t, 0.0F, slopes[s], i, r);
                CHECK_NEAR(lse, want, 2e-6 * (1 + (double)(r - i)));
                CHECK_NEAR(exp2f(t - tile_row_shift(lse, slopes[s], i, r)), 1.0, 2e-4);
            }
        }
    }
    CHECK(tile_safe_max(-INFINITY) == 0.0F && tile_safe_max(-5.0F) == -5.0F);
}

/* One head of normal q and k; sigma 1 is what a norm before the product gives at the start. */
enum { SKIP_T = 1024, SKIP_D = 32, SKIP_TILE = 64, SKIP_TILES = SKIP_T / SKIP_TILE };

static double product(const float *q, const float *k, int i, int j)
{
    double sum = 0.0;
    for (int d = 0; d < SKIP_D; d++) {
        sum += (double)q[i * SKIP_D + d] * (double)k[j * SKIP_D + d];
    }
    return sum / sqrt((double)SKIP_D);
}

static void largest_norms(float *out, const float *x)
{
    for (int t = 0; t < SKIP_T; t++) {
        float sum = 0.0f;
        for (int d = 0; d < SKIP_D; d++) {
            sum += x[t * SKIP_D + d] * x[t * SKIP_D + d];
        }
        float norm = ATTN_NORM_SLACK * sqrtf(sum);
        float *top = &out[t / SKIP_TILE];
        *top = t % SKIP_TILE == 0 || norm > *top ? norm : *top;
    }
}

static void a_skipped_tile_could_not_have_mattered(void)
{
    static float q[SKIP_T * SKIP_D];
    static float k[SKIP_T * SKIP_D];
    float nq[SKIP_TILES];
    float nk[SKIP_TILES];
    for (int i = 0; i < SKIP_T * SKIP_D; i++) {
        q[i] = (float)rng_normal(11, (uint64_t)i);
        k[i] = (float)rng_normal(12, (uint64_t)i);
    }
    largest_norms(nq, q);
    largest_norms(nk, k);
    int skipped = 0;
    for (int I = 1; I < SKIP_TILES; I++) {
        for (int J = 0; J < I; J++) {
            int gap = (I - J - 1) * SKIP_TILE + 1;
            if (!attn_can_skip(nq[I], nk[J], nk[I], 1.0f / sqrtf((float)SKIP_D), 0.5f,
                               (float)gap)) {
                continue;
            }
            skipped++;
            for (int i = I * SKIP_TILE; i < (I + 1) * SKIP_TILE; i += 7) {
                for (int j = J * SKIP_TILE; j < (J + 1) * SKIP_TILE; j += 3) {
                    CHECK(product(q, k, i, j) + 0.5 * (j - i) - product(q, k, i, i) < -25.0);
                }
            }
        }
    }
    // Of 120 earlier tiles those nearer than about 100 keys stay.
    CHECK(skipped > 80 && skipped < 120);
    // No bias, nothing skipped; nor what is not a number.
    CHECK(!attn_can_skip(0.0f, 0.0f, 0.0f, 1.0f, 0.0f, 1e9f));
    CHECK(!attn_can_skip(NAN, 1.0f, 1.0f, 1.0f, 1.0f, 1e9f));
}

int main(void)
{
    RUN(a_skipped_tile_could_not_have_mattered);
    RUN(lanes_hold_every_accumulator_once);
    RUN(accumulators_of_two_tiles_are_an_a_operand);
    RUN(a_tile_in_shared_memory_has_a_place_for_each_chunk);
    RUN(reading_a_column_of_chunks_touches_every_bank_once);
    RUN(each_load_addresses_sixteen_rows_and_two_chunks);
    RUN(tiles_cover_the_causal_triangle_and_masks_cut_it_out);
    RUN(the_bias_in_two_parts_is_the_bias);
    return check_end();
}
