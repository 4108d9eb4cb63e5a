/*
 * limits.h - every bound on what comes from outside, with its reason.
 */
#ifndef COMMON_LIMITS_H
#define COMMON_LIMITS_H

#include <stdint.h>

// clang-format off
enum {
    LIMIT_CONTROL_BODY   = 64 * 1024,        /* a control request's JSON; run specs are under 8 KiB    */
    LIMIT_METRICS_BODY   = 1024 * 1024,      /* a batch of metrics                                     */
    LIMIT_METRICS_POINTS = 1000,             /* points in one batch                                    */
    LIMIT_METRICS_NAMES  = 64,               /* curves of one silo in one run                          */
    LIMIT_META_PART      = 4 * 1024,         /* the JSON part before a chunk                           */
    LIMIT_CHUNK          = 64 * 1024 * 1024, /* a chunk; a cut costs at most one                       */
    LIMIT_ST_HEADER      = 4 * 1024 * 1024,  /* a safetensors header: 7B needs 40 KiB, coded 200 KiB   */
    LIMIT_ST_TENSORS     = 16384,            /* tensors in one file: 256 layers coded need 12,308      */
    LIMIT_ST_META        = 64,               /* strings of __metadata__                                */
    LIMIT_LAYERS         = 256,
    LIMIT_D_MODEL        = 16384,
    LIMIT_HEADS          = 256,
    LIMIT_VOCAB          = 1 << 20,
    LIMIT_SEQ_LEN        = 1 << 17,
    LIMIT_SILOS          = 1024,             /* per round                                              */
    LIMIT_ROUNDS         = 1000000,
    LIMIT_STEPS          = 1000000,          /* local steps in a round                                 */
    LIMIT_BATCH          = 65536,
    LIMIT_POLL_S         = 25,               /* a long poll; proxies cut at 30 to 60                   */
    LIMIT_STREAMS        = 256,              /* SSE streams a server holds                             */
    LIMIT_PAGE           = 1000,             /* items of one page                                      */
    LIMIT_SERIES_POINTS  = 3000,
    LIMIT_REQUEST_ARENA  = 64 * 1024 * 1024, /* what one request may make the server allocate          */
};
// clang-format on

#define LIMIT_BLOB ((int64_t)1 << 40) /* bytes of one file */

#endif
