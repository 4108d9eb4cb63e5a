/*
 * http_who.c - who asks on either listener, and on control whether that token asks too often.
 *
 * An agent sends a few requests a second, some tens when a tiny model is done in a moment. What a
 * silo's token alone can make the server write is bounded by this, if a thief has it or a loop has
 * lost its pause; chunks of uploads, on the bulk listener, are not counted. A join token has still
 * less to write; people's are not bounded.
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
enum { FEW_BURST = 20, FEW_EVERY_MS = 1000 };

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
    struct trickles who; // a silo, whichever of its tokens it is; else a token
    struct trickle said;
} asked = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Says who it was once a minute, for all. */
static bool may_ask(const struct principal *who)
{
    static const struct trickle_rule ask = {ASK_BURST, 1000 / ASK_PER_S};
    static const struct trickle_rule few = {FEW_BURST, FEW_EVERY_MS};
    bool silo = who->role == ROLE_SILO;
    static const struct trickle_rule say = {1, SAY_EVERY_MS};
    int64_t before = 0;
    (void)pthread_mutex_lock(&asked.lock);
    int64_t now = clock_mono_ms();
    bool may = silo ? trickles_take(&asked.who, who->silo_id, &ask, now)
                    : trickles_take(&asked.who, who->token_id, &few, now);
    bool says = !may && trickle_take(&asked.said, &say, now, &before);
    (void)pthread_mutex_unlock(&asked.lock);
    if (says) {
        log_warn("%s %s asks too often and is told to wait; %" PRId64
                 " such answers were not logged since the last",
                 silo ? "silo" : "token", who->name, before);
    }
    return may;
}

enum status exchange_may_ask(struct exchange *x, struct err *e)
{
    enum role role = x->rq.who.role;
    bool counts = (role == ROLE_SILO || role == ROLE_JOIN) && !x->counted &&
                  strcmp(x->rq.method, "GET") != 0 && strcmp(x->rq.method, "HEAD") != 0;
    x->counted = true; // what is tried again, or was parked, is one request
    return !counts || may_ask(&x->rq.who)
               ? ST_OK
               : err_set(e, ST_LIMIT,
                         "a %s token may send %d requests a second that change something",
                         role_name(role), role == ROLE_SILO ? ASK_PER_S : 1000 / FEW_EVERY_MS);
}
