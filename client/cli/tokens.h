/*
 * tokens.h - tokens as commands see them: `photon token` for people, `photon silo token` for silos.
 */
#ifndef CLIENT_CLI_TOKENS_H
#define CLIENT_CLI_TOKENS_H

#include "client/cli/api.h"

/* POST /api/v1/tokens; role viewer, admin or join; ttl as options_duration_s() reads it. */
int token_make(struct api *api, const char *role, const char *name, const char *ttl,
               struct reply *out);

/* Those of silos, to join with and their own; or those of people. */
int tokens_list(int argc, char **argv, const char *program, bool silos);
int tokens_revoke(int argc, char **argv, const char *program);

#endif
