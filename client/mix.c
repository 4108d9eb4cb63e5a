#include "client/mix.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/rng.h"

static const double LEAST_SHARE = 1e-3;

enum status mix_parse(struct mix *out, const char *text, struct err *e)
{
    static const char DIRICHLET[] = "dirichlet:";
    struct mix m = {.kind = MIX_IID};
    if (strncmp(text, DIRICHLET, strlen(DIRICHLET)) == 0) {
        char *end = NULL;
        m.kind = MIX_DIRICHLET;
        m.alpha = strtod(text + strlen(DIRICHLET), &end);
        if (*end != '\0' || !(m.alpha >= 0.001 && m.alpha <= 1000.0)) {
            return err_set(e, ST_INVALID, "'%.60s': ALPHA is from 0.001 to 1000; try dirichlet:0.5",
                           text);
        }
    } else if (strcmp(text, "genre") == 0) {
        m.kind = MIX_GENRE;
    } else if (strcmp(text, "iid") != 0) {
        return err_set(e, ST_INVALID, "'%.60s' is no mix; try iid, genre or dirichlet:0.5", text);
    }
    *out = m;
    return ST_OK;
}

/* One Gamma(alpha, 1) draw (Marsaglia, Tsang 2000), from numbers of this key alone. */
static double gamma_draw(uint64_t key, double alpha)
{
    double shape = alpha < 1.0 ? alpha + 1.0 : alpha;
    double d = shape - 1.0 / 3.0;
    double c = 1.0 / sqrt(9.0 * d);
    double v = 1.0;
    for (uint64_t n = 0;; n += 4) {
        double x = rng_normal(key, n / 2);
        double u = 1.0 - rng_unit(key, n + 2);
        v = 1.0 + c * x;
        v = v * v * v;
        if (v > 0.0 && log(u) < 0.5 * x * x + d - d * v + d * log(v)) {
            break;
        }
    }
    // Gamma(a) = Gamma(a + 1) U^(1/a).
    double boost = alpha < 1.0 ? pow(1.0 - rng_unit(rng_u64(key, 1), 0), 1.0 / alpha) : 1.0;
    return d * v * boost;
}

/* Shares that matter, adding up to 1; the largest stays whatever it is. */
static void normalise(double *out, int n)
{
    double total = 0.0;
    int best = 0;
    for (int i = 0; i < n; i++) {
        total += out[i];
        best = out[i] > out[best] ? i : best;
    }
    double kept = 0.0;
    for (int i = 0; i < n; i++) {
        out[i] = total > 0.0 ? out[i] / total : i == best;
        out[i] = out[i] < LEAST_SHARE ? 0.0 : out[i];
        kept += out[i];
    }
    for (int i = 0; i < n; i++) {
        out[i] /= kept;
    }
}

void mix_shares(const struct mix *m, uint64_t seed, int silo, int sources, double *out)
{
    assert(sources > 0 && silo >= 0);
    uint64_t key = rng_u64(rng_key(seed, "mix of sources"), (uint64_t)silo);
    for (int i = 0; i < sources; i++) {
        switch (m->kind) {
        case MIX_GENRE:
            out[i] = i == silo % sources;
            break;
        case MIX_DIRICHLET:
            out[i] = gamma_draw(rng_u64(key, (uint64_t)i), m->alpha);
            break;
        case MIX_IID:
        default:
            out[i] = 1.0;
            break;
        }
    }
    normalise(out, sources);
}
