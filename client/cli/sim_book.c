#include "client/cli/sim_book.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/durable.h"
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
        text = arena_fmt(a, "\n%s %" PRId64 " %" PRId64 " %.17g", silos[i].name, info.train_tokens,
                         info.heldout_tokens, silos[i].speed);
        sha256_add(h, text, strlen(text));
    }
    text = arena_fmt(a, "\ndrop %.17g", drop);
    sha256_add(h, text, strlen(text));
    sha256_end(h, &d);
    sha256_free(h);
    arena_free(a);
    *b = (struct sim_book){
        .dir = dir, .eval_loss = (double)NAN, .steps = spec->codec.down != CODEC_F32};
    digest_hex(&d, b->identity);
    return dir_make(dir, e);
}

/* Where the step to a checkpoint is noted. */
static int step_at(int32_t number)
{
    return number % STEP_CHAIN_MAX;
}

static int32_t oldest_step(int32_t round)
{
    return round > STEP_CHAIN_MAX ? round - STEP_CHAIN_MAX + 1 : 1;
}

int64_t sim_book_down(const struct sim_book *b, const struct run_spec *spec,
                      const struct sim_silo *silo)
{
    int32_t from = silo->held; // the step after what it has, which is held - 1
    int64_t sum = 0;
    if (spec->codec.down == CODEC_F32 || from == 0 || from < oldest_step(b->round)) {
        return b->weights_bytes;
    }
    for (int32_t n = from; n <= b->round; n++) {
        sum += b->step_bytes[step_at(n)];
        if (b->step_bytes[step_at(n)] == 0 || sum >= b->weights_bytes) {
            return b->weights_bytes;
        }
    }
    return sum;
}

static void print_digest(struct buf *b, const char *key, const struct digest *d)
{
    char hex[DIGEST_HEX + 1];
    digest_hex(d, hex);
    jw_str(b, key, hex);
}

/* What the way down needs; nothing where every silo takes all weights. */
static void print_down(struct buf *t, const struct sim_book *b, const struct sim_silo *silos,
                       int count)
{
    if (!b->steps) {
        return;
    }
    jw_int(t, "tripped", b->tripped);
    jw_array(t, "steps"); // bytes, the oldest first
    for (int32_t n = oldest_step(b->round); n <= b->round; n++) {
        jw_int(t, NULL, b->step_bytes[step_at(n)]);
    }
    jw_end_array(t);
    jw_array(t, "held"); // by silo
    for (int i = 0; i < count; i++) {
        jw_int(t, NULL, silos[i].held);
    }
    jw_end_array(t);
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
    print_down(&t, b, silos, count);
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

/* A list of count whole numbers from 0 to most. */
static enum status want_list(const struct json *o, const char *key, int count, int64_t most,
                             const struct json **out, struct err *e)
{
    const struct json *list = json_get(o, key);
    bool ok = list && json_kind(list) == JSON_ARRAY && json_len(list) == count;
    for (int i = 0; ok && i < count; i++) {
        ok = json_is_int(json_at(list, i), 0, most);
    }
    *out = list;
    return ok ? ST_OK : err_set(e, ST_CORRUPT, "sim.json has no sound list of %s", key);
}

static enum status read_moments(const struct json *o, struct sim_silo *silos, int count,
                                int64_t round, struct err *e)
{
    const struct json *list = NULL;
    TRY(want_list(o, "moments", count, round, &list, e));
    for (int i = 0; i < count; i++) {
        silos[i].settled = (int32_t)json_int(json_at(list, i));
    }
    return ST_OK;
}

static enum status read_down(struct sim_book *b, const struct json *o, struct sim_silo *silos,
                             int count, struct err *e)
{
    const struct json *steps = NULL;
    const struct json *held = NULL;
    int64_t tripped = 0;
    int32_t first = oldest_step(b->round);
    if (!b->steps) {
        return ST_OK;
    }
    TRY(json_want_int(o, "tripped", 0, b->round, &tripped, e));
    TRY(want_list(o, "steps", b->round - first + 1, LIMIT_BLOB, &steps, e));
    TRY(want_list(o, "held", count, b->round + 1, &held, e));
    b->tripped = (int32_t)tripped;
    for (int32_t n = first; n <= b->round; n++) {
        b->step_bytes[step_at(n)] = json_int(json_at(steps, n - first));
    }
    for (int i = 0; i < count; i++) {
        silos[i].held = (int32_t)json_int(json_at(held, i));
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
                       "%.150s holds a simulation of another spec, silos or text, or an older "
                       "program's; try another -o",
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
    TRY(read_down(&n, o, silos, count, e));
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
