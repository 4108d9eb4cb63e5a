/*
 * trainer_code.h - an update coded where the weights are.
 *
 * The weights of a large model are on a device, and so they stay: piece after piece, base and
 * residual go there, delta, codes and what they leave out are made there, and come back through two
 * pinned buffers, so that one piece travels while another is read and written here. The bits are
 * those of coding on the host. No second copy of the model is made anywhere.
 */
#ifndef CLIENT_TRAINER_CODE_H
#define CLIENT_TRAINER_CODE_H

#include "client/trainer.h"
#include "common/codec.h"

struct trainer_coder;

/* Groups of a piece, at most. */
enum { CODER_GROUPS = 16 };

struct coder_piece {
    int64_t n;
    struct codec_parts parts; /* the host's memory, as the rest, until the next but one begins */
    const struct codec_result *results;
    const float *u, *left;
};

/* Are weights and host apart, so that this is the way? Not where ranks share the master's halves.
 */
bool trainer_codes_apart(struct trainer *t);

/* The trainer must not step while this is open. ST_NOMEM: the device has no room left for it. */
enum status trainer_coder_open(struct trainer_coder **out, struct trainer *t,
                               struct err *e) MUST_CHECK;
void trainer_coder_close(struct trainer_coder *c); /* NULL is allowed */

/* Where base and residual of the piece that begins next are to be put, CODER_GROUPS groups each. */
float *trainer_coder_base(struct trainer_coder *c);
float *trainer_coder_residual(struct trainer_coder *c);

/* Elements [start, start + n) of the model's flat order, of one tensor. Two may be begun. */
void trainer_coder_begin(struct trainer_coder *c, const struct codec_rule *rule, int64_t start,
                         int64_t n, bool residual, float beta);

/* The first that was begun; ST_DEVICE: the device failed. */
enum status trainer_coder_end(struct trainer_coder *c, struct coder_piece *out,
                              struct err *e) MUST_CHECK;

#endif
