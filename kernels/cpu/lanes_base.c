/* The kernels compiled for any machine at all: whatever vectors the compiler's
 * default target has. */
#define LANES      lanes_base
#define LANES_NAME "base"
#include "kernels/cpu/table.h"
