/*
 * photon model verify: is this checkpoint whole, what it should be, and finite?
 */
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/cmd.h"
#include "client/cli/verify.h"
#include "client/options.h"
#include "common/hash.h"
#include "common/mem.h"
#include "common/safetensors.h"

enum { BLOCK = 65536 };

static enum status scan_f32(int fd, int64_t at, int64_t bytes, struct verified *out, struct err *e)
{
    float *block = mem_alloc(BLOCK * sizeof(float));
    enum status st = ST_OK;
    double sum = 0.0;
    for (int64_t done = 0; done < bytes && !st;) {
        int64_t left = bytes - done;
        size_t want =
            left < (int64_t)(BLOCK * sizeof(float)) ? (size_t)left : BLOCK * sizeof(float);
        ssize_t n = pread(fd, block, want, at + done);
        if (n <= 0 || n % (ssize_t)sizeof(float) != 0) {
            st = err_set(e, ST_IO, "cannot read the weights at byte %" PRId64, at + done);
            break;
        }
        for (size_t i = 0; i < (size_t)n / sizeof(float); i++) {
            if (!isfinite(block[i])) {
                out->not_finite++;
            }
            sum += (double)block[i] * (double)block[i];
        }
        done += n;
    }
    out->norm = sqrt(sum);
    mem_free(block);
    return st;
}

static enum status read_header(int fd, struct verified *out, int64_t *at, int64_t *bytes,
                               struct err *e)
{
    struct arena *a = arena_new(16 * 1024 * 1024);
    struct st_header h;
    enum status st = st_read(&h, a, fd, e);
    for (int32_t i = 0; !st && i < h.tensor_count; i++) {
        if (strcmp(h.tensors[i].dtype, "F32") != 0) {
            st = err_set(e, ST_INVALID, "tensor '%.80s' is %s; checkpoints are F32",
                         h.tensors[i].name, h.tensors[i].dtype);
        }
    }
    if (!st) {
        out->tensors = h.tensor_count;
        out->params = h.data_bytes / (int64_t)sizeof(float);
        *at = h.data_offset;
        *bytes = h.data_bytes;
        const char *kind = st_meta_get(&h, "kind");
        const char *run = st_meta_get(&h, "run");
        const char *round = st_meta_get(&h, "round");
        (void)snprintf(out->kind, sizeof(out->kind), "%s", kind ? kind : "");
        (void)snprintf(out->run, sizeof(out->run), "%s", run ? run : "");
        (void)snprintf(out->round, sizeof(out->round), "%s", round ? round : "");
    }
    arena_free(a);
    return st;
}

enum status verify_file(const char *path, struct verified *out, struct err *e)
{
    *out = (struct verified){0};
    struct digest d;
    TRY(sha256_file(path, &d, &out->bytes, e));
    digest_hex(&d, out->sha256);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set(e, ST_IO, "cannot open %s", path);
    }
    int64_t at = 0;
    int64_t bytes = 0;
    enum status st = read_header(fd, out, &at, &bytes, e);
    st = st ? st : scan_f32(fd, at, bytes, out, e);
    (void)close(fd);
    return st;
}

static void print_verified(const struct verified *v, bool json)
{
    if (json) {
        (void)printf("{\"sha256\":\"%s\",\"bytes\":%" PRId64 ",\"tensors\":%d,\"params\":%" PRId64
                     ",\"kind\":\"%s\",\"run\":\"%s\",\"round\":\"%s\",\"norm\":%.9g,"
                     "\"not_finite\":%" PRId64 "}\n",
                     v->sha256, v->bytes, v->tensors, v->params, v->kind, v->run, v->round,
                     isfinite(v->norm) ? v->norm : -1.0, v->not_finite);
        return;
    }
    (void)printf("sha256      %s\nbytes       %" PRId64 "\ntensors     %d\nparameters  %" PRId64
                 "\nkind        %s\nrun         %s\nround       %s\nnorm        %.6g\n",
                 v->sha256, v->bytes, v->tensors, v->params, v->kind, v->run, v->round, v->norm);
}

static int verify(int argc, char **argv)
{
    bool json = false;
    const char *sha256 = NULL;
    const struct option_row rows[] = {
        {"sha256", 0, OPTION_TEXT, "HEX", NULL, &sha256, 0, 0, "the digest it must have"},
        {"json", 0, OPTION_FLAG, NULL, NULL, &json, 0, 0, "print JSON on stdout"},
        {0}};
    struct command_line c = {
        .program = "photon model verify",
        .args = "FILE",
        .about = "Check a checkpoint: a sound safetensors file, every value finite, the digest.",
        .examples = "  photon model verify checkpoint.safetensors\n"
                    "  photon model verify FILE --sha256 0f3c… --json",
        .rows = rows,
        .args_min = 1,
        .args_max = 1};
    const char *path = NULL;
    enum options_end end = options_parse(&c, argc, argv, &path, NULL);
    if (end) {
        return options_exit(end);
    }
    struct verified v;
    struct err e = {0};
    if (verify_file(path, &v, &e)) {
        (void)fprintf(stderr, "photon: %s\n", e.msg);
        return e.st == ST_CORRUPT ? EXIT_FAILED : EXIT_CONFIG;
    }
    print_verified(&v, json);
    if (v.not_finite > 0) {
        (void)fprintf(stderr, "photon: %" PRId64 " values are not finite\n", v.not_finite);
        return EXIT_FAILED;
    }
    if (sha256 && strcmp(sha256, v.sha256) != 0) {
        (void)fprintf(stderr, "photon: the digest is not %s\n", sha256);
        return EXIT_FAILED;
    }
    return EXIT_DONE;
}

const struct cmd cmds_model[] = {
    {"model", "verify", "check a checkpoint file: format, digest, finite values", verify}, {0}};
