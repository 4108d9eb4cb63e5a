#include "client/progress.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/status.h"

enum { QUIET_MS = 10000, LINE_MAX_LEN = 240 };

struct progress_values progress_none(void)
{
    return (struct progress_values){.round = -1,
                                    .rounds = -1,
                                    .step = -1,
                                    .steps = -1,
                                    .loss = (double)NAN,
                                    .ppl = (double)NAN,
                                    .tokens_per_s = (double)NAN,
                                    .up_bytes = -1,
                                    .down_bytes = -1,
                                    .eta_s = (double)NAN};
}

void format_count(char out[16], double n)
{
    static const char *const units[] = {"", "k", "M", "G", "T"};
    int u = 0;
    while (u < 4 && fabs(n) >= 999.5) {
        n /= 1000.0;
        u++;
    }
    int digits = u == 0 ? 0 : fabs(n) < 10.0 ? 2 : fabs(n) < 100.0 ? 1 : 0;
    (void)snprintf(out, 16, "%.*f%s", digits, n, units[u]);
}

void format_bytes(char out[16], int64_t n)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double v = (double)n;
    int u = 0;
    while (u < 4 && v >= 999.5) {
        v /= 1000.0;
        u++;
    }
    int digits = u == 0 || v >= 99.5 ? 0 : v < 9.995 ? 2 : 1;
    (void)snprintf(out, 16, "%.*f %s", digits, v, units[u]);
}

void format_seconds(char out[16], double s)
{
    static const double most = 86400.0 * 9999.0; // what fits; nobody waits longer
    int n = (int)((s < most ? s : most) + 0.5);
    if (n < 60) {
        (void)snprintf(out, 16, "%ds", n);
    } else if (n < 3600) {
        (void)snprintf(out, 16, "%dm%02ds", n / 60, n % 60);
    } else if (n < 86400) {
        (void)snprintf(out, 16, "%dh%02dm", n / 3600, n % 3600 / 60);
    } else {
        (void)snprintf(out, 16, "%dd%02dh", n / 86400, n % 86400 / 3600);
    }
}

struct line {
    char *out;
    size_t size;
    size_t len;
    const char *gap;
};

static void put(struct line *l, const char *fmt, ...) PRINTF_LIKE(2, 3);

static void put(struct line *l, const char *fmt, ...)
{
    char part[120];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(part, sizeof(part), fmt, ap);
    va_end(ap);
    int n = snprintf(l->out + l->len, l->size - l->len, "%s%s", l->len ? l->gap : "", part);
    size_t room = l->size - l->len;
    l->len += n < 0 ? 0 : (size_t)n < room ? (size_t)n : room - 1;
}

static void put_of(struct line *l, const char *word, int64_t n, int64_t of)
{
    if (n < 0) {
        return;
    }
    if (of >= 0) {
        put(l, "%s %" PRId64 "/%" PRId64, word, n, of);
    } else {
        put(l, "%s %" PRId64, word, n);
    }
}

void progress_line(char *out, size_t size, const struct progress_values *v)
{
    struct line l = {.out = out, .size = size, .gap = "  "};
    char text[16];
    out[0] = '\0';
    put_of(&l, "round", v->round, v->rounds);
    put_of(&l, "step", v->step, v->steps);
    if (isfinite(v->loss)) {
        put(&l, "loss %.3f", v->loss);
    }
    if (isfinite(v->ppl)) {
        put(&l, v->ppl < 1000.0 ? "ppl %.4g" : "ppl %.0f", v->ppl);
    }
    if (isfinite(v->tokens_per_s) && v->tokens_per_s >= 0.0) {
        format_count(text, v->tokens_per_s);
        put(&l, "%s tok/s", text);
    }
    if (v->up_bytes >= 0) {
        format_bytes(text, v->up_bytes);
        put(&l, "up %s", text);
    }
    if (v->down_bytes >= 0) {
        format_bytes(text, v->down_bytes);
        put(&l, "down %s", text);
    }
    if (isfinite(v->eta_s) && v->eta_s >= 0.0) {
        format_seconds(text, v->eta_s);
        put(&l, "eta %s", text);
    }
    if (v->note && *v->note) {
        put(&l, "%s", v->note);
    }
}

static void put_int(struct line *l, const char *key, int64_t n)
{
    if (n >= 0) {
        put(l, "%s=%" PRId64, key, n);
    }
}

static void put_num(struct line *l, const char *key, double n, const char *fmt)
{
    char text[40];
    if (isfinite(n)) {
        // The format is one of the three literals below.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        (void)snprintf(text, sizeof(text), fmt, n);
#pragma GCC diagnostic pop
        put(l, "%s=%s", key, text);
    }
}

void progress_pairs(char *out, size_t size, const struct progress_values *v)
{
    struct line l = {.out = out, .size = size, .gap = " "};
    out[0] = '\0';
    put_int(&l, "round", v->round);
    put_int(&l, "rounds", v->rounds);
    put_int(&l, "step", v->step);
    put_int(&l, "steps", v->steps);
    put_num(&l, "loss", v->loss, "%.4f");
    put_num(&l, "ppl", v->ppl, "%.6g");
    put_num(&l, "tokens_per_s", v->tokens_per_s, "%.0f");
    put_int(&l, "up_bytes", v->up_bytes);
    put_int(&l, "down_bytes", v->down_bytes);
    put_num(&l, "eta_s", v->eta_s, "%.0f");
    if (v->note && *v->note) {
        put(&l, "note=\"%s\"", v->note);
    }
}

void progress_init(struct progress *p, FILE *to)
{
    const char *term = getenv("TERM");
    *p = (struct progress){.to = to, .spoke_ms = -QUIET_MS};
    p->redraw = isatty(fileno(to)) == 1 && !(term && strcmp(term, "dumb") == 0);
}

void progress_show(struct progress *p, const struct progress_values *v, bool force)
{
    char text[LINE_MAX_LEN];
    int64_t now = clock_mono_ms();
    if (p->redraw) {
        progress_line(text, sizeof(text), v);
        int n = (int)strlen(text);
        int pad = p->width > n ? p->width - n : 0;
        (void)fprintf(p->to, "\r%s%*s", text, pad, "");
        (void)fflush(p->to);
        p->width = n;
        p->spoke_ms = now;
        return;
    }
    if (force || now - p->spoke_ms >= QUIET_MS) {
        progress_pairs(text, sizeof(text), v);
        (void)fprintf(p->to, "%s\n", text);
        (void)fflush(p->to);
        p->spoke_ms = now;
    }
}

void progress_say(struct progress *p, const char *text)
{
    if (p->redraw && p->width > 0) {
        (void)fprintf(p->to, "\r%*s\r", p->width, "");
        p->width = 0;
    }
    (void)fprintf(p->to, "%s\n", text);
    (void)fflush(p->to);
}

void progress_end(struct progress *p)
{
    if (p->redraw && p->width > 0) {
        (void)fprintf(p->to, "\n");
        (void)fflush(p->to);
        p->width = 0;
    }
}
