/*
 * audit.h - who changed what, from where, and what came of it: rows of the table audit.
 *
 * A route marked ROUTE_AUDITED runs inside a transaction that also writes its row, so a change and
 * its record are there together or not at all. The handler says what it does with audit_as(); one
 * that changed nothing takes it back with NULL, and there is no row. What was refused is written
 * once the transaction is undone.
 *
 * Refusals cost nothing to whoever sends them, so they are let through in a trickle: a few at once,
 * then one each AUDIT_EVERY_MS. What is left out is counted in the next row that is written.
 */
#ifndef SERVER_AUDIT_H
#define SERVER_AUDIT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "server/http.h"

enum { AUDIT_BURST = 20, AUDIT_EVERY_MS = 30000 };

/* action is a word such as run_pause, as long-lived as the request; object, an id, is copied. */
void audit_as(struct request *rq, const char *action, const char *object);

/* The handler inside its transaction. A request without a connection has none, and no row. */
enum status audit_run(handler_fn *fn, struct request *rq, struct response *rs,
                      struct err *e) MUST_CHECK;

/* 401 and 403: who came with a token or a cookie and was not let in. */
void audit_refused(struct request *rq, const struct response *rs);

/* Something was taken away, which changes nothing: a row an hour for each token and object. */
enum status audit_taken(struct request *rq, const char *action, const char *object,
                        struct err *e) MUST_CHECK;

#endif
