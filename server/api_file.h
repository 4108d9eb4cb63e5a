/* api_file.h - a stored file for an answer, which may have to come out of a bucket first. */
#ifndef SERVER_API_FILE_H
#define SERVER_API_FILE_H

#include "common/hash.h"
#include "server/http.h"

/*
 * Opens it; mends: it is wanted whole again when it is lost (server/mend.h). A file that must be
 * fetched first keeps nobody else waiting: on control the request is parked, on bulk its connection
 * of the database is given back meanwhile, and what takes long is answered with 503 while the fetch
 * goes on. *fd < 0 with ST_OK: rs has that answer, or the request is parked.
 */
enum status file_open(struct request *rq, struct response *rs, const struct digest *d, bool mends,
                      int *fd, int64_t *bytes, struct err *e) MUST_CHECK;

#endif
