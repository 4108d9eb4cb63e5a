/*
 * The Hopper kernels on the host's emulation of a device: right, op by op, and never met by who did
 * not ask for them.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "tests/support/check.h"
#include "tests/support/op_parity.h"
#include "tests/support/tempdir.h"

extern backend_cuda_fn photon_backend;

/* tests/support/cuda_emul_wgmma.hpp */
extern void emul_break_wgmma(bool broken);
extern uint64_t emul_wgmma_count(void);
extern void emul_capability(int capability);

static struct tempdir dir;

/* A device for who wishes this, or NULL for nothing, with that file of choices. */
static struct backend *device(const char *wish, const char *choices, const char **why)
{
    (void)(wish ? setenv("PHOTON_CUDA_ATTN", wish, 1) : unsetenv("PHOTON_CUDA_ATTN"));
    (void)(choices ? setenv("PHOTON_CUDA_ALGOS", tempdir_at(&dir, choices), 1)
                   : unsetenv("PHOTON_CUDA_ALGOS"));
    return photon_backend(0, why);
}

/* What a training there meets: the products by wgmma, or -1 where sync() says `said`. */
static int64_t products_of(const char *wish, const char *choices, const char *said)
{
    enum { T = 16, D = 64 };
    const char *why = "";
    struct backend *be = device(wish, choices, &why);
    if (!be) {
        return said && strstr(why, said) ? -2 : -3;
    }
    void *qkv = be->ops->alloc(be, 3 * T * D * 2);
    void *o = be->ops->alloc(be, T * D * 2);
    void *lse = be->ops->alloc(be, T * sizeof(float));
    // The first call may hold a trial; who it leads to shows in the second.
    be->ops->attn_fwd(be, DTYPE_BF16, o, lse, qkv, NULL, 1, T, 1, D);
    why = be->ops->sync(be);
    uint64_t before = emul_wgmma_count();
    be->ops->attn_fwd(be, DTYPE_BF16, o, lse, qkv, NULL, 1, T, 1, D);
    int64_t count = (int64_t)(emul_wgmma_count() - before);
    be->ops->release(be, qkv);
    be->ops->release(be, o);
    be->ops->release(be, lse);
    backend_close(be);
    if (why) {
        return said && strstr(why, said) ? -1 : -3;
    }
    return count;
}

/* The file's last word, or "" */
static const char *last_word(const char *choices)
{
    static char line[1024];
    line[0] = '\0';
    FILE *f = fopen(tempdir_at(&dir, choices), "r");
    while (f && fgets(line, sizeof(line), f)) {
    }
    if (f) {
        (void)fclose(f);
    }
    line[strcspn(line, "\n")] = '\0';
    return strrchr(line, ' ') ? strrchr(line, ' ') + 1 : line;
}

static void who_asks_for_nothing_gets_mma(void)
{
    CHECK_INT(products_of(NULL, NULL, NULL), 0);
    CHECK_INT(products_of("", "untouched", NULL), 0);
    CHECK_INT(products_of("mma", "untouched", NULL), 0);
    CHECK_STR(last_word("untouched"), "");
}

static void a_trial_that_passes_is_noted_and_holds(void)
{
    CHECK(products_of("wgmma", "passed", NULL) > 0);
    CHECK_STR(last_word("passed"), "wgmma");
    CHECK(products_of(NULL, "passed", NULL) > 0);
    CHECK_INT(products_of("mma", "passed", NULL), 0);
    CHECK_INT(products_of(NULL, "another", NULL), 0);
    CHECK(products_of("wgmma", NULL, NULL) > 0); // tried, and noted nowhere
}

static void a_trial_that_fails_is_an_error_and_leads_nobody_there(void)
{
    emul_break_wgmma(true);
    CHECK_INT(products_of("wgmma", "failed", "failed its trial"), -1);
    CHECK_STR(last_word("failed"), "mma");
    CHECK_INT(products_of(NULL, "failed", NULL), 0);
    emul_break_wgmma(false);
    // Who asks again is tried again.
    CHECK(products_of("wgmma", "failed", NULL) > 0);
    CHECK_STR(last_word("failed"), "wgmma");
}

static void a_trial_that_never_ended_leads_nobody_there(void)
{
    CHECK(products_of("wgmma", "cut", NULL) > 0);
    // What the file holds while a trial runs: its first line alone.
    char line[1024] = "";
    FILE *f = fopen(tempdir_at(&dir, "cut"), "r");
    CHECK(f != NULL && fgets(line, sizeof(line), f) != NULL);
    CHECK_INT(fclose(f), 0);
    CHECK(strstr(line, " mma\n") != NULL);
    tempdir_text(&dir, "cut", line);
    CHECK_INT(products_of(NULL, "cut", NULL), 0);
}

static void other_devices_get_mma_and_other_wishes_are_errors(void)
{
    const char *need = "compute capability 9.0";
    const int others[] = {80, 89, 100};
    CHECK_INT(products_of("hopper", NULL, "neither mma nor wgmma"), -1);
    for (int i = 0; i < 3; i++) {
        emul_capability(others[i]);
        CHECK_INT(products_of("wgmma", "elsewhere", NULL), 0);
        CHECK_INT(products_of("wgmma-untried", NULL, need), -2);
        CHECK_INT(products_of(NULL, "passed", NULL), 0);
    }
    CHECK_STR(last_word("elsewhere"), "");
    emul_capability(90);
}

/* Where ops are recorded rather than done, a trial waits until they are done one by one. */
static void a_trial_is_never_part_of_a_recording(void)
{
    enum { T = 16, D = 64 };
    const char *why = "";
    struct backend *be = device("wgmma", "recorded", &why);
    CHECK(be != NULL);
    void *qkv = be->ops->alloc(be, 3 * T * D * 2);
    void *o = be->ops->alloc(be, T * D * 2);
    void *lse = be->ops->alloc(be, T * sizeof(float));
    be->ops->record(be);
    be->ops->attn_fwd(be, DTYPE_BF16, o, lse, qkv, NULL, 1, T, 1, D);
    CHECK(be->ops->recorded(be) == NULL);
    CHECK_STR(last_word("recorded"), "");
    be->ops->attn_fwd(be, DTYPE_BF16, o, lse, qkv, NULL, 1, T, 1, D);
    CHECK_STR(last_word("recorded"), "wgmma");
    be->ops->record(be);
    be->ops->attn_fwd(be, DTYPE_BF16, o, lse, qkv, NULL, 1, T, 1, D);
    void *kept = be->ops->recorded(be);
    CHECK(kept != NULL);
    uint64_t before = emul_wgmma_count();
    CHECK(be->ops->replay(be, kept));
    CHECK(be->ops->sync(be) == NULL);
    CHECK(emul_wgmma_count() > before);
    be->ops->unrecord(be, kept);
    be->ops->release(be, qkv);
    be->ops->release(be, o);
    be->ops->release(be, lse);
    backend_close(be);
}

int main(void)
{
    const char *why = "";
    tempdir_make(&dir);
    struct backend *gpu = device("wgmma-untried", NULL, &why);
    if (!gpu) {
        (void)fprintf(stderr, "%s\n", why);
        return 1;
    }
    op_parity_open(gpu, OP_SMALL);
    op_parity_attention(true);
    op_parity_close();
    backend_close(gpu);
    RUN(who_asks_for_nothing_gets_mma);
    RUN(a_trial_that_passes_is_noted_and_holds);
    RUN(a_trial_that_fails_is_an_error_and_leads_nobody_there);
    RUN(a_trial_that_never_ended_leads_nobody_there);
    RUN(other_devices_get_mma_and_other_wishes_are_errors);
    RUN(a_trial_is_never_part_of_a_recording);
    tempdir_remove(&dir);
    return check_end();
}
