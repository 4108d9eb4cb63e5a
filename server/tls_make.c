#include "server/tls_make.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/mem.h"

enum { DAY_S = 86400, TEXT_MAX = 64 * 1024, SERIAL_BYTES = 16, HOST_LEN_MAX = 253 };

/* What the work holds; all of it is let go in release(). */
struct making {
    const char *dir; /* for messages */
    int fd;
    int64_t now_s;
    char san[TLS_HOSTS_MAX * (HOST_LEN_MAX + 8)];
    EVP_PKEY *ca_key, *key;
    X509 *ca, *cert;
    char *text; /* of the file at hand */
};

static enum status refused(struct err *e, const char *what)
{
    unsigned long code = ERR_peek_last_error();
    const char *why = code ? ERR_reason_error_string(code) : NULL;
    ERR_clear_error();
    return err_set(e, ST_IO, "libcrypto cannot %s: %s", what, why ? why : "no reason given");
}

/* ---- files ---- */

/* ST_NOT_FOUND: no such file, *text is "". */
static enum status read_text(struct making *m, const char *name, bool secret, struct err *e)
{
    m->text[0] = '\0';
    int fd = openat(m->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot read '%s/%s': %s", m->dir,
                       name, strerror(errno));
    }
    struct stat info;
    enum status st = ST_OK;
    ssize_t n = fstat(fd, &info) == 0 ? read(fd, m->text, TEXT_MAX) : -1;
    if (n < 0 || n == TEXT_MAX) {
        st = err_set(e, ST_IO, "cannot read '%s/%s'", m->dir, name);
    } else if (secret && (info.st_mode & 0077U)) {
        st = err_set(e, ST_DENIED, "others may read the key '%s/%s'; try chmod 600", m->dir, name);
    }
    m->text[n > 0 ? n : 0] = '\0';
    (void)close(fd);
    return st;
}

static bool write_all(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, bytes, len);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        bytes += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

static enum status write_text(struct making *m, const char *name, mode_t mode, BIO *from,
                              struct err *e)
{
    char tmp[32];
    char *bytes = NULL;
    long len = BIO_get_mem_data(from, &bytes);
    (void)snprintf(tmp, sizeof(tmp), "%s.new", name);
    (void)unlinkat(m->fd, tmp, 0);
    int fd = openat(m->fd, tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool ok =
        fd >= 0 && write_all(fd, bytes, (size_t)len) && fchmod(fd, mode) == 0 && fsync(fd) == 0;
    int why = errno;
    if (fd >= 0 && close(fd) != 0 && ok) {
        ok = false;
        why = errno;
    }
    if (ok && (renameat(m->fd, tmp, m->fd, name) != 0 || fsync(m->fd) != 0)) {
        ok = false;
        why = errno;
    }
    return ok ? ST_OK : err_set(e, ST_IO, "cannot write '%s/%s': %s", m->dir, name, strerror(why));
}

/* ---- keys ---- */

/* Nobody is there to type one: a key under a password is refused, not asked about. */
static int no_password(char *out, int size, int writing, void *ctx)
{
    (void)out;
    (void)size;
    (void)writing;
    (void)ctx;
    return -1;
}

static EVP_PKEY *key_of(const char *pem)
{
    BIO *in = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *key = in ? PEM_read_bio_PrivateKey(in, NULL, no_password, NULL) : NULL;
    BIO_free(in);
    return key;
}

static X509 *cert_of(const char *pem)
{
    BIO *in = BIO_new_mem_buf(pem, -1);
    X509 *cert = in ? PEM_read_bio_X509(in, NULL, no_password, NULL) : NULL;
    BIO_free(in);
    return cert;
}

static enum status make_key(struct making *m, EVP_PKEY **out, const char *name, struct err *e)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    BIO *text = BIO_new(BIO_s_mem());
    enum status st = ST_OK;
    if (!key || !text || !PEM_write_bio_PrivateKey(text, key, NULL, NULL, 0, NULL, NULL)) {
        st = refused(e, "make a key");
    }
    st = st ? st : write_text(m, name, 0600, text, e);
    BIO_free(text);
    if (st) {
        EVP_PKEY_free(key);
        return st;
    }
    *out = key;
    return ST_OK;
}

/* The key in the file; made when neither it nor its certificate was ever there. */
static enum status want_key(struct making *m, EVP_PKEY **out, const char *name, bool has_cert,
                            struct err *e)
{
    enum status st = read_text(m, name, true, e);
    if (st == ST_NOT_FOUND && !has_cert) {
        return make_key(m, out, name, e);
    }
    if (st && st != ST_NOT_FOUND) {
        return st;
    }
    *out = st ? NULL : key_of(m->text);
    ERR_clear_error();
    if (*out) {
        return ST_OK;
    }
    return err_set(e, ST_CORRUPT,
                   "'%.90s/%s' is %s; try a backup of it, or remove both it and the .pem of its "
                   "name for a new one, which others must then be told",
                   m->dir, name, st ? "gone" : "damaged");
}

/* ---- certificates ---- */

static bool add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *x = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    bool ok = x && X509_add_ext(cert, x, -1) == 1;
    X509_EXTENSION_free(x);
    return ok;
}

static bool set_serial(X509 *cert)
{
    unsigned char bytes[SERIAL_BYTES];
    random_bytes(bytes, sizeof(bytes));
    bytes[0] = (unsigned char)((bytes[0] & 0x7fU) | 0x40U); // positive, and of full length
    BIGNUM *n = BN_bin2bn(bytes, sizeof(bytes), NULL);
    bool ok = n && BN_to_ASN1_INTEGER(n, X509_get_serialNumber(cert)) != NULL;
    BN_free(n);
    return ok;
}

static bool name_it(X509_NAME *name, const char *text)
{
    return X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)text, -1, -1,
                                      0) == 1;
}

/* A day before now too: not every clock is right. */
static X509 *begin_cert(int64_t now_s, int days, EVP_PKEY *key)
{
    X509 *cert = X509_new();
    if (cert && X509_set_version(cert, X509_VERSION_3) && set_serial(cert) &&
        ASN1_TIME_set(X509_getm_notBefore(cert), (time_t)(now_s - DAY_S)) &&
        ASN1_TIME_set(X509_getm_notAfter(cert), (time_t)(now_s + (int64_t)days * DAY_S)) &&
        X509_set_pubkey(cert, key)) {
        return cert;
    }
    X509_free(cert);
    return NULL;
}

static bool spki_digest(X509 *cert, struct digest *out)
{
    unsigned char *der = NULL;
    int len = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(cert), &der);
    if (len <= 0) {
        return false;
    }
    sha256_of(der, (size_t)len, out);
    OPENSSL_free(der);
    return true;
}

static bool fill_ca(struct making *m, X509 *ca)
{
    struct digest d;
    char hex[DIGEST_HEX + 1];
    char name[64];
    if (!spki_digest(ca, &d)) {
        return false;
    }
    digest_hex(&d, hex);
    (void)snprintf(name, sizeof(name), "Photon private authority %.8s", hex); // of several, which
    return name_it(X509_get_subject_name(ca), name) &&
           X509_set_issuer_name(ca, X509_get_subject_name(ca)) &&
           add_extension(ca, ca, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
           add_extension(ca, ca, NID_key_usage, "critical,keyCertSign,cRLSign") &&
           add_extension(ca, ca, NID_subject_key_identifier, "hash") &&
           X509_sign(ca, m->ca_key, EVP_sha256()) > 0;
}

static bool fill_cert(struct making *m, X509 *cert)
{
    return name_it(X509_get_subject_name(cert), "Photon server") &&
           X509_set_issuer_name(cert, X509_get_subject_name(m->ca)) &&
           add_extension(cert, m->ca, NID_basic_constraints, "critical,CA:FALSE") &&
           add_extension(cert, m->ca, NID_key_usage, "critical,digitalSignature") &&
           add_extension(cert, m->ca, NID_ext_key_usage, "serverAuth") &&
           add_extension(cert, m->ca, NID_subject_key_identifier, "hash") &&
           add_extension(cert, m->ca, NID_authority_key_identifier, "keyid") &&
           add_extension(cert, m->ca, NID_subject_alt_name, m->san) &&
           X509_sign(cert, m->ca_key, EVP_sha256()) > 0;
}

static enum status write_certs(struct making *m, const char *name, X509 *first, X509 *second,
                               struct err *e)
{
    BIO *text = BIO_new(BIO_s_mem());
    bool ok =
        text && PEM_write_bio_X509(text, first) && (!second || PEM_write_bio_X509(text, second));
    enum status st = ok ? write_text(m, name, 0644, text, e) : refused(e, "write a certificate");
    BIO_free(text);
    return st;
}

static enum status make_ca(struct making *m, struct err *e)
{
    X509 *ca = begin_cert(m->now_s, TLS_CA_DAYS, m->ca_key);
    if (!ca || !fill_ca(m, ca)) {
        X509_free(ca);
        return refused(e, "make an authority");
    }
    X509_free(m->ca);
    m->ca = ca;
    return write_certs(m, "ca.pem", ca, NULL, e);
}

static enum status make_cert(struct making *m, struct err *e)
{
    X509 *cert = begin_cert(m->now_s, TLS_DAYS, m->key);
    if (!cert || !fill_cert(m, cert)) {
        X509_free(cert);
        return refused(e, "make a certificate");
    }
    X509_free(m->cert);
    m->cert = cert;
    return write_certs(m, "server.pem", cert, m->ca, e);
}

/* ---- what is good enough to stay ---- */

static bool lasts(const struct making *m, X509 *cert, int days)
{
    time_t now = (time_t)m->now_s;
    time_t then = now + (time_t)days * DAY_S;
    return X509_cmp_time(X509_get0_notBefore(cert), &now) < 0 &&
           X509_cmp_time(X509_get0_notAfter(cert), &then) > 0;
}

static bool has_hosts(const struct making *m, X509 *cert)
{
    X509_EXTENSION *want = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, m->san);
    int at = X509_get_ext_by_NID(cert, NID_subject_alt_name, -1);
    bool same = want && at >= 0 &&
                ASN1_OCTET_STRING_cmp(X509_EXTENSION_get_data(want),
                                      X509_EXTENSION_get_data(X509_get_ext(cert, at))) == 0;
    X509_EXTENSION_free(want);
    return same;
}

static bool ca_is_good(const struct making *m)
{
    return m->ca && lasts(m, m->ca, TLS_DAYS) && X509_check_ca(m->ca) == 1;
}

static bool cert_is_good(const struct making *m)
{
    return ca_is_good(m) && m->cert && lasts(m, m->cert, TLS_RENEW_DAYS) && has_hosts(m, m->cert) &&
           X509_check_private_key(m->cert, m->key) == 1 &&
           X509_check_issued(m->ca, m->cert) == X509_V_OK &&
           X509_verify(m->cert, X509_get0_pubkey(m->ca)) == 1;
}

/* ---- the whole ---- */

static bool is_name(const char *host)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_";
    size_t n = strlen(host);
    return n > 0 && n <= HOST_LEN_MAX && strspn(host, plain) == n && host[0] != '.';
}

/* The hosts as libcrypto reads them: nothing in them that it would take for its own. */
static enum status set_hosts(struct making *m, const char *const *hosts, int count, struct err *e)
{
    size_t at = 0;
    for (int i = 0; i < count && i < TLS_HOSTS_MAX; i++) {
        unsigned char address[16];
        bool ip = inet_pton(AF_INET, hosts[i], address) == 1 ||
                  inet_pton(AF_INET6, hosts[i], address) == 1;
        if (!ip && !is_name(hosts[i])) {
            return err_set(e, ST_INVALID, "no certificate can be made for the host '%.100s'",
                           hosts[i]);
        }
        at += (size_t)snprintf(m->san + at, sizeof(m->san) - at, "%s%s%s", i ? "," : "",
                               ip ? "IP:" : "DNS:", hosts[i]);
    }
    return count > 0 ? ST_OK : err_set(e, ST_INVALID, "a certificate needs a host");
}

static enum status open_folder(struct making *m, struct err *e)
{
    // The authority's certificate is for everybody, whatever the umask.
    if (mkdir(m->dir, 0711) == 0 ? chmod(m->dir, 0711) != 0 : errno != EEXIST) {
        return err_set(e, ST_IO, "cannot make '%s': %s", m->dir, strerror(errno));
    }
    m->fd = open(m->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (m->fd < 0 || flock(m->fd, LOCK_EX) != 0) {
        return err_set(e, ST_IO, "cannot open '%s': %s", m->dir, strerror(errno));
    }
    return ST_OK;
}

/* A certificate that cannot be read is made again; only keys cannot. */
static enum status read_cert(struct making *m, X509 **out, const char *name, bool *there,
                             struct err *e)
{
    enum status st = read_text(m, name, false, e);
    *there = st != ST_NOT_FOUND;
    if (st == ST_OK) {
        *out = cert_of(m->text);
        ERR_clear_error();
    }
    return st == ST_NOT_FOUND ? ST_OK : st;
}

static enum status make(struct making *m, bool *made, struct err *e)
{
    bool has_ca = false;
    bool has_cert = false;
    TRY(open_folder(m, e));
    TRY(read_cert(m, &m->ca, "ca.pem", &has_ca, e));
    TRY(read_cert(m, &m->cert, "server.pem", &has_cert, e));
    TRY(want_key(m, &m->key, "server.key", has_cert, e));
    *made = !cert_is_good(m);
    ERR_clear_error();
    if (!*made) {
        return ST_OK;
    }
    TRY(want_key(m, &m->ca_key, "ca.key", has_ca, e));
    if (!ca_is_good(m) || X509_check_private_key(m->ca, m->ca_key) != 1) {
        ERR_clear_error();
        TRY(make_ca(m, e));
    }
    return make_cert(m, e);
}

enum status tls_make(const char *dir, const char *const *hosts, int count, int64_t now_s,
                     bool *made, struct err *e)
{
    struct making m = {.dir = dir, .fd = -1, .now_s = now_s};
    TRY(set_hosts(&m, hosts, count, e));
    m.text = mem_alloc(TEXT_MAX + 1);
    bool anew = false;
    enum status st = make(&m, &anew, e);
    X509_free(m.cert);
    X509_free(m.ca);
    EVP_PKEY_free(m.key);
    EVP_PKEY_free(m.ca_key);
    OPENSSL_cleanse(m.text, TEXT_MAX);
    mem_free(m.text);
    if (m.fd >= 0) {
        (void)close(m.fd); // and the lock with it
    }
    if (st == ST_OK) {
        *made = anew;
    }
    return st;
}

/* ---- certificates of anybody ---- */

/* Does the chain lead to an authority that this system trusts? */
static bool is_vouched(X509 *cert, const char *cert_pem)
{
    BIO *in = BIO_new_mem_buf(cert_pem, -1);
    STACK_OF(X509) *chain = sk_X509_new_null();
    X509 *one = NULL;
    while (in && chain && (one = PEM_read_bio_X509(in, NULL, no_password, NULL)) != NULL) {
        if (!sk_X509_push(chain, one)) {
            X509_free(one);
            break;
        }
    }
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    bool ok = store && ctx && X509_STORE_set_default_paths(store) &&
              X509_STORE_CTX_init(ctx, store, cert, chain) &&
              X509_STORE_CTX_set_default(ctx, "ssl_server") && X509_verify_cert(ctx) == 1;
    X509_STORE_CTX_free(ctx);
    X509_STORE_free(store);
    sk_X509_pop_free(chain, X509_free);
    BIO_free(in);
    ERR_clear_error();
    return ok;
}

static int64_t unix_time(const ASN1_TIME *t)
{
    struct tm tm;
    return ASN1_TIME_to_tm(t, &tm) ? (int64_t)timegm(&tm) : 0;
}

enum status tls_inspect(struct tls_facts *out, const char *cert_pem, const char *key_pem,
                        struct err *e)
{
    X509 *cert = cert_of(cert_pem);
    EVP_PKEY *key = key_of(key_pem);
    struct tls_facts f = {0};
    enum status st = ST_OK;
    if (!cert || !spki_digest(cert, &f.key)) {
        st = err_set(e, ST_INVALID,
                     "the certificate cannot be read; try a PEM file, the server's "
                     "certificate first");
    } else if (!key) {
        st = err_set(e, ST_INVALID, "the key cannot be read; try a PEM file without a password");
    } else if (X509_check_private_key(cert, key) != 1) {
        st = err_set(e, ST_INVALID, "the key is not that of the first certificate; try its own");
    } else {
        f.ends_s = unix_time(X509_get0_notAfter(cert));
        f.vouched = is_vouched(cert, cert_pem);
    }
    ERR_clear_error();
    X509_free(cert);
    EVP_PKEY_free(key);
    if (st == ST_OK) {
        *out = f;
    }
    return st;
}
