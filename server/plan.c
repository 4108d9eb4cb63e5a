#include "server/plan.h"

#include <inttypes.h>
#include <math.h>

#include "common/json.h"
#include "common/memory_plan.h"
#include "common/schedule.h"
#include "server/checkpoint.h"

/* A silo's name of average length: the header is padded to 8 bytes, so it hardly matters. */
static const char SOME_SILO[] = "silo-name";

static void warn(struct buf *b, const struct run_spec *s, struct arena *a)
{
    int64_t steps = (int64_t)s->federation.rounds * s->federation.local_steps;
    if (s->inner.schedule_steps < steps) {
        jw_str(b, NULL,
               arena_fmt(a, "the learning rate reaches its floor at step %" PRId64 " of %" PRId64,
                         s->inner.schedule_steps, steps));
    }
    if (s->inner.warmup >= s->inner.schedule_steps) {
        jw_str(b, NULL, "the warm-up is as long as the schedule: the learning rate never falls");
    }
    if (s->federation.min_silos == s->federation.silos_per_round && s->federation.min_silos > 1) {
        jw_str(b, NULL, "min_silos equals silos_per_round: one lost silo holds up every round");
    }
    if (s->federation.silos_per_round == 1) {
        jw_str(b, NULL, "one silo per round: nothing is averaged");
    }
    if (!s->tokenizer_sha256[0]) {
        jw_str(b, NULL, "no tokenizer is named: text is read as bytes");
    }
    if (s->eval.windows == 0) {
        jw_str(b, NULL, "no evaluation windows: there will be no perplexity");
    }
}

void plan_print(struct buf *b, struct arena *a, const struct run_spec *s)
{
    int64_t params = model_param_count(&s->model);
    int64_t checkpoint = checkpoint_weights_bytes(s);
    int64_t update = 0;
    int64_t updates = 0;
    int32_t parts = schedule_fragments(s);
    for (int32_t round = 1; round <= parts; round++) {
        int64_t bytes = checkpoint_update_bytes(s, SOME_SILO, s->codec.up, round);
        update = bytes > update ? bytes : update;
        updates += bytes;
    }
    int64_t silos = s->federation.silos_per_round;
    int64_t seats = silos + s->federation.oversample;
    int64_t tokens = (int64_t)s->federation.local_steps * s->inner.batch * s->model.seq_len * silos;

    jw_object(b, NULL);
    jw_raw(b, "spec", run_spec_json(a, s));
    jw_int(b, "params", params);
    jw_int(b, "checkpoint_bytes", checkpoint);
    jw_int(b, "update_bytes", update);
    jw_int(b, "upload_bytes_per_round", updates * seats / parts);
    jw_int(b, "download_bytes_per_round", checkpoint * seats);
    jw_int(b, "tokens_per_round", tokens);
    jw_int(b, "tokens", tokens * s->federation.rounds);
    jw_int(b, "silo_memory_bytes",
           memory_plan_silo(&s->model, s->inner.batch, s->inner.micro_batch));
    jw_array(b, "warnings");
    warn(b, s, a);
    jw_end_array(b);
    jw_end_object(b);
}
