/*
 * progress.h - one line that says how far something is: redrawn on a terminal, key=value elsewhere.
 *
 *     round 12/200  step 384/500  loss 3.412  ppl 30.3  41.2k tok/s  up 118 MB  eta 3h12m
 *     round=12 rounds=200 step=384 steps=500 loss=3.412 ppl=30.3 tokens_per_s=41200 ...
 *
 * Formatting is pure; struct progress remembers what stands on the line and when it last spoke.
 */
#ifndef CLIENT_PROGRESS_H
#define CLIENT_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct progress_values { /* NAN and negative numbers are left out */
    int64_t round, rounds;
    int64_t step, steps;
    double loss;
    double ppl;
    double tokens_per_s;
    int64_t up_bytes, down_bytes;
    double eta_s;
    const char *note; /* what is waited for, or NULL */
};

/* Everything left out. */
struct progress_values progress_none(void);

void progress_line(char *out, size_t size, const struct progress_values *v);  /* for people */
void progress_pairs(char *out, size_t size, const struct progress_values *v); /* key=value */

/* 950, 41.2k, 3.10M, 1.20G; bytes: 118 MB; seconds: 3h12m, 41s. */
void format_count(char out[16], double n);
void format_bytes(char out[16], int64_t n);
void format_seconds(char out[16], double s);

struct progress {
    FILE *to;
    bool redraw;      /* a terminal */
    int width;        /* of what stands on the line */
    int64_t spoke_ms; /* clock_mono_ms() of the last line */
};

void progress_init(struct progress *p, FILE *to);
/* Shows v now on a terminal; elsewhere at most every 10 s unless force. */
void progress_show(struct progress *p, const struct progress_values *v, bool force);
/* A line that stays; the redrawn one comes back below it. */
void progress_say(struct progress *p, const char *text);
void progress_end(struct progress *p); /* leave the last line standing */

#endif
