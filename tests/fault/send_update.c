/*
 * send_update.c - a silo without an engine: the product's own transfer code, deltas out of a hat.
 *
 *     send_update STATE CONTROL_URL BULK_URL UPLOADS [--fetch] [--again] [--rate BYTES_PER_S]
 *
 * STATE has joined a server. Claims tasks until so many updates are accepted: the deltas are small
 * finite numbers, the same in every round, and go up by client/agent_upload.c over BULK_URL, which
 * may lead through a proxy. With --fetch each round's base is downloaded first
 * (client/agent_base.c) and thus compared with its digest; with --again it then waits for a line on
 * standard input, and for "again" forgets what it got and gets it once more. Evaluations are
 * answered with a number.
 * One JSON line for each transfer; the exit code is 0 when all updates were accepted.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "common/clock.h"
#include "common/hash.h"
#include "common/mem.h"
#include "common/params.h"
#include "common/rng.h"
#include "common/safetensors.h"

enum { BLOCK = 1 << 18 };

static struct agent agent;
static struct agent_config config;
static bool fetches, again;

static void die(const char *what, const struct err *e)
{
    (void)fprintf(stderr, "send_update: %s: %s\n", what, e->msg);
    exit(1);
}

/* ---- what leaves ---- */

/* The pieces of the upload at hand (the linker puts this in transport_chunk()'s place). */
static struct {
    int pieces, broken;    // broken: no answer came
    int64_t largest, lost; // of a piece; of one broken piece, what had left
} seen;

enum status __real_transport_chunk(struct transport *t, struct arena *a, struct chunk *c,
                                   struct reply *out, struct err *e);
enum status __wrap_transport_chunk(struct transport *t, struct arena *a, struct chunk *c,
                                   struct reply *out, struct err *e);

enum status __wrap_transport_chunk(struct transport *t, struct arena *a, struct chunk *c,
                                   struct reply *out, struct err *e)
{
    enum status st = __real_transport_chunk(t, a, c, out, e);
    seen.pieces++;
    seen.largest = c->bytes > seen.largest ? c->bytes : seen.largest;
    if (out->http == 0) {
        seen.broken++;
        seen.lost = c->sent > seen.lost ? c->sent : seen.lost;
    }
    return st;
}

/* ---- the update ---- */

static void write_all(int fd, const void *bytes, size_t len, struct sha256 *h)
{
    const char *p = bytes;
    sha256_add(h, bytes, len);
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n <= 0) {
            struct err e = {0};
            (void)err_set(&e, ST_IO, "short write");
            die("update file", &e);
        }
        p += n;
        len -= (size_t)n;
    }
}

/* As client/agent_train.c writes it, with numbers that nobody trained. */
static void write_update(const struct task *t, struct run_state *rs)
{
    struct arena *a = arena_new(16 << 20);
    struct param_table table = params_table(a, &t->spec.model);
    const struct st_meta meta[] = {
        {"kind", "update"},
        {"run", t->run_name},
        {"round", arena_fmt(a, "%08" PRId64, t->round)},
        {"base", t->base_sha256},
        {"codec", "f32"},
        {"silo", agent.id.name},
        {"tokens", arena_fmt(a, "%016" PRId64, rs->j.tokens)},
        {"steps", arena_fmt(a, "%016" PRId64, t->local_steps)},
    };
    int64_t len = 0;
    const void *header = st_params_header(a, &table, meta, sizeof(meta) / sizeof(meta[0]), &len);
    char path[STATE_PATH_MAX];
    run_state_path(rs, STATE_UPDATE, path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    struct sha256 *h = sha256_new();
    write_all(fd, header, (size_t)len, h);
    static float block[BLOCK];
    for (int64_t i = 0; i < BLOCK && block[BLOCK - 1] == 0.0F; i++) {
        block[i] = (float)(1e-4 * rng_normal(1, (uint64_t)i) + 1e-9);
    }
    for (int64_t at = 0; at < table.total; at += BLOCK) {
        int64_t n = table.total - at < BLOCK ? table.total - at : BLOCK;
        write_all(fd, block, (size_t)n * sizeof(float), h);
    }
    struct digest d;
    sha256_end(h, &d);
    digest_hex(&d, rs->j.sha256);
    sha256_free(h);
    (void)fsync(fd);
    (void)close(fd);
    rs->j.bytes = len + table.total * (int64_t)sizeof(float);
    arena_free(a);
}

static bool upload(const struct task *t, struct beat *b, struct arena *arena)
{
    struct run_state rs;
    struct err e = {0};
    struct round_key key = task_key(t);
    if (run_state_open(&rs, config.state_dir, t->run, &e)) {
        die("state", &e);
    }
    if (!round_key_equal(&rs.j.key, &key) || rs.j.phase != JOURNAL_TRAINED) {
        if (rs.j.phase == JOURNAL_TRAINED && run_state_settle(&rs, true, &e)) {
            die("settle", &e);
        }
        if (run_state_begin(&rs, &key, &e)) {
            die("begin", &e);
        }
        rs.j.tokens = t->local_steps * t->spec.inner.batch * t->spec.model.seq_len;
        rs.j.train_loss = 5.0;
        write_update(t, &rs);
        if (run_state_trained(&rs, &e)) {
            die("trained", &e);
        }
    }
    int64_t before = agent.sent_bytes;
    double begin = clock_mono_s();
    memset(&seen, 0, sizeof(seen));
    enum task_end end = agent_upload(&agent, t, &rs, b, arena);
    double seconds = clock_mono_s() - begin;
    (void)printf("{\"transfer\":\"upload\",\"round\":%" PRId64 ",\"bytes\":%" PRId64
                 ",\"sent\":%" PRId64 ",\"seconds\":%.4f,\"end\":%d,\"pieces\":%d,\"broken\":%d,"
                 "\"largest\":%" PRId64 ",\"lost\":%" PRId64 ",\"sha256\":\"%s\"}\n",
                 t->round, rs.j.bytes, agent.sent_bytes - before, seconds, (int)end, seen.pieces,
                 seen.broken, seen.largest, seen.lost, rs.j.sha256);
    (void)fflush(stdout);
    return end == TASK_DONE;
}

static void fetch_once(const struct task *t, struct beat *b, struct arena *arena)
{
    struct own_base base = {.fd = -1};
    double seconds = 0.0;
    struct err e = {0};
    int64_t before = agent.received_bytes;
    if (agent_base(&agent, t, b, arena, &base, &seconds, &e)) {
        die("the base", &e);
    }
    (void)close(base.fd);
    (void)printf("{\"transfer\":\"download\",\"round\":%" PRId64 ",\"bytes\":%" PRId64
                 ",\"received\":%" PRId64 ",\"seconds\":%.4f}\n",
                 t->round, t->base_bytes, agent.received_bytes - before, seconds);
    (void)fflush(stdout);
}

static void fetch(const struct task *t, struct beat *b, struct arena *arena)
{
    char path[STATE_PATH_MAX];
    char line[16];
    agent_cache_path(&agent, t->base_sha256, path);
    fetch_once(t, b, arena);
    while (again && fgets(line, sizeof(line), stdin) && strcmp(line, "again\n") == 0) {
        (void)unlink(path);
        fetch_once(t, b, arena);
    }
}

/* ---- tasks ---- */

static void evaluate(const struct task *t, struct arena *arena)
{
    struct reply r;
    struct err e = {0};
    const char *body = arena_fmt(arena,
                                 "{\"epoch\":%" PRId64 ",\"nll\":40.0,\"tokens\":7,\"bytes\":7,"
                                 "\"seconds\":0.1,\"download_s\":0.1}",
                                 t->epoch);
    if (transport_call_retry(agent.control, arena, "POST",
                             arena_fmt(arena, "/silo/v1/tasks/%s/result", t->id), body, 60.0, &r,
                             &e)) {
        (void)fprintf(stderr, "send_update: evaluation: %s\n", e.msg);
    }
}

static bool train(const struct task *t, struct arena *arena)
{
    struct err e = {0};
    struct beat *b = NULL;
    struct beat_config bc = {.url = transport_url(agent.control),
                             .token = agent.id.token,
                             .task = t->id,
                             .epoch = t->epoch,
                             .heartbeat_s = t->heartbeat_s};
    if (beat_start(&b, &bc, &e)) {
        die("heartbeats", &e);
    }
    if (fetches) {
        fetch(t, b, arena);
    }
    bool done = upload(t, b, arena);
    beat_stop(b, 1.0);
    return done;
}

/* Claims once; whether an update was accepted. */
static bool turn(void)
{
    struct arena *arena = arena_new(64 << 20);
    struct reply r;
    struct err e = {0};
    struct task t;
    bool accepted = false;
    enum status st = transport_call_retry(agent.control, arena, "POST", "/silo/v1/tasks/claim",
                                          "{\"agent\":\"driver\",\"wait_s\":10}", 120.0, &r, &e);
    if (st) {
        die("claim", &e);
    }
    if (r.http == 200) {
        if (!r.json || task_parse(&t, r.json, &e)) {
            die("task", &e);
        }
        if (t.kind == TASK_EVALUATE) {
            evaluate(&t, arena);
        } else {
            accepted = train(&t, arena);
        }
    }
    arena_free(arena);
    return accepted;
}

static void hello(void)
{
    struct arena *arena = arena_new(16 << 20);
    struct reply r;
    struct err e = {0};
    if (transport_call_retry(agent.control, arena, "POST", "/silo/v1/hello",
                             "{\"agent\":\"driver\",\"version\":\"0.1.0\",\"device\":\"none\","
                             "\"tokens_per_s\":null,\"tokenizer_sha256\":\"\",\"train_tokens\":"
                             "1000000,\"heldout_tokens\":100000}",
                             60.0, &r, &e)) {
        die("hello", &e);
    }
    arena_free(arena);
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        (void)fprintf(stderr, "usage: send_update STATE CONTROL_URL BULK_URL UPLOADS [--fetch]"
                              " [--again] [--rate BYTES_PER_S]\n");
        return 2;
    }
    struct err e = {0};
    (void)signal(SIGPIPE, SIG_IGN);
    config.state_dir = argv[1];
    struct transport_config bulk = {.url = argv[3]};
    long uploads = strtol(argv[4], NULL, 10);
    for (int i = 5; i < argc; i++) {
        if (strcmp(argv[i], "--fetch") == 0) {
            fetches = true;
        } else if (strcmp(argv[i], "--again") == 0) {
            again = true;
        } else if (strcmp(argv[i], "--rate") == 0 && i + 1 < argc) {
            bulk.max_bytes_per_s = strtoll(argv[++i], NULL, 10);
        }
    }
    agent = (struct agent){.config = &config, .tokens_per_s = (double)NAN};
    progress_init(&agent.progress, stderr);
    char cache[STATE_PATH_MAX];
    char steps[STATE_PATH_MAX];
    (void)snprintf(cache, sizeof(cache), "%.900s/cache", config.state_dir);
    (void)snprintf(steps, sizeof(steps), "%.900s/steps", config.state_dir);
    if (identity_read(config.state_dir, &agent.id, &e) || dir_make(cache, &e) ||
        dir_make(steps, &e)) {
        die("state", &e);
    }
    (void)snprintf(agent.id.url, sizeof(agent.id.url), "%s", argv[2]);
    struct transport_config control = {.url = argv[2], .token = agent.id.token};
    bulk.token = agent.id.token;
    if (transport_open(&agent.control, &control, &e) || transport_open(&agent.bulk, &bulk, &e)) {
        die("transport", &e);
    }
    hello();
    long accepted = 0;
    for (long turns = 0; accepted < uploads && turns < 20 * uploads + 100; turns++) {
        accepted += turn();
    }
    transport_close(agent.bulk);
    transport_close(agent.control);
    return accepted == uploads ? 0 : 1;
}
