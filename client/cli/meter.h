/*
 * meter.h - how far a pass over files is, told on stderr.
 *
 * On a terminal one line that is drawn anew, elsewhere a line of key=value every ten seconds, when
 * quiet nothing. What is left is guessed from what was done.
 */
#ifndef CLIENT_CLI_METER_H
#define CLIENT_CLI_METER_H

#include <stdbool.h>
#include <stdint.h>

struct meter {
    const char *what;
    bool quiet;
    bool terminal;
    int width; /* of what stands on the line */
    int64_t started_ms;
    int64_t spoke_ms;
};

void meter_init(struct meter *m, const char *what, bool quiet);

/* done of all says how much is left; text is the rest of the line, pairs the same as key=value. */
void meter_show(struct meter *m, int64_t done, int64_t all, const char *text, const char *pairs);

/* Wipes the line, so that what is printed next stands alone. */
void meter_end(struct meter *m);

double meter_seconds(const struct meter *m);

#endif
