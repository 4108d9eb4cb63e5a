#include "client/metrics_file.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "client/durable.h"
#include "common/json.h"
#include "common/mem.h"

enum { LINE_MAX_BYTES = 1 << 20, START_MAX = 128 };

/* The step of a line as metrics_file_begin() starts it; -1 when it is none of ours. */
static int64_t step_of(const char *line)
{
    static const char KEY[] = "\"step\":";
    char start[START_MAX];
    int64_t step = -1;
    (void)snprintf(start, sizeof(start), "%s", line);
    const char *at = strstr(start, KEY);
    return at && sscanf(at + strlen(KEY), "%" SCNd64, &step) == 1 ? step : -1;
}

/* Bytes of the file that stay: whole lines, up to the first that is after `last`. */
static enum status kept_bytes(FILE *f, int64_t last, off_t *out, struct err *e)
{
    char *line = mem_alloc(LINE_MAX_BYTES);
    *out = 0;
    while (fgets(line, LINE_MAX_BYTES, f)) {
        size_t len = strlen(line);
        int64_t step = step_of(line);
        if (len == 0 || line[len - 1] != '\n' || step < 0 || step > last) {
            break;
        }
        *out += (off_t)len;
    }
    mem_free(line);
    return ferror(f) ? err_set(e, ST_IO, "cannot read the metrics: %s", strerror(errno)) : ST_OK;
}

enum status metrics_file_open(struct metrics_file *m, const char *path, int64_t step, struct err *e)
{
    FILE *f = fopen(path, "a+e");
    if (!f) {
        return err_set(e, io_status(errno), "cannot open %s: %s", path, strerror(errno));
    }
    off_t kept = 0;
    enum status st = fseeko(f, 0, SEEK_SET) == 0 ? kept_bytes(f, step, &kept, e)
                                                 : err_set(e, ST_IO, "cannot read %s", path);
    if (!st && ftruncate(fileno(f), kept) != 0) {
        st = err_set(e, ST_IO, "cannot shorten %s: %s", path, strerror(errno));
    }
    if (st) {
        (void)fclose(f);
        return st;
    }
    // Reading and writing one stream need a seek in between (C11 7.21.5.3).
    (void)fseeko(f, 0, SEEK_END);
    m->to = f;
    buf_init(&m->line, LINE_MAX_BYTES);
    return ST_OK;
}

void metrics_file_close(struct metrics_file *m)
{
    if (m->to) {
        (void)fclose(m->to);
        buf_release(&m->line);
        m->to = NULL;
    }
}

struct buf *metrics_file_begin(struct metrics_file *m, const char *kind, int64_t step)
{
    buf_clear(&m->line);
    jw_object(&m->line, NULL);
    jw_str(&m->line, "kind", kind);
    jw_int(&m->line, "step", step);
    return &m->line;
}

enum status metrics_file_end(struct metrics_file *m, struct err *e)
{
    jw_end_object(&m->line);
    if (fprintf(m->to, "%s\n", m->line.data) < 0 || fflush(m->to) != 0) {
        return err_set(e, io_status(errno), "cannot write the metrics: %s", strerror(errno));
    }
    return ST_OK;
}
