#include "client/cli/meter.h"

#include <stdio.h>
#include <unistd.h>

#include "client/progress.h"
#include "common/clock.h"

enum { REDRAW_MS = 200, QUIET_MS = 10000 };

void meter_init(struct meter *m, const char *what, bool quiet)
{
    *m = (struct meter){.what = what, .quiet = quiet, .terminal = isatty(STDERR_FILENO) == 1};
    m->started_ms = m->spoke_ms = clock_mono_ms();
}

void meter_show(struct meter *m, int64_t done, int64_t all, const char *text, const char *pairs)
{
    int64_t now = clock_mono_ms();
    if (m->quiet || now - m->spoke_ms < (m->terminal ? REDRAW_MS : QUIET_MS)) {
        return;
    }
    m->spoke_ms = now;
    double share = all > 0 ? (double)done / (double)all : 0.0;
    double spent = (double)(now - m->started_ms) / 1000.0;
    double left = share > 0.0 ? spent / share - spent : 0.0;
    if (!m->terminal) {
        (void)fprintf(stderr, "%s percent=%.1f %s eta_s=%.0f\n", m->what, 100.0 * share, pairs,
                      left);
        return;
    }
    char line[256];
    char eta[16];
    format_seconds(eta, left);
    int n =
        snprintf(line, sizeof(line), "%s %3.0f%%  %s  eta %s", m->what, 100.0 * share, text, eta);
    (void)fprintf(stderr, "\r%-*s", m->width, line);
    (void)fflush(stderr);
    m->width = n;
}

void meter_end(struct meter *m)
{
    if (m->width > 0) {
        (void)fprintf(stderr, "\r%-*s\r", m->width, "");
    }
}

double meter_seconds(const struct meter *m)
{
    return (double)(clock_mono_ms() - m->started_ms) / 1000.0;
}
