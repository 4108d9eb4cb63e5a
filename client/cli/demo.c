#include "client/cli/demo.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/data.h"
#include "client/progress.h"
#include "client/state.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/json.h"

enum {
    FIRST_PORT = 8080,
    PORTS_TRIED = 100,
    READY_S = 120,
    RESTARTS_MAX = 5,
    JSON_MAX = 64 * 1024,
    DEFAULT_ROUNDS = 20
};

void demo_path(char out[DEMO_PATH_MAX], const struct demo *d, const char *sub, const char *name)
{
    (void)snprintf(out, DEMO_PATH_MAX, "%.300s/%.40s%s%.80s", d->state, sub, *name ? "/" : "",
                   name);
}

/* ---- demo.json ---- */

enum status demo_save(const struct demo *d, struct err *e)
{
    char path[DEMO_PATH_MAX];
    struct buf b;
    buf_init(&b, JSON_MAX);
    jw_object(&b, NULL);
    jw_int(&b, "port", d->port);
    jw_int(&b, "bulk_port", d->bulk_port);
    jw_str(&b, "run", d->run);
    jw_int(&b, "runs_made", d->runs_made);
    jw_array(&b, "silos");
    for (int i = 0; i < d->silo_count; i++) {
        jw_str(&b, NULL, d->silos[i].name);
    }
    jw_end_array(&b);
    jw_end_object(&b);
    demo_path(path, d, "demo.json", "");
    enum status st = file_write(path, b.data, b.len, e);
    buf_release(&b);
    return st;
}

static enum status read_demo(struct demo *d, const struct json *o, struct err *e)
{
    int64_t port = 0;
    int64_t bulk = 0;
    int64_t made = 0;
    const char *run = NULL;
    const struct json *silos = json_get(o, "silos");
    TRY(json_want_int(o, "port", 0, 65535, &port, e));
    TRY(json_want_int(o, "bulk_port", 0, 65535, &bulk, e));
    TRY(json_want_int(o, "runs_made", 0, 1000000, &made, e));
    TRY(json_want_str(o, "run", &run, e));
    if (!silos || json_kind(silos) != JSON_ARRAY || json_len(silos) > DEMO_SILOS_MAX) {
        return err_set(e, ST_CORRUPT, "no list of silos");
    }
    for (int i = 0; i < json_len(silos); i++) {
        const char *name = json_str(json_at(silos, i));
        (void)snprintf(d->silos[i].name, sizeof(d->silos[i].name), "%s", name ? name : "");
    }
    d->silo_count = json_len(silos);
    d->port = (int)port;
    d->bulk_port = (int)bulk;
    d->runs_made = (int)made;
    (void)snprintf(d->run, sizeof(d->run), "%s", run);
    return ST_OK;
}

enum status demo_load(struct demo *d, struct err *e)
{
    char path[DEMO_PATH_MAX];
    struct arena *a = arena_new(1 << 20);
    char *text = arena_alloc(a, JSON_MAX);
    const struct json *o = NULL;
    demo_path(path, d, "demo.json", "");
    enum status st = file_read(path, text, JSON_MAX, e);
    if (!st) {
        st = json_parse(&o, a, text, strlen(text), e);
        st = st ? st : read_demo(d, o, e);
        if (st) {
            st = err_set(e, ST_CORRUPT, "%s is damaged; try another --state", path);
        }
    } else if (st == ST_NOT_FOUND) {
        st = ST_OK; // the first time
    }
    arena_free(a);
    return st;
}

/* ---- text ---- */

/* What the silo has, as counted after preparing: a folder's or a compressed file's size says
 * little. */
static enum status show_text(const struct demo_source *s, const char *dir, struct err *e)
{
    struct data *data = NULL;
    struct data_source_arg from = {.dir = dir, .weight = 1.0};
    TRY(data_open(&data, &from, 1, e));
    struct data_info info;
    data_info(data, &info);
    data_close(data);
    char train[16];
    char heldout[16];
    format_count(train, (double)info.train_tokens);
    format_count(heldout, (double)info.heldout_tokens);
    (void)printf("  %-14s %8s tokens, %s held out\n", s->name, train, heldout);
    (void)fflush(stdout);
    return ST_OK;
}

static enum status prepare_one(struct demo *d, const struct demo_source *s, struct err *e)
{
    char out[DEMO_PATH_MAX];
    char manifest[DEMO_PATH_MAX];
    demo_path(out, d, "data", s->name);
    (void)snprintf(manifest, sizeof(manifest), "%.480s/manifest.json", out);
    struct proc p = {.name = "photon data prepare",
                     .argv = {d->bin, "data", "prepare", s->path, "-o", out, NULL}};
    char program[DEMO_PATH_MAX];
    (void)snprintf(program, sizeof(program), "%.480s/photon", d->bin);
    p.argv[0] = program;
    demo_path(p.log, d, "logs", "prepare.log");
    if (access(manifest, R_OK) == 0) {
        return ST_OK;
    }
    if (proc_run(&p, demo_stopping, e)) {
        if (!demo_stopping()) {
            proc_show_log(&p);
        }
        return e->st ? e->st : ST_IO;
    }
    return show_text(s, out, e);
}

enum status demo_prepare(struct demo *d, struct err *e)
{
    char dir[DEMO_PATH_MAX];
    static const char *const folders[] = {"text", "data", "silos", "logs"};
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        demo_path(dir, d, folders[i], "");
        TRY(dir_make(dir, e));
    }
    if (d->silo_count > 0) {
        return ST_OK;
    }
    (void)printf("Looking for text: a different kind for each silo\n");
    demo_path(dir, d, "text", "");
    int want = (int)d->silos_wanted;
    TRY(d->data ? demo_text_given(d->data, want > 0 ? want : DEMO_SILOS_MAX, d->silos,
                                  &d->silo_count, e)
                : demo_text_find(dir, want > 0 ? want : 4, d->silos, &d->silo_count, e));
    int count = d->silo_count;
    d->silo_count = 0; // until all of it is there, a next start does it again
    for (int i = 0; i < count; i++) {
        TRY(prepare_one(d, &d->silos[i], e));
    }
    d->silo_count = count;
    return demo_save(d, e);
}

/* ---- ports ---- */

static bool port_free(int port)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof(at)) == 0;
    if (fd >= 0) {
        (void)close(fd);
    }
    return ok;
}

static int next_free(int from, int besides)
{
    for (int p = from; p < from + PORTS_TRIED && p < 65536; p++) {
        if (p != besides && port_free(p)) {
            return p;
        }
    }
    return 0;
}

/* The ports of the last time where they are free: bookmarks stay good. */
static enum status choose_ports(struct demo *d, struct err *e)
{
    if (d->port_wanted > 0) {
        d->port = (int)d->port_wanted;
        if (!port_free(d->port)) {
            return err_set(e, ST_CONFLICT, "port %d is taken; try another --port, or none",
                           d->port);
        }
    } else if (d->port == 0 || !port_free(d->port)) {
        d->port = next_free(FIRST_PORT, 0);
    }
    if (d->bulk_port == 0 || d->bulk_port == d->port || !port_free(d->bulk_port)) {
        d->bulk_port = next_free(d->port + 1, d->port);
    }
    if (d->port == 0 || d->bulk_port == 0) {
        return err_set(e, ST_CONFLICT, "no free port from %d on; try --port", FIRST_PORT);
    }
    (void)snprintf(d->url, sizeof(d->url), "http://127.0.0.1:%d", d->port);
    return ST_OK;
}

/* ---- server ---- */

static enum status start_server(struct demo *d, struct err *e)
{
    static char program[DEMO_PATH_MAX];
    static char data[DEMO_PATH_MAX];
    static char listen[64];
    static char bulk[64];
    (void)snprintf(program, sizeof(program), "%.480s/photon-server", d->bin);
    demo_path(data, d, "server", "");
    (void)snprintf(listen, sizeof(listen), "127.0.0.1:%d", d->port);
    (void)snprintf(bulk, sizeof(bulk), "127.0.0.1:%d", d->bulk_port);
    struct proc *p = &d->server;
    (void)snprintf(p->name, sizeof(p->name), "photon-server");
    demo_path(p->log, d, "logs", "server.log");
    const char *const argv[] = {program, "--data", data, "--listen", listen, "--bulk-listen", bulk};
    memcpy(p->argv, argv, sizeof(argv));
    return proc_start(p, e);
}

static enum status wait_ready(struct demo *d, struct err *e)
{
    struct transport_config c = {.url = d->url};
    struct transport *t = NULL;
    TRY(transport_open(&t, &c, e));
    transport_timeout(t, 5.0);
    enum status st = ST_RETRY;
    double until = clock_mono_s() + READY_S;
    while (st && clock_mono_s() < until && !demo_stopping()) {
        int code = 0;
        if (proc_ended(&d->server, &code)) {
            st = err_set(e, ST_IO, "photon-server ended with status %d", code);
            break;
        }
        struct arena *a = arena_new(1 << 24);
        struct reply r;
        st = transport_call(t, a, "GET", "/readyz", NULL, &r, e);
        arena_free(a);
        if (st) {
            clock_sleep_ms(100);
        }
    }
    transport_close(t);
    if (st && !demo_stopping()) {
        proc_show_log(&d->server);
    }
    return st;
}

/* What `photon` commands run beside the demo look for. */
static enum status publish(struct demo *d, struct err *e)
{
    char from[DEMO_PATH_MAX];
    char path[DEMO_PATH_MAX];
    static char token[4096];
    demo_path(from, d, "server", "admin-token");
    TRY(file_read(from, token, sizeof(token), e));
    demo_path(path, d, "admin-token", "");
    TRY(file_write(path, token, strlen(token), e));
    struct api_options o = {.server = d->url};
    static char token_path[DEMO_PATH_MAX];
    (void)snprintf(token_path, sizeof(token_path), "%s", path);
    o.token_file = token_path;
    if (api_open(&d->api, &o)) {
        return err_set(e, ST_INVALID, "the server's admin token cannot be used");
    }
    d->api_open = true;
    demo_path(path, d, "url", "");
    TRY(file_write(path, d->url, strlen(d->url), e));
    return demo_save(d, e);
}

/* ---- silos ---- */

static enum status make_token(struct demo *d, const char *name, const char *file, struct err *e)
{
    struct reply r;
    struct buf b;
    buf_init(&b, 1024);
    jw_object(&b, NULL);
    jw_str(&b, "role", "join");
    jw_str(&b, "name", name);
    jw_int(&b, "ttl_s", 3600);
    jw_end_object(&b);
    int rc = api_call(&d->api, "POST", "/api/v1/tokens", b.data, &r);
    buf_release(&b);
    const char *secret = rc ? NULL : api_text(r.json, "secret", NULL);
    if (!secret) {
        return err_set(e, ST_DENIED, "no join token for %s", name);
    }
    return file_write(file, secret, strlen(secret), e);
}

/* A real enrolment: token made over the API, traded by `photon-client join`. */
static enum status join_silo(struct demo *d, const char *name, struct err *e)
{
    char state[DEMO_PATH_MAX];
    char token[DEMO_PATH_MAX];
    char program[DEMO_PATH_MAX];
    struct silo_identity id;
    struct err unused = {0};
    demo_path(state, d, "silos", name);
    if (identity_read(state, &id, &unused) == ST_OK) {
        if (strcmp(id.url, d->url) == 0) {
            return ST_OK;
        }
        (void)snprintf(id.url, sizeof(id.url), "%s", d->url); // the port was taken this time
        return identity_write(state, &id, e);
    }
    (void)snprintf(token, sizeof(token), "%.480s.join-token", state);
    TRY(make_token(d, name, token, e));
    (void)snprintf(program, sizeof(program), "%.480s/photon-client", d->bin);
    struct proc p = {.name = "photon-client join",
                     .argv = {program, "join", d->url, "--name", name, "--token-file", token,
                              "--state", state, NULL}};
    (void)snprintf(p.log, sizeof(p.log), "%.400s/logs/%.64s.log", d->state, name);
    int code = proc_run(&p, demo_stopping, e);
    (void)unlink(token);
    if (code) {
        if (!demo_stopping()) {
            proc_show_log(&p);
        }
        return e->st ? e->st : ST_IO;
    }
    return ST_OK;
}

static enum status start_silo(struct demo *d, int i, struct err *e)
{
    static char programs[DEMO_PATH_MAX];
    static char states[DEMO_SILOS_MAX][DEMO_PATH_MAX];
    static char datas[DEMO_SILOS_MAX][DEMO_PATH_MAX];
    struct proc *p = &d->clients[i];
    const char *name = d->silos[i].name;
    (void)snprintf(programs, sizeof(programs), "%.480s/photon-client", d->bin);
    demo_path(states[i], d, "silos", name);
    demo_path(datas[i], d, "data", name);
    (void)snprintf(p->name, sizeof(p->name), "%s", name);
    (void)snprintf(p->log, sizeof(p->log), "%.400s/logs/%.64s.log", d->state, name);
    const char *const argv[] = {programs, "start",     "--state", states[i], "--data",
                                datas[i], "--threads", "1",       NULL};
    memcpy(p->argv, argv, sizeof(argv));
    return proc_start(p, e);
}

enum status demo_launch(struct demo *d, struct err *e)
{
    TRY(choose_ports(d, e));
    // Several silos share the cores: a thread that spins while it waits would rob the others.
    (void)setenv("OMP_WAIT_POLICY", "passive", 1);
    (void)printf("Starting photon-server with a PostgreSQL of its own\n");
    (void)fflush(stdout);
    TRY(start_server(d, e));
    TRY(wait_ready(d, e));
    TRY(publish(d, e));
    (void)printf("Enrolling %d silos:", d->silo_count);
    for (int i = 0; i < d->silo_count; i++) {
        (void)printf(" %s", d->silos[i].name);
        (void)fflush(stdout);
        TRY(join_silo(d, d->silos[i].name, e));
        TRY(start_silo(d, i, e));
    }
    (void)printf("\n");
    return ST_OK;
}

void demo_stop(struct demo *d)
{
    proc_stop(d->clients, d->silo_count, 15.0);
    proc_stop(&d->server, 1, 30.0);
    if (d->api_open) {
        api_close(&d->api);
        d->api_open = false;
    }
}

/* ---- while it runs ---- */

static bool restart(struct demo *d, struct proc *p, int code)
{
    struct err e = {0};
    (void)fprintf(stderr, "\n%s ended with status %d and is started again; its log is %s\n",
                  p->name, code, p->log);
    if (++p->restarts > RESTARTS_MAX || proc_start(p, &e)) {
        proc_show_log(p);
        (void)snprintf(d->why, sizeof(d->why), "%s does not stay up: %.120s", p->name, e.msg);
        return false;
    }
    return true;
}

/* Is that silo in the middle of its training of that round? */
static bool is_training(const struct demo *d, int i, int64_t round)
{
    char path[DEMO_PATH_MAX];
    char state[DEMO_PATH_MAX];
    char text[8192];
    struct err unused = {0};
    const struct json *o = NULL;
    demo_path(state, d, "silos", d->silos[i].name);
    (void)snprintf(path, sizeof(path), "%.480s/status.json", state);
    struct arena *a = arena_new(1 << 20);
    bool yes = file_read(path, text, sizeof(text), &unused) == ST_OK &&
               json_parse(&o, a, text, strlen(text), &unused) == ST_OK &&
               json_kind(o) == JSON_OBJECT && api_integer(o, "round", 0) == round &&
               api_integer(o, "step", 0) > 0 && strcmp(api_text(o, "status", ""), "training") == 0;
    arena_free(a);
    return yes;
}

static void kill_as_asked(struct demo *d)
{
    int i = (int)d->kill_silo - 1;
    if (d->kill_silo < 1 || i >= d->silo_count || d->clients[i].pid <= 0 ||
        !is_training(d, i, d->kill_round)) {
        return;
    }
    struct err e = {0};
    (void)fprintf(stderr,
                  "\nkill -9 of silo %s in round %" PRId64 ", as asked; it is started again\n",
                  d->silos[i].name, d->kill_round);
    d->kill_silo = 0;
    proc_kill(&d->clients[i]);
    if (proc_start(&d->clients[i], &e)) {
        (void)fprintf(stderr, "%s\n", e.msg);
    }
}

bool demo_tend(struct demo *d)
{
    int code = 0;
    if (proc_ended(&d->server, &code) && !restart(d, &d->server, code)) {
        return false;
    }
    for (int i = 0; i < d->silo_count; i++) {
        if (proc_ended(&d->clients[i], &code) && !restart(d, &d->clients[i], code)) {
            return false;
        }
    }
    kill_as_asked(d);
    return true;
}

/* ---- the run ---- */

static void spec_text(const struct demo *d, struct buf *b)
{
    int64_t rounds = d->rounds > 0 ? d->rounds : DEFAULT_ROUNDS;
    jw_object(b, NULL);
    buf_fmt(b, "\"name\":\"demo-%d\",", d->runs_made + 1);
    buf_str(b, "\"experiment\":\"demo\",\"seed\":17,"
               "\"model\":{\"d_model\":128,\"n_heads\":4,\"n_layers\":4,\"vocab_size\":320,"
               "\"seq_len\":128,\"position\":\"learned\",\"bias\":true},");
    buf_fmt(b,
            "\"federation\":{\"rounds\":%" PRId64 ",\"silos_per_round\":%d,\"local_steps\":96},"
            "\"inner\":{\"optimizer\":\"adamw\",\"lr\":0.003,\"betas\":[0.9,0.95],\"eps\":1e-8,"
            "\"weight_decay\":0,\"clip_norm\":1.0,\"batch\":8,\"warmup\":32,\"min_lr_ratio\":0.1},",
            rounds, d->silo_count);
    buf_str(b, "\"outer\":{\"name\":\"fedavg\",\"lr\":1.0},\"inner_state\":\"keep\","
               "\"eval\":{\"every\":1,\"windows\":32},\"keep_checkpoints\":3");
    jw_end_object(b);
}

/* Is the run of the last time still to be finished? */
static bool goes_on(struct demo *d)
{
    struct reply r;
    if (!d->run[0] ||
        api_call(&d->api, "GET", arena_fmt(d->api.arena, "/api/v1/runs/%s", d->run), NULL, &r)) {
        return false;
    }
    const char *state = api_text(r.json, "state", "");
    if (strcmp(state, "paused") == 0) {
        (void)api_call(&d->api, "POST", arena_fmt(d->api.arena, "/api/v1/runs/%s/actions", d->run),
                       "{\"action\":\"resume\"}", &r);
        return true;
    }
    return strcmp(state, "running") == 0 || strcmp(state, "created") == 0;
}

enum status demo_submit(struct demo *d, struct err *e)
{
    if (goes_on(d)) {
        (void)printf("The run of before goes on\n");
        return ST_OK;
    }
    struct buf b;
    struct reply r;
    buf_init(&b, JSON_MAX);
    spec_text(d, &b);
    int rc = api_call(&d->api, "POST", "/api/v1/runs", b.data, &r);
    buf_release(&b);
    const char *id = rc ? NULL : api_text(r.json, "id", NULL);
    if (!id) {
        return err_set(e, ST_INVALID, "the server does not take the demo's run");
    }
    (void)snprintf(d->run, sizeof(d->run), "%s", id);
    d->runs_made++;
    return demo_save(d, e);
}
