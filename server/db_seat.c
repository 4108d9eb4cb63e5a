#include "server/db_seat.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static const char *const state_names[SEAT_STATE_COUNT] = {"pending", "leased", "done", "cancelled",
                                                          "failed"};

int silo_number_of(struct silo_ids *ids, const char *id)
{
    for (int i = 0; i < ids->count; i++) {
        if (strcmp(ids->id[i], id) == 0) {
            return i;
        }
    }
    if (ids->count == ids->room) {
        int room = ids->room ? 2 * ids->room : 16;
        const char **more = arena_alloc(ids->arena, (size_t)room * sizeof(*more));
        for (int i = 0; i < ids->count; i++) {
            more[i] = ids->id[i];
        }
        ids->id = more;
        ids->room = room;
    }
    ids->id[ids->count] = arena_fmt(ids->arena, "%s", id);
    return ids->count++;
}

enum status db_seat_read(const struct db_rows *rows, int row, int col, struct silo_ids *ids,
                         struct seat *out, struct err *e)
{
    struct seat s = {0};
    const char *state = db_text(rows, row, col);
    int i = 0;
    while (i < SEAT_STATE_COUNT && strcmp(state_names[i], state) != 0) {
        i++;
    }
    if (i == SEAT_STATE_COUNT) {
        return err_set(e, ST_CORRUPT, "unknown state of a task '%s'", state);
    }
    s.state = (enum seat_state)i;
    s.evaluate = strcmp(db_text(rows, row, col + 1), "evaluate") == 0;
    s.silo = silo_number_of(ids, db_text(rows, row, col + 2));
    int32_t attempt = 0;
    TRY(db_int64(rows, row, col + 3, &s.epoch, e));
    TRY(db_int32(rows, row, col + 4, &attempt, e));
    s.attempt = attempt;
    TRY(db_double(rows, row, col + 5, &s.lease_until, e));
    TRY(db_double(rows, row, col + 6, &s.free_at, e));
    TRY(db_double(rows, row, col + 7, &s.open_at, e));
    *out = s;
    return ST_OK;
}

static const char SQL_WRITE[] =
    "UPDATE task SET state = $2, silo_id = $3, lease_epoch = $4, attempt = $5,"
    "       lease_until = clock_timestamp() + make_interval(secs => $6),"
    "       free_at = clock_timestamp() + make_interval(secs => $7),"
    "       open_at = clock_timestamp() + make_interval(secs => $8)"
    " WHERE id = $1";

enum status db_seat_write(struct db *db, struct arena *a, const char *task_id,
                          const struct silo_ids *ids, const struct seat *s, struct err *e)
{
    assert(s->silo >= 0 && s->silo < ids->count);
    const char *argv[] = {task_id,
                          state_names[s->state],
                          ids->id[s->silo],
                          db_arg_int(a, s->epoch),
                          db_arg_int(a, s->attempt),
                          s->state == SEAT_LEASED ? db_arg_double(a, s->lease_until) : NULL,
                          db_arg_double(a, s->free_at),
                          isinf(s->open_at) ? NULL : db_arg_double(a, s->open_at)};
    return db_exec(db, SQL_WRITE, 8, argv, NULL, e);
}
