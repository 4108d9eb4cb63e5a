#include "client/doctor.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "client/data.h"
#include "client/options.h"
#include "client/progress.h"
#include "client/state.h"
#include "client/transport.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/hash.h"
#include "common/mem.h"
#include "common/version.h"
#include "kernels/backend.h"

enum { FREE_LEAST_MB = 1024, DISK_PROBE = 16 * 1024 * 1024 };

int data_arg_parse(char *text, struct data_source_arg *out)
{
    *out = (struct data_source_arg){.dir = text, .weight = 1.0};
    char *colon = strrchr(text, ':');
    if (colon) {
        char *end = NULL;
        double w = strtod(colon + 1, &end);
        if (end != colon + 1 && *end == '\0') {
            if (!(w > 0.0) || !isfinite(w)) {
                return EXIT_USAGE;
            }
            *colon = '\0';
            out->weight = w;
        }
    }
    return *text ? EXIT_DONE : EXIT_USAGE;
}

struct findings {
    struct buf text; /* JSON */
    bool json;
    int bad;
};

static void found(struct findings *f, bool ok, const char *what, const char *detail,
                  const char *remedy)
{
    f->bad += ok ? 0 : 1;
    jw_object(&f->text, NULL);
    jw_str(&f->text, "check", what);
    jw_bool(&f->text, "ok", ok);
    jw_str(&f->text, "detail", detail);
    jw_str(&f->text, "remedy", ok ? NULL : remedy);
    jw_end_object(&f->text);
    if (!f->json) {
        (void)printf("%-4s %-10s %s\n", ok ? "ok" : "BAD", what, detail);
        if (!ok) {
            (void)printf("                -> %s\n", remedy);
        }
    }
}

static void check_server(struct findings *f, struct transport *t, struct arena *a)
{
    struct reply r;
    struct err e = {0};
    double begin = clock_mono_s();
    enum status st = transport_call(t, a, "GET", "/version", NULL, &r, &e);
    if (st || !r.json) {
        found(f, false, "server", e.msg[0] ? e.msg : "no Photon server answers",
              st == ST_DENIED
                  ? "ask the operator for a new join line, then join --again"
                  : "is the address right, the server up, the firewall open for outgoing HTTPS?");
        return;
    }
    const struct json *p = json_get(r.json, "protocol");
    bool same = json_is_int(p, 1, 1);
    const char *v = json_str(json_get(r.json, "version"));
    found(f, same, "server",
          arena_fmt(a, "%s, version %s, answers in %.0f ms", transport_url(t), v ? v : "?",
                    (clock_mono_s() - begin) * 1e3),
          "this photon-client speaks silo protocol " PHOTON_PROTOCOL
          "; install the server's version");
}

/* Asks for something that cannot be there: "not found" is said only to whoever may ask. */
static void check_token(struct findings *f, struct transport *t, struct arena *a, const char *name)
{
    struct reply r;
    struct err e = {0};
    enum status st =
        transport_call(t, a, "GET", "/silo/v1/uploads/u_00000000000000000000000000", NULL, &r, &e);
    bool ok = st == ST_OK || st == ST_NOT_FOUND || r.http == 410;
    found(f, ok, "token", ok ? arena_fmt(a, "good for silo %s", name) : e.msg,
          "ask the operator for a new join line, then join --again");
}

static void check_disk(struct findings *f, const char *dir, struct arena *a)
{
    struct statvfs s;
    if (statvfs(dir, &s) != 0) {
        found(f, false, "disk", "the state folder cannot be read", "is --state right?");
        return;
    }
    int64_t free_mb = (int64_t)((double)s.f_bavail * (double)s.f_frsize / 1e6);
    char *block = mem_alloc(DISK_PROBE);
    char path[STATE_PATH_MAX];
    struct err e = {0};
    random_bytes(block, DISK_PROBE);
    (void)snprintf(path, sizeof(path), "%.900s/doctor.probe", dir);
    double begin = clock_mono_s();
    enum status st = file_write(path, block, DISK_PROBE, &e);
    double seconds = clock_mono_s() - begin;
    (void)unlink(path);
    mem_free(block);
    if (st) {
        found(f, false, "disk", e.msg, "make the state folder writable");
        return;
    }
    found(f, free_mb >= FREE_LEAST_MB, "disk",
          arena_fmt(a, "%" PRId64 " MB free, writes %.0f MB/s synced", free_mb,
                    DISK_PROBE / 1e6 / seconds),
          "free some room: a run needs up to 72 bytes per parameter and device");
}

static void check_device(struct findings *f, const char *device, struct arena *a)
{
    struct backend *be = NULL;
    struct err e = {0};
    if (backend_open(&be, device, 0, &e)) {
        found(f, false, "device", e.msg, "try --device auto");
        return;
    }
    found(f, true, "device", arena_fmt(a, "%s", be->ops->name), "");
    backend_close(be);
}

static void check_data(struct findings *f, const struct option_list *dirs, struct arena *a)
{
    struct data_source_arg sources[OPTION_LIST_MAX];
    for (int i = 0; i < dirs->count; i++) {
        if (data_arg_parse(arena_fmt(a, "%s", dirs->items[i]), &sources[i])) {
            found(f, false, "data", dirs->items[i], "--data takes DIR or DIR:WEIGHT");
            return;
        }
    }
    struct data *d = NULL;
    struct err e = {0};
    if (data_open(&d, sources, dirs->count, &e)) {
        found(f, false, "data", e.msg, "photon data prepare TEXT -o DIR");
        return;
    }
    struct data_info info;
    data_info(d, &info);
    char tokens[16];
    format_count(tokens, (double)info.train_tokens);
    found(f, true, "data",
          arena_fmt(a, "%s tokens to train on, %" PRId64 " held out, ids below %d", tokens,
                    info.heldout_tokens, info.vocab_size),
          "");
    data_close(d);
}

static void check_all(struct findings *f, const char *state_dir, const char *device,
                      const struct option_list *dirs)
{
    struct arena *a = arena_new(64 * 1024 * 1024);
    struct silo_identity id;
    struct transport *t = NULL;
    struct err e = {0};
    enum status st = identity_read(state_dir, &id, &e);
    if (st) {
        found(f, false, "state", e.msg, "photon-client join URL --state DIR");
    } else {
        found(f, true, "state", arena_fmt(a, "silo %s of %s", id.name, id.url), "");
        struct transport_config c = {
            .url = id.url, .token = id.token, .ca_file = id.ca_file, .pin = id.pin};
        if (transport_open(&t, &c, &e)) {
            found(f, false, "server", e.msg, "join again with the right address");
        } else {
            check_server(f, t, a);
            check_token(f, t, a, id.name);
        }
        transport_close(t);
    }
    check_disk(f, state_dir, a);
    check_device(f, device, a);
    if (dirs->count > 0) {
        check_data(f, dirs, a);
    }
    arena_free(a);
}

int doctor_main(int argc, char **argv)
{
    const char *state_dir = NULL;
    const char *device = "auto";
    struct option_list dirs = {0};
    struct findings f = {0};
    const struct option_row rows[] = {
        {"state", 0, OPTION_TEXT, "DIR", "PHOTON_STATE", &state_dir, 0, 0, "the silo's folder"},
        {"data", 0, OPTION_LIST, "DIR[:WEIGHT]", NULL, &dirs, 0, 0, "prepared text to look at too"},
        {"device", 0, OPTION_TEXT, "NAME", "PHOTON_DEVICE", &device, 0, 0,
         "auto, cpu, ref or cuda"},
        {"json", 0, OPTION_FLAG, NULL, NULL, &f.json, 0, 0, "print JSON on stdout"},
        {0}};
    struct command_line c = {
        .program = "photon-client doctor",
        .args = "--state DIR",
        .about = "Look for what could keep this silo from working; 0 when nothing is wrong.",
        .examples = "  photon-client doctor --state ~/photon --data ~/shards",
        .rows = rows};
    enum options_end end = options_parse(&c, argc, argv, NULL, NULL);
    if (end) {
        return options_exit(end);
    }
    if (!state_dir) {
        (void)fprintf(stderr, "photon-client: try --state DIR\n");
        return EXIT_USAGE;
    }
    buf_init(&f.text, 1 << 20);
    jw_array(&f.text, NULL);
    check_all(&f, state_dir, device, &dirs);
    jw_end_array(&f.text);
    if (f.json) {
        (void)printf("%s\n", f.text.data);
    }
    buf_release(&f.text);
    return f.bad ? EXIT_FAILED : EXIT_DONE;
}
