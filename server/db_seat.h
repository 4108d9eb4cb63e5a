/*
 * db_seat.h - seats between PostgreSQL's rows and the rules of seat.h.
 *
 * The axis of time is seconds from the database's now: a seat is read with now = 0, and what a rule
 * set to 60 is written as clock_timestamp() + 60 s. A silo's number is its id's place in a list.
 */
#ifndef SERVER_DB_SEAT_H
#define SERVER_DB_SEAT_H

#include "common/arena.h"
#include "common/status.h"
#include "server/db.h"
#include "server/seat.h"

/* Of task t, for db_seat_read(). */
#define SEAT_COLUMNS                                                                               \
    "t.state, t.kind, t.silo_id, t.lease_epoch, t.attempt,"                                        \
    " coalesce(extract(epoch FROM t.lease_until - clock_timestamp()), 0),"                         \
    " extract(epoch FROM t.free_at - clock_timestamp()),"                                          \
    " coalesce(extract(epoch FROM t.open_at - clock_timestamp())::double precision, 'infinity')"
enum { SEAT_COLUMN_COUNT = 8 };

/* Ids to numbers; an id met first gets the next one. */
struct silo_ids {
    struct arena *arena;
    const char **id;
    int count;
    int room;
};
int silo_number_of(struct silo_ids *ids, const char *id);

/* The columns from col on. */
enum status db_seat_read(const struct db_rows *rows, int row, int col, struct silo_ids *ids,
                         struct seat *out, struct err *e) MUST_CHECK;

/*
 * The row as the rule left it: state, holder, epoch, attempt and times. What else hangs on an event
 * (its lease, figures, why it failed) is the caller's.
 */
enum status db_seat_write(struct db *db, struct arena *a, const char *task_id,
                          const struct silo_ids *ids, const struct seat *s,
                          struct err *e) MUST_CHECK;

#endif
