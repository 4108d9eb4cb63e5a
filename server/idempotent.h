/*
 * idempotent.h - a change asked for twice under one key happens once.
 *
 * With the header Idempotency-Key the handler's answer is stored in the transaction of its change
 * (of a route marked ROUTE_AUDITED); the same key again gets that answer word for word, whatever
 * has happened since. So a client that lost a reply just asks again. Keys belong to a token and are
 * kept for two days.
 */
#ifndef SERVER_IDEMPOTENT_H
#define SERVER_IDEMPOTENT_H

#include "server/http.h"

/*
 * Without the header it is fn() alone. The same key for another request is 422 KEY_REUSED. Only
 * what succeeded is stored: after a refusal the key is free again.
 */
enum status idempotent(handler_fn *fn, struct request *rq, struct response *rs,
                       struct err *e) MUST_CHECK;

#endif
