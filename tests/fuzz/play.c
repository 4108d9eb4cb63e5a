/*
 * play.c - a fuzz target without a fuzzer: its seeds as they are, then drawn changes of them.
 *
 *     fuzz_NAME              tests/fuzz/seeds/fuzz_NAME, each file and then ROUNDS changed ones
 *     fuzz_NAME FILE...      these inputs alone
 *
 * The same inputs every time, for any compiler, as part of `make test` and `make asan`; what looks
 * for new ones is `make fuzz`. An input that ends the program is kept as PROGRAM.input.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "common/rng.h"

enum { ROUNDS = 4000, INPUT_MAX = 4096, SEEDS_MAX = 64, EDITS_MAX = 8 };

struct input {
    unsigned char *bytes;
    size_t size;
};

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

static struct input now;
static char kept[512];

/* What was being tried goes to a file, by calls that a signal handler may make. */
static void on_end(int sig)
{
    int fd = open(kept, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool whole = fd >= 0 && write(fd, now.bytes, now.size) == (ssize_t)now.size;
    static const char said[] = "the input that ended this is kept: ";
    if (whole && write(STDERR_FILENO, said, sizeof(said) - 1) > 0 &&
        write(STDERR_FILENO, kept, strlen(kept)) > 0 && write(STDERR_FILENO, "\n", 1) > 0) {
        (void)close(fd);
    }
    (void)signal(sig, SIG_DFL);
    (void)raise(sig);
}

static bool load(struct input *in, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return false;
    }
    in->bytes = mem_alloc(INPUT_MAX);
    in->size = fread(in->bytes, 1, INPUT_MAX, f);
    (void)fclose(f);
    return true;
}

/* In a block of its own, so that a read past its end is seen where somebody watches. */
static void try_input(const unsigned char *bytes, size_t size)
{
    now = (struct input){mem_alloc(size > 0 ? size : 1), size};
    if (size > 0) {
        memcpy(now.bytes, bytes, size);
    }
    (void)LLVMFuzzerTestOneInput(now.bytes, size);
    mem_free(now.bytes);
    now = (struct input){0};
}

/* One change: a byte, a bit, bytes away, bytes in, or a piece of another seed. */
static size_t change(unsigned char *text, size_t size, const struct input *other, uint64_t drawn)
{
    static const unsigned char apt[] = "\0\xff\x7f\x80{}[]\",:\\/-.09e%\r\n;=u";
    size_t at = size > 0 ? (size_t)(drawn >> 16) % size : 0;
    size_t some = 1 + (size_t)(drawn >> 40) % 16;
    switch (size > 0 ? drawn % 6 : 4) {
    case 0:
        text[at] = (unsigned char)(drawn >> 56);
        return size;
    case 1:
        text[at] ^= (unsigned char)(1U << (drawn >> 56) % 8);
        return size;
    case 2:
        text[at] = apt[(drawn >> 56) % (sizeof(apt) - 1)];
        return size;
    case 3:
        some = some < size - at ? some : size - at;
        memmove(text + at, text + at + some, size - at - some);
        return size - some;
    case 4:
        some = some < INPUT_MAX - size ? some : INPUT_MAX - size;
        memmove(text + at + some, text + at, size - at);
        for (size_t i = 0; i < some; i++) {
            uint64_t word = rng_u64(drawn, i);
            text[at + i] =
                word % 2 ? apt[(word >> 8) % (sizeof(apt) - 1)] : (unsigned char)(word >> 8);
        }
        return size + some;
    default:
        some = other->size < INPUT_MAX - at ? other->size : INPUT_MAX - at;
        if (some > 0) {
            memcpy(text + at, other->bytes, some);
        }
        return at + some > size ? at + some : size;
    }
}

static void play(const struct input *seeds, int count, uint64_t key)
{
    static const struct input nothing = {0};
    unsigned char text[INPUT_MAX];
    for (int i = 0; i < count; i++) {
        try_input(seeds[i].bytes, seeds[i].size);
    }
    for (uint64_t n = 0; n < ROUNDS; n++) {
        uint64_t drawn = rng_u64(key, n * EDITS_MAX);
        const struct input *from = count > 0 ? &seeds[drawn % (uint64_t)count] : &nothing;
        const struct input *other = count > 0 ? &seeds[(drawn >> 8) % (uint64_t)count] : &nothing;
        size_t size = from->size;
        if (size > 0) {
            memcpy(text, from->bytes, size);
        }
        uint64_t edits = 1 + (drawn >> 16) % (EDITS_MAX - 1);
        for (uint64_t i = 1; i <= edits; i++) {
            size = change(text, size, other, rng_u64(key, n * EDITS_MAX + i));
        }
        try_input(text, size);
    }
}

/* The files of a folder in the order of their names, so that the inputs are the same everywhere. */
static int load_folder(struct input *seeds, const char *folder)
{
    struct dirent **found = NULL;
    int names = scandir(folder, &found, NULL, alphasort);
    int count = 0;
    for (int i = 0; i < names; i++) {
        char path[1024];
        (void)snprintf(path, sizeof(path), "%s/%s", folder, found[i]->d_name);
        if (found[i]->d_name[0] != '.' && count < SEEDS_MAX) {
            count += load(&seeds[count], path);
        }
        free(found[i]);
    }
    free((void *)found);
    return count;
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    const char *name = slash ? slash + 1 : argv[0];
    (void)snprintf(kept, sizeof(kept), "%s.input", argv[0]);
    (void)signal(SIGABRT, on_end);
    (void)signal(SIGSEGV, on_end);
    (void)signal(SIGALRM, on_end);
    static struct input seeds[SEEDS_MAX];
    int count = 0;
    (void)alarm(300); // an input on which it hangs is a finding too
    for (int i = 1; i < argc && count < SEEDS_MAX; i++) {
        if (!load(&seeds[count++], argv[i])) {
            return 1;
        }
    }
    if (argc > 1) {
        for (int i = 0; i < count; i++) {
            try_input(seeds[i].bytes, seeds[i].size);
        }
    } else {
        char folder[512];
        (void)snprintf(folder, sizeof(folder), "tests/fuzz/seeds/%s", name);
        count = load_folder(seeds, folder);
        play(seeds, count, rng_key(1, name));
    }
    for (int i = 0; i < count; i++) {
        mem_free(seeds[i].bytes);
    }
    printf("# 1 passed, 0 failed, 0 skipped\n");
    return 0;
}
