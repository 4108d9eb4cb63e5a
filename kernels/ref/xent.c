#include <math.h>

#include "kernels/ref/ops.h"

void ref_xent(struct backend *be, enum dtype at, void *logits, void *loss, const int32_t *targets,
              double inv_n, bool train, int64_t rows, int64_t V)
{
    (void)be;
    for (int64_t r = 0; r < rows; r++) {
        int64_t row = r * V;
        int64_t target = targets[r];
        double max = -INFINITY;
        for (int64_t v = 0; v < V; v++) {
            max = fmax(max, ref_load(logits, at, row + v));
        }
        double sum = 0.0;
        for (int64_t v = 0; v < V; v++) {
            sum += exp(ref_load(logits, at, row + v) - max);
        }
        // cppcheck-suppress invalidFunctionArg ; a row has a largest logit, so the sum is 1 or more
        double lse = max + log(sum);
        ref_store(loss, ref_g(at), r, target < 0 ? 0.0 : lse - ref_load(logits, at, row + target));
        for (int64_t v = 0; train && v < V; v++) {
            double p = exp(ref_load(logits, at, row + v) - lse);
            double d = target < 0 ? 0.0 : (p - (v == target ? 1.0 : 0.0)) * inv_n;
            ref_store(logits, at, row + v, d);
        }
    }
}
