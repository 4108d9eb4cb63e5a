#include "client/cli/sim_book.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/state.h"
#include "common/json.h"
#include "common/limits.h"

enum { BOOK_MAX = 1 << 20 };

static const char BOOK[] = "sim.json";

void sim_book_path(const struct sim_book *b, const char *name, char out[SIM_PATH_MAX])
{
    (void)snprintf(out, SIM_PATH_MAX, "%.800s/%s", b->dir, name);
}

enum status sim_book_open(struct sim_book *b, const char *dir, const struct run_spec *spec,
                          const struct sim_silo *silos, int count, double drop, struct err *e)
{
    struct digest d;
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    struct sha256 *h = sha256_new();
    const char *text = run_spec_json(a, spec);
    sha256_add(h, text, strlen(text));
    for (int i = 0; i < count; i++) {
        struct data_info info;
        data_info(silos[i].data, &info);
        text = arena_fmt(a, "\n%s %" PRId64 " %" PRId64, silos[i].name, info.train_tokens,
                         info.heldout_tokens);
        sha256_add(h, text, strlen(text));
    }
    text = arena_fmt(a, "\ndrop %.17g", drop);
    sha256_add(h, text, strlen(text));
    sha256_end(h, &d);
    sha256_free(h);
    arena_free(a);
    *b = (struct sim_book){.dir = dir, .eval_loss = (double)NAN};
    digest_hex(&d, b->identity);
    return dir_make(dir, e);
}

static void print_digest(struct buf *b, const char *key, const struct digest *d)
{
    char hex[DIGEST_HEX + 1];
    digest_hex(d, hex);
    jw_str(b, key, hex);
}

enum status sim_book_write(const struct sim_book *b, const struct sim_silo *silos, int count,
                           struct err *e)
{
    char path[SIM_PATH_MAX];
    struct buf t;
    buf_init(&t, BOOK_MAX);
    jw_object(&t, NULL);
    jw_str(&t, "identity", b->identity);
    jw_int(&t, "round", b->round);
    print_digest(&t, "weights", &b->weights);
    jw_int(&t, "weights_bytes", b->weights_bytes);
    if (b->has_state) {
        print_digest(&t, "state", &b->state);
    }
    jw_int(&t, "tokens", b->tokens);
    jw_int(&t, "upload_bytes", b->upload_bytes);
    jw_int(&t, "download_bytes", b->download_bytes);
    jw_num(&t, "eval_loss", b->eval_loss);
    jw_array(&t, "moments"); // after which round, by silo
    for (int i = 0; i < count; i++) {
        jw_int(&t, NULL, silos[i].settled);
    }
    jw_end_array(&t);
    jw_end_object(&t);
    sim_book_path(b, BOOK, path);
    enum status st = file_write(path, t.data, t.len, e);
    buf_release(&t);
    return st;
}

/* ---- reading ---- */

static enum status read_digest(const struct json *o, const char *key, struct digest *out,
                               struct err *e)
{
    const char *hex = NULL;
    TRY(json_want_str(o, key, &hex, e));
    return digest_parse(out, hex, e);
}

static enum status read_moments(const struct json *o, struct sim_silo *silos, int count,
                                int64_t round, struct err *e)
{
    const struct json *list = json_get(o, "moments");
    bool ok = list && json_kind(list) == JSON_ARRAY && json_len(list) == count;
    for (int i = 0; ok && i < count; i++) {
        ok = json_is_int(json_at(list, i), 0, round);
    }
    if (!ok) {
        return err_set(e, ST_CORRUPT, "sim.json does not know the silos' moments");
    }
    for (int i = 0; i < count; i++) {
        silos[i].settled = (int32_t)json_int(json_at(list, i));
    }
    return ST_OK;
}

static enum status parse(struct sim_book *b, const struct run_spec *spec, struct sim_silo *silos,
                         int count, const struct json *o, struct err *e)
{
    const int64_t most = (int64_t)1 << 53;
    const char *identity = NULL;
    int64_t round = 0;
    struct sim_book n = *b;
    TRY(json_want_str(o, "identity", &identity, e));
    if (strcmp(identity, b->identity) != 0) {
        return err_set(e, ST_CONFLICT,
                       "%.150s holds a simulation of another spec, silos or text; try another -o",
                       b->dir);
    }
    TRY(json_want_int(o, "round", 0, spec->federation.rounds, &round, e));
    TRY(read_digest(o, "weights", &n.weights, e));
    TRY(json_want_int(o, "weights_bytes", 0, most, &n.weights_bytes, e));
    n.has_state = json_get(o, "state") != NULL;
    if (n.has_state) {
        TRY(read_digest(o, "state", &n.state, e));
    }
    TRY(json_want_int(o, "tokens", 0, most, &n.tokens, e));
    TRY(json_want_int(o, "upload_bytes", 0, most, &n.upload_bytes, e));
    TRY(json_want_int(o, "download_bytes", 0, most, &n.download_bytes, e));
    const struct json *loss = json_get(o, "eval_loss");
    n.eval_loss = loss && json_kind(loss) == JSON_NUMBER ? json_num(loss) : (double)NAN;
    TRY(read_moments(o, silos, count, round, e));
    n.round = (int32_t)round;
    *b = n;
    return ST_OK;
}

enum status sim_book_read(struct sim_book *b, const struct run_spec *spec, struct sim_silo *silos,
                          int count, bool *found, struct err *e)
{
    char path[SIM_PATH_MAX];
    const struct json *o = NULL;
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    char *text = arena_alloc(a, BOOK_MAX);
    sim_book_path(b, BOOK, path);
    enum status st = file_read(path, text, BOOK_MAX, e);
    *found = st == ST_OK;
    if (!st) {
        st = json_parse(&o, a, text, strlen(text), e);
        st = st ? st : parse(b, spec, silos, count, o, e);
    } else if (st == ST_NOT_FOUND) {
        st = ST_OK;
    }
    arena_free(a);
    return st;
}
