#include "common/inner.h"

#include <math.h>

double inner_lr(const struct inner_spec *s, int64_t step)
{
    static const double PI = 3.141592653589793;
    if (step < s->warmup) {
        return s->lr * (double)(step + 1) / (double)s->warmup;
    }
    double low = s->lr * s->min_lr_ratio;
    if (step >= s->schedule_steps) {
        return low;
    }
    double done = (double)(step - s->warmup) / (double)(s->schedule_steps - s->warmup);
    return low + 0.5 * (s->lr - low) * (1.0 + cos(PI * done));
}

int32_t inner_silo_ordinal(const char *silo_name)
{
    uint64_t h = 0xcbf29ce484222325U;
    for (const char *p = silo_name; *p; p++) {
        h = (h ^ (unsigned char)*p) * 0x100000001b3U;
    }
    return (int32_t)(h & 0x7fffffffU);
}
