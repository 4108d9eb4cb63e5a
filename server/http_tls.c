#include "server/http_tls.h"

#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <string.h>

#include "common/mem.h"

enum { CHAIN_MAX = 16 };

struct shown {
    gnutls_pcert_st certs[CHAIN_MAX];
    unsigned count;
    gnutls_privkey_t key;
    struct shown *before; // a handshake may still be at it, so it stays until the end
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct shown *newest;

static void forget(struct shown *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        gnutls_pcert_deinit(&s->certs[i]);
    }
    gnutls_privkey_deinit(s->key);
    mem_free(s);
}

static gnutls_datum_t datum(const char *text)
{
    union {
        const char *text;
        unsigned char *bytes; // GnuTLS only reads
    } u = {.text = text};
    return (gnutls_datum_t){.data = u.bytes, .size = (unsigned)strlen(text)};
}

enum status http_tls_show(const char *cert_pem, const char *key_pem, struct err *e)
{
    gnutls_datum_t cert = datum(cert_pem);
    gnutls_datum_t key = datum(key_pem);
    struct shown *s = mem_alloc(sizeof(*s));
    unsigned count = CHAIN_MAX;
    int rc = gnutls_privkey_init(&s->key);
    if (rc < 0) {
        mem_free(s);
        return err_set(e, ST_NOMEM, "GnuTLS: %s", gnutls_strerror(rc));
    }
    rc = gnutls_privkey_import_x509_raw(s->key, &key, GNUTLS_X509_FMT_PEM, NULL, 0);
    if (rc >= 0) {
        rc = gnutls_pcert_list_import_x509_raw(s->certs, &count, &cert, GNUTLS_X509_FMT_PEM, 0);
        s->count = rc >= 0 ? count : 0;
    }
    if (rc < 0) {
        forget(s);
        return err_set(e, ST_INVALID, "certificate and key cannot be used: %s; try another",
                       gnutls_strerror(rc));
    }
    (void)pthread_mutex_lock(&lock);
    s->before = newest;
    newest = s;
    (void)pthread_mutex_unlock(&lock);
    return ST_OK;
}

void http_tls_end(void)
{
    (void)pthread_mutex_lock(&lock);
    while (newest) {
        struct shown *s = newest;
        newest = s->before;
        forget(s);
    }
    (void)pthread_mutex_unlock(&lock);
}

static int on_handshake(gnutls_session_t session, const gnutls_datum_t *authorities, int count,
                        const gnutls_pk_algorithm_t *algorithms, int algorithm_count,
                        gnutls_pcert_st **certs, unsigned *cert_count, gnutls_privkey_t *key)
{
    (void)session;
    (void)authorities;
    (void)count;
    (void)algorithms;
    (void)algorithm_count;
    (void)pthread_mutex_lock(&lock);
    struct shown *s = newest;
    (void)pthread_mutex_unlock(&lock);
    if (!s) {
        return -1;
    }
    *certs = s->certs;
    *cert_count = s->count;
    *key = s->key;
    return 0;
}

void *http_tls_callback(void)
{
    gnutls_certificate_retrieve_function2 *f = on_handshake;
    void *out = NULL;
    memcpy(&out, &f, sizeof(out)); // POSIX: both have one form
    return out;
}

char *http_tls_priorities(void)
{
    static char words[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";
    return words;
}
