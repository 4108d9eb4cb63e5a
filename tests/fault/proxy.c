/*
 * proxy.c - a TCP proxy that harms what passes through it, by a plan or by a seed.
 *
 *     proxy --to PORT [--listen PORT] [--seed N] [COMMAND]...
 *
 * Commands, as arguments and later one a line on standard input:
 *
 *     at DIR KIND BYTE      harm at that byte; +BYTE counts from now
 *     every DIR KIND BYTES  harm again and again, BYTES apart in the mean (exponential)
 *     rate DIR BYTES        bytes a second, of all connections together; 0: as they come
 *     delay DIR MS          each byte arrives that much later
 *     drop                  reset every connection now
 *     refuse 0|1            reset new connections at once
 *     clear                 forget every plan, rate and delay
 *     totals                say what has passed
 *
 * DIR is up (client to server) or down. Bytes are counted per direction over all connections since
 * the start, so that one client's retries see the harm once and the same seed harms the same bytes.
 *
 *     cut     both ends are closed          flip    one bit of that byte is changed
 *     reset   both ends are reset           stall   nothing passes for half a second
 *     half    nothing passes any more, nobody is told; both ends are reset two seconds later
 *     replay  once this connection has ended, all that its client sent is sent to the server again,
 *             over a connection of its own whose answers nobody reads
 *
 * Standard output: "port N" once it listens; "KIND DIR BYTE" for each harm; "totals up IN OUT down
 * IN OUT connections N harms N". IN is what was read, OUT what was passed on. It ends when standard
 * input does. One thread; loopback only.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/rng.h"

enum {
    BLOCK = 256 * 1024,
    QUEUE_MAX = 4 * 1024 * 1024, // read ahead of what was passed on, per connection and direction
    PAIRS_MAX = 512,
    PLANS_MAX = 256,
    RECORD_MAX = 128 * 1024 * 1024, // what is kept of a connection that will be replayed
    HALF_MS = 2000,
    STALL_MS = 500,
    REPLAY_MS = 10000,
    BURST_MS = 50,
};

enum dir { UP = 0, DOWN, DIRS };
enum kind { CUT = 0, RESET, HALF, STALL, FLIP, REPLAY, KINDS };

static const char *const dir_names[DIRS] = {"up", "down"};
static const char *const kind_names[KINDS] = {"cut", "reset", "half", "stall", "flip", "replay"};

struct block {
    struct block *next;
    int64_t due_ms;
    size_t at, len;
    char bytes[BLOCK];
};

/* One direction of one connection. */
struct lane {
    int from, to; // -1: whatever comes is dropped
    struct block *first, *last;
    size_t queued;
    bool ended; // from has said its last
    bool told;  // and to knows
};

struct pair {
    bool used;
    struct lane lanes[DIRS];
    int64_t still_until_ms; // nothing passes before
    bool resets_then;
    bool replay;
    int64_t gone_ms; // a replay's end at the latest; 0: none
    char *record;
    size_t recorded;
};

struct plan {
    enum kind kind;
    int64_t at;
    double mean; // > 0: and again
    uint64_t key, draws;
};

static struct {
    int listener, to_port;
    uint64_t seed, plans_made;
    struct pair pairs[PAIRS_MAX];
    struct block *spare;
    bool records; // some plan replays
    bool refuses;
    int64_t connections, harms;
    struct {
        int64_t in, out;
        struct plan plans[PLANS_MAX];
        int count;
        double rate, allowance;
        double filled_s;
        int64_t delay_ms;
    } side[DIRS];
} proxy;

static void die(const char *what)
{
    (void)fprintf(stderr, "proxy: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- blocks ---- */

static struct block *block_take(void)
{
    struct block *b = proxy.spare;
    if (b) {
        proxy.spare = b->next;
    } else {
        b = mem_alloc(sizeof(*b));
    }
    b->next = NULL;
    b->at = b->len = 0;
    return b;
}

static void block_give(struct block *b)
{
    b->next = proxy.spare;
    proxy.spare = b;
}

static void lane_append(struct lane *l, struct block *b)
{
    if (l->last) {
        l->last->next = b;
    } else {
        l->first = b;
    }
    l->last = b;
    l->queued += b->len;
}

static void lane_clear(struct lane *l)
{
    while (l->first) {
        struct block *b = l->first;
        l->first = b->next;
        block_give(b);
    }
    l->last = NULL;
    l->queued = 0;
}

/* ---- connections ---- */

static int connect_to_server(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)proxy.to_port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) != 0) {
        (void)close(fd);
        fd = -1;
    }
    return fd;
}

static void prepare(int fd)
{
    int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void end_socket(int fd, bool reset)
{
    if (fd < 0) {
        return;
    }
    if (reset) {
        struct linger now = {.l_onoff = 1, .l_linger = 0};
        (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    }
    (void)close(fd);
}

static struct pair *pair_new(int client, int server)
{
    for (int i = 0; i < PAIRS_MAX; i++) {
        struct pair *p = &proxy.pairs[i];
        if (!p->used) {
            *p = (struct pair){.used = true};
            p->lanes[UP].from = p->lanes[DOWN].to = client;
            p->lanes[UP].to = p->lanes[DOWN].from = server;
            return p;
        }
    }
    return NULL;
}

static void start_replay(struct pair *old)
{
    int server = connect_to_server();
    struct pair *p = server >= 0 ? pair_new(-1, server) : NULL;
    if (!p) {
        end_socket(server, true);
        return;
    }
    prepare(server);
    p->gone_ms = clock_mono_ms() + REPLAY_MS;
    p->lanes[UP].ended = true;
    for (size_t at = 0; at < old->recorded;) {
        struct block *b = block_take();
        b->len = old->recorded - at < BLOCK ? old->recorded - at : BLOCK;
        memcpy(b->bytes, old->record + at, b->len);
        at += b->len;
        lane_append(&p->lanes[UP], b);
    }
}

/* Both ends hear of it at once: nothing that is still queued is passed on. */
static void pair_end(struct pair *p, bool reset)
{
    end_socket(p->lanes[UP].from, reset);
    end_socket(p->lanes[UP].to, reset);
    lane_clear(&p->lanes[UP]);
    lane_clear(&p->lanes[DOWN]);
    if (p->replay) {
        start_replay(p);
    }
    mem_free(p->record);
    p->record = NULL;
    p->used = false;
}

static void accept_one(void)
{
    int client = accept4(proxy.listener, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0) {
        return;
    }
    int server = proxy.refuses ? -1 : connect_to_server();
    struct pair *p = server >= 0 ? pair_new(client, server) : NULL;
    if (!p) {
        end_socket(client, true);
        end_socket(server, true);
        return;
    }
    proxy.connections++;
    prepare(client);
    prepare(server);
    if (proxy.records) {
        void *record = NULL;
        struct err e = {0};
        if (mem_alloc_large(&record, RECORD_MAX, &e) == ST_OK) {
            p->record = record;
        }
    }
}

/* ---- plans ---- */

static void plan_again(struct plan *n, int64_t from)
{
    double u = rng_unit(n->key, n->draws++);
    double gap = -log1p(-u) * n->mean;
    n->at = from + 1 + (int64_t)(gap < 1e15 ? gap : 1e15);
}

static void plan_add(enum dir d, enum kind kind, int64_t at, double mean)
{
    if (proxy.side[d].count == PLANS_MAX) {
        (void)fprintf(stderr, "proxy: too many plans\n");
        exit(2);
    }
    struct plan n = {.kind = kind,
                     .at = at,
                     .mean = mean,
                     .key = rng_key(proxy.seed + proxy.plans_made++, kind_names[kind])};
    if (mean > 0.0) {
        plan_again(&n, proxy.side[d].out);
    }
    proxy.side[d].plans[proxy.side[d].count++] = n;
    proxy.records = proxy.records || kind == REPLAY;
}

/* The next harm of a direction, or NULL. */
static struct plan *plan_next(enum dir d)
{
    struct plan *best = NULL;
    for (int i = 0; i < proxy.side[d].count; i++) {
        struct plan *n = &proxy.side[d].plans[i];
        if (!best || n->at < best->at) {
            best = n;
        }
    }
    return best;
}

static void plan_done(enum dir d, struct plan *n)
{
    if (n->mean > 0.0) {
        plan_again(n, proxy.side[d].out);
    } else {
        *n = proxy.side[d].plans[--proxy.side[d].count];
    }
}

/* The plan's byte is the next one of this lane. Returns whether the connection goes on now. */
static bool harm(struct pair *p, enum dir d, struct plan *n)
{
    enum kind kind = n->kind;
    uint64_t bit = rng_u64(n->key, ~n->draws) & 7;
    (void)printf("%s %s %" PRId64 "\n", kind_names[kind], dir_names[d], n->at);
    (void)fflush(stdout);
    proxy.harms++;
    plan_done(d, n);
    switch (kind) {
    case FLIP: {
        struct block *b = p->lanes[d].first;
        b->bytes[b->at] = (char)((uint8_t)b->bytes[b->at] ^ (1U << bit));
        return true;
    }
    case REPLAY:
        p->replay = true;
        return true;
    case HALF:
        p->still_until_ms = clock_mono_ms() + HALF_MS;
        p->resets_then = true;
        return false;
    case STALL:
        p->still_until_ms = clock_mono_ms() + STALL_MS;
        return false;
    case CUT:
    case RESET:
    case KINDS:
    default:
        pair_end(p, kind == RESET);
        return false;
    }
}

/* ---- bytes ---- */

static void record(struct pair *p, const char *bytes, size_t len)
{
    if (p->record && p->recorded + len <= RECORD_MAX) {
        memcpy(p->record + p->recorded, bytes, len);
        p->recorded += len;
    }
}

static void lane_read(struct pair *p, enum dir d)
{
    struct lane *l = &p->lanes[d];
    struct block *b = block_take();
    ssize_t n = recv(l->from, b->bytes, BLOCK, 0);
    if (n <= 0) {
        block_give(b);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }
        if (n < 0) { // the one end was reset: so is the other
            pair_end(p, true);
            return;
        }
        l->ended = true;
        return;
    }
    b->len = (size_t)n;
    b->due_ms = proxy.side[d].delay_ms ? clock_mono_ms() + proxy.side[d].delay_ms : 0;
    proxy.side[d].in += n;
    if (d == UP) {
        record(p, b->bytes, b->len);
    }
    if (l->to < 0) {
        block_give(b);
        return;
    }
    lane_append(l, b);
}

static size_t allowed(enum dir d, size_t want)
{
    if (proxy.side[d].rate <= 0.0) {
        return want;
    }
    double now = clock_mono_s();
    double most = proxy.side[d].rate * BURST_MS / 1000.0;
    most = most < 1.0 ? 1.0 : most;
    proxy.side[d].allowance += (now - proxy.side[d].filled_s) * proxy.side[d].rate;
    proxy.side[d].filled_s = now;
    if (proxy.side[d].allowance > most) {
        proxy.side[d].allowance = most;
    }
    double may = proxy.side[d].allowance;
    return may < (double)want ? (size_t)may : want;
}

/* Pass on what may pass. False: the connection has ended, or waits. */
static bool lane_write(struct pair *p, enum dir d, int64_t now_ms)
{
    struct lane *l = &p->lanes[d];
    while (l->first && l->first->due_ms <= now_ms && now_ms >= p->still_until_ms) {
        struct block *b = l->first;
        size_t len = b->len - b->at;
        struct plan *n = p->lanes[UP].from >= 0 ? plan_next(d) : NULL; // replays are left alone
        if (n && n->at <= proxy.side[d].out) {
            if (!harm(p, d, n)) {
                return false;
            }
            continue;
        }
        if (n && (int64_t)len > n->at - proxy.side[d].out) {
            len = (size_t)(n->at - proxy.side[d].out);
        }
        len = allowed(d, len);
        if (len == 0) {
            return true;
        }
        ssize_t sent = send(l->to, b->bytes + b->at, len, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            return true;
        }
        if (sent < 0) {
            pair_end(p, true);
            return false;
        }
        proxy.side[d].allowance -= (double)sent;
        proxy.side[d].out += sent;
        l->queued -= (size_t)sent;
        b->at += (size_t)sent;
        if (b->at == b->len) {
            l->first = b->next;
            l->last = l->first ? l->last : NULL;
            block_give(b);
        }
    }
    if (l->ended && !l->first && !l->told && l->to >= 0) {
        (void)shutdown(l->to, SHUT_WR);
        l->told = true;
    }
    return true;
}

/* ---- commands ---- */

static int find(const char *word, const char *const *names, int count)
{
    for (int i = 0; i < count && word; i++) {
        if (strcmp(word, names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

static void say_totals(void)
{
    (void)printf("totals up %" PRId64 " %" PRId64 " down %" PRId64 " %" PRId64
                 " connections %" PRId64 " harms %" PRId64 "\n",
                 proxy.side[UP].in, proxy.side[UP].out, proxy.side[DOWN].in, proxy.side[DOWN].out,
                 proxy.connections, proxy.harms);
    (void)fflush(stdout);
}

static void clear_plans(void)
{
    for (int d = 0; d < DIRS; d++) {
        proxy.side[d].count = 0;
        proxy.side[d].rate = 0.0;
        proxy.side[d].delay_ms = 0;
    }
    proxy.records = proxy.refuses = false;
}

static bool obey(const char *line)
{
    char verb[16] = "";
    char a[16] = "";
    char b[16] = "";
    char c[24] = "";
    int words = sscanf(line, "%15s %15s %15s %23s", verb, a, b, c);
    int d = find(a, dir_names, DIRS);
    int kind = find(b, kind_names, KINDS);
    if (strcmp(verb, "at") == 0 && words == 4 && d >= 0 && kind >= 0) {
        int64_t from = c[0] == '+' ? proxy.side[d].out : 0;
        plan_add((enum dir)d, (enum kind)kind, from + strtoll(c, NULL, 10), 0.0);
    } else if (strcmp(verb, "every") == 0 && words == 4 && d >= 0 && kind >= 0) {
        plan_add((enum dir)d, (enum kind)kind, 0, strtod(c, NULL));
    } else if (strcmp(verb, "rate") == 0 && words == 3 && d >= 0) {
        proxy.side[d].rate = strtod(b, NULL);
        proxy.side[d].filled_s = clock_mono_s();
    } else if (strcmp(verb, "delay") == 0 && words == 3 && d >= 0) {
        proxy.side[d].delay_ms = strtoll(b, NULL, 10);
    } else if (strcmp(verb, "refuse") == 0 && words == 2) {
        proxy.refuses = strcmp(a, "0") != 0;
    } else if (strcmp(verb, "drop") == 0 && words == 1) {
        for (int i = 0; i < PAIRS_MAX; i++) {
            if (proxy.pairs[i].used) {
                pair_end(&proxy.pairs[i], true);
            }
        }
    } else if (strcmp(verb, "clear") == 0 && words == 1) {
        clear_plans();
    } else if (strcmp(verb, "totals") == 0 && words == 1) {
        say_totals();
    } else {
        return words < 1;
    }
    return true;
}

/* False at the end of standard input. */
static bool read_commands(void)
{
    static char text[65536];
    static size_t len;
    ssize_t n = read(STDIN_FILENO, text + len, sizeof(text) - 1 - len);
    if (n <= 0) {
        return n < 0 && errno == EINTR;
    }
    len += (size_t)n;
    text[len] = '\0';
    char *line = text;
    for (char *end = strchr(line, '\n'); end; end = strchr(line, '\n')) {
        *end = '\0';
        if (!obey(line)) {
            (void)fprintf(stderr, "proxy: what is '%s'?\n", line);
        }
        line = end + 1;
    }
    len -= (size_t)(line - text);
    memmove(text, line, len);
    return true;
}

/* ---- the loop ---- */

struct watch {
    struct pair *pair;
    enum dir dir;
};

static struct pollfd polled[2 + 2 * DIRS * PAIRS_MAX];
static struct watch watched[2 + 2 * DIRS * PAIRS_MAX];
static nfds_t poll_count;

static void watch(int fd, short events, struct pair *p, enum dir d)
{
    polled[poll_count] = (struct pollfd){.fd = fd, .events = events};
    watched[poll_count] = (struct watch){p, d};
    poll_count++;
}

/* What to wait for, and how long at most: 1 ms where a clock decides. */
static int watch_pair(struct pair *p, int64_t now_ms)
{
    bool still = now_ms < p->still_until_ms;
    int wait = still || p->resets_then || p->gone_ms ? 5 : -1;
    for (enum dir d = UP; d < DIRS && !still; d++) {
        const struct lane *l = &p->lanes[d];
        if (!l->ended && l->from >= 0 && l->queued < QUEUE_MAX) {
            watch(l->from, POLLIN, p, d);
        }
        if (l->first && (l->first->due_ms > now_ms || allowed(d, 1) == 0)) {
            wait = 1;
        } else if (l->first) {
            watch(l->to, POLLOUT, p, d);
        }
    }
    return wait;
}

static void turn_pair(struct pair *p, int64_t now_ms)
{
    if (p->resets_then && now_ms >= p->still_until_ms) {
        pair_end(p, true);
        return;
    }
    if (p->gone_ms && now_ms >= p->gone_ms) {
        pair_end(p, true);
        return;
    }
    for (enum dir d = UP; d < DIRS && p->used; d++) {
        if (!lane_write(p, d, now_ms)) {
            return;
        }
    }
    bool over =
        p->lanes[UP].ended && p->lanes[DOWN].ended && !p->lanes[UP].first && !p->lanes[DOWN].first;
    if (p->used && over) {
        pair_end(p, false);
    }
}

static bool turn(void)
{
    int wait = -1;
    int64_t now = clock_mono_ms();
    poll_count = 0;
    watch(STDIN_FILENO, POLLIN, NULL, UP);
    watch(proxy.listener, POLLIN, NULL, UP);
    for (int i = 0; i < PAIRS_MAX; i++) {
        if (proxy.pairs[i].used) {
            int w = watch_pair(&proxy.pairs[i], now);
            wait = wait < 0 || (w >= 0 && w < wait) ? (w >= 0 ? w : wait) : wait;
        }
    }
    (void)poll(polled, poll_count, wait);
    for (nfds_t i = 2; i < poll_count; i++) {
        struct pair *p = watched[i].pair;
        enum dir d = watched[i].dir;
        bool same = p->used && p->lanes[d].from == polled[i].fd; // it may be another one by now
        if (same && polled[i].revents && polled[i].events == POLLIN) {
            lane_read(p, d);
        }
    }
    now = clock_mono_ms();
    for (int i = 0; i < PAIRS_MAX; i++) {
        if (proxy.pairs[i].used) {
            turn_pair(&proxy.pairs[i], now);
        }
    }
    if (polled[1].revents) {
        accept_one();
    }
    return !polled[0].revents || read_commands();
}

static void listen_on(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)port)};
    socklen_t len = sizeof(a);
    int on = 1;
    proxy.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    (void)setsockopt(proxy.listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(proxy.listener, (struct sockaddr *)&a, sizeof(a)) != 0 ||
        listen(proxy.listener, 256) != 0 ||
        getsockname(proxy.listener, (struct sockaddr *)&a, &len) != 0) {
        die("cannot listen");
    }
    (void)printf("port %d\n", ntohs(a.sin_port));
    (void)fflush(stdout);
}

int main(int argc, char **argv)
{
    int port = 0;
    int first = 1;
    for (; first + 1 < argc && strncmp(argv[first], "--", 2) == 0; first += 2) {
        long long v = strtoll(argv[first + 1], NULL, 10);
        if (strcmp(argv[first], "--to") == 0) {
            proxy.to_port = (int)v;
        } else if (strcmp(argv[first], "--listen") == 0) {
            port = (int)v;
        } else if (strcmp(argv[first], "--seed") == 0) {
            proxy.seed = (uint64_t)v;
        } else {
            break;
        }
    }
    (void)signal(SIGPIPE, SIG_IGN);
    for (int i = first; i < argc; i++) {
        if (!obey(argv[i])) {
            (void)fprintf(stderr, "proxy: what is '%s'?\n", argv[i]);
            return 2;
        }
    }
    if (proxy.to_port == 0) {
        (void)fprintf(stderr, "usage: proxy --to PORT [--listen PORT] [--seed N] [COMMAND]...\n");
        return 2;
    }
    listen_on(port);
    while (turn()) {
    }
    say_totals();
    return 0;
}
