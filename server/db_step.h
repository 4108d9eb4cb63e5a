/*
 * db_step.h - steps from checkpoint to checkpoint (common/step.h) as rows.
 *
 * A step is a file of its checkpoint's row, kept as long as it may be of use: while the steps from
 * there to the head are fewer bytes than the head's weights. What a silo needs is a chain of them.
 */
#ifndef SERVER_DB_STEP_H
#define SERVER_DB_STEP_H

#include "common/arena.h"
#include "common/codec.h"
#include "common/hash.h"
#include "common/step.h"
#include "server/db.h"

struct step_row {
    int32_t number;     /* of the checkpoint that it leads to */
    struct digest base; /* weights of the one before */
    struct digest sha256;
    int64_t bytes;
    enum codec codec;
};

/*
 * Those that lead to the checkpoint, the newest first, as many as are kept, at most STEP_CHAIN_MAX,
 * and together below the whole weights. In the arena.
 */
enum status db_step_chain(struct db *db, struct arena *a, const char *run_id, int32_t number,
                          const struct step_row **out, int *count, struct err *e) MUST_CHECK;

/* The newest checkpoint up to `number` whose step had too many tensors one rung up; 0: none. */
enum status db_step_tripped(struct db *db, struct arena *a, const char *run_id, int32_t number,
                            int32_t *tripped, struct err *e) MUST_CHECK;

/* Those that no silo should take any more. */
enum status db_step_let_go(struct db *db, struct err *e) MUST_CHECK;

/* A file that is lost for good: if it is a step, silos take the weights instead. *was: it is one.
 */
enum status db_step_lost(struct db *db, const struct digest *d, bool *was,
                         struct err *e) MUST_CHECK;

#endif
