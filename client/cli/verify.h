/*
 * verify.h - look through a safetensors file of F32 weights: sound, and every value finite?
 */
#ifndef CLIENT_CLI_VERIFY_H
#define CLIENT_CLI_VERIFY_H

#include <stdint.h>

#include "common/status.h"

struct verified {
    char sha256[65];
    int64_t bytes;
    int32_t tensors;
    int64_t params;
    char kind[16]; /* of the metadata; "" when absent */
    char run[80];
    char round[24];
    double norm; /* L2, of all values */
    int64_t not_finite;
};

/* ST_CORRUPT: not a sound file; ST_INVALID: sound, but not F32; ST_NOT_FOUND, ST_IO. */
enum status verify_file(const char *path, struct verified *out, struct err *e) MUST_CHECK;

#endif
