/*
 * api_silo.h - what the parts of /silo/v1 share, and where they are.
 *
 *     api_silo.c    the table of routes; join, hello, what becomes of a run
 *     api_rotate.c  a new token while the old one still works
 *     api_task.c    a task's life: claim, heartbeat, metrics, result, release
 *     api_upload.c  an update's life: created, asked about, finished
 *     api_bulk.c    chunks and files, on the listener for bulk
 */
#ifndef SERVER_API_SILO_H
#define SERVER_API_SILO_H

#include <stdbool.h>

#include "common/limits.h"
#include "common/run_spec.h"
#include "server/db_task.h"
#include "server/http.h"

/* False when rs is a 409 PROTOCOL_MISMATCH: each request says Photon-Protocol: 1. */
bool silo_protocol(struct request *rq, struct response *rs);

/* The refusal as a problem document, with its hint and offset. */
enum status respond_refusal(struct request *rq, struct response *rs, const struct refusal *no);

/* 507. */
enum status respond_disk_full(struct request *rq, struct response *rs);

enum {
    SILO_CHUNK_BYTES = LIMIT_CHUNK,
    SILO_AGENT_MAX = 80, /* letters of what an agent calls itself */
};

/* No silo means a number beyond it, and sums of such would overflow in the database: one silo could
 * keep a round from closing. */
#define SILO_NUMBER_MAX 1e30
/* Nor one as near to 0 that is not 0. It counts as 0, for a quotient of such would underflow in the
 * database, or overflow, which stops a run just as well. */
#define SILO_NUMBER_MIN 1e-30
double silo_measured(double number);

/* Members of the request's body; false or NULL: rs is a 422 that names the member. */
bool silo_want_int(struct request *rq, struct response *rs, const char *key, int64_t min,
                   int64_t max, int64_t *out);
bool silo_number(struct request *rq, struct response *rs, const struct json *o, const char *key,
                 double min, double *out); /* absent or null: NAN */
const char *silo_text(struct request *rq, struct response *rs, const char *key, size_t max,
                      bool required); /* absent and not required: "" */

/* Is the first parameter of the path such an id? False: rs is a 404. */
bool silo_path_id(struct request *rq, struct response *rs, char prefix, const char *what);

/* A stored spec; what was once accepted parses again. */
enum status silo_parse_spec(struct run_spec *out, struct arena *a, const char *text,
                            struct err *e) MUST_CHECK;

/* The coordinator has a reason to look at the run. */
void silo_wake_run(struct request *rq, const char *run_id);

/* server/api_task.c */
handler_fn api_task_claim, api_task_heartbeat, api_task_metrics, api_task_result, api_task_release;

/* server/api_upload.c */
handler_fn api_upload_create, api_upload_get, api_upload_finish;

/* server/api_rotate.c */
handler_fn api_rotate;

#endif
