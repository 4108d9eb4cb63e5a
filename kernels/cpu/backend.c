#include "kernels/cpu/ops.h"

enum status cpu_open(struct backend **out, int threads, struct err *e)
{
    (void)out;
    return err_set(e, ST_NOT_FOUND, "backend 'cpu' is not built in; threads %d", threads);
}
