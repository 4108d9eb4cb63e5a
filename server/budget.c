#include "server/budget.h"

#include <math.h>
#include <stdbool.h>

int32_t budget_steps(int32_t tau, int32_t floor_steps, double speed, double fastest)
{
    if (!(speed > 0.0) || !(fastest > 0.0) || speed >= fastest) {
        return tau;
    }
    double steps = floor((double)tau * (speed / fastest));
    return steps < (double)floor_steps ? floor_steps : (int32_t)steps;
}
