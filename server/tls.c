#include "server/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "server/http_listen.h"
#include "server/http_tls.h"
#include "server/tls_make.h"

enum { PEM_MAX = 256 * 1024, WARN_S = 14 * 86400, HOST_MAX = 256 };

struct tls {
    struct tls_config c;
    char made_in[PATH_MAX]; // <data>/tls
    char cert[PATH_MAX + 16], key[PATH_MAX + 16];
    pthread_mutex_t lock; // over what follows
    struct digest shown;  // of both texts
    char pin[PIN_TEXT_MAX + 1];
};

/* ---- for whom ---- */

struct hosts {
    char names[TLS_HOSTS_MAX][HOST_MAX];
    const char *list[TLS_HOSTS_MAX];
    int count;
};

static void add_host(struct hosts *h, const char *host)
{
    static const char *const everywhere[] = {"", "0.0.0.0", "::"};
    for (size_t i = 0; i < sizeof(everywhere) / sizeof(everywhere[0]); i++) {
        if (strcmp(host, everywhere[i]) == 0) {
            return;
        }
    }
    for (int i = 0; i < h->count; i++) {
        if (strcasecmp(host, h->list[i]) == 0) {
            return;
        }
    }
    if (h->count < TLS_HOSTS_MAX) { // eight places are asked
        (void)snprintf(h->names[h->count], HOST_MAX, "%s", host);
        h->list[h->count] = h->names[h->count];
        h->count++;
    }
}

/* https://host:port/path, https://[::1]:8443 */
static void add_url(struct hosts *h, const char *url)
{
    const char *host = url ? strstr(url, "://") : NULL;
    char text[HOST_MAX];
    if (!host) {
        return;
    }
    host += 3;
    bool v6 = host[0] == '[';
    host += v6 ? 1 : 0;
    (void)snprintf(text, sizeof(text), "%.*s", (int)strcspn(host, v6 ? "]" : ":/"), host);
    add_host(h, text);
}

static void add_listen(struct hosts *h, const char *listen)
{
    struct listen_address a;
    struct err unused = {0};
    if (listen && listen_address_parse(&a, listen, &unused) == ST_OK) {
        add_host(h, a.host);
    }
}

static void gather(struct hosts *h, const struct tls_config *c)
{
    char own[HOST_MAX] = "";
    h->count = 0;
    add_url(h, c->public_url);
    add_url(h, c->bulk_url);
    add_listen(h, c->listen);
    add_listen(h, c->bulk_listen);
    (void)gethostname(own, sizeof(own) - 1);
    add_host(h, own);
    add_host(h, "localhost");
    add_host(h, "127.0.0.1");
    add_host(h, "::1");
}

/* ---- the files ---- */

static enum status read_pem(char **out, const char *path, bool secret, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, ST_IO, "cannot read '%s': %s", path, strerror(errno));
    }
    char *text = mem_alloc(PEM_MAX + 1);
    struct stat info;
    enum status st = ST_OK;
    ssize_t n = 0;
    if (fstat(fd, &info) != 0 || (n = read(fd, text, PEM_MAX)) <= 0) {
        st = err_set(e, ST_IO, "cannot read '%s'", path);
    } else if (secret && (info.st_mode & 0077U)) {
        st = err_set(e, ST_DENIED, "others may read the key '%s'; try chmod 600", path);
    } else if (!strstr(text, "-----BEGIN ")) {
        st = err_set(e, ST_INVALID, "'%s' is no PEM file", path);
    }
    (void)close(fd);
    if (st) {
        mem_free(text);
        return st;
    }
    *out = text;
    return ST_OK;
}

static void say(const struct tls *t, const struct tls_facts *f, const char *pin, int64_t now_s)
{
    char day[32] = "?";
    time_t ends = (time_t)f->ends_s;
    struct tm tm;
    if (gmtime_r(&ends, &tm)) {
        (void)strftime(day, sizeof(day), "%Y-%m-%d", &tm);
    }
    log_info("certificate %s, good until %s, pin %s%s", t->cert, day, pin,
             f->vouched ? " (not needed: an authority of this system vouches for it)" : "");
    if (f->ends_s < now_s) {
        log_warn("the certificate %s is over; browsers and --ca-file refuse it; put a new one "
                 "there, it is taken "
                 "within an hour or at SIGHUP",
                 t->cert);
    }
}

/* Show the two texts, unless they are shown already. */
static enum status show(struct tls *t, const char *cert, const char *key, int64_t now_s,
                        struct err *e)
{
    struct digest both;
    struct sha256 *h = sha256_new();
    sha256_add(h, cert, strlen(cert) + 1);
    sha256_add(h, key, strlen(key));
    sha256_end(h, &both);
    sha256_free(h);
    struct tls_facts f;
    TRY(tls_inspect(&f, cert, key, e));
    if (f.ends_s < now_s + WARN_S && !t->c.make && f.ends_s > now_s) {
        log_warn("the certificate %s ends in %d days; put a new one there, it is taken within an "
                 "hour or at SIGHUP",
                 t->cert, (int)((f.ends_s - now_s) / 86400));
    }
    if (digest_equal(&both, &t->shown)) {
        return ST_OK;
    }
    TRY(http_tls_show(cert, key, e));
    struct pin p = {.keys = {f.key}, .count = 1};
    char text[PIN_TEXT_MAX + 1];
    pin_print(&p, text);
    say(t, &f, text, now_s);
    (void)pthread_mutex_lock(&t->lock);
    t->shown = both;
    (void)snprintf(t->pin, sizeof(t->pin), "%s", f.vouched ? "" : text);
    (void)pthread_mutex_unlock(&t->lock);
    return ST_OK;
}

enum status tls_refresh(struct tls *t, struct err *e)
{
    int64_t now_s = clock_wall_ms() / 1000;
    if (t->c.make) {
        struct hosts h;
        bool made = false;
        gather(&h, &t->c);
        TRY(tls_make(t->made_in, h.list, h.count, now_s, &made, e));
        if (made) {
            log_info("made a certificate in %s", t->made_in);
        }
    }
    char *cert = NULL;
    char *key = NULL;
    TRY(read_pem(&cert, t->cert, false, e));
    enum status st = read_pem(&key, t->key, true, e);
    st = st ? st : show(t, cert, key, now_s, e);
    mem_free(cert);
    mem_free(key);
    return st;
}

/* ---- the whole ---- */

enum status tls_open(struct tls **out, const struct tls_config *c, struct err *e)
{
    if (!c->make && !c->cert && !c->key) {
        return ST_OK;
    }
    if (!c->make && (!c->cert || !c->key)) {
        return err_set(e, ST_INVALID, "TLS needs both a certificate and a key");
    }
    struct tls *t = mem_alloc(sizeof(*t));
    t->c = *c;
    (void)pthread_mutex_init(&t->lock, NULL);
    (void)snprintf(t->made_in, sizeof(t->made_in), "%s/tls", c->make ? c->data_dir : "");
    (void)snprintf(t->cert, sizeof(t->cert), "%s%s", c->make ? t->made_in : c->cert,
                   c->make ? "/server.pem" : "");
    (void)snprintf(t->key, sizeof(t->key), "%s%s", c->make ? t->made_in : c->key,
                   c->make ? "/server.key" : "");
    enum status st = tls_refresh(t, e);
    if (st) {
        tls_close(t);
        return st;
    }
    *out = t;
    return ST_OK;
}

void tls_close(struct tls *t)
{
    if (t) {
        http_tls_end();
        (void)pthread_mutex_destroy(&t->lock);
        mem_free(t);
    }
}

void tls_pin(struct tls *t, char out[PIN_TEXT_MAX + 1])
{
    out[0] = '\0';
    if (t) {
        (void)pthread_mutex_lock(&t->lock);
        (void)snprintf(out, PIN_TEXT_MAX + 1, "%s", t->pin);
        (void)pthread_mutex_unlock(&t->lock);
    }
}
