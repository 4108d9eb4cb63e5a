/*
 * demo_check.c - did the demo's training work? By its numbers and by its last checkpoint.
 */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/demo.h"
#include "client/cli/verify.h"
#include "common/clock.h"
#include "common/json.h"

static int say_failed(const char *fmt, ...) PRINTF_LIKE(1, 2);

static int say_failed(const char *fmt, ...)
{
    char text[300];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    (void)fprintf(stderr, "photon demo: FAILED: %s\n", text);
    return EXIT_FAILED;
}

static int check_losses(const struct json *run)
{
    int64_t rounds = api_integer(run, "rounds", -1);
    int64_t closed = api_integer(run, "round", -2);
    double first = exp(api_number(run, "initial_eval_loss"));
    double last = exp(api_number(run, "eval_loss"));
    double best = exp(api_number(run, "best_eval_loss"));
    if (strcmp(api_text(run, "state", ""), "finished") != 0 || closed != rounds) {
        return say_failed("%" PRId64 " of %" PRId64 " rounds closed, the run is %s", closed, rounds,
                          api_text(run, "state", "?"));
    }
    if (!isfinite(first) || !isfinite(last) || !isfinite(best)) {
        return say_failed("there is no validation perplexity of the first or the last checkpoint");
    }
    if (!(last < first / 4.0)) {
        return say_failed("perplexity fell from %.4g to %.4g only, not to a quarter", first, last);
    }
    if (!(last <= 1.05 * best)) {
        return say_failed("perplexity ended at %.4g, above the %.4g it had reached", last, best);
    }
    (void)printf("Validation perplexity fell from %.4g to %.4g\n", first, last);
    return EXIT_DONE;
}

static int check_checkpoint(struct demo *d, const struct json *ckpt)
{
    char file[DEMO_PATH_MAX];
    struct digest digest;
    struct err e = {0};
    struct reply r;
    struct verified v;
    demo_path(file, d, "checkpoint.safetensors", "");
    (void)unlink(file);
    if (!ckpt || json_kind(ckpt) != JSON_OBJECT ||
        digest_parse(&digest, api_text(ckpt, "sha256", ""), &e)) {
        return say_failed("the run has no final checkpoint");
    }
    struct download dl = {.path = api_text(ckpt, "url", "/"),
                          .file = file,
                          .digest = &digest,
                          .bytes = api_integer(ckpt, "bytes", -1)};
    if (transport_download(d->api.transport, d->api.arena, &dl, &r, &e) ||
        verify_file(file, &v, &e)) {
        return say_failed("the final checkpoint: %s", e.msg);
    }
    if (v.not_finite > 0) {
        return say_failed("the final checkpoint has %" PRId64 " values that are not finite",
                          v.not_finite);
    }
    (void)printf("Final checkpoint: %s\n  sha256 %s, %" PRId64 " parameters, all finite\n", file,
                 v.sha256, v.params);
    return EXIT_DONE;
}

int demo_check(struct demo *d)
{
    struct reply r;
    int rc = EXIT_TEMPORARY;
    // The last evaluation may still be on its way when the last round has closed.
    for (double until = clock_mono_s() + 60.0; clock_mono_s() < until && !demo_stopping();) {
        rc = api_call(&d->api, "GET", arena_fmt(d->api.arena, "/api/v1/runs/%s", d->run), NULL, &r);
        const struct json *head = rc ? NULL : json_get(r.json, "head_checkpoint");
        if (rc ||
            (head && json_kind(head) == JSON_OBJECT && isfinite(api_number(head, "eval_loss")))) {
            break;
        }
        clock_sleep_ms(300);
    }
    if (rc) {
        return say_failed("the server cannot be asked");
    }
    rc = check_losses(r.json);
    return rc ? rc : check_checkpoint(d, json_get(r.json, "head_checkpoint"));
}
