#include "server/stream.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/buf.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/mem.h"
#include "server/api_sql.h"
#include "server/hub.h"
#include "server/server.h"

enum {
    BATCH = 1000,                   /* events read at once */
    REPLAY_MAX = 10000,             /* missed events that are replayed; beyond, `reset` */
    PENDING_MAX = 16 * 1024 * 1024, /* bytes a stream may be behind while it replays */
    BEHIND_MAX = 1024 * 1024,       /* and while it is live */
    COMMENT_MS = 15000,
    LOOK_MS = 250, // at new events
};

struct stream {
    struct streams *all;
    struct stream *next;
    char run_id[32];
    char secret[DIGEST_HEX + 1]; /* of its reader, hashed */
    struct event_cursor cursor;  /* of the last event handed over */
    struct buf pending;
    size_t sent; /* of pending */
    bool ended;
    bool waiting;
    void (*ready)(void *ctx);
    void *ctx;
    int64_t spoke_ms; /* when something was last written */
};

struct streams {
    struct server *server;
    pthread_mutex_t lock; /* of everything here and of every stream */
    pthread_cond_t poke;
    bool poked;
    bool ending;
    struct stream *first;
    int count;
    struct event_cursor cursor; /* events up to here were handed to the streams */
    bool started;               /* cursor is set */
    pthread_t reader;
};

/* A row is read only when no transaction is still running that could commit one before it. */
static const char SQL_AFTER[] = "SELECT e.xid, e.id, e.run_id, k.topic, " EVENT_JSON "::text"
                                " FROM event e JOIN event_kind k USING (kind)"
                                " WHERE (e.xid, e.id) > ($1::xid8, $2::bigint)"
                                "   AND e.xid < pg_snapshot_xmin(pg_current_snapshot())"
                                "   AND ($3::text IS NULL OR e.run_id = $3)"
                                " ORDER BY e.xid, e.id LIMIT $4";

/* The last row that can be seen, and the first transaction that has not begun. */
static const char SQL_HEAD[] =
    "SELECT coalesce(h.xid, '0'), coalesce(h.id, 0), pg_snapshot_xmax(pg_current_snapshot())"
    "  FROM (VALUES (1)) one LEFT JOIN LATERAL (SELECT e.xid, e.id FROM event e"
    "      WHERE e.xid < pg_snapshot_xmin(pg_current_snapshot())"
    "      ORDER BY e.xid DESC, e.id DESC LIMIT 1) h ON true";

/* Of these secrets those that speak for nobody any more: a token that ended, a session logged out
 * of. */
static const char SQL_DEAD_SECRETS[] =
    "SELECT h FROM unnest($1::text[]) h WHERE NOT EXISTS ("
    "  SELECT FROM token t WHERE t.id IN ("
    "    SELECT id FROM token WHERE hash = decode(h, 'hex') UNION ALL"
    "    SELECT token_id FROM session WHERE hash = decode(h, 'hex')"
    "       AND expires_at > clock_timestamp())"
    "   AND t.revoked_at IS NULL"
    "   AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp()))";

enum status event_cursor_parse(struct event_cursor *out, const char *text, struct err *e)
{
    char *end = NULL;
    errno = 0;
    unsigned long long xid = strtoull(text, &end, 10);
    bool first = text[0] >= '0' && text[0] <= '9' && *end == '-' && errno == 0;
    const char *second = first ? end + 1 : text;
    long long id = first ? strtoll(second, &end, 10) : 0;
    if (!first || second[0] < '0' || second[0] > '9' || *end != '\0' || errno != 0) {
        return err_set(e, ST_INVALID, "'%.40s' is no event id; try one of GET …/events", text);
    }
    *out = (struct event_cursor){.xid = xid, .id = id};
    return ST_OK;
}

static bool is_after(const struct event_cursor *a, const struct event_cursor *b)
{
    return a->xid > b->xid || (a->xid == b->xid && a->id > b->id);
}

/* ---- writing to one stream; the lock is held ---- */

static void wake(struct stream *s)
{
    if (s->waiting) {
        s->waiting = false;
        s->ready(s->ctx);
    }
}

static void write_text(struct stream *s, const char *text)
{
    buf_str(&s->pending, text);
    s->spoke_ms = clock_mono_ms();
}

/* What is not sent yet is dropped, but for the rest of an event that is half sent. */
static void write_reset(struct stream *s)
{
    char *p = s->pending.data + s->sent;
    char *end = s->sent > 0 ? strstr(p, "\n\n") : NULL;
    size_t rest = end ? (size_t)(end - p) + 2 : 0;
    memmove(s->pending.data, p, rest);
    s->pending.data[rest] = '\0';
    s->pending.len = rest;
    s->pending.full = false;
    s->sent = 0;

    char text[96];
    (void)snprintf(text, sizeof(text), "event: reset\nid: %" PRIu64 "-%" PRId64 "\ndata: {}\n\n",
                   s->cursor.xid, s->cursor.id);
    write_text(s, text);
}

struct event_row {
    struct event_cursor at;
    const char *run_id; /* NULL: of no run */
    const char *topic;
    const char *json;
};

static enum status row_read(struct event_row *out, const struct db_rows *rows, int i, struct err *e)
{
    int64_t xid = 0;
    TRY(db_int64(rows, i, 0, &xid, e));
    TRY(db_int64(rows, i, 1, &out->at.id, e));
    out->at.xid = (uint64_t)xid;
    out->run_id = db_text(rows, i, 2);
    out->topic = db_text(rows, i, 3);
    out->json = db_text(rows, i, 4);
    return ST_OK;
}

static void write_event(struct stream *s, const struct event_row *row)
{
    if (!is_after(&row->at, &s->cursor)) {
        return; // replayed already
    }
    s->cursor = row->at;
    if (s->run_id[0] && (!row->run_id || strcmp(s->run_id, row->run_id) != 0)) {
        return;
    }
    buf_fmt(&s->pending, "event: %s\nid: %" PRIu64 "-%" PRId64 "\ndata: %s\n\n", row->topic,
            row->at.xid, row->at.id, row->json);
    s->spoke_ms = clock_mono_ms();
}

/* ---- reading the log ---- */

static enum status read_after(struct db *db, struct arena *a, const struct event_cursor *after,
                              const char *run_id, struct db_rows *rows, struct err *e)
{
    const char *argv[] = {arena_fmt(a, "%" PRIu64, after->xid), arena_fmt(a, "%" PRId64, after->id),
                          run_id, arena_fmt(a, "%d", BATCH)};
    return db_query(db, a, SQL_AFTER, 4, argv, rows, e);
}

static enum status read_head(struct db *db, struct event_cursor *out, uint64_t *next_xid,
                             struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    struct db_rows rows;
    int64_t xid = 0;
    int64_t id = 0;
    int64_t next = 0;
    enum status st = db_query(db, a, SQL_HEAD, 0, NULL, &rows, e);
    if (st == ST_OK) {
        st = db_int64(&rows, 0, 0, &xid, e);
    }
    if (st == ST_OK) {
        st = db_int64(&rows, 0, 1, &id, e);
    }
    if (st == ST_OK) {
        st = db_int64(&rows, 0, 2, &next, e);
    }
    arena_free(a);
    if (st == ST_OK) {
        *out = (struct event_cursor){.xid = (uint64_t)xid, .id = id};
        *next_xid = (uint64_t)next;
    }
    return st;
}

static void hand_out(struct streams *ss, const struct event_row *row)
{
    for (struct stream *s = ss->first; s; s = s->next) {
        write_event(s, row);
        if (s->pending.full || s->pending.len - s->sent > BEHIND_MAX) {
            write_reset(s);
        }
        wake(s);
    }
    ss->cursor = row->at;
}

/* One batch for everybody. *more: it was full, there may be another. */
static enum status broadcast(struct streams *ss, struct db *db, bool *more, struct err *e)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    (void)pthread_mutex_lock(&ss->lock);
    struct event_cursor from = ss->cursor;
    (void)pthread_mutex_unlock(&ss->lock);

    struct db_rows rows;
    enum status st = read_after(db, a, &from, NULL, &rows, e);
    int count = st == ST_OK ? rows.count : 0;
    for (int i = 0; i < count && st == ST_OK; i++) {
        struct event_row row;
        st = row_read(&row, &rows, i, e);
        if (st == ST_OK) {
            (void)pthread_mutex_lock(&ss->lock);
            hand_out(ss, &row);
            (void)pthread_mutex_unlock(&ss->lock);
        }
    }
    *more = count == BATCH;
    arena_free(a);
    return st;
}

/* The readers' secrets as a text[] of one allocation, copied: a stream may go with the lock. */
static const char *secrets_of(struct streams *ss, struct arena *a)
{
    const char *secrets[LIMIT_STREAMS];
    int count = 0;
    (void)pthread_mutex_lock(&ss->lock);
    for (const struct stream *s = ss->first; s; s = s->next) {
        secrets[count++] = s->secret;
    }
    const char *array = db_arg_array(a, secrets, count);
    (void)pthread_mutex_unlock(&ss->lock);
    return array;
}

/* End the streams whose reader is nobody any more. */
static enum status check_readers(struct streams *ss, struct db *db, struct err *e)
{
    struct arena *a = arena_new(1 << 20);
    const char *argv[] = {secrets_of(ss, a)};
    struct db_rows rows;
    enum status st = db_query(db, a, SQL_DEAD_SECRETS, 1, argv, &rows, e);
    int count = st == ST_OK ? rows.count : 0;
    (void)pthread_mutex_lock(&ss->lock);
    for (struct stream *s = ss->first; s; s = s->next) {
        for (int i = 0; i < count; i++) {
            if (strcmp(s->secret, db_text(&rows, i, 0)) == 0) {
                s->ended = true;
                wake(s);
            }
        }
    }
    (void)pthread_mutex_unlock(&ss->lock);
    arena_free(a);
    return st;
}

static void comment_all(struct streams *ss)
{
    int64_t now = clock_mono_ms();
    (void)pthread_mutex_lock(&ss->lock);
    for (struct stream *s = ss->first; s; s = s->next) {
        if (now - s->spoke_ms >= COMMENT_MS) {
            write_text(s, ":\n\n");
            wake(s);
        }
    }
    (void)pthread_mutex_unlock(&ss->lock);
}

static void look(struct streams *ss, struct db *db)
{
    struct err e = {0};
    bool more = true;
    enum status st = ST_OK;
    while (more && st == ST_OK) {
        st = broadcast(ss, db, &more, &e);
    }
    if (st == ST_OK) {
        st = check_readers(ss, db, &e);
    }
    if (st) {
        log_warn("the event log could not be read: %s", e.msg);
    }
}

static void *reader_main(void *ctx)
{
    struct streams *ss = ctx;
    (void)pthread_mutex_lock(&ss->lock);
    while (!ss->ending) {
        if (!ss->poked) {
            struct timespec until;
            (void)clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += LOOK_MS * 1000000L;
            until.tv_sec += until.tv_nsec / 1000000000L;
            until.tv_nsec %= 1000000000L;
            (void)pthread_cond_timedwait(&ss->poke, &ss->lock, &until);
        }
        ss->poked = false;
        bool wanted = ss->count > 0 && ss->started && !ss->ending;
        ss->started = ss->started && ss->count > 0; // nobody listens: begin anew with the next
        (void)pthread_mutex_unlock(&ss->lock);

        struct db *db = NULL;
        struct err e = {0};
        if (wanted && db_pool_take(ss->server->pool, &db, &e) == ST_OK) {
            look(ss, db);
            db_pool_give(ss->server->pool, db);
        }
        comment_all(ss);
        (void)pthread_mutex_lock(&ss->lock);
    }
    (void)pthread_mutex_unlock(&ss->lock);
    return NULL;
}

/* ---- all streams ---- */

static void on_wake(void *ctx, const char *topic)
{
    struct streams *ss = ctx;
    if (strcmp(topic, "events") != 0 && strcmp(topic, "tokens") != 0) {
        return;
    }
    (void)pthread_mutex_lock(&ss->lock);
    ss->poked = true;
    (void)pthread_cond_signal(&ss->poke);
    (void)pthread_mutex_unlock(&ss->lock);
}

/* One for the process: the hub may still wake it when the listeners are gone. */
static struct streams the_streams = {.lock = PTHREAD_MUTEX_INITIALIZER,
                                     .poke = PTHREAD_COND_INITIALIZER};

struct streams *streams_new(struct server *server)
{
    struct streams *ss = &the_streams;
    ss->server = server;
    if (pthread_create(&ss->reader, NULL, reader_main, ss) != 0) {
        log_error("cannot start the event reader");
        abort(); // at start-up: there is nobody to answer
    }
    hub_subscribe(server->hub, on_wake, ss);
    return ss;
}

void streams_end(struct streams *ss)
{
    (void)pthread_mutex_lock(&ss->lock);
    ss->ending = true;
    for (struct stream *s = ss->first; s; s = s->next) {
        s->ended = true;
        wake(s);
    }
    (void)pthread_cond_signal(&ss->poke);
    (void)pthread_mutex_unlock(&ss->lock);
}

void streams_stop(struct streams *ss)
{
    (void)pthread_join(ss->reader, NULL);
}

int streams_count(struct streams *ss)
{
    (void)pthread_mutex_lock(&ss->lock);
    int n = ss->count;
    (void)pthread_mutex_unlock(&ss->lock);
    return n;
}

/* ---- one stream ---- */

/*
 * Everything after the stream's cursor that can be seen. Replayed in batches; with more than
 * REPLAY_MAX the stream is told to load anew and begins at the log's end.
 */
static enum status replay(struct stream *s, struct db *db, int *replayed, struct err *e)
{
    for (;;) {
        struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
        struct db_rows rows;
        enum status st = read_after(db, a, &s->cursor, s->run_id[0] ? s->run_id : NULL, &rows, e);
        int count = st == ST_OK ? rows.count : 0;
        for (int i = 0; i < count && st == ST_OK; i++) {
            struct event_row row;
            st = row_read(&row, &rows, i, e);
            if (st == ST_OK) {
                write_event(s, &row);
            }
        }
        arena_free(a);
        *replayed += count;
        if (st == ST_OK && (*replayed > REPLAY_MAX || s->pending.full)) {
            uint64_t next_xid = 0;
            st = read_head(db, &s->cursor, &next_xid, e);
            write_reset(s);
            *replayed = 0;
            return st;
        }
        if (st || count < BATCH) {
            return st;
        }
    }
}

/*
 * Into the list without a gap: whatever the reader hands out from now on lies after what the stream
 * has. The last look is taken under the lock, so that the reader cannot run ahead meanwhile.
 */
static enum status join(struct stream *s, struct db *db, const struct event_cursor *head,
                        struct err *e)
{
    struct streams *ss = s->all;
    int replayed = 0;
    TRY(replay(s, db, &replayed, e));

    (void)pthread_mutex_lock(&ss->lock);
    enum status st = replay(s, db, &replayed, e);
    if (st == ST_OK && (ss->ending || ss->count >= LIMIT_STREAMS)) {
        st = err_set(e, ST_LIMIT, "there are %d streams already; try polling with If-None-Match",
                     LIMIT_STREAMS);
    }
    if (st == ST_OK) {
        if (!ss->started) {
            // Never beyond the log's end, wherever this one stands: others come after it.
            ss->cursor = is_after(&s->cursor, head) ? *head : s->cursor;
            ss->started = true;
        }
        s->next = ss->first;
        ss->first = s;
        ss->count++;
    }
    (void)pthread_mutex_unlock(&ss->lock);
    return st;
}

static void stream_free(struct stream *s)
{
    buf_release(&s->pending);
    mem_free(s);
}

enum status stream_open(struct stream **out, struct streams *ss, struct db *db, const char *run_id,
                        const char *secret, const struct event_cursor *after, struct err *e)
{
    struct event_cursor head = {0};
    uint64_t next_xid = 0;
    TRY(read_head(db, &head, &next_xid, e));
    // A place that this database has not come to is of another one, as before a restore.
    bool strange = after && after->xid >= next_xid;
    struct event_cursor from = after && !strange ? *after : head;
    struct stream *s = mem_alloc(sizeof(*s));
    s->all = ss;
    s->cursor = from;
    buf_init(&s->pending, PENDING_MAX);
    (void)snprintf(s->run_id, sizeof(s->run_id), "%s", run_id ? run_id : "");
    (void)snprintf(s->secret, sizeof(s->secret), "%s", secret);

    // The id is there before the first event, so that a break until then resumes from here.
    char hello[96];
    (void)snprintf(hello, sizeof(hello), "retry: 3000\nid: %" PRIu64 "-%" PRId64 "\n\n", from.xid,
                   from.id);
    write_text(s, hello);
    if (strange) {
        write_text(s, "event: reset\ndata: {}\n\n");
    }
    enum status st = join(s, db, &head, e);
    if (st) {
        stream_free(s);
        return st;
    }
    *out = s;
    return ST_OK;
}

void stream_end(struct stream *s)
{
    (void)pthread_mutex_lock(&s->all->lock);
    s->ended = true;
    wake(s);
    (void)pthread_mutex_unlock(&s->all->lock);
}

void stream_close(struct stream *s)
{
    struct streams *ss = s->all;
    (void)pthread_mutex_lock(&ss->lock);
    struct stream **at = &ss->first;
    while (*at != s) {
        at = &(*at)->next;
    }
    *at = s->next;
    ss->count--;
    (void)pthread_mutex_unlock(&ss->lock);
    stream_free(s);
}

long stream_read(struct stream *s, char *out, size_t max, void (*wait)(void *ctx),
                 void (*ready)(void *ctx), void *ctx)
{
    long n = 0;
    (void)pthread_mutex_lock(&s->all->lock);
    size_t left = s->pending.len - s->sent;
    if (s->ended) {
        n = -1;
    } else if (left > 0) {
        size_t take = left < max ? left : max;
        memcpy(out, s->pending.data + s->sent, take);
        s->sent += take;
        if (s->sent == s->pending.len) {
            buf_clear(&s->pending);
            s->sent = 0;
        }
        n = (long)take;
    } else {
        s->ready = ready;
        s->ctx = ctx;
        s->waiting = true;
        wait(ctx);
    }
    (void)pthread_mutex_unlock(&s->all->lock);
    return n;
}
