#include "client/passive_wait.h"

#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

void passive_wait(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") ||
        setenv("OMP_WAIT_POLICY", "passive", 0) != 0) {
        return;
    }
    // By its own path, so that `ps` goes on to show the program's name and not "exe"; through the
    // link when the file was replaced since.
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
    if (n > 0) {
        path[n] = '\0';
        (void)execv(path, argv);
    }
    (void)execv("/proc/self/exe", argv);
}
