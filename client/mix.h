/*
 * mix.h - how much of each source of text each silo of a simulation has.
 *
 *     iid              every silo mixes all sources alike
 *     genre            silo k has source k mod S alone
 *     dirichlet:ALPHA  a silo's shares are one draw from a symmetric Dirichlet distribution: below
 * 1 a few sources prevail, far above 1 it nears iid (Hsu et al. 2019)
 *
 * Pure: a function of seed, silo and source, the same on every machine whose libm agrees.
 */
#ifndef CLIENT_MIX_H
#define CLIENT_MIX_H

#include <stdint.h>

#include "common/status.h"

enum mix_kind { MIX_IID = 0, MIX_GENRE, MIX_DIRICHLET };

struct mix {
    enum mix_kind kind;
    double alpha;
};

/* ST_INVALID: none of the three, or an ALPHA that is not from 0.001 to 1000. */
enum status mix_parse(struct mix *out, const char *text, struct err *e) MUST_CHECK;

/* out[0..sources): shares of this silo, which add up to 1; one below a thousandth is 0. */
void mix_shares(const struct mix *m, uint64_t seed, int silo, int sources, double *out);

#endif
