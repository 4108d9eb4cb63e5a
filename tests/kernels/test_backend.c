/*
 * Which backend "auto" opens, and what it says of a GPU that it cannot use. What the loader finds
 * is fixed when a program starts: a copy of this one is run beside folders that are set up for it.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/backend.h"
#include "tests/support/check.h"
#include "tests/support/tempdir.h"

/* The copy's part: open it twice, say what came of it on stdout; the log goes to stderr. */
static int open_twice(const char *device)
{
    for (int i = 0; i < 2; i++) {
        struct backend *be = NULL;
        struct err e = {0};
        enum status st = backend_open(&be, device, 1, &e);
        (void)printf("%s\n", st ? e.msg : be->ops->name);
        backend_close(be);
    }
    return 0;
}

struct told {
    char out[1024], err[2048];
};

static void slurp(char *into, size_t size, const char *path)
{
    FILE *f = fopen(path, "rb");
    CHECK(f != NULL);
    into[fread(into, 1, size - 1, f)] = '\0';
    CHECK_INT(fclose(f), 0);
}

static void run_copy(struct told *t, const struct tempdir *dir, const char *device)
{
    char line[1024];
    (void)snprintf(line, sizeof(line), "LD_LIBRARY_PATH='%s' '%s' --open %s >'%s' 2>'%s'",
                   tempdir_at(dir, "lib"), tempdir_at(dir, "bin/copy"), device,
                   tempdir_at(dir, "out"), tempdir_at(dir, "err"));
    CHECK_INT(system(line), 0);
    slurp(t->out, sizeof(t->out), tempdir_at(dir, "out"));
    slurp(t->err, sizeof(t->err), tempdir_at(dir, "err"));
}

/* bin/copy, whose RUNPATH leads to lib: nothing of this build is found from there. */
static void begin(struct tempdir *dir)
{
    char line[512];
    tempdir_make(dir);
    tempdir_folder(dir, "bin");
    tempdir_folder(dir, "lib");
    (void)snprintf(line, sizeof(line), "cp /proc/%ld/exe '%s'", (long)getpid(),
                   tempdir_at(dir, "bin/copy"));
    CHECK_INT(system(line), 0);
    // An empty file is found before the machine's own driver, and is none.
    tempdir_text(dir, "lib/libcuda.so.1", "");
}

/* Some library that loads and has none of the symbols that are looked for. */
static void put_library(const struct tempdir *dir, const char *name)
{
    Dl_info lib;
    CHECK(dladdr(dlsym(RTLD_DEFAULT, "printf"), &lib) != 0);
    (void)unlink(tempdir_at(dir, name));
    CHECK_INT(symlink(lib.dli_fname, tempdir_at(dir, name)), 0);
}

static int lines(const char *text)
{
    int n = 0;
    for (; *text; text++) {
        n += *text == '\n';
    }
    return n;
}

static void without_the_cuda_object_auto_says_nothing(void)
{
    struct tempdir dir;
    struct told t;
    begin(&dir);
    run_copy(&t, &dir, "auto");
    tempdir_remove(&dir);
    CHECK_STR(t.err, "");
    CHECK_STR(t.out, "cpu\ncpu\n");
}

static void a_cuda_object_without_a_driver_is_told_once(void)
{
    struct tempdir dir;
    struct told t;
    begin(&dir);
    tempdir_text(&dir, "lib/photon-cuda.so", "");
    run_copy(&t, &dir, "auto");
    tempdir_remove(&dir);
    CHECK_STR(t.out, "cpu\ncpu\n");
    CHECK_INT(lines(t.err), 1);
    CHECK(strstr(t.err, "no NVIDIA driver") != NULL);
    CHECK(strstr(t.err, "; try ") != NULL && strstr(t.err, "--device cpu") != NULL);
}

static void a_cuda_object_that_does_not_load_is_told_with_the_loaders_words(void)
{
    struct tempdir dir;
    struct told t;
    begin(&dir);
    put_library(&dir, "lib/libcuda.so.1");
    tempdir_text(&dir, "lib/photon-cuda.so", "");
    run_copy(&t, &dir, "auto");
    CHECK_STR(t.out, "cpu\ncpu\n");
    CHECK_INT(lines(t.err), 1);
    CHECK(strstr(t.err, "photon-cuda.so: file too short") != NULL);

    put_library(&dir, "lib/photon-cuda.so");
    run_copy(&t, &dir, "auto");
    tempdir_remove(&dir);
    CHECK_INT(lines(t.err), 1);
    CHECK(strstr(t.err, "undefined symbol: photon_backend") != NULL);
}

static void what_is_asked_for_by_name_is_an_error_and_nothing_is_logged(void)
{
    struct tempdir dir;
    struct told t;
    begin(&dir);
    tempdir_text(&dir, "lib/photon-cuda.so", "");
    run_copy(&t, &dir, "cuda");
    CHECK_STR(t.err, "");
    CHECK_INT(lines(t.out), 2);
    CHECK(strncmp(t.out, "no CUDA backend: no NVIDIA driver", 33) == 0);
    run_copy(&t, &dir, "cpu");
    tempdir_remove(&dir);
    CHECK_STR(t.err, "");
    CHECK_STR(t.out, "cpu\ncpu\n");
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--open") == 0) {
        return open_twice(argv[2]);
    }
    RUN(without_the_cuda_object_auto_says_nothing);
    RUN(a_cuda_object_without_a_driver_is_told_once);
    RUN(a_cuda_object_that_does_not_load_is_told_with_the_loaders_words);
    RUN(what_is_asked_for_by_name_is_an_error_and_nothing_is_logged);
    return check_end();
}
