#include "server/accept.h"

#include <math.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/params.h"
#include "common/run_spec.h"
#include "common/safetensors.h"
#include "server/update.h"
#include "server/upload_file.h"

enum { NORMS_KEPT = 16 };

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

static enum status base_norm(struct blob_store *s, struct arena *a, const struct digest *base,
                             int64_t params, double *norm, struct err *e)
{
    *norm = known_norm(base);
    if (!isnan(*norm)) {
        return ST_OK;
    }
    int fd = -1;
    int64_t bytes = 0;
    TRY(blob_open(s, base, &fd, &bytes, e));
    struct st_header h;
    enum status st = st_read(&h, a, fd, e);
    if (!st) {
        st = update_check_values(fd, h.data_offset, params, norm, e);
    }
    (void)close(fd);
    TRY(st);
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
    struct param_table table;
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
    p->table = params_table(a, &p->spec.model);
    p->want = (struct update_expected){.run_name = p->spec.name,
                                       .round = u->number,
                                       .silo_name = db_text(&rows, 0, 2),
                                       .tokens = u->tokens,
                                       .steps = u->steps};
    return db_digest(&rows, 0, 1, &p->want.base, e);
}

/* ST_CORRUPT: it is not what was asked for. */
static enum status inspect(struct server *s, struct arena *a, const struct upload *u,
                           const struct plan *p, double *norm, struct err *e)
{
    struct digest got;
    TRY(upload_file_digest(s->blobs, u->id, u->bytes, &got, e));
    if (!digest_equal(&got, &u->sha256)) {
        return err_set(e, ST_CORRUPT, "the file does not have the SHA-256 that was declared");
    }
    double base = 0.0;
    TRY(base_norm(s->blobs, a, &p->want.base, p->table.total, &base, e));
    int fd = -1;
    int64_t data_offset = 0;
    TRY(blob_tmp_open(s->blobs, u->id, &fd, e));
    enum status st = update_check_header(fd, &p->table, &p->want, &data_offset, e);
    if (!st) {
        st = update_check_values(fd, data_offset, p->table.total, norm, e);
    }
    (void)close(fd);
    TRY(st);
    if (*norm > UPDATE_NORM_RATIO_MAX * base) {
        return err_set(e, ST_CORRUPT,
                       "its norm %.3g is more than %.0f times that of the weights, %.3g", *norm,
                       UPDATE_NORM_RATIO_MAX, base);
    }
    return ST_OK;
}

/* Open uploads: judge the file, then give it its name. */
static enum status judge(struct server *s, struct db *db, struct arena *a, const struct upload *u,
                         const char *silo_id, int64_t epoch, double *norm, struct refusal *no,
                         struct err *e)
{
    struct plan p = {0};
    TRY(read_plan(db, a, u, silo_id, &p, e));
    double began = clock_mono_s();
    enum status st = inspect(s, a, u, &p, norm, e);
    if (st == ST_CORRUPT) {
        char why[sizeof(no->detail)];
        (void)snprintf(why, sizeof(why), "%.190s", e ? e->msg : "");
        refuse(no, 422, "BAD_UPDATE", "%s", why);
        log_warn("update refused upload=%s silo=%s: %s", u->id, silo_id, why);
        TRY(db_upload_refuse(db, u, silo_id, epoch, no->code, why, e));
        upload_file_forget(u->id);
        blob_tmp_remove(s->blobs, u->id);
        return ST_OK;
    }
    if (st == ST_NOT_FOUND) { // placed by a request whose answer was lost, or gone
        st = db_upload_place(db, s->blobs, u, no, e);
        if (st == ST_NOT_FOUND) {
            refuse(no, 410, "UPLOAD_GONE", "the file is gone; create the upload anew");
            st = db_upload_expire(db, u->id, e);
        }
        return st;
    }
    TRY(st);
    log_debug("update checked upload=%s bytes=%lld s=%.2f norm=%.4g", u->id, (long long)u->bytes,
              clock_mono_s() - began, *norm);
    TRY(db_upload_place(db, s->blobs, u, no, e));
    upload_file_forget(u->id);
    return ST_OK;
}

enum status accept_upload(struct server *s, struct db *db, const struct upload *u,
                          const char *silo_id, int64_t epoch, double upload_s, struct refusal *no,
                          struct err *e)
{
    bool accepted = false;
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
        struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
        enum status st = judge(s, db, a, u, silo_id, epoch, &norm, no, e);
        arena_free(a);
        TRY(st);
        if (no->code) {
            return ST_OK;
        }
    }
    return db_upload_accept(db, u, silo_id, epoch, norm, upload_s, no, e);
}
