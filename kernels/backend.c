#include "kernels/backend.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "kernels/cpu/ops.h"
#include "kernels/ref/ops.h"

// Found through the program's own RUNPATH ($ORIGIN/../lib), then where the system looks.
static const char CUDA_OBJECT[] = "photon-cuda.so";

// The driver's own library. Asked for first: without it cuBLASLt would be loaded for nothing, which
// takes a second.
static const char CUDA_DRIVER[] = "libcuda.so.1";

static enum status open_cuda(struct backend **out, int device, struct err *e)
{
    if (!dlopen(CUDA_DRIVER, RTLD_LAZY | RTLD_LOCAL)) {
        return err_set(e, ST_NOT_FOUND, "no CUDA backend: no NVIDIA driver here (%s)", CUDA_DRIVER);
    }
    void *object = dlopen(CUDA_OBJECT, RTLD_NOW | RTLD_LOCAL); // stays for the life of the process
    if (!object) {
        return err_set(e, ST_NOT_FOUND, "no CUDA backend: %s", dlerror());
    }
    void *symbol = dlsym(object, "photon_backend");
    if (!symbol) {
        return err_set(e, ST_INVALID, "%s: %s", CUDA_OBJECT, dlerror());
    }

    backend_cuda_fn *open = NULL;
    memcpy(&open, &symbol,
           sizeof(open)); // ISO C knows no cast from an object to a function pointer
    const char *why = "no device answers";
    struct backend *be = open(device, &why);
    if (!be) {
        return err_set(e, ST_NOT_FOUND, "no CUDA backend: %s", why);
    }
    if (be->ops->abi != BACKEND_ABI) {
        // Its close() may lie elsewhere in the table, so the backend is left to the
        // end of the process.
        return err_set(e, ST_INVALID, "%s is from another build", CUDA_OBJECT);
    }
    *out = be;
    return ST_OK;
}

/* Does the object lie where dlopen() looks? Known without loading what it needs. */
static bool cuda_object_is_there(void)
{
    Dl_serinfo head;
    void *self = dlopen(NULL, RTLD_LAZY);
    if (!self || dlinfo(self, RTLD_DI_SERINFOSIZE, &head)) {
        return false;
    }
    Dl_serinfo *places = mem_alloc(head.dls_size);
    *places = head;
    bool there = false;
    if (dlinfo(self, RTLD_DI_SERINFO, places) == 0) {
        for (unsigned i = 0; i < places->dls_cnt && !there; i++) {
            char path[4096];
            int n =
                snprintf(path, sizeof(path), "%s/%s", places->dls_serpath[i].dls_name, CUDA_OBJECT);
            there = n < (int)sizeof(path) && access(path, F_OK) == 0;
        }
    }
    mem_free(places);
    return there;
}

/*
 * Whoever has the object expects a GPU to be used: that it is not is said, once. Without the object
 * nobody does.
 */
static void tell_without_cuda(const struct err *why)
{
    static atomic_flag told = ATOMIC_FLAG_INIT;
    if (cuda_object_is_there() && !atomic_flag_test_and_set(&told)) {
        log_warn("%s, so the CPU computes; try nvidia-smi, or ldd on %s, to see what is missing, "
                 "and --device cpu where this is meant",
                 why->msg, CUDA_OBJECT);
    }
}

/* "cuda:1" into its kind and its number, 0 where none is given; of several the first. */
static enum status parse_name(const char *name, char kind[16], int *device, struct err *e)
{
    size_t len = strcspn(name, ":");
    char *end = NULL;
    long number = name[len] ? strtol(name + len + 1, &end, 10) : 0;
    if (len >= 16 || number < 0 || number > 255 ||
        (end && ((*end && *end != ',') || end == name + len + 1))) {
        return err_set(e, ST_INVALID, "unknown device '%s'; try auto, cpu, cuda or cuda:1", name);
    }
    memcpy(kind, name, len);
    kind[len] = '\0';
    *device = (int)number;
    return ST_OK;
}

enum status backend_open(struct backend **out, const char *full, int threads, struct err *e)
{
    if (threads < 0) {
        return err_set(e, ST_INVALID, "%d threads; try 0 for all cores", threads);
    }
    char name[16];
    int device = 0;
    TRY(parse_name(full, name, &device, e));
    if (strcmp(name, "auto") == 0) {
        struct err why = {0};
        if (open_cuda(out, device, &why) == ST_OK) {
            return ST_OK;
        }
        tell_without_cuda(&why);
        return cpu_open(out, threads, NULL) == ST_OK ? ST_OK : ref_open(out, e);
    }
    if (strcmp(name, "cuda") == 0) {
        return open_cuda(out, device, e);
    }
    if (strcmp(name, "cpu") == 0) {
        return cpu_open(out, threads, e);
    }
    if (strcmp(name, "ref") == 0) {
        return ref_open(out, e);
    }
    return err_set(e, ST_INVALID, "unknown device '%s'; try auto, cuda, cpu or ref", name);
}

void backend_close(struct backend *be)
{
    if (be) {
        be->ops->close(be);
    }
}

enum dtype backend_dtype(struct backend *be, const char *name)
{
    struct backend_caps caps = {0};
    be->ops->caps(be, &caps);
    return strcmp(name, "f32") == 0    ? DTYPE_F32
           : strcmp(name, "bf16") == 0 ? DTYPE_BF16
                                       : caps.dtype;
}

enum status backend_sync(struct backend *be, struct err *e)
{
    const char *text = be->ops->sync(be);
    return text ? err_set(e, ST_DEVICE, "%s: %s", be->ops->name, text) : ST_OK;
}
