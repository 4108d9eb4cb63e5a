#include "client/transport.h"

#include <assert.h>
#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/log.h"
#include "common/loopback.h"
#include "common/mem.h"
#include "common/pin.h"
#include "common/rng.h"
#include "common/version.h"

enum {
    REPLY_MAX = 256 * 1024,
    REPLY_EXTRA = 64 * 1024, // of an arena: addresses, headers, a problem's words
    CONNECT_MS = 15000,
    STALL_BYTES_PER_S = 1024,
    STALL_S = 60,
    SLICE_MS = 100
};

struct transport {
    CURL *curl;
    char *url;
    char *auth;    // the whole header, or NULL
    char *ca_file; // or NULL
    char *pin;     // or NULL
    int64_t max_bytes_per_s;
    size_t reply_max;
    bool (*cancelled)(void *ctx);
    void *cancel_ctx;
    bool (*fresh_token)(void *ctx, char *out, size_t size);
    void *fresh_ctx;
    double timeout_s;
    char error[CURL_ERROR_SIZE];
};

/* ---- addresses ---- */

static enum status check_parts(CURLU *u, const char *url, struct err *e)
{
    if (curl_url_set(u, CURLUPART_URL, url, 0) != CURLUE_OK) {
        return err_set(e, ST_INVALID, "'%.120s' is not an address; try https://host:port", url);
    }
    char *scheme = NULL;
    char *host = NULL;
    enum status st = ST_OK;
    if (curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
        curl_url_get(u, CURLUPART_HOST, &host, 0) != CURLUE_OK) {
        st = err_set(e, ST_INVALID, "'%.120s' names no host; try https://host:port", url);
    } else if (strcmp(scheme, "https") != 0 && strcmp(scheme, "http") != 0) {
        st = err_set(e, ST_INVALID, "'%.120s' is neither https nor http", url);
    } else if (strcmp(scheme, "http") == 0 && !loopback_host(host)) {
        st = err_set(e, ST_INVALID,
                     "http would send the token to %.80s in the clear; try https://%.80s", host,
                     host);
    }
    curl_free(scheme);
    curl_free(host);
    return st;
}

enum status transport_url_check(const char *url, struct err *e)
{
    CURLU *u = curl_url();
    assert(u);
    enum status st = check_parts(u, url, e);
    curl_url_cleanup(u);
    return st;
}

/* ---- opening ---- */

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void start_curl(void)
{
    CURLcode c = curl_global_init(CURL_GLOBAL_DEFAULT);
    assert(c == CURLE_OK);
    (void)c;
}

static char *copy_text(const char *s)
{
    if (!s || !*s) {
        return NULL;
    }
    size_t n = strlen(s);
    char *out = mem_alloc(n + 1);
    memcpy(out, s, n);
    return out;
}

static enum status check_pin(const struct transport_config *c, struct err *e)
{
    struct pin unused;
    if (!c->pin || !*c->pin) {
        return ST_OK;
    }
    TRY(pin_parse(&unused, c->pin, e));
    if (strncasecmp(c->url, "https://", 8) != 0) {
        return err_set(e, ST_INVALID, "'%.120s' has no certificate to pin; try https://, or no pin",
                       c->url);
    }
    return ST_OK;
}

static bool has_line_break(const char *token)
{
    return token[strcspn(token, "\r\n")] != '\0';
}

/* The whole header, the caller's to free. */
static char *bearer(const char *token)
{
    static const char lead[] = "Authorization: Bearer ";
    size_t size = sizeof(lead) + strlen(token);
    char *out = mem_alloc(size);
    (void)snprintf(out, size, "%s%s", lead, token);
    return out;
}

enum status transport_open(struct transport **out, const struct transport_config *c, struct err *e)
{
    (void)pthread_once(&curl_once, start_curl);
    TRY(transport_url_check(c->url, e));
    TRY(check_pin(c, e));
    if (c->token && has_line_break(c->token)) {
        return err_set(e, ST_INVALID, "the token has a line break in it");
    }
    CURL *curl = curl_easy_init();
    if (!curl) {
        return err_set(e, ST_NOMEM, "libcurl gave no handle");
    }
    struct transport *t = mem_alloc(sizeof(*t));
    t->curl = curl;
    t->url = copy_text(c->url);
    size_t n = strlen(t->url);
    while (n > 0 && t->url[n - 1] == '/') {
        t->url[--n] = '\0';
    }
    t->auth = c->token ? bearer(c->token) : NULL;
    t->ca_file = copy_text(c->ca_file);
    t->pin = copy_text(c->pin);
    t->max_bytes_per_s = c->max_bytes_per_s;
    t->reply_max = c->reply_max > 0 ? c->reply_max : REPLY_MAX;
    t->cancelled = c->cancelled;
    t->cancel_ctx = c->cancel_ctx;
    t->fresh_token = c->fresh_token;
    t->fresh_ctx = c->fresh_ctx;
    t->timeout_s = 30.0;
    *out = t;
    return ST_OK;
}

void transport_close(struct transport *t)
{
    if (!t) {
        return;
    }
    curl_easy_cleanup(t->curl);
    mem_free(t->url);
    mem_free(t->auth);
    mem_free(t->ca_file);
    mem_free(t->pin);
    mem_free(t);
}

const char *transport_url(const struct transport *t)
{
    return t->url;
}

void transport_timeout(struct transport *t, double seconds)
{
    t->timeout_s = seconds;
}

static bool is_cancelled(const struct transport *t)
{
    return t->cancelled && t->cancelled(t->cancel_ctx);
}

/* ---- one exchange ---- */

struct exchange {
    struct transport *t;
    CURLcode trust; // not CURLE_OK: libcurl would not hold the peer to it, so nothing is sent
    struct curl_slist *headers;
    struct buf body;              // JSON, or an error's document
    const struct body_sink *sink; // where a 2xx body goes instead; NULL: body
    bool sink_begun;
    int64_t range_start; // of Content-Range, or -1
    int64_t range_total;
};

static int on_progress(void *ctx, curl_off_t dl_total, curl_off_t dl_now, curl_off_t ul_total,
                       curl_off_t ul_now)
{
    (void)dl_total;
    (void)dl_now;
    (void)ul_total;
    (void)ul_now;
    const struct exchange *x = ctx;
    return is_cancelled(x->t) ? 1 : 0;
}

static size_t on_header(char *line, size_t size, size_t count, void *ctx)
{
    struct exchange *x = ctx;
    size_t n = size * count;
    static const char name[] = "content-range:";
    if (n > 5 && strncmp(line, "HTTP/", 5) == 0) {
        x->range_start = -1; // a new response: 100 Continue comes before the real one
        x->range_total = -1;
    }
    char copy[128];
    if (n >= sizeof(name) && n < sizeof(copy) && strncasecmp(line, name, sizeof(name) - 1) == 0) {
        memcpy(copy, line, n);
        copy[n] = '\0';
        const char *p = copy + sizeof(name) - 1;
        int64_t first = 0;
        int64_t last = 0;
        int64_t total = 0;
        if (sscanf(p, " bytes %" SCNd64 "-%" SCNd64 "/%" SCNd64, &first, &last, &total) == 3) {
            x->range_start = first;
            x->range_total = total;
        }
    }
    return n;
}

static bool sink_take(struct exchange *x, const char *bytes, size_t n, long http)
{
    if (!x->sink_begun) {
        x->sink_begun = true;
        if (!x->sink->begin(x->sink->ctx, (int)http, x->range_start, x->range_total)) {
            return false;
        }
    }
    return x->sink->bytes(x->sink->ctx, bytes, n);
}

static size_t on_body(char *bytes, size_t size, size_t count, void *ctx)
{
    struct exchange *x = ctx;
    size_t n = size * count;
    long http = 0;
    (void)curl_easy_getinfo(x->t->curl, CURLINFO_RESPONSE_CODE, &http);
    if (x->sink && http >= 200 && http < 300) {
        return sink_take(x, bytes, n, http) ? n : 0;
    }
    buf_add(&x->body, bytes, n);
    return x->body.full ? 0 : n;
}

static void add_header(struct exchange *x, const char *line)
{
    struct curl_slist *more = curl_slist_append(x->headers, line);
    assert(more);
    x->headers = more;
}

/* A pin alone stands for the certificate, and only once libcurl has taken it. */
static CURLcode set_trust(CURL *c, const struct transport *t)
{
    CURLcode rc =
        curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "https,http"); // hosts: by check_parts()
    rc = rc ? rc : curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    rc = rc ? rc : curl_easy_setopt(c, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    rc = rc ? rc : curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 1L);
    rc = rc ? rc : curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 2L);
    if (!rc && t->ca_file) {
        rc = curl_easy_setopt(c, CURLOPT_CAINFO, t->ca_file);
    }
    if (!rc && t->pin) {
        rc = curl_easy_setopt(c, CURLOPT_PINNEDPUBLICKEY, t->pin);
    }
    if (!rc && t->pin && !t->ca_file) {
        rc = curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 0L);
        rc = rc ? rc : curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 0L);
    }
    return rc;
}

static void exchange_init(struct exchange *x, struct transport *t, struct arena *a,
                          const char *method, const char *path)
{
    memset(x, 0, sizeof(*x));
    x->t = t;
    x->range_start = -1;
    x->range_total = -1;
    buf_init(&x->body, t->reply_max);
    CURL *c = t->curl;
    curl_easy_reset(c); // keeps the connection
    t->error[0] = '\0';
    const char *url = arena_fmt(a, "%s%s", t->url, path);
    (void)curl_easy_setopt(c, CURLOPT_URL, url);
    (void)curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
    x->trust = set_trust(c, t);
    (void)curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(c, CURLOPT_TCP_KEEPALIVE, 1L);
    (void)curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
    (void)curl_easy_setopt(c, CURLOPT_ERRORBUFFER, t->error);
    (void)curl_easy_setopt(c, CURLOPT_USERAGENT, "photon/" PHOTON_VERSION);
    (void)curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    (void)curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
    (void)curl_easy_setopt(c, CURLOPT_XFERINFODATA, x);
    (void)curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    (void)curl_easy_setopt(c, CURLOPT_HEADERDATA, x);
    (void)curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    (void)curl_easy_setopt(c, CURLOPT_WRITEDATA, x);
    if (t->auth) {
        add_header(x, t->auth);
    }
    add_header(x, "Photon-Protocol: " PHOTON_PROTOCOL);
    add_header(x, "Accept: application/json, application/problem+json, */*;q=0.1");
}

static void bulk_limits(struct transport *t)
{
    // A slow link is fine, a dead one is not: no limit on the whole, one on standing still.
    (void)curl_easy_setopt(t->curl, CURLOPT_LOW_SPEED_LIMIT, (long)STALL_BYTES_PER_S);
    (void)curl_easy_setopt(t->curl, CURLOPT_LOW_SPEED_TIME, (long)STALL_S);
}

static enum status fail_net(const struct exchange *x, CURLcode c, struct reply *out, struct err *e)
{
    struct transport *t = x->t;
    out->http = 0;
    out->cancelled = c == CURLE_ABORTED_BY_CALLBACK || is_cancelled(t);
    if (out->cancelled) {
        return err_set(e, ST_NET, "cancelled");
    }
    if (c == CURLE_PEER_FAILED_VERIFICATION || c == CURLE_SSL_CACERT_BADFILE) {
        return err_set(
            e, ST_DENIED,
            "the certificate of %.70s is not trusted (%.70s); try --pin, as the join line "
            "has it, or --ca-file FILE",
            t->url, t->error);
    }
    if (c == CURLE_SSL_PINNEDPUBKEYNOTMATCH) {
        out->code = "PIN_MISMATCH";
        return err_set(
            e, ST_DENIED,
            "PIN_MISMATCH: %.70s does not show the pinned key, so nothing was sent: it is "
            "another server, or has a new key; try the pin that its operator tells you",
            t->url);
    }
    if (x->body.full) {
        return err_set(e, ST_NET,
                       "%.80s answers with more than %zu bytes, so it is no Photon server", t->url,
                       t->reply_max);
    }
    return err_set(e, ST_NET, "no answer from %.80s: %.120s", t->url,
                   t->error[0] ? t->error : curl_easy_strerror(c));
}

static const char *header_text(const struct exchange *x, struct arena *a, const char *name)
{
    struct curl_header *h = NULL;
    bool there = curl_easy_header(x->t->curl, name, 0, CURLH_HEADER, -1, &h) == CURLHE_OK;
    return there ? arena_fmt(a, "%.200s", h->value) : "";
}

static void fill_reply(struct exchange *x, struct arena *a, struct reply *out)
{
    long http = 0;
    (void)curl_easy_getinfo(x->t->curl, CURLINFO_RESPONSE_CODE, &http);
    out->http = (int)http;
    curl_off_t after = 0;
    if (curl_easy_getinfo(x->t->curl, CURLINFO_RETRY_AFTER, &after) == CURLE_OK && after > 0) {
        out->retry_after_s = (double)after;
    }
    out->base = header_text(x, a, "Photon-Base");
    out->step = header_text(x, a, "Photon-Step");
    char *text = arena_alloc(a, x->body.len + 1);
    memcpy(text, x->body.data, x->body.len);
    out->text = text;
    out->len = x->body.len;
    size_t lead = strspn(text, " \t\r\n");
    if (text[lead] == '{' || text[lead] == '[') {
        struct err unused = {0};
        if (json_parse(&out->json, a, text, x->body.len, &unused)) {
            out->json = NULL;
        }
    }
    reply_read_problem(out, a);
}

/* Perform, read the answer, release the exchange. */
static enum status finish(struct exchange *x, struct arena *a, struct reply *out, struct err *e)
{
    (void)curl_easy_setopt(x->t->curl, CURLOPT_HTTPHEADER, x->headers);
    reply_clear(out);
    CURLcode c = CURLE_OK;
    if (!x->trust) {
        c = FAULT_ERR("net.send") ? CURLE_SEND_ERROR : curl_easy_perform(x->t->curl);
        c = FAULT_ERR("net.reply") ? CURLE_RECV_ERROR : c;
    }
    enum status st = ST_OK;
    if (x->trust) {
        st = err_set(e, ST_DENIED, "this libcurl cannot make sure who answers (%s); try another",
                     curl_easy_strerror(x->trust));
    } else if (c != CURLE_OK) {
        st = fail_net(x, c, out, e);
    } else {
        fill_reply(x, a, out);
        st = reply_error(out, e);
    }
    curl_slist_free_all(x->headers);
    buf_release(&x->body);
    return st;
}

/* Was the token refused, and is there another by now? It is spoken with from here on. */
static bool takes_fresh_token(struct transport *t, const struct reply *r)
{
    char token[TRANSPORT_TOKEN_MAX];
    if (r->http != 401 || !t->fresh_token || !t->fresh_token(t->fresh_ctx, token, sizeof(token)) ||
        has_line_break(token)) {
        return false;
    }
    char *auth = bearer(token);
    bool other = !t->auth || strcmp(auth, t->auth) != 0;
    mem_free(other ? t->auth : auth);
    t->auth = other ? auth : t->auth;
    return other;
}

static enum status call_once(struct transport *t, struct arena *a, const char *method,
                             const char *path, const char *body, struct reply *out, struct err *e)
{
    struct exchange x;
    exchange_init(&x, t, a, method, path);
    (void)curl_easy_setopt(t->curl, CURLOPT_TIMEOUT_MS, (long)(t->timeout_s * 1000.0));
    if (body) {
        add_header(&x, "Content-Type: application/json");
        add_header(&x, "Expect:");
        (void)curl_easy_setopt(t->curl, CURLOPT_POSTFIELDS, body);
        (void)curl_easy_setopt(t->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
        (void)curl_easy_setopt(t->curl, CURLOPT_CUSTOMREQUEST, method);
    } else if (strcmp(method, "POST") == 0) {
        (void)curl_easy_setopt(t->curl, CURLOPT_POSTFIELDS, "");
        (void)curl_easy_setopt(t->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)0);
    }
    return finish(&x, a, out, e);
}

enum status transport_call(struct transport *t, struct arena *a, const char *method,
                           const char *path, const char *body, struct reply *out, struct err *e)
{
    enum status st = call_once(t, a, method, path, body, out, e);
    return takes_fresh_token(t, out) ? call_once(t, a, method, path, body, out, e) : st;
}

static void wait_ms(struct transport *t, int64_t ms)
{
    int64_t until = clock_mono_ms() + ms;
    for (int64_t now = clock_mono_ms(); now < until && !is_cancelled(t); now = clock_mono_ms()) {
        clock_sleep_ms(until - now < SLICE_MS ? until - now : SLICE_MS);
    }
}

static void free_arena(void *ptr)
{
    arena_free(ptr);
}

enum status transport_call_retry(struct transport *t, struct arena *a, const char *method,
                                 const char *path, const char *body, double give_up_s,
                                 struct reply *out, struct err *e)
{
    double start = clock_mono_s();
    for (int attempt = 0;; attempt++) {
        struct arena *one = arena_new(4 * t->reply_max + REPLY_EXTRA);
        enum status st = transport_call(t, one, method, path, body, out, e);
        if (!st || out->cancelled || !retry_allowed(out->http) || st == ST_DENIED) {
            arena_defer(a, free_arena, one);
            return st;
        }
        uint64_t draw = 0;
        random_bytes(&draw, sizeof(draw));
        int64_t wait = retry_delay_ms(attempt, rng_unit(draw, 0), out->retry_after_s);
        if (give_up_s > 0.0 && clock_mono_s() + (double)wait / 1000.0 - start > give_up_s) {
            arena_defer(a, free_arena, one);
            return st;
        }
        log_info("%s; again in %.1f s", e->msg, (double)wait / 1000.0);
        reply_clear(out);
        arena_free(one); // an outage may last for days
        wait_ms(t, wait);
        if (is_cancelled(t)) {
            out->cancelled = true;
            return err_set(e, ST_NET, "cancelled");
        }
    }
}

/* ---- bodies coming down ---- */

static enum status get_once(struct transport *t, struct arena *a, const char *path,
                            const char *const *headers, const struct body_sink *sink,
                            struct reply *out, struct err *e)
{
    struct exchange x;
    exchange_init(&x, t, a, "GET", path);
    bulk_limits(t);
    x.sink = sink;
    for (; *headers; headers++) {
        add_header(&x, *headers);
    }
    if (t->max_bytes_per_s > 0) {
        (void)curl_easy_setopt(t->curl, CURLOPT_MAX_RECV_SPEED_LARGE,
                               (curl_off_t)t->max_bytes_per_s);
    }
    return finish(&x, a, out, e);
}

enum status transport_get(struct transport *t, struct arena *a, const char *path,
                          const char *const *headers, const struct body_sink *sink,
                          struct reply *out, struct err *e)
{
    enum status st = get_once(t, a, path, headers, sink, out, e);
    return takes_fresh_token(t, out) ? get_once(t, a, path, headers, sink, out, e) : st;
}

/* ---- chunks going up ---- */

struct chunk_reader {
    const struct chunk *c;
    int64_t at;    // from the chunk's start
    int64_t given; // to libcurl, what it took back and read again included
};

static size_t on_read(char *out, size_t size, size_t count, void *ctx)
{
    struct chunk_reader *r = ctx;
    size_t want = size * count;
    int64_t left = r->c->bytes - r->at;
    if ((int64_t)want > left) {
        want = (size_t)left;
    }
    if (want == 0) {
        return 0;
    }
    ssize_t n = 0;
    do {
        n = pread(r->c->fd, out, want, r->c->offset + r->at);
    } while (n < 0 && errno == EINTR);
    if (n <= 0) {
        return CURL_READFUNC_ABORT; // shorter than promised: never send a wrong length
    }
    r->at += n;
    r->given += n;
    return (size_t)n;
}

static int on_seek(void *ctx, curl_off_t offset, int origin)
{
    struct chunk_reader *r = ctx;
    if (origin != SEEK_SET || offset < 0 || offset > r->c->bytes) {
        return CURL_SEEKFUNC_FAIL;
    }
    r->at = offset;
    return CURL_SEEKFUNC_OK;
}

static enum status chunk_once(struct transport *t, struct arena *a, struct chunk *c,
                              struct reply *out, struct err *e)
{
    struct exchange x;
    exchange_init(&x, t, a, "POST", c->path);
    bulk_limits(t);
    struct chunk_reader reader = {.c = c};
    curl_mime *form = curl_mime_init(t->curl);
    assert(form);
    curl_mimepart *meta = curl_mime_addpart(form);
    (void)curl_mime_name(meta, "meta");
    (void)curl_mime_type(meta, "application/json");
    (void)curl_mime_data(meta, c->meta, CURL_ZERO_TERMINATED);
    curl_mimepart *body = curl_mime_addpart(form);
    (void)curl_mime_name(body, "chunk");
    (void)curl_mime_type(body, "application/octet-stream");
    (void)curl_mime_data_cb(body, (curl_off_t)c->bytes, on_read, on_seek, NULL, &reader);
    (void)curl_easy_setopt(t->curl, CURLOPT_MIMEPOST, form);
    (void)curl_easy_setopt(t->curl, CURLOPT_UPLOAD_BUFFERSIZE, 2L * 1024 * 1024);
    if (t->max_bytes_per_s > 0) {
        (void)curl_easy_setopt(t->curl, CURLOPT_MAX_SEND_SPEED_LARGE,
                               (curl_off_t)t->max_bytes_per_s);
    }
    // A refusal must be read before the body is sent: without it the reply can be lost to a reset.
    add_header(&x, "Expect: 100-continue");
    add_header(&x, arena_fmt(a, "Photon-Lease: %s", c->lease));
    enum status st = finish(&x, a, out, e);
    curl_off_t up = 0; // with the form's own lines; what is still in a buffer here is not sent
    (void)curl_easy_getinfo(t->curl, CURLINFO_SIZE_UPLOAD_T, &up);
    c->sent = reader.given < (int64_t)up ? reader.given : (int64_t)up;
    curl_mime_free(form);
    return st;
}

enum status transport_chunk(struct transport *t, struct arena *a, struct chunk *c,
                            struct reply *out, struct err *e)
{
    enum status st = chunk_once(t, a, c, out, e);
    return takes_fresh_token(t, out) ? chunk_once(t, a, c, out, e) : st;
}
