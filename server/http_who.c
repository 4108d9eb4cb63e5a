/*
 * http_who.c - who asks on either listener, and on control whether that silo asks too often.
 *
 * An agent sends a few requests a second, some tens when a tiny model is done in a moment. What a
 * silo's token alone can make the server write is bounded by this, if a thief has it or a loop has
 * lost its pause; chunks of uploads, on the bulk listener, are not counted.
 */
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "server/audit.h"
#include "server/auth.h"
#include "server/http_int.h"
#include "server/trickle.h"

enum { ASK_BURST = 200, ASK_PER_S = 20, SAY_EVERY_MS = 60000 };

enum status exchange_authenticate(struct exchange *x, struct err *e)
{
    unsigned roles = x->match.route->roles;
    if ((roles & ROLES_ANYBODY) || x->known) {
        return ST_OK;
    }
    TRY(auth_check(&x->rq, &x->rs, roles, e));
    if (x->rs.status) {
        audit_refused(&x->rq, &x->rs);
    }
    return ST_OK;
}

static struct {
    pthread_mutex_t lock;
    struct trickles silos; // whichever token of a silo it is
    struct trickle said;
} asked = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Says which silo it was once a minute, for all. */
static bool may_ask(const struct principal *who)
{
    static const struct trickle_rule ask = {ASK_BURST, 1000 / ASK_PER_S};
    static const struct trickle_rule say = {1, SAY_EVERY_MS};
    int64_t before = 0;
    (void)pthread_mutex_lock(&asked.lock);
    int64_t now = clock_mono_ms();
    bool may = trickles_take(&asked.silos, who->silo_id, &ask, now);
    bool says = !may && trickle_take(&asked.said, &say, now, &before);
    (void)pthread_mutex_unlock(&asked.lock);
    if (says) {
        log_warn("silo %s asks too often and is told to wait; %" PRId64
                 " such answers were not logged since the last",
                 who->name, before);
    }
    return may;
}

enum status exchange_may_ask(struct exchange *x, struct err *e)
{
    bool counts = x->rq.who.role == ROLE_SILO && !x->counted && strcmp(x->rq.method, "GET") != 0 &&
                  strcmp(x->rq.method, "HEAD") != 0;
    x->counted = true; // what is tried again, or was parked, is one request
    return !counts || may_ask(&x->rq.who)
               ? ST_OK
               : err_set(e, ST_LIMIT, "a silo may send %d requests a second that change something",
                         ASK_PER_S);
}
