/*
 * agent_encode.c - the update file: what this silo's training adds up to.
 */
#include <inttypes.h>
#include <string.h>

#include "client/agent_int.h"
#include "client/delta.h"
#include "client/feedback.h"
#include "common/log.h"
#include "common/schedule.h"

/* This silo's rung for this update: its own choice or the run's, by the link where that is `auto`,
 * one up while the guard holds. */
static enum codec choose(const struct agent *a, const struct task *t, const struct run_state *rs)
{
    const char *own = a->config->codec;
    bool by_link = own ? strcmp(own, "auto") == 0 : t->spec.codec.up_auto;
    enum codec c = t->spec.codec.up;
    if (t->spec.inner_state == INNER_STATE_AVERAGE) {
        return CODEC_F32; // moments travel too, and on no other rung
    }
    if (by_link) {
        double rate = a->link_bytes_per_s;
        if (!(rate > 0.0) && a->fetched_s > 0.0) {
            rate = (double)a->fetched_bytes / a->fetched_s;
        }
        int64_t params = model_param_count(&t->spec.model) / schedule_fragments(&t->spec);
        c = feedback_auto(params, rate, rs->j.train_s, t->spec.codec.share);
    } else if (own) {
        struct err unused = {0};
        enum status st = codec_parse(&c, own, &unused); // checked as the program began
        (void)st;
    }
    return t->round <= rs->j.guard_until ? codec_up(c) : c;
}

static void note_report(struct agent *a, const struct task *t, struct run_state *rs,
                        const struct coded_report *r)
{
    rs->j.codec_error = r->error;
    rs->j.residual_ratio = r->residual_ratio;
    rs->j.fallback_share = r->fallback_share;
    log_info("round %" PRId64 ": coded as %s, error %.4g, residual %.3g of the delta", t->round,
             rs->j.codec, r->error, r->residual_ratio);
    if (r->fallbacks > 0) {
        agent_say(a,
                  "round %" PRId64 ": %d tensors (%.3g %% of the update) do not fit %s and go "
                  "one rung up",
                  t->round, r->fallbacks, 100.0 * r->fallback_share, rs->j.codec);
    }
    if (r->fallback_share > CODED_FALLBACK_MAX) {
        rs->j.guard_until = t->round + CODED_GUARD_ROUNDS;
        agent_say(a, "updates go one rung above %s up to round %" PRId64, rs->j.codec,
                  rs->j.guard_until);
    }
}

/* The plan knows the size of what the run asks for: exactly in f32, else at most. */
static enum status check_size(const struct task *t, const struct run_state *rs, enum codec codec,
                              struct err *e)
{
    bool exact = codec == CODEC_F32;
    if (codec != t->spec.codec.up || // a rung of our own
        (exact ? rs->j.bytes == t->update_bytes : rs->j.bytes <= t->update_bytes)) {
        return ST_OK;
    }
    return err_set(e, ST_CONFLICT,
                   "the update has %" PRId64 " bytes, the plan says %s%" PRId64
                   "; try the server's version of photon-client",
                   rs->j.bytes, exact ? "" : "at most ", t->update_bytes);
}

/* The files beside each other; each is whole before it has its name. */
static enum status place_files(const struct run_state *rs, bool coded, char tmp[3][STATE_PATH_MAX],
                               struct err *e)
{
    static const char *const NAMES[] = {STATE_UPDATE, STATE_RESIDUAL_NEXT, STATE_RESIDUAL_LATE};
    char path[STATE_PATH_MAX];
    for (int i = 0; i < (coded ? 3 : 1); i++) {
        run_state_path(rs, NAMES[i], path);
        TRY(file_place(tmp[i], path, e));
    }
    return ST_OK;
}

enum status agent_encode(struct agent *a, const struct task *t, struct run_state *rs,
                         const struct own_base *base, struct err *e)
{
    static const char *const TMP[] = {"update.tmp", "residual.next.tmp", "residual.late.tmp"};
    char residual[STATE_PATH_MAX];
    char tmp[3][STATE_PATH_MAX];
    struct delta_result r;
    run_state_residual(rs, rs->j.key.fragment, residual);
    for (int i = 0; i < 3; i++) {
        run_state_path(rs, TMP[i], tmp[i]);
    }
    struct delta_job job = {.trainer = a->trainer,
                            .spec = &t->spec,
                            .base_fd = base->fd,
                            .base_offset = base->offset,
                            .codec = choose(a, t, rs),
                            .run_name = t->run_name,
                            .round = t->round,
                            .base_sha256 = t->base_sha256,
                            .silo_name = a->id.name,
                            .tokens = rs->j.tokens,
                            .steps = t->local_steps,
                            .residual = residual,
                            .update = tmp[0],
                            .next = tmp[1],
                            .late = tmp[2]};
    (void)snprintf(rs->j.codec, sizeof(rs->j.codec), "%s", codec_name(job.codec));
    rs->j.codec_error = rs->j.residual_ratio = rs->j.fallback_share = 0.0;
    TRY(delta_write(&job, &r, e));
    TRY(place_files(rs, r.coded, tmp, e));
    digest_hex(&r.sha256, rs->j.sha256);
    rs->j.bytes = r.bytes;
    if (r.coded) {
        note_report(a, t, rs, &r.report);
    }
    return check_size(t, rs, job.codec, e);
}
