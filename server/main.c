/*
 * photon-server: the aggregator. This file starts the parts in the order in which they need each
 * other, waits for a signal, and stops them in the reverse order.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/mem.h"
#include "common/version.h"
#include "server/admin_token.h"
#include "server/blob.h"
#include "server/check.h"
#include "server/cluster.h"
#include "server/coordinator.h"
#include "server/db.h"
#include "server/db_role.h"
#include "server/http.h"
#include "server/http_listen.h"
#include "server/hub.h"
#include "server/migrate.h"
#include "server/pace.h"
#include "server/s3.h"
#include "server/server.h"
#include "server/server_options.h"
#include "server/service.h"
#include "server/settings.h"
#include "server/static_files.h"
#include "server/tls.h"
#include "server/upload_hash.h"

enum {
    TEND_MS = 250,
    CERTIFICATE_MS = 3600 * 1000, // it is looked at so often
    DATABASE_WAIT_MS = 10000,     // of a database that is only just starting
    ASIDE_CONNECTIONS = 2, // beside the workers': the herald's, and that of the event streams
    TRANSFER_CONNECTIONS = 64,
    FILES_WANTED = 65536,
    STOP_MAX_S = 10,
};

static const int64_t GB = 1000000000;

struct program {
    struct server_options o;
    struct server server;
    struct cluster *cluster;
    struct coordinator *coordinator;
    struct http *http;
    struct s3 *bucket; // until the store has it
    struct blob_floor floor;
    const char *owner; // of the database's tables, as a conninfo
    const char *conninfo;
    char data[PATH_MAX];
    char web[PATH_MAX];
    char sql[PATH_MAX];
    char bulk_listen[160];
    char secret[SECRET_LEN + 1];
    bool fresh;
    sigset_t signals;
};

/* ---- where things are ---- */

/* Beside an installed program, or in the tree that it was built in. */
static const char *beside(char out[PATH_MAX], const char *given, const char *name,
                          const char *proof)
{
    static const char *const places[] = {"../share/photon", "../../.."};
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) {
        *slash = '\0';
    }
    for (size_t i = 0; !given && i < sizeof(places) / sizeof(places[0]); i++) {
        char path[2 * PATH_MAX];
        (void)snprintf(path, sizeof(path), "%s/%s/%s/%s", self, places[i], name, proof);
        if (access(path, R_OK) == 0) {
            (void)snprintf(path, sizeof(path), "%s/%s/%s", self, places[i], name);
            if (realpath(path, out)) {
                return out;
            }
        }
    }
    (void)snprintf(out, PATH_MAX, "%s", given ? given : name);
    return out;
}

static enum status give_bucket(struct program *p, struct err *e)
{
    enum status st = blob_store_bucket(p->server.blobs, p->bucket, e);
    if (st == ST_OK) {
        p->bucket = NULL;
    }
    return st == ST_CONFLICT ? ST_INVALID : st;
}

static enum status open_data(struct program *p, struct err *e)
{
    // Others may pass through, to PostgreSQL's files; what is secret in it is closed by itself.
    if (!p->o.check && mkdir(p->o.data, 0711) != 0 && errno != EEXIST) {
        return err_set(e, ST_IO, "cannot make the data folder '%s': %s; try another --data",
                       p->o.data, strerror(errno));
    }
    if (!realpath(p->o.data, p->data) || access(p->data, R_OK | W_OK | X_OK) != 0) {
        return err_set(e, ST_IO, "cannot write in the data folder '%s': %s; try another --data",
                       p->o.data, strerror(errno));
    }
    p->server.data_dir = p->data;
    char blobs[PATH_MAX + 8];
    (void)snprintf(blobs, sizeof(blobs), "%s/store", p->data);
    if (p->o.check && access(blobs, F_OK) != 0) {
        return err_set(e, ST_NOT_FOUND,
                       "'%s' is no data folder of a photon-server; try another --data", p->data);
    }
    TRY(blob_store_open(&p->server.blobs, blobs, e));
    if (p->o.free_floor) {
        blob_store_floor(p->server.blobs, &p->floor);
    }
    return p->bucket ? give_bucket(p, e) : ST_OK;
}

/* ---- the database ---- */

static enum status connect_patiently(struct program *p, const char *conninfo, struct db **db,
                                     struct err *e)
{
    int64_t until = clock_mono_ms() + DATABASE_WAIT_MS;
    for (;;) {
        enum status st = db_open(db, conninfo, e);
        if (st != ST_RETRY || p->cluster) {
            return st;
        }
        if (clock_mono_ms() > until) {
            return err_set(e, st, "%.180s; is it running? try another --database", e->msg);
        }
        // A refusal in words will be the same in a second.
        if (strstr(e->msg, "authentication") || strstr(e->msg, "does not exist")) {
            return err_set(e, ST_DENIED,
                           "the database does not let us in: %.180s; try pg_hba.conf, ~/.pgpass "
                           "(mode 600), and "
                           "whether role and database exist",
                           e->msg);
        }
        clock_sleep_ms(TEND_MS);
    }
}

/* A refusal that only another setting can change: exit code 3, whatever the part called it. */
static enum status as_config(enum status st)
{
    return st == ST_CONFLICT || st == ST_DENIED ? ST_INVALID : st;
}

static int connections_wanted(const struct program *p)
{
    return p->o.workers + ASIDE_CONNECTIONS + TRANSFER_CONNECTIONS + COORDINATOR_CONNECTIONS;
}

/*
 * Another role than the owner serves, where there is one. It and its address may have settings of
 * their own, which are looked at before anything is changed.
 */
static enum status open_serving(struct program *p, struct db *owner, struct db **server,
                                struct err *e)
{
    if (p->owner == p->conninfo) {
        return settings_check_room(owner, connections_wanted(p), e);
    }
    if (p->cluster) {
        TRY(db_role_make(owner, e));
    }
    TRY(connect_patiently(p, p->conninfo, server, e));
    TRY(settings_check_session(*server, p->o.unsafe_database, e));
    return settings_check_room(*server, connections_wanted(p), e);
}

static enum status migrate_and_serve(struct program *p, struct db *owner, const char *sql,
                                     struct err *e)
{
    struct db *server = NULL;
    enum status st = open_serving(p, owner, &server, e);
    st = st ? st : migrate(owner, sql, e);
    if (!st && server) {
        st = db_role_let_serve(owner, server, e);
    }
    db_close(server);
    return st;
}

static enum status prepare_database(struct program *p, struct db *db, struct err *e)
{
    TRY(as_config(settings_check(db, p->o.unsafe_database, e)));
    const char *sql = beside(p->sql, p->o.sql, "sql", "0001_rules.sql");
    if (p->o.check) { // it only looks
        return as_config(migrate_check(db, sql, e));
    }
    TRY(as_config(migrate_and_serve(p, db, sql, e)));
    return admin_token_ensure(db, p->data, p->secret, &p->fresh, e);
}

static enum status open_database(struct program *p, struct err *e)
{
    if (p->o.database) {
        p->conninfo = p->o.database;
        p->owner = p->o.migrate_database ? p->o.migrate_database : p->o.database;
    } else {
        TRY(cluster_start(&p->cluster, p->data, p->o.check, e));
        p->owner = cluster_conninfo(p->cluster);
        p->conninfo = p->o.check ? p->owner : cluster_server_conninfo(p->cluster);
    }
    struct db *db = NULL;
    TRY(connect_patiently(p, p->owner, &db, e));
    enum status st = prepare_database(p, db, e);
    db_close(db);
    p->server.pool = db_pool_new(p->conninfo, p->o.workers + ASIDE_CONNECTIONS);
    p->server.bulk_pool = db_pool_new(p->conninfo, TRANSFER_CONNECTIONS);
    return st;
}

/* ---- start and stop ---- */

/* Long polls, streams and uploads each hold a descriptor. */
static void raise_file_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < FILES_WANTED) {
        r.rlim_cur = r.rlim_max < FILES_WANTED ? r.rlim_max : FILES_WANTED;
        (void)setrlimit(RLIMIT_NOFILE, &r);
    }
}

static enum status next_port(struct program *p, struct err *e)
{
    if (!p->o.bulk_listen) {
        struct listen_address a;
        TRY(listen_address_parse(&a, p->o.listen, e));
        if (a.port == 65535) {
            return err_set(e, ST_INVALID, "no port follows 65535 for bulk; try --bulk-listen");
        }
        bool v6 = strchr(a.host, ':') != NULL;
        (void)snprintf(p->bulk_listen, sizeof(p->bulk_listen), v6 ? "[%s]:%d" : "%s:%d", a.host,
                       a.port ? a.port + 1 : 0);
        p->o.bulk_listen = p->bulk_listen;
    }
    return ST_OK;
}

static enum status open_tls(struct program *p, struct err *e)
{
    struct tls_config c = {.data_dir = p->data,
                           .make = p->o.tls_auto,
                           .cert = p->o.tls_cert,
                           .key = p->o.tls_key,
                           .public_url = p->o.public_url,
                           .bulk_url = p->o.bulk_url,
                           .listen = p->o.listen,
                           .bulk_listen = p->o.bulk_listen};
    return as_config(tls_open(&p->server.certificate, &c, e));
}

static enum status check_addresses(struct program *p, struct err *e)
{
    TRY(next_port(p, e));
    bool tls = p->o.tls_auto || p->o.tls_cert;
    return as_config(http_listen_check(p->o.listen, p->o.bulk_listen, tls, e));
}

/* All that can be refused before there is anything on the disk: who mends an option starts anew. */
static enum status check_options(struct program *p, struct err *e)
{
    if (p->o.database) {
        TRY(db_conninfo_check(p->o.database, e));
    }
    if (p->o.migrate_database) {
        TRY(db_conninfo_check(p->o.migrate_database, e));
    }
    if (p->o.free_floor) {
        TRY(blob_floor_parse(&p->floor, p->o.free_floor, e));
    }
    if (!p->o.check) {
        TRY(check_addresses(p, e));
    }
    if (!p->o.check && !p->o.tls_auto) {
        TRY(open_tls(p, e));
    }
    const struct s3_config c = {.url = p->o.store,
                                .endpoint = p->o.s3_endpoint,
                                .credentials = p->o.s3_credentials,
                                .ca_file = p->o.s3_ca};
    return p->o.store ? s3_open(&p->bucket, &c, e) : ST_OK;
}

static bool browsers_use_tls(const struct program *p)
{
    if (p->server.certificate) {
        return true;
    }
    return p->o.public_url && strncasecmp(p->o.public_url, "https://", 8) == 0;
}

static enum status start(struct program *p, struct err *e)
{
    raise_file_limit();
    TRY(check_options(p, e));
    TRY(open_data(p, e));
    FAULT("start.data");
    if (!p->o.check && p->o.tls_auto) {
        TRY(open_tls(p, e));
    }
    TRY(open_database(p, e));
    FAULT("start.database");
    if (p->o.check) {
        return ST_OK;
    }
    p->server.web_dir = beside(p->web, p->o.web, "web", "index.html");
    static_files_load(p->server.web_dir);
    p->server.public_url = p->o.public_url;
    p->server.bulk_url = p->o.bulk_url;
    p->server.https = browsers_use_tls(p);
    p->server.started_ms = clock_wall_ms();
    p->server.aggregate_threads = p->o.aggregate_threads;
    p->server.orphan_age_s = (int64_t)p->o.orphan_hours * 3600;
    p->server.audit_days = p->o.audit_days;
    p->server.daily_upload = p->o.daily_upload_gb * GB;
    p->server.daily_download = p->o.daily_download_gb * GB;
    p->server.hub = hub_new();
    TRY(coordinator_start(&p->coordinator, &p->server, p->conninfo, e));
    FAULT("start.coordinator");
    if (p->o.bulk_mbps > 0) {
        p->server.bulk_pace = pace_new((int64_t)p->o.bulk_mbps * 1000000 / 8);
    }
    struct http_config config = {.listen = p->o.listen,
                                 .bulk_listen = p->o.bulk_listen,
                                 .tls = p->server.certificate != NULL,
                                 .workers = p->o.workers};
    enum status st = http_start(&p->http, &p->server, &config, e);
    return st == ST_DENIED ? as_config(st) : st; // plain HTTP off loopback
}

static void stop(struct program *p, int rc)
{
    atomic_store(&p->server.stopping, true);
    // It wakes the requests that http holds, so it goes first.
    bool ended = coordinator_stop(p->coordinator);
    if (p->http) {
        http_stop(p->http);
    }
    if (!ended) {
        cluster_stop(p->cluster);
        _exit(rc); // the thread that runs on uses all that would be freed
    }
    hub_free(p->server.hub);
    db_pool_free(p->server.pool);
    db_pool_free(p->server.bulk_pool);
    upload_hash_end(p->server.blobs);
    blob_store_close(p->server.blobs);
    s3_close(p->bucket);
    tls_close(p->server.certificate);
    cluster_stop(p->cluster);
}

/* For people: on stdout, while the log goes to stderr. The token is shown once, after the #, where
 * no server ever sees it. */
static void say_ready(const struct program *p)
{
    struct listen_address a;
    struct err e = {0};
    const char *host = "localhost";
    if (listen_address_parse(&a, p->o.listen, &e) == ST_OK && a.host[0] &&
        strcmp(a.host, "0.0.0.0") != 0 && strcmp(a.host, "::") != 0) {
        host = a.host;
    }
    bool v6 = strchr(host, ':') != NULL;
    char url[256];
    (void)snprintf(url, sizeof(url), "%s://%s%s%s:%d", p->server.tls ? "https" : "http",
                   v6 ? "[" : "", host, v6 ? "]" : "", p->server.control_port);
    (void)printf("Dashboard: %s/%s%s\n", p->o.public_url ? p->o.public_url : url,
                 p->fresh ? "#token=" : "", p->fresh ? p->secret : "");
    if (p->fresh) {
        (void)printf("Admin token: %s/admin-token\n", p->data);
    }
    char pin[PIN_TEXT_MAX + 1];
    tls_pin(p->server.certificate, pin);
    if (pin[0]) {
        (void)printf("Pin: %s\n", pin);
    }
    (void)fflush(stdout);
    log_info("photon-server " PHOTON_VERSION " is ready on %s, bulk on port %d", url,
             p->server.bulk_port);
}

/* ---- signals ---- */

static volatile sig_atomic_t postmaster; // what must not outlive an abort by the second signal

static void abort_now(int sig)
{
    if (postmaster > 0) {
        (void)kill(postmaster, SIGINT);
    }
    // Out of time is a stop as it was asked for: what was cut is as safe as after any kill.
    _exit(sig == SIGALRM ? EXIT_DONE : 128 + sig);
}

/* The service manager hears of us while this thread and the requests' ticker both come round. */
static void tell_alive(const struct program *p, int64_t every_ms, int64_t *at_ms)
{
    int64_t now = clock_mono_ms();
    if (every_ms > 0 && now >= *at_ms && now - http_beat_ms(p->http) < every_ms) {
        service_notify("WATCHDOG=1");
        *at_ms = now + every_ms;
    }
}

static void look_at_certificate(const struct program *p, bool now, int64_t *at_ms)
{
    struct err e = {0};
    if (!p->server.certificate || (!now && clock_mono_ms() < *at_ms)) {
        return;
    }
    *at_ms = clock_mono_ms() + CERTIFICATE_MS;
    if (tls_refresh(p->server.certificate, &e)) {
        log_error("%s; the certificate shown is still the last", e.msg);
    }
}

static void wait_for_signal(struct program *p)
{
    int sig = -1;
    int64_t every_ms = service_watchdog_ms();
    int64_t at_ms = 0;
    int64_t certificate_ms = clock_mono_ms() + CERTIFICATE_MS;
    while (sig != SIGTERM && sig != SIGINT) {
        tell_alive(p, every_ms, &at_ms);
        look_at_certificate(p, sig == SIGHUP, &certificate_ms);
        struct timespec tick = {.tv_nsec = TEND_MS * 1000000L};
        sig = sigtimedwait(&p->signals, NULL, &tick);
        if (p->cluster) {
            cluster_tend(p->cluster);
        }
    }
    log_info("stopping; a second signal ends it at once");
    service_notify("STOPPING=1");
    postmaster = p->cluster ? cluster_pid(p->cluster) : 0;
    struct sigaction sa = {.sa_handler = abort_now};
    (void)sigaction(SIGTERM, &sa, NULL);
    (void)sigaction(SIGINT, &sa, NULL);
    (void)sigaction(SIGALRM, &sa, NULL);
    (void)alarm(STOP_MAX_S);
    (void)pthread_sigmask(SIG_UNBLOCK, &p->signals, NULL);
}

static int exit_code(enum status st)
{
    switch (st) {
    case ST_OK:
        return EXIT_DONE;
    case ST_INVALID:
    case ST_NOT_FOUND:
    case ST_IO:
    case ST_LIMIT:
    case ST_CORRUPT:
        return EXIT_CONFIG;
    case ST_CONFLICT:
    case ST_DENIED:
        return EXIT_TAKEN;
    case ST_RETRY:
    case ST_NET:
        return EXIT_TEMPORARY;
    case ST_NOMEM:
        return EXIT_MEMORY;
    case ST_DB:
    case ST_DEVICE:
    case ST_COUNT:
    default:
        return EXIT_BUG;
    }
}

static int run_check(struct program *p)
{
    struct err e = {0};
    struct db *db = NULL;
    int broken = 0;
    enum status st = db_open(&db, p->conninfo, &e);
    struct check_job c = {.db = db,
                          .blobs = p->server.blobs,
                          .acks = p->o.acks,
                          .repair = p->o.repair,
                          .threads = p->o.aggregate_threads,
                          .orphan_age_s = (int64_t)p->o.orphan_hours * 3600};
    st = st ? st : check_all(&c, &broken, &e);
    db_close(db);
    if (st) {
        log_error("%s", e.msg);
        return exit_code(st);
    }
    return broken ? EXIT_BROKEN : EXIT_DONE;
}

int main(int argc, char **argv)
{
    static struct program p; // large: paths
    struct err e = {0};
    int rc = EXIT_DONE;
    mem_share();
    if (!server_options_parse(&p.o, argc, argv, &rc)) {
        return rc;
    }
    log_setup(p.o.log_level, p.o.log_json, "photon-server");
    (void)signal(SIGPIPE, SIG_IGN);
    (void)sigemptyset(&p.signals);
    (void)sigaddset(&p.signals, SIGTERM);
    (void)sigaddset(&p.signals, SIGINT);
    (void)sigaddset(&p.signals,
                    SIGHUP);                            // a closed terminal is no reason to stop
    (void)pthread_sigmask(SIG_BLOCK, &p.signals, NULL); // before any thread: all inherit it

    enum status st = start(&p, &e);
    if (st) {
        log_error("%s", e.msg);
        rc = exit_code(st);
    } else if (p.o.check) {
        rc = run_check(&p);
    } else {
        say_ready(&p);
        service_notify("READY=1");
        wait_for_signal(&p);
    }
    stop(&p, rc);
    return rc;
}
