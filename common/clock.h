/*
 * clock.h - the time, for logs, progress and timeouts. Decisions about rounds
 * use the database's clock.
 */
#ifndef COMMON_CLOCK_H
#define COMMON_CLOCK_H

#include <stdint.h>

int64_t clock_mono_ms(void); /* never jumps; for durations */
int64_t clock_wall_ms(void); /* Unix time */
double clock_mono_s(void);   /* as a fraction, for measurements */
void clock_sleep_ms(int64_t ms);

/* 2026-01-31T12:00:00.123Z */
void clock_rfc3339(int64_t unix_ms, char out[32]);

#endif
