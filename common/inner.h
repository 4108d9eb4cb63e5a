/*
 * inner.h - how a silo trains between two rounds: the inner optimizer's settings and schedule.
 */
#ifndef COMMON_INNER_H
#define COMMON_INNER_H

#include <stdint.h>

enum inner_optimizer { INNER_ADAMW = 0, INNER_ADOPT, INNER_COUNT };

struct inner_spec {
    enum inner_optimizer optimizer;
    double lr; /* the maximum of the schedule */
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    double clip_norm;
    int32_t batch;       /* sequences per local step */
    int32_t micro_batch; /* sequences per pass; 0: the silo chooses */
    int32_t warmup;      /* steps */
    int64_t schedule_steps;
    double min_lr_ratio;
};

/*
 * Learning rate at the run's global step (from 0), the same on every silo: lr * (step + 1) / warmup
 * while step < warmup, then a cosine from lr down to min_lr_ratio * lr
 * at schedule_steps, then flat.
 */
double inner_lr(const struct inner_spec *s, int64_t step);

/*
 * Which rows of its text a silo reads (client/data.h): the low 31 bits of FNV-1a of its name, so
 * that they are the same whoever else takes part.
 */
int32_t inner_silo_ordinal(const char *silo_name);

#endif
