/*
 * trainer.h - local training: a model, its optimizer and its data on one device or several.
 *
 * The same trainer serves a federated task and a centralized run. Killing the process at any
 * instant and starting again from the saved state gives the bits of an undisturbed run on the same
 * machine and backend: weights, moments, their step count and the global step are all saved, the
 * data row is a function of the step, and nothing else influences a step.
 *
 * Several devices are ranks with a whole model each, and each takes its share of the batch. In data
 * parallel the gradients are summed before each step: one training, whose bits depend on the number
 * of ranks. Each rank keeps, and steps, its share of the optimizer's state alone (common/shards.h):
 * sums of gradients go to who steps them while the backward pass goes on, weights come back. With
 * sync_every each rank steps alone on its share, and the weights are averaged every so many steps
 * and whenever somebody asks for them (the sub-federation of the Photon paper, for devices that no
 * fast link joins); moments stay with their rank.
 *
 *     trainer_open -> trainer_load_weights -> [trainer_load_state] -> trainer_step ...
 *                  -> trainer_delta
 */
#ifndef CLIENT_TRAINER_H
#define CLIENT_TRAINER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/inner.h"
#include "common/layout.h"
#include "common/params.h"
#include "common/patterns.h"
#include "common/status.h"
#include "kernels/backend.h"

struct model;
struct trainer;

/*
 * Where rows of tokens come from, so that the engine needs no file format. A row is seq_len + 1
 * tokens: inputs are [0, seq_len), targets [1, seq_len + 1). client/data.h is the real one.
 */
struct row_source {
    void *ctx;
    /* rows of the local step at this global step, (rows, seq_len + 1) */
    enum status (*train)(void *ctx, int64_t step, int32_t rows, int32_t seq_len, int32_t *out,
                         struct err *e);
    /* held-out window i, and the decoded bytes of its targets; NULL without held-out text */
    enum status (*heldout)(void *ctx, int64_t i, int32_t seq_len, int32_t *out,
                           int64_t *target_bytes, struct err *e);
};

struct trainer_config {
    struct model_spec model;
    struct inner_spec inner;
    struct patterns
        freeze; /* tensors that no step moves; they are no part of the gradient's norm */
    struct row_source rows;
    const char *device; /* auto, cpu, ref, cuda, or several: "cuda:0,1,2" */
    const char *dtype;  /* auto (the backend's own choice), f32, bf16 */
    int threads;        /* 0: all cores; shared by the ranks */
    bool ahead;         /* for tests: run ahead on a host too, see trainer_run_until() */
    bool whole;         /* for tests: each rank keeps all of the optimizer's state, see below */
    int sync_every;     /* 0: data parallel; else steps between averages of the ranks' weights */
};

struct step_report {
    int64_t step;     /* global step just done */
    double loss;      /* mean NLL of the batch before the update */
    double grad_norm; /* before clipping */
    double lr;
    int64_t tokens;
    double seconds;
    bool finite; /* false: the update was skipped */
};

struct eval_result {
    double nll; /* sum, natural log */
    int64_t tokens;
    int64_t bytes;
    double seconds;
};

/* ST_INVALID: these are no words for a device and a dtype. Whether there is one, opening says. */
enum status trainer_words_check(const char *device, const char *dtype, struct err *e) MUST_CHECK;

/*
 * What a GPU chooses by trying is kept in the file cuda-choices of that folder, unless
 * PHOTON_CUDA_ALGOS names one: other choices are other bits. Before any thread and any trainer.
 */
void trainer_choices_in(const char *dir);

/* ST_NOMEM says what does not fit and which micro-batch would; ST_NOT_FOUND: no such device. */
enum status trainer_open(struct trainer **out, const struct trainer_config *c,
                         struct err *e) MUST_CHECK;
void trainer_close(struct trainer *t);
/* For tests and benches: of the first rank. */
struct model *trainer_model(struct trainer *t);
void trainer_describe(const struct trainer *t, char out[96]); /* "cpu, 2 threads, bf16" */
const struct param_table *trainer_params(const struct trainer *t);

/* Weights in flat order, F32, from an open file at this offset (streamed). ST_CORRUPT: too short,
 * or not finite. After a failure the weights are a mixture: load others before a step. */
enum status trainer_load_weights(struct trainer *t, int fd, int64_t offset,
                                 struct err *e) MUST_CHECK;
/* The same for the elements of these spans alone, each at its place in the flat order. */
enum status trainer_load_spans(struct trainer *t, int fd, int64_t offset,
                               const struct layout_span *spans, int32_t count,
                               struct err *e) MUST_CHECK;
/*
 * Weights of these spans become base + (local - end), in this order of operations: what was trained
 * since `end`, on top of `base`. Both are F32 in flat order in open files.
 */
struct trainer_rebase {
    int base_fd;
    int64_t base_offset;
    int end_fd;
    int64_t end_offset;
    const struct layout_span *spans;
    int32_t count;
};
enum status trainer_rebase(struct trainer *t, const struct trainer_rebase *r,
                           struct err *e) MUST_CHECK;
/* First (LAYOUT_M) or second (LAYOUT_V) moments of these spans, as trainer_load_spans() reads. */
enum status trainer_load_moments(struct trainer *t, enum layout_part part, int fd, int64_t offset,
                                 const struct layout_span *spans, int32_t count,
                                 struct err *e) MUST_CHECK;
/* Steps that the moments count as having seen. */
void trainer_set_steps(struct trainer *t, int64_t steps);

/*
 * Moments and their step count, and with_weights the weights too: what a stop in mid-round needs,
 * while between rounds the weights come from the server. The file is written beside, synced and
 * renamed. Loading takes what the file has and changes nothing unless the whole file is good.
 * ST_CORRUPT: cut short or damaged; ST_CONFLICT: of another model or optimizer; ST_NOT_FOUND: no
 * such file.
 */
enum status trainer_save_state(struct trainer *t, const char *path, bool with_weights,
                               struct err *e) MUST_CHECK;
enum status trainer_load_state(struct trainer *t, const char *path, struct err *e) MUST_CHECK;

/* Was that file saved with weights? False too when it is none. */
bool trainer_state_has_weights(const char *path);
/* Where the weights begin in such a file, which is the caller's to close; their checksum is not
 * looked at. ST_CORRUPT: it has none. */
enum status trainer_state_weights(struct trainer *t, const char *path, int *fd, int64_t *offset,
                                  struct err *e) MUST_CHECK;
void trainer_reset_state(struct trainer *t); /* zero moments, t = 0 */

/*
 * One local step at global step `step` (from 0). Loss and tokens are of all ranks, the norm of the
 * first. A step whose gradient is not finite changes
 * nothing and says so in the report; how many of them in a row are too many is the caller's to
 * decide. ST_INVALID: a token outside the vocabulary.
 */
enum status trainer_step(struct trainer *t, int64_t step, struct step_report *out,
                         struct err *e) MUST_CHECK;

/*
 * Steps below this one follow each other with nothing in between, so that one can be begun while
 * the one before it runs: its rows are read and sent meanwhile, and the device goes from step to
 * step without waiting for this machine. Bits and reports are the same. Where training and reading
 * take turns on the same cores, nothing is begun ahead. Whatever is asked of the trainer but the
 * next step waits for what is begun, and that counts: see trainer_begun() before state is saved.
 */
void trainer_run_until(struct trainer *t, int64_t step);
/* Is a step begun whose report nobody has had? */
bool trainer_begun(const struct trainer *t);

/* Summed loss over held-out windows [first, first + count), logits in fp32. */
enum status trainer_eval(struct trainer *t, int64_t first, int64_t count, struct eval_result *out,
                         struct err *e) MUST_CHECK;

/* out[0..count) = base - local of elements [start, start + count) in flat order; base is given. */
enum status trainer_delta(struct trainer *t, int64_t start, int64_t count, const float *base,
                          float *out, struct err *e) MUST_CHECK;
/* out[0..count) = moments; part as above. */
enum status trainer_moments(struct trainer *t, enum layout_part part, int64_t start, int64_t count,
                            float *out, struct err *e) MUST_CHECK;
/* out[0..count) = local weights. */
enum status trainer_weights(struct trainer *t, int64_t start, int64_t count, float *out,
                            struct err *e) MUST_CHECK;

#endif
