/*
 * The CUDA kernels on the host's emulation of a device (tests/support/cuda_emul.hpp), op by op
 * against the reference. Products take the plain kernel: there is no cuBLASLt here.
 */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/backend.h"
#include "tests/support/check.h"
#include "tests/support/op_parity.h"

extern backend_cuda_fn photon_backend;

static struct backend *gpu;

/* Column sums need little working space, the gradient of an embedding much more. */
static void sums(void *memory)
{
    gpu->ops->bias_bwd(gpu, DTYPE_F32, memory, memory, 4, 8);
}

/* What would have to take working space is not kept; what was kept before it was taken is void. */
static void a_recording_holds_while_the_working_space_stays(void)
{
    const char *why = "";
    gpu = photon_backend(0, &why);
    CHECK(gpu != NULL);
    float *memory = gpu->ops->alloc(gpu, 4096);
    int32_t *tokens = gpu->ops->alloc(gpu, 4096);
    gpu->ops->record(gpu);
    sums(memory);
    CHECK(gpu->ops->recorded(gpu) == NULL);
    CHECK(gpu->ops->sync(gpu) == NULL);
    sums(memory);
    gpu->ops->record(gpu);
    sums(memory);
    void *kept = gpu->ops->recorded(gpu);
    CHECK(kept != NULL && gpu->ops->replay(gpu, kept));
    gpu->ops->embed_bwd(gpu, DTYPE_F32, memory, NULL, tokens, memory, 1, 4, 8);
    CHECK(!gpu->ops->replay(gpu, kept));
    gpu->ops->unrecord(gpu, kept);
    CHECK(gpu->ops->sync(gpu) == NULL);
    gpu->ops->release(gpu, memory);
    gpu->ops->release(gpu, tokens);
    backend_close(gpu);
}

int main(void)
{
    const char *why = "";
    (void)setenv("PHOTON_CUDA_GRAPHS", "1", 1);
    RUN(a_recording_holds_while_the_working_space_stays);
    gpu = photon_backend(0, &why);
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
