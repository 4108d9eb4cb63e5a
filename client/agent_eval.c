/*
 * agent_eval.c - a checkpoint's loss on this silo's held-out text.
 */
#include <inttypes.h>
#include <math.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "common/fault.h"
#include "common/log.h"

enum { EVAL_SLICE = 16 };

static enum task_end eval_windows(struct agent *a, const struct task *t, struct beat *b,
                                  struct eval_result *sum)
{
    int64_t count = data_heldout_windows(a->data, t->spec.model.seq_len);
    struct err e = {0};
    if (count < 1) {
        (void)err_set(&e, ST_LIMIT, "there is no held-out window of %d tokens; try more text",
                      t->spec.model.seq_len);
        return agent_fail(a, "bad_data", &e);
    }
    count = count < t->windows ? count : t->windows;
    *sum = (struct eval_result){0};
    for (int64_t at = 0; at < count; at += EVAL_SLICE) {
        if (agent_stopping()) {
            return TASK_LEAVING;
        }
        if (beat_order(b) != BEAT_CONTINUE) {
            return TASK_DROPPED;
        }
        struct eval_result r;
        int64_t n = count - at < EVAL_SLICE ? count - at : EVAL_SLICE;
        enum status st = trainer_eval(a->trainer, at, n, &r, &e);
        agent_note_device(a, st);
        if (st) {
            return agent_fail(a, st == ST_DEVICE ? "transient" : "bad_data", &e);
        }
        sum->nll += r.nll;
        sum->tokens += r.tokens;
        sum->bytes += r.bytes;
        sum->seconds += r.seconds;
        beat_report(b, "evaluate", at + n,
                    sum->seconds > 0.0 ? (double)sum->tokens / sum->seconds : (double)NAN);
    }
    return TASK_DONE;
}

static enum task_end post_result(struct agent *a, const struct task *t,
                                 const struct eval_result *sum, double download_s,
                                 struct arena *arena)
{
    struct buf body;
    buf_init(&body, 1024);
    jw_object(&body, NULL);
    jw_int(&body, "epoch", t->epoch);
    jw_num(&body, "nll", sum->nll);
    jw_int(&body, "tokens", sum->tokens);
    jw_int(&body, "bytes", sum->bytes);
    jw_num(&body, "seconds", sum->seconds);
    jw_num(&body, "download_s", download_s);
    jw_end_object(&body);
    struct reply r;
    struct err e = {0};
    FAULT("evaluate.result");
    enum status st = transport_call_retry(a->control, arena, "POST",
                                          arena_fmt(arena, "/silo/v1/tasks/%s/result", t->id),
                                          body.data, 0.0, &r, &e);
    buf_release(&body);
    if (!st) {
        a->evaluations++;
        double loss = sum->nll / (double)sum->tokens;
        agent_say(
            a, "checkpoint %" PRId64 ": loss %.4f, perplexity %.4g on %" PRId64 " held-out tokens",
            t->base_number, loss, exp(loss), sum->tokens);
        return TASK_DONE;
    }
    if (r.cancelled) {
        return TASK_LEAVING;
    }
    log_warn("the evaluation is not counted: %s", e.msg);
    return TASK_DROPPED;
}

/* The checkpoint as this silo would use it: with its own personal tensors. */
static enum status load_evaluated(struct agent *a, const struct task *t,
                                  const struct own_base *base, struct err *e)
{
    char path[STATE_PATH_MAX];
    struct run_state rs;
    if (t->spec.personal.count == 0) {
        return trainer_load_weights(a->trainer, base->fd, base->offset, e);
    }
    TRY(run_state_open(&rs, a->config->state_dir, t->run, e));
    TRY(run_state_hold_spec(&rs, t->spec_sha256, e));
    struct own own = agent_own(&rs, path);
    TRY(own_load(a->trainer, &t->spec, &own, e));
    return own_load_common(a->trainer, &t->spec, &own, 0, base, e);
}

enum task_end agent_evaluate(struct agent *a, const struct task *t, struct beat *b,
                             struct arena *arena)
{
    struct err e = {0};
    agent_ahead_park(a);
    enum task_end end = agent_trainer(a, t);
    if (end) {
        return end;
    }
    struct own_base base = {.fd = -1};
    double seconds = 0.0;
    enum status st = agent_base(a, t, b, arena, &base, &seconds, &e);
    if (st) {
        return agent_without_base(a, b, &e);
    }
    st = load_evaluated(a, t, &base, &e);
    (void)close(base.fd);
    if (st) {
        return agent_fail(a, agent_start_code(st), &e);
    }
    agent_doing(a, t, "evaluating", 0);
    beat_report(b, "evaluate", 0, (double)NAN);
    struct eval_result sum = {0};
    end = eval_windows(a, t, b, &sum);
    if (!end && !isfinite(sum.nll)) {
        (void)err_set(&e, ST_CORRUPT, "the loss of checkpoint %" PRId64 " is not finite",
                      t->base_number);
        end = agent_fail(a, "diverged", &e);
    }
    return end ? end : post_result(a, t, &sum, seconds, arena);
}
