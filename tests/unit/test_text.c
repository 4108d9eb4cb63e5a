#include "common/text.h"

#include <string.h>

#include "tests/support/check.h"

static void a_terminal_has_nothing_to_obey(void)
{
    char text[] = "a\x1b[2Jb\n\tc\x7f\xc2\x9b"
                  "1m";
    CHECK_INT(text_plain(text), 6);
    CHECK_STR(text, "a [2Jb  c   1m");
}

static void what_people_write_stays(void)
{
    static const char names[] = "caf\xc3\xa9, 5 \xe2\x82\xac, \xc2\xa0, \xd0\x9b";
    char text[sizeof(names)];
    memcpy(text, names, sizeof(names));
    CHECK_INT(text_plain(text), 0);
    CHECK_STR(text, names);
}

static void a_text_may_end_within_a_character(void)
{
    char text[] = "x\xc2";
    CHECK_INT(text_plain(text), 0);
    CHECK_STR(text, "x\xc2");
}

int main(void)
{
    RUN(a_terminal_has_nothing_to_obey);
    RUN(what_people_write_stays);
    RUN(a_text_may_end_within_a_character);
    return check_end();
}
