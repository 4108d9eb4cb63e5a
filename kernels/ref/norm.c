#include <math.h>

#include "kernels/ref/ops.h"

static const double EPS = 1e-5;

void ref_norm_fwd(struct backend *be, enum dtype at, void *xs, void *out, void *mean, void *rstd,
                  const void *x, const void *y, const void *g, const void *b, int64_t N, int64_t C)
{
    (void)be;
    enum dtype gt = ref_g(at);
    for (int64_t n = 0; n < N; n++) {
        int64_t row = n * C;
        double sum = 0.0;
        for (int64_t c = 0; c < C; c++) {
            double v = ref_load(x, at, row + c) + (y ? ref_load(y, at, row + c) : 0.0);
            ref_store(xs, at, row + c, v);
            sum += ref_load(xs, at, row + c);
        }
        double mu = sum / (double)C;

        // The second pass subtracts the mean first: E[x^2] - mu^2 would cancel.
        double var = 0.0;
        for (int64_t c = 0; c < C; c++) {
            double d = ref_load(xs, at, row + c) - mu;
            var += d * d;
        }
        double r = 1.0 / sqrt(var / (double)C + EPS);

        for (int64_t c = 0; c < C; c++) {
            double hat = (ref_load(xs, at, row + c) - mu) * r;
            ref_store(out, at, row + c, hat * ref_load(g, at, c) + (b ? ref_load(b, at, c) : 0.0));
        }
        ref_store(mean, gt, n, mu);
        ref_store(rstd, gt, n, r);
    }
}

/*
 * With hat = (x - mu) r and u = dout g, the mean and the variance being functions of x as well:
 *     dx = r (u - mean(u) - hat mean(u hat))
 */
void ref_norm_bwd(struct backend *be, enum dtype at, void *dx, void *dg, void *db, const void *dout,
                  const void *xs, const void *mean, const void *rstd, const void *g, int64_t N,
                  int64_t C)
{
    (void)be;
    enum dtype gt = ref_g(at);
    for (int64_t n = 0; n < N; n++) {
        int64_t row = n * C;
        double mu = ref_load(mean, gt, n);
        double r = ref_load(rstd, gt, n);
        double mean_u = 0.0;
        double mean_u_hat = 0.0;
        for (int64_t c = 0; c < C; c++) {
            double u = ref_load(dout, at, row + c) * ref_load(g, at, c);
            mean_u += u / (double)C;
            mean_u_hat += u * (ref_load(xs, at, row + c) - mu) * r / (double)C;
        }
        for (int64_t c = 0; c < C; c++) {
            double u = ref_load(dout, at, row + c) * ref_load(g, at, c);
            double hat = (ref_load(xs, at, row + c) - mu) * r;
            ref_add(dx, at, row + c, r * (u - mean_u - hat * mean_u_hat));
        }
    }

    // Columns after rows: each parameter's sum is then rounded once, not once per row.
    for (int64_t c = 0; c < C; c++) {
        double sum_g = 0.0;
        double sum_b = 0.0;
        for (int64_t n = 0; n < N; n++) {
            double d = ref_load(dout, at, n * C + c);
            double mu = ref_load(mean, gt, n);
            sum_g += d * (ref_load(xs, at, n * C + c) - mu) * ref_load(rstd, gt, n);
            sum_b += d;
        }
        ref_add(dg, gt, c, sum_g);
        if (db) {
            ref_add(db, gt, c, sum_b);
        }
    }
}
