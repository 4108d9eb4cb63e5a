/*
 * task.h - what the aggregator asks of a silo, read from the claim's answer.
 */
#ifndef CLIENT_TASK_H
#define CLIENT_TASK_H

#include <stdbool.h>
#include <stdint.h>

#include "client/state.h"
#include "common/hash.h"
#include "common/json.h"
#include "common/run_spec.h"
#include "common/status.h"
#include "common/step.h"

enum task_kind { TASK_TRAIN = 0, TASK_EVALUATE };

/* A step to the base (common/step.h), or to a checkpoint on the way to it. */
struct task_step {
    int64_t number; /* of the checkpoint that it leads to */
    char base_sha256[65];
    struct digest base; /* that it begins at */
    char sha256[65];
    struct digest digest;
    int64_t bytes;
    enum codec codec;
};

struct task {
    char id[32];
    enum task_kind kind;
    char run[32];
    char run_name[64];
    int64_t round, rounds;
    int64_t epoch; /* of the lease */
    double heartbeat_s;
    int64_t base_number;
    char base_sha256[65];
    struct digest base;
    int64_t base_bytes;
    int step_count;
    struct task_step steps[STEP_CHAIN_MAX]; /* a chain, the last one leads to the base */
    /* train */
    int64_t global_step;
    int64_t local_steps;
    int64_t silo_ordinal;
    int64_t update_bytes;
    int64_t chunk_bytes;
    bool codec_known;
    /* evaluate */
    int64_t windows;
    struct run_spec spec;
    char spec_sha256[65]; /* run_spec_digest() */
};

/* ST_INVALID names the member that is missing or out of range. *out is written on success alone. */
enum status task_parse(struct task *out, const struct json *doc, struct err *e) MUST_CHECK;

/* The id and the lease alone: what giving back a task needs that is not understood. As above. */
enum status task_parse_lease(struct task *out, const struct json *doc, struct err *e) MUST_CHECK;

/* What decides the bits of the training this task asks for. */
struct round_key task_key(const struct task *t);

#endif
