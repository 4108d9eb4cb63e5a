#include "server/s3.h"

#include <assert.h>
#include <curl/curl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/loopback.h"
#include "common/rng.h"
#include "common/version.h"
#include "server/s3_int.h"
#include "server/s3_xml.h"

enum {
    REPLY_MAX = 4 << 20, // a listing of 1,000 keys has 400 KB
    CONNECT_MS = 10000,
    STALL_BYTES_PER_S = 1024,
    STALL_S = 30,
    READ_SIZE = 1 << 20,
    PAUSE_MOST_MS = 5000,
};

/* ---- the library ---- */

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void start_curl(void)
{
    CURLcode c = curl_global_init(CURL_GLOBAL_DEFAULT);
    assert(c == CURLE_OK);
    (void)c;
}

void s3_start_library(void)
{
    (void)pthread_once(&curl_once, start_curl);
}

void s3_drop_handles(struct s3 *s)
{
    while (s->handle_count > 0) {
        curl_easy_cleanup(s->handles[--s->handle_count]);
    }
}

enum status s3_check_endpoint(const char *endpoint, struct err *e)
{
    CURLU *u = curl_url();
    char *scheme = NULL;
    char *host = NULL;
    char *path = NULL;
    enum status st = ST_OK;
    assert(u);
    if (curl_url_set(u, CURLUPART_URL, endpoint, 0) ||
        curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) ||
        curl_url_get(u, CURLUPART_HOST, &host, 0) || curl_url_get(u, CURLUPART_PATH, &path, 0)) {
        st = err_set(e, ST_INVALID, "'%.80s' is no endpoint; try https://host", endpoint);
    } else if (strcmp(scheme, "https") != 0 &&
               (strcmp(scheme, "http") != 0 || !loopback_host(host))) {
        st = err_set(e, ST_INVALID, "weights would go to %.80s in the clear; try https://%.80s",
                     host, host);
    } else if (strcmp(path, "/") != 0) {
        st =
            err_set(e, ST_INVALID, "the endpoint '%.80s' has a path; try the host alone", endpoint);
    }
    curl_free(scheme);
    curl_free(host);
    curl_free(path);
    curl_url_cleanup(u);
    return st;
}

/* ---- one try ---- */

static CURL *take_handle(struct s3 *s)
{
    CURL *h = NULL;
    (void)pthread_mutex_lock(&s->lock);
    if (s->handle_count > 0) {
        h = s->handles[--s->handle_count];
    }
    (void)pthread_mutex_unlock(&s->lock);
    if (h) {
        curl_easy_reset(h); // keeps the connection
    }
    return h ? h : curl_easy_init();
}

static void give_handle(struct s3 *s, CURL *h)
{
    (void)pthread_mutex_lock(&s->lock);
    if (s->handle_count < S3_HANDLES_KEPT) {
        s->handles[s->handle_count++] = h;
        h = NULL;
    }
    (void)pthread_mutex_unlock(&s->lock);
    if (h) {
        curl_easy_cleanup(h);
    }
}

static size_t on_header(char *line, size_t size, size_t count, void *ctx)
{
    struct s3_call *c = ctx;
    size_t n = size * count;
    char copy[256];
    (void)snprintf(copy, sizeof(copy), "%.*s", n < 255 ? (int)n : 255, line);
    long long v = 0;
    if (strncmp(copy, "HTTP/", 5) == 0) { // a new answer: 100 Continue comes before the real one
        c->length = c->range_start = -1;
        c->etag[0] = '\0';
    } else if (strncasecmp(copy, "etag:", 5) == 0) {
        (void)sscanf(copy + 5, " %79[!-~]", c->etag);
    } else if (strncasecmp(copy, "content-length:", 15) == 0 &&
               sscanf(copy + 15, "%lld", &v) == 1) {
        c->length = v;
    } else if (strncasecmp(copy, "content-range:", 14) == 0 &&
               sscanf(copy + 14, " bytes %lld-", &v) == 1) {
        c->range_start = v;
    }
    return n;
}

struct exchange {
    struct s3_call *c;
    CURL *h;
};

static size_t on_body(char *bytes, size_t size, size_t count, void *ctx)
{
    struct exchange *x = ctx;
    struct s3_call *c = x->c;
    size_t n = size * count;
    long http = 0;
    (void)curl_easy_getinfo(x->h, CURLINFO_RESPONSE_CODE, &http);
    if (!c->sink || http < 200 || http > 299) {
        buf_add(&c->reply, bytes, n);
        return c->reply.full ? 0 : n;
    }
    bool ranged = c->range_from > 0 || c->range_to >= 0;
    if (ranged && (http != 206 || c->range_start != c->range_from)) {
        c->sink_st =
            err_set(&c->sink_err, ST_IO, "the store does not answer with the range asked for");
        return 0;
    }
    c->sink_st = c->sink(c->sink_ctx, bytes, n, &c->sink_err);
    if (c->sink_st) {
        return 0;
    }
    c->taken += (int64_t)n;
    return n;
}

static size_t on_read(char *out, size_t size, size_t count, void *ctx)
{
    struct s3_call *c = ctx;
    int64_t left = c->bytes - c->read_at;
    size_t most = size * count;
    size_t want = left < (int64_t)most ? (size_t)left : most;
    if (want == 0) {
        return 0;
    }
    ssize_t n = pread(c->fd, out, want, c->offset + c->read_at);
    if (n <= 0) {
        c->read_failed = true;
        return CURL_READFUNC_ABORT;
    }
    c->read_at += n;
    return (size_t)n;
}

static int on_seek(void *ctx, curl_off_t offset, int origin)
{
    struct s3_call *c = ctx;
    if (origin != SEEK_SET || offset < 0 || offset > c->bytes) {
        return CURL_SEEKFUNC_FAIL;
    }
    c->read_at = offset;
    return CURL_SEEKFUNC_OK;
}

static struct curl_slist *add_header(struct curl_slist *list, const char *line)
{
    struct curl_slist *more = curl_slist_append(list, line);
    assert(more);
    return more;
}

static struct curl_slist *make_headers(const struct s3_call *c, const struct s3_keys *keys)
{
    char line[2200];
    char hex[DIGEST_HEX + 1];
    struct digest empty;
    struct curl_slist *list = NULL;
    sha256_of(c->body ? c->body : "", c->body ? strlen(c->body) : 0, &empty);
    digest_hex(c->sha256 ? c->sha256 : &empty, hex);
    (void)snprintf(line, sizeof(line), "x-amz-content-sha256: %s", hex);
    list = add_header(list, line);
    if (keys->session[0]) {
        (void)snprintf(line, sizeof(line), "x-amz-security-token: %s", keys->session);
        list = add_header(list, line);
    }
    if (c->if_none_match) {
        list = add_header(list, "If-None-Match: *");
    }
    if (c->body) {
        list = add_header(list, "Content-Type: application/xml");
    }
    explicit_bzero(line, sizeof(line));
    return list;
}

static void set_body(CURL *h, struct s3_call *c)
{
    if (c->fd >= 0) {
        (void)curl_easy_setopt(h, CURLOPT_UPLOAD, 1L);
        (void)curl_easy_setopt(h, CURLOPT_READFUNCTION, on_read);
        (void)curl_easy_setopt(h, CURLOPT_READDATA, c);
        (void)curl_easy_setopt(h, CURLOPT_SEEKFUNCTION, on_seek);
        (void)curl_easy_setopt(h, CURLOPT_SEEKDATA, c);
        (void)curl_easy_setopt(h, CURLOPT_INFILESIZE_LARGE, (curl_off_t)c->bytes);
        (void)curl_easy_setopt(h, CURLOPT_UPLOAD_BUFFERSIZE, (long)READ_SIZE);
    } else if (strcmp(c->method, "POST") == 0) {
        (void)curl_easy_setopt(h, CURLOPT_POSTFIELDS, c->body ? c->body : "");
        (void)curl_easy_setopt(h, CURLOPT_POSTFIELDSIZE_LARGE,
                               (curl_off_t)(c->body ? strlen(c->body) : 0));
    } else if (strcmp(c->method, "HEAD") == 0) {
        (void)curl_easy_setopt(h, CURLOPT_NOBODY, 1L);
    } else if (strcmp(c->method, "GET") != 0) {
        (void)curl_easy_setopt(h, CURLOPT_CUSTOMREQUEST, c->method);
    }
}

static void set_request(CURL *h, struct exchange *x, const struct s3_keys *keys, struct arena *a)
{
    struct s3_call *c = x->c;
    struct s3 *s = c->s;
    bool slash = c->key[0] && s->prefix[0];
    const char *url =
        arena_fmt(a, "%s/%s%s%s%s%s", s->base, c->key[0] ? s->prefix : "", slash ? "/" : "", c->key,
                  c->query ? "?" : "", c->query ? c->query : "");
    (void)curl_easy_setopt(h, CURLOPT_URL, url);
    (void)curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, "https,http"); // hosts: check_endpoint()
    (void)curl_easy_setopt(h, CURLOPT_FOLLOWLOCATION, 0L);
    (void)curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(h, CURLOPT_PATH_AS_IS, 1L);
    (void)curl_easy_setopt(h, CURLOPT_TCP_KEEPALIVE, 1L);
    (void)curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
    (void)curl_easy_setopt(h, CURLOPT_LOW_SPEED_LIMIT, (long)STALL_BYTES_PER_S);
    (void)curl_easy_setopt(h, CURLOPT_LOW_SPEED_TIME,
                           (long)(c->patience_s < STALL_S ? c->patience_s + 1.0 : STALL_S));
    (void)curl_easy_setopt(h, CURLOPT_SSL_VERIFYPEER, 1L);
    (void)curl_easy_setopt(h, CURLOPT_SSL_VERIFYHOST, 2L);
    (void)curl_easy_setopt(h, CURLOPT_USERAGENT, "photon/" PHOTON_VERSION);
    (void)curl_easy_setopt(h, CURLOPT_USERNAME, keys->user);
    (void)curl_easy_setopt(h, CURLOPT_PASSWORD, keys->password);
    (void)curl_easy_setopt(h, CURLOPT_AWS_SIGV4, s->sigv4);
    (void)curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, on_header);
    (void)curl_easy_setopt(h, CURLOPT_HEADERDATA, c);
    (void)curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_body);
    (void)curl_easy_setopt(h, CURLOPT_WRITEDATA, x);
    (void)curl_easy_setopt(h, CURLOPT_BUFFERSIZE, 256L * 1024);
    if (s->ca_file) {
        (void)curl_easy_setopt(h, CURLOPT_CAINFO, s->ca_file);
    }
    if (c->range_from > 0 || c->range_to >= 0) {
        const char *range = c->range_to >= 0
                                ? arena_fmt(a, "%" PRId64 "-%" PRId64, c->range_from, c->range_to)
                                : arena_fmt(a, "%" PRId64 "-", c->range_from);
        (void)curl_easy_setopt(h, CURLOPT_RANGE, range);
    }
    set_body(h, c);
}

/* ST_NET: no whole answer. What the answer says is in c. */
static enum status try_once(struct s3_call *c, struct err *e)
{
    char said[CURL_ERROR_SIZE] = "";
    struct exchange x = {.c = c, .h = take_handle(c->s)};
    if (!x.h) {
        return err_set(e, ST_NET, "libcurl gave no handle");
    }
    struct arena *a = arena_new(1 << 20);
    struct s3_keys keys;
    s3_keys_now(c->s, &keys);
    struct curl_slist *headers = make_headers(c, &keys);
    c->http = 0;
    c->length = c->range_start = -1;
    c->read_at = 0;
    buf_release(&c->reply);
    buf_init(&c->reply, REPLY_MAX);
    set_request(x.h, &x, &keys, a);
    explicit_bzero(&keys, sizeof(keys)); // libcurl has copies
    (void)curl_easy_setopt(x.h, CURLOPT_HTTPHEADER, headers);
    (void)curl_easy_setopt(x.h, CURLOPT_ERRORBUFFER, said);
    FAULT("s3.request");
    CURLcode rc = FAULT_ERR("s3.answer") ? CURLE_RECV_ERROR : curl_easy_perform(x.h);
    (void)curl_easy_getinfo(x.h, CURLINFO_RESPONSE_CODE, &c->http);
    enum status st = ST_OK;
    if (rc == CURLE_PEER_FAILED_VERIFICATION || rc == CURLE_SSL_CACERT_BADFILE) {
        st = err_set(e, ST_DENIED,
                     "the store's certificate is not trusted: %.120s; try --s3-ca FILE", said);
    } else if (rc != CURLE_OK) {
        st = err_set(e, ST_NET, "no answer from the object store: %.120s",
                     said[0] ? said : curl_easy_strerror(rc));
    }
    curl_slist_free_all(headers);
    arena_free(a);
    give_handle(c->s, x.h);
    return st;
}

/* ---- tries ---- */

/* What the store says is wrong: its code, such as AccessDenied. */
const char *s3_reply_code(const struct s3_call *c, char out[80])
{
    const char *at = c->reply.data ? c->reply.data : "";
    if (!s3_xml_text(&at, "Code", out, 80)) {
        (void)snprintf(out, 80, "status %ld", c->http);
    }
    return out;
}

static bool passing(long http)
{
    return http == 408 || http == 429 || http >= 500;
}

static enum status judge(struct s3_call *c, struct err *e)
{
    char code[80];
    if (c->http >= 200 && c->http < 300) {
        return ST_OK;
    }
    (void)s3_reply_code(c, code);
    if (c->http == 404 && strcmp(code, "NoSuchBucket") != 0) {
        return err_set(e, ST_NOT_FOUND, "the object is not there");
    }
    if (c->http == 412 || c->http == 409) {
        return err_set(e, ST_CONFLICT, "the object is there already");
    }
    if (c->http == 403 || c->http == 401) {
        return err_set(e, ST_DENIED,
                       "the object store refuses us: %s; try the key, the region, this machine's "
                       "clock, and list, "
                       "get, put and delete below the prefix",
                       code);
    }
    return err_set(e, passing(c->http) && c->http != 501 ? ST_RETRY : ST_IO,
                   "the object store answers with %s", code);
}

/*
 * With patience, and going on where a download was cut. A call without a sink is repeated whole.
 */
enum status s3_perform(struct s3_call *c, struct err *e)
{
    double begin = clock_mono_s();
    int64_t from = c->range_from;
    int64_t pause = c->s->pause_ms;
    int64_t moved = 0;
    for (;;) {
        c->range_from = from + c->taken;
        enum status st = try_once(c, e);
        if (c->read_failed) {
            return err_set(e, ST_IO, "cannot read the file to be stored");
        }
        if (c->sink_st) {
            return err_set(e, c->sink_st, "%s", c->sink_err.msg);
        }
        if (st == ST_DENIED) {
            return st;
        }
        if (st) {
            st = err_set(e, ST_RETRY, "%s", e ? e->msg : "");
        } else {
            st = judge(c, e);
        }
        if (c->http == 416 && c->taken > 0) {
            return ST_OK; // the cut was behind the last byte
        }
        if (st != ST_RETRY) {
            return st;
        }
        if (c->taken > moved) { // it moves: patience is for standing still
            moved = c->taken;
            begin = clock_mono_s();
            pause = c->s->pause_ms;
        }
        uint64_t chance = 0;
        random_bytes(&chance, sizeof(chance));
        int64_t wait = pause / 2 + (int64_t)((double)pause * rng_unit(chance, 0));
        if (clock_mono_s() + (double)wait / 1000.0 - begin > c->patience_s) {
            return st;
        }
        clock_sleep_ms(wait);
        pause = 2 * pause < PAUSE_MOST_MS ? 2 * pause : PAUSE_MOST_MS;
    }
}

struct s3_call s3_call_new(struct s3 *s, const char *method, const char *key)
{
    return (struct s3_call){.s = s,
                            .method = method,
                            .key = key,
                            .fd = -1,
                            .range_to = -1,
                            .length = -1,
                            .range_start = -1,
                            .patience_s = s->patience_s};
}
