/*
 * The CUDA kernels on the host's emulation of a device (tests/support/cuda_emul.hpp), op by op
 * against the reference. Products take the plain kernel: there is no cuBLASLt here.
 */
#include <stdio.h>

#include "kernels/backend.h"
#include "tests/support/check.h"
#include "tests/support/op_parity.h"

extern backend_cuda_fn photon_backend;

int main(void)
{
    const char *why = "";
    struct backend *gpu = photon_backend(0, &why);
    if (!gpu) {
        (void)fprintf(stderr, "%s\n", why);
        return 1;
    }
    op_parity_open(gpu, OP_SMALL);
    op_parity();
    op_parity_close();
    backend_close(gpu);
    return check_end();
}
