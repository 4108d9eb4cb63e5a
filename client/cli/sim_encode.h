/*
 * sim_encode.h - a virtual silo's update on the rung that the run asks for, with error feedback.
 *
 * u = delta + beta^(1 + skipped) e is coded, skipped the rounds (of the update's fragment) this
 * silo had no part in since its last update that counted, beta the rung's (common/codec.h); e' = u
 * - what the aggregator reads is the residual if this update counts. Residuals wait in files of
 * their own, as moments do.
 */
#ifndef CLIENT_CLI_SIM_ENCODE_H
#define CLIENT_CLI_SIM_ENCODE_H

#include "client/cli/sim_silo.h"
#include "common/status.h"

/* Files; where the run asks for f32 there are none. */
struct sim_residual {
    enum codec codec;   /* of this update: the run's, or one up while the guard holds */
    const char *former; /* to go on from; NULL: none */
    int32_t round;      /* that it is of */
    const char *next;
};

/* Writes update->path and the new residual, sets update->bytes and fallback_share. */
enum status sim_encode(struct sim_desk *d, const struct sim_silo *s, const struct sim_base *base,
                       struct sim_update *update, const struct sim_residual *residual,
                       struct err *e) MUST_CHECK;

#endif
