/*
 * cuda_emul_nccl.hpp - as much of NCCL as kernels/cuda/nccl.cu takes, for ranks that are threads.
 *
 * No call waits: a sum is done when all have come to it, and in progress until then.
 */
#ifndef TESTS_SUPPORT_CUDA_EMUL_NCCL_HPP
#define TESTS_SUPPORT_CUDA_EMUL_NCCL_HPP

#include <stddef.h>

#include "tests/support/cuda_emul_ranks.h"

typedef struct emul_comm *ncclComm_t;
typedef struct {
    char internal[128];
} ncclUniqueId;
typedef enum { ncclSuccess = 0, ncclUnhandledCudaError = 1, ncclInProgress = 7 } ncclResult_t;
typedef enum { ncclInt8, ncclFloat32, ncclFloat64 } ncclDataType_t;
typedef enum { ncclSum } ncclRedOp_t;

ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
typedef struct {
    int blocking;
} ncclConfig_t;
#define NCCL_CONFIG_INITIALIZER {1}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config);
ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t t, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t s);
ncclResult_t ncclReduceScatter(const void *from, void *to, size_t n, ncclDataType_t t,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t s);
ncclResult_t ncclAllGather(const void *from, void *to, size_t n, ncclDataType_t t, ncclComm_t comm,
                           cudaStream_t s);
ncclResult_t ncclReduce(const void *from, void *to, size_t n, ncclDataType_t t, ncclRedOp_t op,
                        int root, ncclComm_t comm, cudaStream_t s);
ncclResult_t ncclBroadcast(const void *from, void *to, size_t n, ncclDataType_t t, int root,
                           ncclComm_t comm, cudaStream_t s);
ncclResult_t ncclGroupStart();
ncclResult_t ncclGroupEnd();
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *out);
const char *ncclGetErrorString(ncclResult_t r);

/* Where nccl.cu looks for them. */
enum { RTLD_NOW, RTLD_LOCAL = 0 };
void *emul_dlopen(const char *name, int how);
void *emul_dlsym(void *library, const char *name);
#define dlopen emul_dlopen
#define dlsym  emul_dlsym

#endif
