/*
 * api_silo.h - what the halves of /silo/v1 share: control, uploads, bulk.
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

enum { SILO_CHUNK_BYTES = LIMIT_CHUNK };

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

/* server/api_upload.c */
handler_fn api_upload_create, api_upload_get, api_upload_finish;

/* server/api_rotate.c */
handler_fn api_rotate;

#endif
