#include "kernels/ref/ops.h"

void ref_embed_fwd(struct backend *be, enum dtype at, void *x, const int32_t *tokens,
                   const void *wte, const void *wpe, int64_t B, int64_t T, int64_t C)
{
    (void)be;
    for (int64_t n = 0; n < B * T; n++) {
        for (int64_t c = 0; c < C; c++) {
            double position = wpe ? ref_load(wpe, at, n % T * C + c) : 0.0;
            ref_store(x, at, n * C + c, ref_load(wte, at, tokens[n] * C + c) + position);
        }
    }
}

void ref_embed_bwd(struct backend *be, enum dtype at, void *dwte, void *dwpe, const int32_t *tokens,
                   const void *dx, int64_t B, int64_t T, int64_t C)
{
    (void)be;
    enum dtype gt = ref_g(at);
    for (int64_t n = 0; n < B * T; n++) {
        for (int64_t c = 0; c < C; c++) {
            double d = ref_load(dx, at, n * C + c);
            ref_add(dwte, gt, tokens[n] * C + c, d);
            if (dwpe) {
                ref_add(dwpe, gt, n % T * C + c, d);
            }
        }
    }
}
