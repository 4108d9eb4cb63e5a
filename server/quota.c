#include "server/quota.h"

#include <inttypes.h>

#include "server/server.h"

static const char SQL_TODAY[] =
    "SELECT coalesce((SELECT CASE WHEN $2 THEN upload_bytes ELSE download_bytes END"
    "                   FROM traffic_day WHERE silo_id = $1 AND day = today()), 0),"
    "       ceil(extract(epoch FROM (today() + 1)::timestamp"
    "                               - clock_timestamp() AT TIME ZONE 'UTC'))::bigint";

enum status quota_allows(struct request *rq, struct response *rs, enum quota way, int64_t bytes,
                         bool *allows, struct err *e)
{
    bool up = way == QUOTA_UPLOAD;
    int64_t limit = up ? rq->server->daily_upload : rq->server->daily_download;
    *allows = true;
    if (limit == 0) {
        return ST_OK;
    }
    const char *argv[] = {rq->who.silo_id, up ? "t" : "f"};
    struct db_rows rows;
    int64_t used = 0;
    int64_t wait_s = 0;
    TRY(db_query(rq->db, rq->arena, SQL_TODAY, 2, argv, &rows, e));
    TRY(db_int64(&rows, 0, 0, &used, e));
    TRY(db_int64(&rows, 0, 1, &wait_s, e));
    *allows = used <= limit && bytes <= limit - used;
    if (!*allows) {
        (void)problem(rq, rs, 429, "BYTE_QUOTA", "wait for the next day (UTC), or ask an operator",
                      "this silo may %s %" PRId64 " bytes a day, and has %s %" PRId64 " today",
                      up ? "send" : "fetch", limit, up ? "sent" : "fetched", used);
        response_header(rs, "Retry-After", arena_fmt(rq->arena, "%" PRId64, wait_s));
    }
    return ST_OK;
}
