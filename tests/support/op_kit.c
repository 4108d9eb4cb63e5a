#include "tests/support/op_kit.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/rng.h"
#include "kernels/ref/ops.h"
#include "tests/support/check.h"

struct backend *op_be;
struct backend *op_ref;
const enum dtype op_dtypes[OP_DTYPES] = {DTYPE_F32, DTYPE_BF16};
enum op_scale op_scale;

void op_parity_open(struct backend *be, enum op_scale scale)
{
    CHECK(backend_open(&op_ref, "ref", 1, NULL) == ST_OK);
    op_be = be;
    op_scale = scale;
}

void op_parity(void)
{
    op_parity_layers();
    op_parity_step();
    op_parity_code();
}

void op_parity_close(void)
{
    backend_close(op_ref);
}

enum dtype wide(enum dtype t)
{
    return t == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32;
}

void *to_device(const void *p, size_t size)
{
    void *dev = op_be->ops->alloc(op_be, size);
    CHECK(dev != NULL);
    op_be->ops->put(op_be, dev, p, size);
    return dev;
}

void release(void *dev)
{
    op_be->ops->release(op_be, dev);
}

/* Normal numbers out of a pool whose size is prime, so that no two rows of a matrix are alike. */
double normal(uint64_t key, int64_t i)
{
    enum { POOL = 65521 };
    static double pool[POOL];
    if (pool[0] == 0.0) {
        for (uint64_t k = 0; k < POOL; k++) {
            pool[k] = rng_normal(2026, k);
        }
    }
    return pool[((uint64_t)i + key * 7919) % POOL];
}

struct pair draw(enum dtype t, int64_t n, double mean, double sigma, uint64_t key)
{
    struct pair p = {.a = ref_alloc(op_ref, (size_t)n * dtype_size(t)),
                     .d = ref_alloc(op_ref, (size_t)n * sizeof(double)),
                     .n = n};
    for (int64_t i = 0; i < n; i++) {
        ref_store(p.a, t, i, mean + sigma * normal(key, i));
        p.d[i] = ref_load(p.a, t, i);
    }
    p.dev = to_device(p.a, (size_t)n * dtype_size(t));
    return p;
}

void drop(struct pair *p)
{
    ref_release(op_ref, p->a);
    ref_release(op_ref, p->d);
    release(p->dev);
}

struct result expect(enum dtype t, int64_t n, const struct pair *start)
{
    size_t size = (size_t)n * dtype_size(t);
    struct result r = {.t = t,
                       .n = n,
                       .got = ref_alloc(op_ref, size),
                       .ref = ref_alloc(op_ref, size),
                       .truth = ref_alloc(op_ref, (size_t)n * sizeof(double))};
    if (start) {
        memcpy(r.ref, start->a, size);
        memcpy(r.truth, start->d, (size_t)n * sizeof(double));
    }
    r.dev = to_device(r.ref, size);
    return r;
}

void fetch(struct result *r)
{
    op_be->ops->get(op_be, r->got, r->dev, (size_t)r->n * dtype_size(r->t));
}

void forget(struct result *r)
{
    ref_release(op_ref, r->got);
    ref_release(op_ref, r->ref);
    ref_release(op_ref, r->truth);
    release(r->dev);
}

static double distance(const void *got, enum dtype t, const double *truth, int64_t n)
{
    double diff = 0;
    double size = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = ref_load(got, t, i) - truth[i];
        diff += d * d;
        size += truth[i] * truth[i];
    }
    return sqrt(diff / (size > 1e-300 ? size : 1.0));
}

static double acc(int64_t k)
{
    return 1e-5 + (double)k * 0x1p-28;
}

/* Judge without forgetting. */
bool good(struct result *r, const char *what, int64_t k, double cap)
{
    fetch(r);
    double ours = distance(r->got, r->t, r->truth, r->n);
    double theirs = distance(r->ref, r->t, r->truth, r->n);
    bool right = ours <= 2 * theirs + acc(k) && ours <= cap + acc(k);
    if (!right) {
        (void)fprintf(stderr, "%s (%lld): error %.3g, the reference's %.3g, cap %.3g\n", what,
                      (long long)r->n, ours, theirs, cap);
    }
    return right;
}

void judge(struct result *r, const char *what, int64_t k, double cap)
{
    bool right = good(r, what, k, cap);
    const char *why = op_be->ops->sync(op_be);
    if (why) {
        (void)fprintf(stderr, "%s: %s\n", what, why);
    }
    forget(r);
    CHECK(right);
    CHECK(why == NULL);
}

double cap_of(enum dtype t)
{
    return t == DTYPE_BF16 ? 4e-3 : 0.0; // fp32 has the sums' own allowance
}

const char *name_of(enum dtype t)
{
    return t == DTYPE_BF16 ? "bf16" : "f32";
}
