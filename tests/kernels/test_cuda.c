/*
 * The CUDA backend on a device, op by op against the reference. Without a device the tests are
 * skipped, unless PHOTON_REQUIRE_CUDA is set (make check-gpu): then its absence is a failure.
 * PHOTON_QUICK leaves the large shapes out, for tools under which everything is slow.
 */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/backend.h"
#include "tests/support/check.h"
#include "tests/support/op_parity.h"

static struct backend *gpu;

static void the_device_answers(void)
{
    struct err e = {0};
    enum status st = backend_open(&gpu, "cuda", 0, &e);
    if (st == ST_NOT_FOUND && !getenv("PHOTON_REQUIRE_CUDA")) {
        SKIP(e.msg);
    }
    if (st) {
        (void)fprintf(stderr, "%s\n", e.msg);
    }
    CHECK_INT(st, ST_OK);
}

int main(void)
{
    RUN(the_device_answers);
    if (gpu) {
        op_parity_open(gpu, getenv("PHOTON_QUICK") ? OP_SMALL : OP_LARGE);
        op_parity();
        op_parity_close();
    }
    backend_close(gpu);
    return check_end();
}
