#include "server/server_options.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/nearest.h"
#include "common/version.h"
#include "server/http.h"

enum kind { FLAG, TEXT, NUMBER };

enum {
    RATE_MAX = 1000000,
    DAILY_GB_MAX = 1000000,
    THREADS_MAX = 256,
    ORPHAN_HOURS = 24,
    AUDIT_DAYS = 400,
    AUDIT_DAYS_MIN = 90, // sql/0012_audit.sql refuses to forget sooner
    AUDIT_DAYS_MAX = 36500,
};

/* What a number may be, where it is not 1 to THREADS_MAX. */
static const struct bounds {
    const char *name;
    long least, most;
    bool or_zero;
} bounds[] = {
    {"workers", 1, HTTP_WORKERS_MAX, false},
    {"orphan-hours", 0, 24 * 366, false},
    {"bulk-rate", 1, RATE_MAX, false},
    {"daily-upload-gb", 1, DAILY_GB_MAX, false},
    {"daily-download-gb", 1, DAILY_GB_MAX, false},
    {"audit-days", AUDIT_DAYS_MIN, AUDIT_DAYS_MAX, true},
};

/* One table makes the arrays for getopt_long and the text of --help, so they cannot differ. */
static const struct row {
    const char *name;
    enum kind kind;
    const char *arg;
    size_t offset;
    const char *help;
} rows[] = {
#define AT(field) offsetof(struct server_options, field)
    {"data", TEXT, "DIR", AT(data),
     "where everything lives (default /var/lib/photon as root, else ./photon-data)"},
    {"database", TEXT, "URL", AT(database),
     "a PostgreSQL to use instead of a private one (or PHOTON_DATABASE)"},
    {"migrate-database", TEXT, "URL", AT(migrate_database),
     "the same one as its owner, where --database may not change tables (or\n"
     "                             PHOTON_MIGRATE_DATABASE)"},
    {"listen", TEXT, "HOST:PORT", AT(listen), "control and dashboard (default 127.0.0.1:8080)"},
    {"bulk-listen", TEXT, "HOST:PORT", AT(bulk_listen),
     "weights and updates (default: the next port)"},
    {"tls", TEXT, "auto", 0,
     "make a certificate, in the data folder; this or one's own off loopback"},
    {"tls-cert", TEXT, "FILE", AT(tls_cert),
     "one's own certificate, and those that vouch for it, PEM"},
    {"tls-key", TEXT, "FILE", AT(tls_key), "its private key, PEM"},
    {"public-url", TEXT, "URL", AT(public_url), "how others reach --listen, when it is not so"},
    {"bulk-url", TEXT, "URL", AT(bulk_url), "how silos reach --bulk-listen, when it is not so"},
    {"web", TEXT, "DIR", AT(web), "the dashboard's files (default: beside the program)"},
    {"sql", TEXT, "DIR", AT(sql), "the migrations (default: beside the program)"},
    {"workers", NUMBER, "N", AT(workers), "threads that answer control requests (default 8)"},
    {"aggregate-threads", NUMBER, "N", AT(aggregate_threads),
     "threads of one aggregation (default: the cores)"},
    {"bulk-rate", NUMBER, "MBPS", AT(bulk_mbps),
     "weights and updates, both ways together, in megabit per second (default: no limit)"},
    {"daily-upload-gb", NUMBER, "GB", AT(daily_upload_gb),
     "what one silo may send in a day (UTC; default: no limit)"},
    {"daily-download-gb", NUMBER, "GB", AT(daily_download_gb),
     "what one silo may fetch in a day (UTC; default: no limit)"},
    {"store", TEXT, "s3://BUCKET/PREFIX", AT(store),
     "keep weights and updates in a bucket (default: in the data folder)"},
    {"s3-endpoint", TEXT, "URL", AT(s3_endpoint), "the store's address, when it is not AWS"},
    {"s3-credentials", TEXT, "FILE", AT(s3_credentials),
     "as the AWS tools have it (default: AWS_ACCESS_KEY_ID and others)"},
    {"s3-ca", TEXT, "FILE", AT(s3_ca), "authorities that vouch for the store's certificate, PEM"},
    {"free-floor", TEXT, "ROOM", AT(free_floor),
     "what uploads leave free, such as 10% or 20G (default 10%, 2G at most)"},
    {"log-format", TEXT, "FORMAT", 0, "text or json"},
    {"log-level", TEXT, "LEVEL", 0, "error, warn, info or debug"},
    {"unsafe-database", FLAG, NULL, AT(unsafe_database),
     "take a database that may lose acknowledged data; for tests"},
    {"check", FLAG, NULL, AT(check), "verify the database and every file, then end"},
    {"repair", FLAG, NULL, AT(repair),
     "check: make checkpoints again whose files are damaged or lost"},
    {"acks", TEXT, "FILE", AT(acks),
     "check: updates that silos were told count, as `photon-client acks` prints them"},
    {"orphan-hours", NUMBER, "N", AT(orphan_hours),
     "age at which files that no row knows are removed, or told by check (default 24)"},
    {"audit-days", NUMBER, "N", AT(audit_days),
     "how long the audit log is kept, 90 at least; 0: for ever (default 400)"},
    {"version", FLAG, NULL, 0, "say the version and end"},
    {"help", FLAG, NULL, 0, "say this and end"},
#undef AT
};

enum { ROWS = sizeof(rows) / sizeof(rows[0]), LONG_BASE = 1000 };

static void help(void)
{
    (void)printf(
        "Usage: photon-server [check] [OPTIONS]\n\n"
        "The aggregator of a federation: rounds, checkpoints, REST API and dashboard.\n"
        "`photon-server check` verifies the database and every file, and changes nothing.\n\n"
        "Examples:\n"
        "  photon-server --data /var/lib/photon --listen 0.0.0.0:8443 --tls auto \\\n"
        "                --public-url https://agg.example.org:8443\n"
        "  photon-server check --data /var/lib/photon\n\nOptions:\n");
    for (int i = 0; i < ROWS; i++) {
        char left[40];
        (void)snprintf(left, sizeof(left), "--%s %s", rows[i].name, rows[i].arg ? rows[i].arg : "");
        (void)printf("  %-26s %s\n", left, rows[i].help);
    }
    (void)printf(
        "\nSIGTERM or SIGINT stops it in order, a second one at once; any kill is safe.\n"
        "SIGHUP has it look at its certificate again.\n"
        "Exit codes: 0 done, 1 check found violations, 2 usage, 3 a file, folder or setting "
        "is refused,\n4 port or folder in use, or the database does not let us in, 7 out of "
        "memory, 70 "
        "bug, 75 the\ndatabase does not answer: try again.\n");
}

static bool usage(int *rc, const char *fmt, ...) PRINTF_LIKE(2, 3);

static bool usage(int *rc, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)fprintf(stderr, "photon-server: ");
    (void)vfprintf(stderr, fmt, ap);
    va_end(ap);
    (void)fprintf(stderr, "; try --help\n");
    *rc = EXIT_USAGE;
    return false;
}

static bool set_number(int *out, const char *name, const char *text, int *rc)
{
    struct bounds b = {name, 1, THREADS_MAX, false};
    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        b = strcmp(bounds[i].name, name) == 0 ? bounds[i] : b;
    }
    char *end = NULL;
    errno = 0;
    long v = strtol(text, &end, 10);
    bool fits = (v >= b.least && v <= b.most) || (b.or_zero && v == 0);
    if (errno || end == text || *end || !fits) {
        return usage(rc, "--%s is no number from %ld to %ld%s: '%s'", name, b.least, b.most,
                     b.or_zero ? ", or 0" : "", text);
    }
    *out = (int)v;
    return true;
}

static bool set_log(struct server_options *o, const char *name, const char *text, int *rc)
{
    static const struct {
        const char *word;
        enum log_level level;
    } levels[] = {
        {"error", LOG_ERROR}, {"warn", LOG_WARN}, {"info", LOG_INFO}, {"debug", LOG_DEBUG}};
    if (strcmp(name, "log-format") == 0) {
        o->log_json = strcmp(text, "json") == 0;
        return o->log_json || strcmp(text, "text") == 0 ||
               usage(rc, "--%s is neither text nor json: '%s'", name, text);
    }
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (strcmp(text, levels[i].word) == 0) {
            o->log_level = levels[i].level;
            return true;
        }
    }
    return usage(rc, "--%s is none of error, warn, info, debug: '%s'", name, text);
}

static bool set(struct server_options *o, const struct row *r, const char *text, int *rc)
{
    void *at = (char *)o + r->offset;
    if (strcmp(r->name, "tls") == 0) {
        o->tls_auto = strcmp(text, "auto") == 0;
        return o->tls_auto || usage(rc, "--tls is auto, or left out: '%s'", text);
    }
    if (strncmp(r->name, "log-", 4) == 0) {
        return set_log(o, r->name, text, rc);
    }
    switch (r->kind) {
    case FLAG:
        if (r->offset == 0) { // --help and --version
            if (strcmp(r->name, "help") == 0) {
                help();
            } else {
                (void)printf("photon-server %s\n", PHOTON_VERSION);
            }
            *rc = EXIT_DONE;
            return false;
        }
        *(bool *)at = true;
        return true;
    case NUMBER:
        return set_number(at, r->name, text, rc);
    case TEXT:
    default:
        *(const char **)at = text;
        return true;
    }
}

static void defaults(struct server_options *o)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    *o = (struct server_options){
        .data = geteuid() == 0 ? "/var/lib/photon" : "photon-data",
        .database = getenv("PHOTON_DATABASE"),
        .migrate_database = getenv("PHOTON_MIGRATE_DATABASE"),
        .listen = "127.0.0.1:8080",
        .workers = 8,
        .orphan_hours = ORPHAN_HOURS,
        .audit_days = AUDIT_DAYS,
        .aggregate_threads = cores < 1             ? 1
                             : cores > THREADS_MAX ? THREADS_MAX
                                                   : (int)cores,
        .log_level = LOG_INFO,
    };
}

/* What getopt_long() did not take: a value that is missing, or an option that is not known. */
static bool not_taken(int got, const char *word, int *rc)
{
    if (got == ':') {
        return usage(rc, "%s needs a value", word);
    }
    if (optopt >= LONG_BASE) {
        return usage(rc, "--%s takes no value", rows[optopt - LONG_BASE].name);
    }
    if (optopt > 0) {
        return usage(rc, "unknown option '-%c'", optopt);
    }
    const char *names[ROWS + 1] = {NULL};
    for (int i = 0; i < ROWS; i++) {
        names[i] = rows[i].name;
    }
    char bare[64];
    const char *from = word + strspn(word, "-");
    (void)snprintf(bare, sizeof(bare), "%.*s", (int)strcspn(from, "="), from);
    const char *near = nearest(bare, names);
    return usage(rc, "unknown option '--%s'%s%s", bare, near ? "; did you mean --" : "",
                 near ? near : "");
}

bool server_options_parse(struct server_options *o, int argc, char **argv, int *rc)
{
    struct option longs[ROWS + 1] = {0};
    for (int i = 0; i < ROWS; i++) {
        longs[i].name = rows[i].name;
        longs[i].has_arg = rows[i].kind == FLAG ? no_argument : required_argument;
        longs[i].val = LONG_BASE + i; // each its own: getopt takes equal ones for one option
    }
    defaults(o);
    int got = 0;
    opterr = 0; // it would speak in another voice, and say nothing of what to do
    while ((got = getopt_long(argc, argv, ":", longs, NULL)) != -1) {
        if (got < LONG_BASE) {
            return not_taken(got, argv[optind - 1], rc);
        }
        if (!set(o, &rows[got - LONG_BASE], optarg, rc)) {
            return false;
        }
    }
    if (optind < argc && strcmp(argv[optind], "check") == 0) {
        o->check = true;
        optind++;
    }
    if (optind < argc) {
        return usage(rc, "what is '%s'", argv[optind]);
    }
    if (o->migrate_database && !o->database) {
        return usage(rc, "--migrate-database belongs to --database");
    }
    if (!o->store && (o->s3_endpoint || o->s3_credentials || o->s3_ca)) {
        return usage(rc, "--s3-endpoint, --s3-credentials and --s3-ca belong to --store");
    }
    if (!o->check && (o->repair || o->acks)) {
        return usage(rc, "--repair and --acks belong to photon-server check");
    }
    if (!o->tls_cert != !o->tls_key) {
        return usage(rc, "--tls-cert and --tls-key belong together");
    }
    if (o->tls_auto && o->tls_cert) {
        return usage(rc, "--tls auto makes a certificate, --tls-cert has one");
    }
    return true;
}
