#include "kernels/cuda/pins.cuh"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

void pins_open(struct cuda *c)
{
    const char *file = getenv("PHOTON_CUDA_ALGOS");
    struct cudaDeviceProp prop;
    int driver = 0;
    c->pins = file && *file ? file : nullptr;
    if (cudaGetDeviceProperties(&prop, c->device) != cudaSuccess ||
        cudaDriverGetVersion(&driver) != cudaSuccess) {
        (void)cudaGetLastError();
        c->pins = nullptr; // unknown machine: nothing to note
        return;
    }
    (void)snprintf(c->machine, sizeof(c->machine), "%s/%d", prop.name, driver);
    for (char *p = c->machine; *p; p++) {
        *p = *p == ' ' ? '_' : *p;
    }
}

FILE *pins_lock(struct cuda *c)
{
    if (!c->pins) {
        return nullptr;
    }
    int fd = open(c->pins, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    FILE *f = fd >= 0 ? fdopen(fd, "r+") : nullptr;
    if (!f) {
        if (fd >= 0) {
            (void)close(fd);
        }
        cuda_fail(c, "the file named by PHOTON_CUDA_ALGOS cannot be opened");
        return nullptr;
    }
    (void)flock(fd, LOCK_EX);
    return f;
}

void pins_unlock(FILE *f)
{
    if (f) {
        (void)fclose(f); // and unlocks
    }
}

bool pins_find(FILE *f, const char *name, char value[PIN_LINE])
{
    char line[PIN_LINE];
    size_t len = strlen(name);
    bool found = false;
    if (!f) {
        return false;
    }
    rewind(f);
    while (fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, name, len) == 0 && line[len] == ' ') {
            memcpy(value, line + len + 1, strlen(line + len + 1) + 1);
            found = true;
        }
    }
    return found;
}

void pins_note(FILE *f, const char *name, const char *value)
{
    if (f) {
        (void)fseek(f, 0, SEEK_END);
        (void)fprintf(f, "%s %s\n", name, value);
        (void)fflush(f);
    }
}
