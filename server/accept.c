#include "server/accept.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/fault.h"
#include "common/json.h"
#include "common/layout.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/params.h"
#include "common/run_spec.h"
#include "common/safetensors.h"
#include "server/mend.h"
#include "server/update.h"
#include "server/upload_hash.h"

enum {
    NORMS_KEPT = 16,
    CHECK_INLINE_BYTES = 32 * 1024 * 1024, // read within the request: a few hundredths of a second
    CHECK_KEPT_MS = 10 * 60 * 1000,
};

/* Norms of the bases in use, each read once. */
static struct {
    pthread_mutex_t lock;
    struct {
        struct digest base;
        double norm;
        bool known;
    } kept[NORMS_KEPT];
    int next;
} norms = {.lock = PTHREAD_MUTEX_INITIALIZER};

static double known_norm(const struct digest *base)
{
    double norm = NAN;
    (void)pthread_mutex_lock(&norms.lock);
    for (int i = 0; i < NORMS_KEPT; i++) {
        if (norms.kept[i].known && digest_equal(&norms.kept[i].base, base)) {
            norm = norms.kept[i].norm;
        }
    }
    (void)pthread_mutex_unlock(&norms.lock);
    return norm;
}

static enum status base_norm(int fd, struct arena *a, const struct digest *base,
                             const struct layout *l, double *norm, struct err *e)
{
    struct st_header h;
    enum status st = st_read(&h, a, fd, e);
    if (!st) {
        int64_t weights = h.data_offset + l->part_at[LAYOUT_WEIGHTS] * (int64_t)sizeof(float);
        st = update_check_values(fd, weights, l->part_count, norm, e);
    }
    if (st) { // not the silo's fault
        mend_want(base);
        return st == ST_CORRUPT
                   ? err_set(e, ST_RETRY, "the base is damaged; it is being made again")
                   : st;
    }
    (void)pthread_mutex_lock(&norms.lock);
    norms.kept[norms.next].base = *base;
    norms.kept[norms.next].norm = *norm;
    norms.kept[norms.next].known = true;
    norms.next = (norms.next + 1) % NORMS_KEPT;
    (void)pthread_mutex_unlock(&norms.lock);
    return ST_OK;
}

/* What the plan of the upload's task says. */
struct plan {
    struct run_spec spec;
    struct layout update, checkpoint;
    struct update_expected want;
};

static enum status read_plan(struct db *db, struct arena *a, const struct upload *u,
                             const char *silo_id, struct plan *p, struct err *e)
{
    struct db_rows rows;
    const char *argv[] = {u->task_id, silo_id};
    TRY(db_query(db, a,
                 "SELECT r.spec_text, c.weights, s.name FROM task t JOIN run r ON r.id = t.run_id"
                 "  JOIN checkpoint c ON (c.run_id, c.number) = (t.run_id, t.base)"
                 "  JOIN silo s ON s.id = $2 WHERE t.id = $1",
                 2, argv, &rows, e));
    if (rows.count == 0) {
        return err_set(e, ST_CORRUPT, "an upload without a task");
    }
    const char *text = db_text(&rows, 0, 0);
    const struct json *doc = NULL;
    struct spec_problem problems[SPEC_PROBLEMS_MAX];
    int count = 0;
    TRY(json_parse(&doc, a, text, strlen(text), e));
    TRY(run_spec_parse(&p->spec, doc, problems, &count, e));
    p->update = layout_update(a, &p->spec, u->number);
    p->checkpoint = layout_checkpoint(a, &p->spec);
    p->want = (struct update_expected){.run_name = p->spec.name,
                                       .round = u->number,
                                       .silo_name = db_text(&rows, 0, 2),
                                       .tokens = u->tokens,
                                       .steps = u->steps,
                                       .codec = u->codec,
                                       .k = p->spec.codec.up_k};
    return db_digest(&rows, 0, 1, &p->want.base, e);
}

/* ---- the file ---- */

/*
 * One file's examination. It reads the file and its base and nothing else, so that a thread of its
 * own can do it, the base's way out of a bucket included, while the request that asked for it waits
 * without one.
 */
struct check {
    struct check *next; // among those in threads
    char id[ID_LEN + 1];
    struct arena *a;
    struct plan plan;
    struct digest sha256;
    int64_t bytes;
    int fd, base_fd; // base_fd -1: its norm is base_norm, or it is not open yet
    double base_norm;
    struct sha256 *running; // digest of the first running_at bytes
    int64_t running_at;
    bool done;
    int64_t done_ms;
    struct blob_store *blobs; // a share of it: the thread may outlive the server's
    enum status st;           // ST_CORRUPT: it is not what was asked for
    struct err err;
    double norm;
};

static struct {
    pthread_mutex_t lock;
    struct check *first;
} checks = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void check_free(struct check *c)
{
    if (c->fd >= 0) {
        (void)close(c->fd);
    }
    if (c->base_fd >= 0) {
        (void)close(c->base_fd);
    }
    sha256_free(c->running);
    blob_store_close(c->blobs);
    arena_free(c->a);
    mem_free(c);
}

/* ST_NOT_FOUND: the upload's file is not there. */
static enum status check_new(struct check **out, struct server *s, struct db *db,
                             const struct upload *u, const char *silo_id, struct err *e)
{
    struct check *c = mem_alloc(sizeof(*c));
    c->a = arena_new(LIMIT_REQUEST_ARENA);
    c->fd = c->base_fd = -1;
    c->blobs = blob_store_share(s->blobs);
    c->sha256 = u->sha256;
    c->bytes = u->bytes;
    c->norm = NAN;
    (void)snprintf(c->id, sizeof(c->id), "%s", u->id);
    c->base_norm = NAN;
    enum status st = read_plan(db, c->a, u, silo_id, &c->plan, e);
    if (!st) {
        c->base_norm = known_norm(&c->plan.want.base);
    }
    if (!st) {
        st = blob_tmp_open(s->blobs, u->id, &c->fd, e);
    }
    if (st) {
        check_free(c);
        return st;
    }
    c->running = upload_hash_take(u->id, &c->running_at);
    *out = c;
    return ST_OK;
}

/* Every value of every array; the norm is the delta's alone. */
static enum status check_parts(struct check *c, const struct coded_file *file, struct err *e)
{
    const struct layout *l = &c->plan.update;
    if (l->part_at[LAYOUT_M] < 0) {
        return coded_norm(file, c->fd, &c->norm, e);
    }
    if (file->codec != CODEC_F32) {
        return err_set(e, ST_CORRUPT, "moments are averaged, so its codec must be f32");
    }
    int64_t at[LAYOUT_PARTS];
    double unused = 0.0;
    for (int i = 0; i < LAYOUT_PARTS; i++) {
        at[i] = file->data_offset + l->part_at[i] * (int64_t)sizeof(float);
    }
    TRY(update_check_values(c->fd, at[LAYOUT_M], l->part_count, &unused, e));
    TRY(update_check_squares(c->fd, at[LAYOUT_V], l->part_count, e));
    return update_check_values(c->fd, at[LAYOUT_WEIGHTS], l->part_count, &c->norm, e);
}

static enum status check_file(struct check *c, struct err *e)
{
    struct digest got;
    double base = c->base_norm; // as it was at the start: what is kept may be gone by now
    struct coded_file file = {0};
    if (isnan(base)) { // before the long part, which would be in vain without it
        int64_t bytes = 0;
        TRY(mend_open(c->blobs, &c->plan.want.base, &c->base_fd, &bytes, e));
    }
    TRY(upload_hash_rest(c->fd, c->running, c->running_at, c->bytes, &got, e));
    if (!digest_equal(&got, &c->sha256)) {
        return err_set(e, ST_CORRUPT, "the file does not have the SHA-256 that was declared");
    }
    TRY(update_open(&file, c->a, c->fd, &c->plan.update.table, &c->plan.want, e));
    TRY(check_parts(c, &file, e));
    if (isnan(base)) {
        TRY(base_norm(c->base_fd, c->a, &c->plan.want.base, &c->plan.checkpoint, &base, e));
    }
    if (c->norm > UPDATE_NORM_RATIO_MAX * base) {
        return err_set(e, ST_CORRUPT,
                       "its norm %.3g is more than %.0f times that of the weights, %.3g", c->norm,
                       UPDATE_NORM_RATIO_MAX, base);
    }
    return ST_OK;
}

/* A sound one goes to where it will be placed, as far as that takes no lock. */
static enum status check_and_stage(struct check *c, struct err *e)
{
    TRY(check_file(c, e));
    return blob_stage(c->blobs, c->id, &c->sha256, e);
}

static void *check_thread(void *arg)
{
    struct check *c = arg;
    enum status st = check_and_stage(c, &c->err);
    (void)pthread_mutex_lock(&checks.lock);
    c->st = st;
    c->done = true;
    c->done_ms = clock_mono_ms();
    (void)pthread_mutex_unlock(&checks.lock);
    return NULL;
}

/* The check of that upload when its thread is done with it: taken out of the list. */
static struct check *take_check(const char *id, bool *running)
{
    struct check *found = NULL;
    *running = false;
    (void)pthread_mutex_lock(&checks.lock);
    for (struct check **p = &checks.first; *p; p = &(*p)->next) {
        if (strcmp((*p)->id, id) == 0) {
            *running = !(*p)->done;
            if ((*p)->done) {
                found = *p;
                *p = found->next;
            }
            break;
        }
    }
    (void)pthread_mutex_unlock(&checks.lock);
    return found;
}

/* Results that nobody came for. */
static void drop_old_checks(void)
{
    int64_t old = clock_mono_ms() - CHECK_KEPT_MS;
    (void)pthread_mutex_lock(&checks.lock);
    for (struct check **p = &checks.first; *p;) {
        struct check *c = *p;
        if (c->done && c->done_ms < old) {
            *p = c->next;
            check_free(c);
        } else {
            p = &c->next;
        }
    }
    (void)pthread_mutex_unlock(&checks.lock);
}

/* A large file is read in a thread of its own. False: it could not be started. */
static bool start_thread(struct check *c)
{
    pthread_t id;
    pthread_attr_t attr;
    drop_old_checks();
    (void)pthread_mutex_lock(&checks.lock);
    c->next = checks.first;
    checks.first = c;
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    bool ok = pthread_create(&id, &attr, check_thread, c) == 0;
    (void)pthread_attr_destroy(&attr);
    if (!ok) {
        checks.first = c->next;
    }
    (void)pthread_mutex_unlock(&checks.lock);
    return ok;
}

/*
 * What is known of the file: *out NULL while a thread reads it, else the check with its verdict,
 * the caller's to free.
 */
static enum status examine(struct server *s, struct db *db, const struct upload *u,
                           const char *silo_id, struct check **out, struct err *e)
{
    bool running = false;
    struct check *c = take_check(u->id, &running);
    *out = c;
    if (c || running) {
        return ST_OK;
    }
    TRY(check_new(&c, s, db, u, silo_id, e));
    if ((u->bytes > CHECK_INLINE_BYTES || blob_is_remote(s->blobs)) && start_thread(c)) {
        return ST_OK;
    }
    c->st = check_and_stage(c, &c->err);
    *out = c;
    return ST_OK;
}

/* Open uploads: judge the file, then give it its name. *pending: it is still being read. */
static enum status judge(struct server *s, struct db *db, const struct upload *u,
                         const char *silo_id, int64_t epoch, double *norm, bool *pending,
                         struct refusal *no, struct err *e)
{
    struct check *c = NULL;
    enum status st = examine(s, db, u, silo_id, &c, e);
    if (st == ST_NOT_FOUND) { // placed by a request whose answer was lost, or gone
        st = db_upload_place(db, s->blobs, u, no, e);
        if (st == ST_NOT_FOUND) {
            refuse(no, 410, "UPLOAD_GONE", "the file is gone; create the upload anew");
            st = db_upload_expire(db, u->id, e);
        }
        return st;
    }
    TRY(st);
    *pending = c == NULL;
    if (!c) {
        return ST_OK;
    }
    st = c->st;
    *norm = c->norm;
    struct err why = c->err;
    check_free(c);
    if (st == ST_CORRUPT) {
        refuse(no, 422, "BAD_UPDATE", "%.190s", why.msg);
        log_warn("update refused upload=%s silo=%s: %s", u->id, silo_id, no->detail);
        TRY(db_upload_refuse(db, u, silo_id, epoch, no->code, no->detail, e));
        blob_tmp_remove(s->blobs, u->id);
        return ST_OK;
    }
    if (st) {
        return err_set(e, st, "%s", why.msg);
    }
    return db_upload_place(db, s->blobs, u, no, e);
}

enum status accept_upload(struct server *s, struct db *db, const struct upload *u,
                          const char *silo_id, int64_t epoch, double upload_s, bool *pending,
                          struct refusal *no, struct err *e)
{
    bool accepted = false;
    *pending = false;
    *no = (struct refusal){0};
    if (strcmp(u->state, "refused") == 0) {
        refuse(no, 422, "BAD_UPDATE", "%s", u->detail);
        return ST_OK;
    }
    TRY(db_upload_may_finish(db, u, silo_id, epoch, &accepted, no, e));
    if (accepted || no->code) {
        return ST_OK;
    }
    if (strcmp(u->state, "expired") == 0) {
        refuse(no, 410, "UPLOAD_GONE", "the upload is expired; create a new one");
        return ST_OK;
    }
    if (u->received < u->bytes) {
        refuse(no, 409, "INCOMPLETE", "%lld of %lld bytes are here", (long long)u->received,
               (long long)u->bytes);
        no->offset = u->received;
        return ST_OK;
    }
    double norm = NAN;
    if (strcmp(u->state, "open") == 0) {
        TRY(judge(s, db, u, silo_id, epoch, &norm, pending, no, e));
        if (no->code || *pending) {
            return ST_OK;
        }
    }
    FAULT("finish.checked");
    return db_upload_accept(db, u, silo_id, epoch, norm, upload_s, no, e);
}
