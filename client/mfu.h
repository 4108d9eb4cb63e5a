/*
 * mfu.h - what share of a device's arithmetic a training turns into the model's own.
 *
 * Convention: a token costs 6 (P - p) + 6 L d T operations forward and backward, P the parameters,
 * p those of the position table (it is added, not multiplied). The second term is attention, of
 * which a causal model needs half (PaLM's 12 L d T counts the whole square; Chowdhery et al. 2022,
 * appendix B). Recomputed activations count as nothing. The ceiling is not a data sheet's: it is
 * the rate of one large matrix product on the same backend, dtype and threads, measured here.
 */
#ifndef CLIENT_MFU_H
#define CLIENT_MFU_H

#include "common/params.h"
#include "common/status.h"
#include "kernels/backend.h"

/* Operations of one trained token. */
double mfu_token_flops(const struct model_spec *m);

/*
 * n normal numbers, F32 or BF16, into memory of the backend: a device works faster, and draws less
 * power, on zeros than on anything a model has. For one thread at a time.
 */
void mfu_fill(struct backend *be, void *p, enum dtype t, int64_t n);

/*
 * Operations a second of a large product: the best of some, for at least a quarter of a second. Of
 * "cuda:0,1" the first is measured and each counts; devices of a CPU share its cores. dtype is
 * "auto", "f32" or "bf16". Before a trainer is opened: on a GPU it leaves another device current.
 */
enum status mfu_peak(const char *device, int threads, const char *dtype, double *out,
                     struct err *e) MUST_CHECK;

#endif
