/*
 * test_solo.c - a centralized training: it learns, goes on after a stop with the same bits, keeps
 * each number once, and begins with a run's checkpoint 0.
 */
#include "client/solo.h"

#include <math.h>

#include "client/metrics_file.h"
#include "client/mfu.h"
#include "client/state.h"
#include "client/weights_file.h"
#include "common/hash.h"
#include "common/json.h"
#include "server/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/prepared.h"

static struct tempdir dir;
static int steps_left;

static bool stops_after_some(void)
{
    return steps_left-- == 0;
}

static struct solo_report train(const struct run_spec *spec, const char *name, int stop_after,
                                struct err *e)
{
    struct data_source_arg source = {tempdir_at(&dir, "text"), 1.0};
    struct data *data = NULL;
    CHECK_INT(data_open(&data, &source, 1, NULL), ST_OK);
    struct solo_config c = {.spec = spec,
                            .data = data,
                            .heldout = data,
                            .dir = tempdir_at(&dir, name),
                            .steps = 8,
                            .eval_every = 2,
                            .save_every = 2,
                            .log_every = 1,
                            .windows = 4,
                            .device = "cpu",
                            .dtype = "f32",
                            .threads = 1,
                            .quiet = true,
                            .stopping = stops_after_some};
    struct solo_report r = {0};
    steps_left = stop_after;
    enum status st = solo_train(&c, &r, e);
    data_close(data);
    e->st = st; // what was tried on the way leaves its own
    return r;
}

static struct digest digest_of(const char *folder, const char *file)
{
    char name[80];
    struct digest d;
    (void)snprintf(name, sizeof(name), "%s/%s", folder, file);
    CHECK_INT(sha256_file(tempdir_at(&dir, name), &d, NULL, NULL), ST_OK);
    return d;
}

/* Every line of the metrics without what depends on the clock. */
static void numbers_of(const char *folder, char *out, size_t size)
{
    char name[80];
    char line[1000];
    size_t n = 0;
    (void)snprintf(name, sizeof(name), "%s/metrics.jsonl", folder);
    FILE *f = fopen(tempdir_at(&dir, name), "r");
    CHECK(f != NULL);
    while (fgets(line, sizeof(line), f)) {
        struct arena *a = arena_new(1 << 20);
        const struct json *o = NULL;
        CHECK_INT(json_parse(&o, a, line, strlen(line), NULL), ST_OK);
        const struct json *loss = json_get(o, "train_loss");
        loss = loss ? loss : json_get(o, "eval_loss");
        n += (size_t)snprintf(out + n, size - n, "%s %lld %.17g\n", json_str(json_get(o, "kind")),
                              (long long)json_num(json_get(o, "step")), json_num(loss));
        arena_free(a);
    }
    (void)fclose(f);
}

static void a_stopped_training_goes_on_with_the_same_bits_and_each_number_once(void)
{
    struct run_spec spec = files_spec(",\"inner_state\":\"keep\"");
    static char undisturbed[8192];
    static char resumed[8192];
    struct err e = {0};
    spec.inner.lr = 1e-2;
    struct solo_report all = train(&spec, "all", 100, &e);
    CHECK_INT(all.steps, 8);
    CHECK_INT(all.tokens, 8 * 4 * 8);
    CHECK(!all.stopped && all.eval_loss < log(320.0));

    struct solo_report part = train(&spec, "part", 3, &e);
    CHECK(part.stopped);
    CHECK_INT(part.steps, 3);
    // A kill leaves lines of steps that the snapshot does not know, the last one cut short.
    FILE *f = fopen(tempdir_at(&dir, "part/metrics.jsonl"), "a");
    CHECK(f != NULL);
    (void)fprintf(f, "{\"kind\":\"train\",\"step\":4,\"train_loss\":1}\n{\"kind\":\"tr");
    (void)fclose(f);
    struct solo_report rest = train(&spec, "part", 100, &e);
    CHECK_INT(rest.steps, 8);
    CHECK(!rest.stopped && rest.eval_loss == all.eval_loss);

    struct digest a = digest_of("all", "checkpoint-00000008.safetensors");
    struct digest b = digest_of("part", "checkpoint-00000008.safetensors");
    CHECK(digest_equal(&a, &b));
    numbers_of("all", undisturbed, sizeof(undisturbed));
    numbers_of("part", resumed, sizeof(resumed));
    CHECK_STR(resumed, undisturbed);
}

static void it_begins_with_the_runs_checkpoint_0(void)
{
    struct run_spec spec = files_spec("");
    struct err e = {0};
    struct files f;
    struct checkpoint_files first;
    spec.keep_checkpoints = 0;
    files_open(&f);
    CHECK_INT(checkpoint_initial(f.blobs, &spec, &first, &e), ST_OK);
    (void)train(&spec, "first", 0, &e);
    struct digest d = digest_of("first", "checkpoint-00000000.safetensors");
    CHECK(digest_equal(&d, &first.weights));
    files_close(&f);
}

static void the_newest_checkpoints_are_kept(void)
{
    struct run_spec spec = files_spec(",\"keep_checkpoints\":2");
    struct err e = {0};
    (void)train(&spec, "kept", 100, &e);
    CHECK(access(tempdir_at(&dir, "kept/checkpoint-00000008.safetensors"), F_OK) == 0);
    CHECK(access(tempdir_at(&dir, "kept/checkpoint-00000006.safetensors"), F_OK) == 0);
    CHECK(access(tempdir_at(&dir, "kept/checkpoint-00000004.safetensors"), F_OK) != 0);
    CHECK(access(tempdir_at(&dir, "kept/checkpoint-00000000.safetensors"), F_OK) != 0);
}

static void two_do_not_train_in_one_folder(void)
{
    struct run_spec spec = files_spec("");
    struct err e = {0};
    int lock = -1;
    (void)train(&spec, "shared", 3, &e);
    CHECK_INT(state_lock(tempdir_at(&dir, "shared"), &lock, &e), ST_OK);
    struct solo_report r = train(&spec, "shared", 100, &e);
    CHECK_INT(e.st, ST_CONFLICT);
    CHECK_INT(r.steps, 0);
    (void)close(lock);
    r = train(&spec, "shared", 100, &e);
    CHECK_INT(r.steps, 8);
}

static void a_process_that_was_killed_leaves_no_snapshot_for_good(void)
{
    static const char *const left[] = {"killed/state-2", "killed/state-7", "killed/state-7.tmp"};
    struct run_spec spec = files_spec("");
    struct err e = {0};
    (void)train(&spec, "killed", 3, &e);
    for (int i = 0; i < 3; i++) {
        FILE *f = fopen(tempdir_at(&dir, left[i]), "w");
        CHECK(f != NULL);
        (void)fclose(f);
    }
    struct solo_report r = train(&spec, "killed", 0, &e);
    CHECK_INT(r.steps, 3); // the snapshot that counts was there
    for (int i = 0; i < 3; i++) {
        CHECK(access(tempdir_at(&dir, left[i]), F_OK) != 0);
    }
    CHECK(access(tempdir_at(&dir, "killed/state-3"), F_OK) == 0);
}

static void a_folder_of_another_spec_is_refused(void)
{
    struct run_spec spec = files_spec("");
    struct run_spec other = files_spec(",\"seed\":99");
    struct err e = {0};
    (void)train(&spec, "taken", 3, &e);
    (void)train(&other, "taken", 3, &e);
    CHECK_INT(e.st, ST_CONFLICT);
}

static void text_of_another_tokenizer_is_refused(void)
{
    struct run_spec spec = files_spec("");
    struct err e = {0};
    memset(spec.tokenizer_sha256, 'a', 64);
    (void)train(&spec, "tokenizer", 3, &e);
    CHECK_INT(e.st, ST_INVALID);
}

static void a_token_costs_what_its_products_and_attention_cost(void)
{
    struct model_spec m = {.d_model = 768,
                           .n_heads = 12,
                           .n_layers = 12,
                           .vocab_size = 50368,
                           .seq_len = 2048,
                           .position = POSITION_LEARNED,
                           .bias = true};
    double with_positions = mfu_token_flops(&m);
    m.position = POSITION_ALIBI;
    CHECK(mfu_token_flops(&m) == with_positions); // a position table is no product
    CHECK_NEAR(with_positions, 6.0 * (125311488.0 - 2048 * 768) + 6.0 * 12 * 768 * 2048, 1e-12);
    double peak = 0.0;
    struct err e = {0};
    CHECK_INT(mfu_peak("cpu:0,1", 1, "f32", &peak, &e), ST_OK);
    CHECK(peak > 1e8);
}

int main(void)
{
    tempdir_make(&dir);
    prepared_text(&dir, "text", 0);
    RUN(a_stopped_training_goes_on_with_the_same_bits_and_each_number_once);
    RUN(it_begins_with_the_runs_checkpoint_0);
    RUN(the_newest_checkpoints_are_kept);
    RUN(two_do_not_train_in_one_folder);
    RUN(a_process_that_was_killed_leaves_no_snapshot_for_good);
    RUN(a_folder_of_another_spec_is_refused);
    RUN(text_of_another_tokenizer_is_refused);
    RUN(a_token_costs_what_its_products_and_attention_cost);
    tempdir_remove(&dir);
    return check_end();
}
