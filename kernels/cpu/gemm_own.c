/* Matrix products without oneDNN: all of them are our own. */
#include "kernels/cpu/cpu.h"

const char cpu_gemm_name[] = "own";

enum status cpu_gemm_open(struct cpu *c, struct err *e)
{
    (void)c;
    (void)e;
    return ST_OK;
}

void cpu_gemm_close(struct cpu *c)
{
    (void)c;
}

const char *cpu_plan_gemm(struct backend *be, const struct gemm *g)
{
    return cpu_plan_gemm_blocked(be, g);
}

void cpu_gemm(struct backend *be, const struct gemm *g, void *out, const void *a, const void *b,
              const void *bias)
{
    cpu_gemm_blocked(be, g, out, a, b, bias);
}
