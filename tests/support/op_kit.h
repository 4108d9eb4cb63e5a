/*
 * op_kit.h - inputs, outputs and their judgement for tests of one op.
 *
 * Inputs are drawn, rounded to the dtype, and given to three computations: the backend under test,
 * the reference in the same dtype (what the contract's rounding points cost) and the reference in
 * double (the truth). The backend's distance from the truth may be at most twice the reference's,
 * plus what fp32 sums over k terms lose, and never more than the cap of its kind.
 */
#ifndef TESTS_SUPPORT_OP_KIT_H
#define TESTS_SUPPORT_OP_KIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "tests/support/op_parity.h"

extern struct backend *op_be;  /* under test: its memory is its own */
extern struct backend *op_ref; /* the reference */

/* What op_be computes with. */
enum { OP_DTYPES = 2 };
extern const enum dtype op_dtypes[OP_DTYPES];

extern enum op_scale op_scale;

/* The parts of op_parity(). */
void op_parity_layers(void);
void op_parity_step(void);
void op_parity_code(void);

/* The same numbers on the host as the dtype holds them, as doubles, and on the device. */
struct pair {
    void *a, *dev;
    double *d;
    int64_t n;
};

/* An output, three times: zeroed, or filled from the same start. */
struct result {
    enum dtype t;
    int64_t n;
    void *dev, *got, *ref;
    double *truth;
};

enum dtype wide(enum dtype t);
void *to_device(const void *p, size_t size);
void release(void *dev);
double normal(uint64_t key, int64_t i);
struct pair draw(enum dtype t, int64_t n, double mean, double sigma, uint64_t key);
void drop(struct pair *p);
struct result expect(enum dtype t, int64_t n, const struct pair *start);
void fetch(struct result *r);
void forget(struct result *r);
bool good(struct result *r, const char *what, int64_t k, double cap);
void judge(struct result *r, const char *what, int64_t k, double cap);
double cap_of(enum dtype t);
const char *name_of(enum dtype t);

#endif
