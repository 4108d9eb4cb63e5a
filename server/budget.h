/*
 * budget.h - how many local steps a silo takes in a round.
 *
 * DyLU (Liu et al. 2024): tau_k = floor(tau v_k / v_max), v the silos' speeds, so that fast and
 * slow silos of a round are done together; never below a floor. The round's global step stays
 * tau's: a silo with fewer steps leaves the rest of the round's learning rates and rows out, and
 * weighs by the tokens it trained.
 */
#ifndef SERVER_BUDGET_H
#define SERVER_BUDGET_H

#include <stdint.h>

/* A speed of 0 is not known: such a silo takes all of tau, and is measured by it. */
int32_t budget_steps(int32_t tau, int32_t floor_steps, double speed, double fastest);

#endif
