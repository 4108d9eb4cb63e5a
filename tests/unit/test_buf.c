#include "common/buf.h"

#include <string.h>

#include "common/mem.h"
#include "tests/support/check.h"

static void it_grows_to_its_ceiling_and_its_memory_no_further(void)
{
    struct buf b;
    buf_init(&b, 1000);
    for (int i = 0; i < 1000; i++) {
        buf_add(&b, "x", 1);
        CHECK(b.size <= 1001);
    }
    CHECK(!b.full);
    CHECK_INT(b.len, 1000);
    CHECK_INT(strlen(b.data), 1000);
    buf_release(&b);
}

static void what_does_not_fit_leaves_it_as_it_was(void)
{
    struct buf b;
    buf_init(&b, 5);
    buf_str(&b, "four");
    buf_fmt(&b, "%d", 56);
    CHECK(b.full);
    CHECK_STR(b.data, "four");
    buf_add(&b, "5", 1); // full once is full: a text with a hole in it is worse than a short one
    CHECK_STR(b.data, "four");

    buf_clear(&b);
    buf_fmt(&b, "%05d", 7);
    CHECK(!b.full);
    CHECK_STR(b.data, "00007");
    buf_release(&b);
}

static void a_taken_text_is_the_callers(void)
{
    struct buf b;
    buf_init(&b, (size_t)-1);
    buf_str(&b, "mine");
    char *text = buf_take(&b);
    CHECK(b.data == NULL);
    CHECK_STR(text, "mine");
    mem_free(text);
}

int main(void)
{
    RUN(it_grows_to_its_ceiling_and_its_memory_no_further);
    RUN(what_does_not_fit_leaves_it_as_it_was);
    RUN(a_taken_text_is_the_callers);
    return check_end();
}
