#include "common/hash.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"

enum { READ_SIZE = 1 << 18 };

struct sha256 {
    EVP_MD_CTX *ctx;
};

static void start(struct sha256 *h)
{
    int ok = EVP_DigestInit_ex(h->ctx, EVP_sha256(), NULL);
    assert(ok == 1);
    (void)ok;
}

struct sha256 *sha256_new(void)
{
    struct sha256 *h = mem_alloc(sizeof(*h));
    h->ctx = EVP_MD_CTX_new();
    assert(h->ctx);
    start(h);
    return h;
}

void sha256_free(struct sha256 *h)
{
    if (h) {
        EVP_MD_CTX_free(h->ctx);
        mem_free(h);
    }
}

void sha256_add(struct sha256 *h, const void *bytes, size_t len)
{
    int ok = EVP_DigestUpdate(h->ctx, bytes, len);
    assert(ok == 1);
    (void)ok;
}

void sha256_end(struct sha256 *h, struct digest *out)
{
    unsigned n = 0;
    int ok = EVP_DigestFinal_ex(h->ctx, out->bytes, &n);
    assert(ok == 1 && n == DIGEST_SIZE);
    (void)ok;
    start(h);
}

void sha256_of(const void *bytes, size_t len, struct digest *out)
{
    struct sha256 *h = sha256_new();
    sha256_add(h, bytes, len);
    sha256_end(h, out);
    sha256_free(h);
}

enum status sha256_file(const char *path, struct digest *out, int64_t *bytes, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "cannot open %s: %s", path,
                       strerror(errno));
    }
    enum status st = ST_OK;
    struct sha256 *h = sha256_new();
    unsigned char *block = mem_alloc(READ_SIZE);
    int64_t total = 0;
    for (;;) {
        ssize_t n = read(fd, block, READ_SIZE);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            st = err_set(e, ST_IO, "cannot read %s: %s", path, strerror(errno));
            break;
        }
        if (n == 0) {
            break;
        }
        sha256_add(h, block, (size_t)n);
        total += n;
    }
    if (!st) {
        sha256_end(h, out);
        if (bytes) {
            *bytes = total;
        }
    }
    mem_free(block);
    sha256_free(h);
    (void)close(fd);
    return st;
}

void digest_hex(const struct digest *d, char out[DIGEST_HEX + 1])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < DIGEST_SIZE; i++) {
        out[2 * i] = digits[d->bytes[i] >> 4];
        out[2 * i + 1] = digits[d->bytes[i] & 15];
    }
    out[DIGEST_HEX] = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

enum status digest_parse(struct digest *out, const char *hex, struct err *e)
{
    struct digest d;
    if (!hex || strlen(hex) != DIGEST_HEX) {
        return err_set(e, ST_INVALID, "a SHA-256 is 64 lower-case hex digits");
    }
    for (int i = 0; i < DIGEST_SIZE; i++) {
        int hi = hex_value(hex[2 * i]);
        int lo = hex_value(hex[2 * i + 1]);
        if (hi < 0 || lo < 0) {
            return err_set(e, ST_INVALID, "a SHA-256 is 64 lower-case hex digits");
        }
        d.bytes[i] = (uint8_t)(hi * 16 + lo);
    }
    *out = d;
    return ST_OK;
}

bool digest_equal(const struct digest *a, const struct digest *b)
{
    return CRYPTO_memcmp(a->bytes, b->bytes, DIGEST_SIZE) == 0;
}

void random_bytes(void *out, size_t n)
{
    int ok = RAND_bytes(out, (int)n);
    assert(ok == 1); // without randomness no token is safe
    (void)ok;
}
