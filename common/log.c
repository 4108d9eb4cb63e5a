#include "common/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/clock.h"
#include "common/text.h"

static enum log_level most_level = LOG_INFO;
static bool as_json;
static bool as_journal;
static const char *program_name = "photon";

void log_setup(enum log_level most, bool json, const char *program)
{
    most_level = most;
    as_json = json;
    as_journal = getenv("JOURNAL_STREAM") != NULL;
    program_name = program;
}

static const char *level_name(enum log_level level)
{
    switch (level) {
    case LOG_ERROR:
        return "error";
    case LOG_WARN:
        return "warn";
    case LOG_DEBUG:
        return "debug";
    case LOG_INFO:
    default:
        return "info";
    }
}

/* A line must stay a line, and a message may quote what a stranger sent. */
static void clean(char *s, bool json)
{
    (void)text_plain(s);
    for (; json && *s; s++) {
        if (*s == '"' || *s == '\\') {
            *s = *s == '"' ? '\'' : ' ';
        }
    }
}

void log_line(enum log_level level, const char *fmt, ...)
{
    if (level > most_level) {
        return;
    }
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    clean(text, as_json);

    char at[32];
    clock_rfc3339(clock_wall_ms(), at);
    // One call per line: stdio locks the stream, so lines of two threads never mix.
    if (as_json) {
        (void)fprintf(stderr,
                      "{\"at\":\"%s\",\"level\":\"%s\",\"program\":\"%s\",\"msg\":\"%s\"}\n", at,
                      level_name(level), program_name, text);
    } else if (as_journal) {
        (void)fprintf(stderr, "<%d>%s\n", (int)level, text);
    } else {
        (void)fprintf(stderr, "%s %-5s %s: %s\n", at, level_name(level), program_name, text);
    }
}
