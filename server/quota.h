/*
 * quota.h - how many bytes one silo may move in a day (UTC), each way.
 *
 * Asked before a body is read or sent, with the bytes it would have; what crossed the socket
 * counts, repeats and cut transfers included (db_traffic_add()). Transfers under way at the same
 * moment do not know of each other, so a silo may pass its limit by what one token may have open at
 * once.
 */
#ifndef SERVER_QUOTA_H
#define SERVER_QUOTA_H

#include "server/http.h"

enum quota { QUOTA_UPLOAD = 0, QUOTA_DOWNLOAD };

/*
 * False: rs is a 429 BYTE_QUOTA whose Retry-After is the beginning of the next day. Without a limit
 * (server.h) it is always true and costs nothing.
 */
enum status quota_allows(struct request *rq, struct response *rs, enum quota way, int64_t bytes,
                         bool *allows, struct err *e) MUST_CHECK;

#endif
