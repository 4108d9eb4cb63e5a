#include "client/data.h"

#include <stdio.h>
#include <string.h>

#include "client/shard.h"
#include "common/mem.h"
#include "tests/support/check.h"
#include "tests/support/tempdir.h"

enum { SEQ = 4 };

/* A folder of byte tokens whose train token i is 2 + (first + i / SEQ) % 256: a
 * window says its number. */
static void folder(const struct tempdir *t, const char *name, int first, const int64_t *shards,
                   int count, int64_t heldout)
{
    struct manifest_shard list[8];
    int64_t tokens = 0;
    tempdir_folder(t, name);
    for (int i = 0; i <= count; i++) {
        bool held = i == count;
        int64_t n = held ? heldout : shards[i];
        struct manifest_shard *s = &list[i];
        *s = (struct manifest_shard){.split = held ? SPLIT_HELDOUT : SPLIT_TRAIN, .tokens = n};
        (void)snprintf(s->file, sizeof(s->file), "%s-%05d.bin", SPLIT_NAMES[s->split],
                       held ? 0 : i);
        memset(s->sha256, 'a', 64);
        unsigned char *bytes = mem_alloc(SHARD_HEAD_BYTES + 2 * (size_t)n);
        shard_head_write(&(struct shard_head){.width = 2, .tokens = n}, bytes);
        for (int64_t k = 0; k < n; k++) {
            int64_t at = held ? k : tokens + k;
            int id = held ? (int)(at % 258) : 2 + (int)((first + at / SEQ) % 256);
            bytes[SHARD_HEAD_BYTES + 2 * k] = (unsigned char)(id & 0xff);
            bytes[SHARD_HEAD_BYTES + 2 * k + 1] = (unsigned char)(id >> 8);
        }
        char path[64];
        (void)snprintf(path, sizeof(path), "%s/%.24s", name, s->file);
        tempdir_put(t, path, bytes, SHARD_HEAD_BYTES + 2 * (size_t)n);
        mem_free(bytes);
        tokens += held ? 0 : n;
    }
    struct manifest m = {.ids = 258, .vocab_size = 320, .shard_count = count + 1, .shards = list};
    m.splits[SPLIT_TRAIN].tokens = tokens;
    m.splits[SPLIT_HELDOUT].tokens = heldout;
    struct buf b;
    buf_init(&b, 1 << 16);
    manifest_print(&b, &m);
    char path[64];
    (void)snprintf(path, sizeof(path), "%s/manifest.json", name);
    tempdir_put(t, path, b.data, b.len);
    buf_release(&b);
}

static struct data *open_two(const struct tempdir *t, const char *a, double wa, const char *b,
                             double wb)
{
    struct data_source_arg args[2] = {{tempdir_at(t, a), wa}, {b ? tempdir_at(t, b) : NULL, wb}};
    struct data *d = NULL;
    struct err e = {0};
    enum status st = data_open(&d, args, b ? 2 : 1, &e);
    CHECK_STR(st ? e.msg : "", "");
    return d;
}

static int first_of(const struct data *d, uint64_t seed, int32_t silo, int64_t step, int32_t rows,
                    int32_t row)
{
    int32_t out[64 * (SEQ + 1)];
    struct err e = {0};
    CHECK_INT(data_train_rows(d, seed, silo, step, rows, SEQ, out, &e), ST_OK);
    return out[row * (SEQ + 1)];
}

static void every_window_is_read_once_before_any_is_read_twice(void)
{
    // 100 windows over three shards, two of them cut within a window.
    static const int64_t shards[] = {131, 150, 120};
    struct tempdir t;
    tempdir_make(&t);
    folder(&t, "a", 0, shards, 3, 0);
    struct data *d = open_two(&t, "a", 1, NULL, 0);
    int order[2][100];
    for (int epoch = 0; epoch < 2; epoch++) {
        int seen[256] = {0};
        for (int k = 0; k < 100; k++) {
            int32_t row[SEQ + 1];
            struct err e = {0};
            CHECK_INT(data_train_rows(d, 17, 0, epoch * 100 + k, 1, SEQ, row, &e), ST_OK);
            for (int i = 1; i < SEQ; i++) {
                CHECK_INT(row[i], row[0]); // one window's tokens
            }
            CHECK_INT(row[SEQ], row[0] + 1); // and the next one's first
            seen[row[0] - 2]++;
            order[epoch][k] = row[0];
        }
        for (int i = 0; i < 100; i++) {
            CHECK_INT(seen[i], 1);
        }
    }
    CHECK(memcmp(order[0], order[1], sizeof(order[0])) != 0); // each pass in its own order
    data_close(d);
    tempdir_remove(&t);
}

static void rows_of_a_step_are_draws_in_a_row(void)
{
    static const int64_t shards[] = {401};
    struct tempdir t;
    tempdir_make(&t);
    folder(&t, "a", 0, shards, 1, 0);
    struct data *d = open_two(&t, "a", 1, NULL, 0);
    for (int step = 0; step < 25; step++) {
        for (int r = 0; r < 4; r++) {
            CHECK_INT(first_of(d, 1, 0, step, 4, r), first_of(d, 1, 0, 4 * step + r, 1, 0));
        }
    }
    data_close(d);
    tempdir_remove(&t);
}

static void silos_and_seeds_differ_and_a_restart_does_not(void)
{
    static const int64_t shards[] = {801};
    struct tempdir t;
    tempdir_make(&t);
    folder(&t, "a", 0, shards, 1, 0);
    struct data *d = open_two(&t, "a", 1, NULL, 0);
    struct data *again = open_two(&t, "a", 1, NULL, 0);
    int other_silo = 0;
    int other_seed = 0;
    for (int step = 0; step < 50; step++) {
        int here = first_of(d, 17, 0, step, 2, 1);
        CHECK_INT(first_of(again, 17, 0, step, 2, 1), here);
        other_silo += first_of(d, 17, 1, step, 2, 1) != here;
        other_seed += first_of(d, 18, 0, step, 2, 1) != here;
    }
    CHECK(other_silo > 40);
    CHECK(other_seed > 40);
    data_close(d);
    data_close(again);
    tempdir_remove(&t);
}

static void sources_are_mixed_by_weight_and_read_evenly(void)
{
    static const int64_t shards[] = {401};
    struct tempdir t;
    tempdir_make(&t);
    folder(&t, "a", 0, shards, 1, 0);
    folder(&t, "b", 128, shards, 1, 0);
    struct data *d = open_two(&t, "a", 3, "b", 1);
    int from_b = 0;
    int seen[256] = {0};
    for (int k = 0; k < 4096; k++) {
        int id = first_of(d, 5, 0, k, 1, 0) - 2;
        from_b += id >= 128;
        seen[id]++;
    }
    CHECK_INT(from_b, 1024);
    for (int i = 0; i < 100; i++) {
        CHECK(seen[i] == 30 || seen[i] == 31); // 3072 draws over 100 windows
        CHECK(seen[128 + i] == 10 || seen[128 + i] == 11);
    }
    data_close(d);

    d = open_two(&t, "a", 1e9, "b", 1e-9); // a source is never forgotten
    from_b = 0;
    for (int k = 0; k < 4096; k++) {
        from_b += first_of(d, 5, 0, k, 1, 0) - 2 >= 128;
    }
    CHECK_INT(from_b, 1);
    data_close(d);
    tempdir_remove(&t);
}

static void tiny_texts_say_that_they_are_too_short(void)
{
    static const int64_t one[] = {SEQ + 1};
    static const int64_t few[] = {SEQ};
    struct tempdir t;
    struct err e = {0};
    int32_t row[3 * (SEQ + 1)];
    tempdir_make(&t);
    folder(&t, "one", 0, one, 1, SEQ);
    folder(&t, "few", 0, few, 1, 0);
    struct data *d = open_two(&t, "one", 1, NULL, 0);
    CHECK_INT(data_train_rows(d, 1, 0, 9, 3, SEQ, row, &e), ST_OK); // one window, again and again
    CHECK_INT(data_heldout_windows(d, SEQ), 0);
    int64_t bytes = 0;
    CHECK_INT(data_heldout_row(d, 0, SEQ, row, &bytes, &e), ST_LIMIT);
    data_close(d);
    d = open_two(&t, "few", 1, NULL, 0);
    CHECK_INT(data_train_rows(d, 1, 0, 0, 1, SEQ, row, &e), ST_LIMIT);
    CHECK(strstr(e.msg, "less than one row of 5") != NULL);
    data_close(d);
    tempdir_remove(&t);
}

static void held_out_windows_stand_in_order_and_count_their_bytes(void)
{
    static const int64_t shards[] = {101};
    struct tempdir t;
    struct err e = {0};
    int32_t row[SEQ + 1];
    int64_t bytes = 0;
    tempdir_make(&t);
    folder(&t, "a", 0, shards, 1, 12);
    folder(&t, "b", 0, shards, 1, 9);
    struct data *d = open_two(&t, "a", 1, "b", 1);
    CHECK_INT(data_heldout_windows(d, SEQ), 2 + 2);
    CHECK_INT(data_heldout_row(d, 0, SEQ, row, &bytes, &e), ST_OK);
    CHECK_INT(row[0], 0);
    CHECK_INT(row[4], 4);
    CHECK_INT(bytes, 3); // token 1 is padding, of no bytes
    CHECK_INT(data_heldout_row(d, 3, SEQ, row, &bytes, &e), ST_OK);
    CHECK_INT(row[0], 4);
    CHECK_INT(bytes, 4);
    CHECK_INT(data_heldout_row(d, 4, SEQ, row, &bytes, &e), ST_LIMIT);
    CHECK_INT(data_heldout_row(d, -1, SEQ, row, &bytes, &e), ST_LIMIT);

    struct data_rows ctx = {d, 3, 1};
    struct row_source rows = data_row_source(&ctx);
    int32_t same[SEQ + 1];
    CHECK_INT(rows.heldout(rows.ctx, 3, SEQ, same, &bytes, &e), ST_OK);
    CHECK_MEM(same, row, sizeof(row));
    CHECK_INT(rows.train(rows.ctx, 7, 1, SEQ, same, &e), ST_OK);
    CHECK_INT(same[0], first_of(d, 3, 1, 7, 1, 0));
    data_close(d);
    tempdir_remove(&t);
}

static void what_is_wrong_is_named_with_its_remedy(void)
{
    static const int64_t shards[] = {101};
    struct tempdir t;
    struct err e = {0};
    struct data *d = NULL;
    tempdir_make(&t);
    struct data_source_arg arg = {tempdir_at(&t, "none"), 1};
    CHECK_INT(data_open(&d, &arg, 1, &e), ST_NOT_FOUND);
    CHECK(strstr(e.msg, "photon data prepare") != NULL);

    folder(&t, "a", 0, shards, 1, 9);
    arg.dir = tempdir_at(&t, "a");
    arg.weight = 0;
    CHECK_INT(data_open(&d, &arg, 1, &e), ST_INVALID);
    arg.weight = 1;
    CHECK_INT(data_open(&d, &arg, 0, &e), ST_INVALID);

    CHECK_INT(truncate(tempdir_at(&t, "a/train-00000.bin"), 1100), 0);
    CHECK_INT(data_open(&d, &arg, 1, &e), ST_CORRUPT);
    CHECK(strstr(e.msg, "train-00000.bin") != NULL);
    CHECK_INT(unlink(tempdir_at(&t, "a/train-00000.bin")), 0);
    CHECK_INT(data_open(&d, &arg, 1, &e), ST_NOT_FOUND);
    tempdir_text(&t, "a/manifest.json", "{}");
    CHECK_INT(data_open(&d, &arg, 1, &e), ST_CORRUPT);
    CHECK(d == NULL);
    tempdir_remove(&t);
}

static void an_id_over_the_vocabulary_never_reaches_the_model(void)
{
    static const int64_t shards[] = {101};
    struct tempdir t;
    struct err e = {0};
    int32_t row[SEQ + 1];
    tempdir_make(&t);
    folder(&t, "a", 0, shards, 1, 9);
    FILE *f = fopen(tempdir_at(&t, "a/train-00000.bin"), "r+b");
    CHECK(f != NULL);
    (void)fseek(f, SHARD_HEAD_BYTES, SEEK_SET);
    for (int i = 0; i < 101; i++) {
        (void)fwrite("\x02\x01", 1, 2, f); // 258
    }
    (void)fclose(f);
    struct data *d = open_two(&t, "a", 1, NULL, 0);
    CHECK_INT(data_train_rows(d, 1, 0, 0, 1, SEQ, row, &e), ST_CORRUPT);
    CHECK(strstr(e.msg, "photon data check") != NULL);
    data_close(d);
    tempdir_remove(&t);
}

int main(void)
{
    RUN(every_window_is_read_once_before_any_is_read_twice);
    RUN(rows_of_a_step_are_draws_in_a_row);
    RUN(silos_and_seeds_differ_and_a_restart_does_not);
    RUN(sources_are_mixed_by_weight_and_read_evenly);
    RUN(tiny_texts_say_that_they_are_too_short);
    RUN(held_out_windows_stand_in_order_and_count_their_bytes);
    RUN(what_is_wrong_is_named_with_its_remedy);
    RUN(an_id_over_the_vocabulary_never_reaches_the_model);
    return check_end();
}
