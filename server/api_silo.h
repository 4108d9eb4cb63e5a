/*
 * api_silo.h - what the control and the bulk half of /silo/v1 share.
 */
#ifndef SERVER_API_SILO_H
#define SERVER_API_SILO_H

#include <stdbool.h>

#include "server/db_task.h"
#include "server/http.h"

/* False when rs is a 409 PROTOCOL_MISMATCH: each request says Photon-Protocol: 1. */
bool silo_protocol(struct request *rq, struct response *rs);

/* The refusal as a problem document, with its hint and offset. */
enum status respond_refusal(struct request *rq, struct response *rs, const struct refusal *no);

/* 507. */
enum status respond_disk_full(struct request *rq, struct response *rs);

#endif
