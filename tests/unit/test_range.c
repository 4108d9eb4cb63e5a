#include "server/range.h"

#include <string.h>

#include "tests/support/check.h"

struct row {
    const char *header;
    int64_t size;
    enum range_kind kind;
    int64_t start, len;
};

// clang-format off
static const struct row rows[] = {
    {NULL,                        100, RANGE_WHOLE,         0, 100},
    {"bytes=0-0",                 100, RANGE_PART,          0,   1},
    {"bytes=0-99",                100, RANGE_PART,          0, 100},
    {"bytes=10-19",               100, RANGE_PART,         10,  10},
    {"Bytes=10-19",               100, RANGE_PART,         10,  10},
    {"bytes=99-",                 100, RANGE_PART,         99,   1},
    {"bytes=0-",                  100, RANGE_PART,          0, 100},
    {"bytes=50-1000",             100, RANGE_PART,         50,  50},
    {"bytes=50-99999999999999999999999", 100, RANGE_PART,  50,  50},
    {"bytes=-1",                  100, RANGE_PART,         99,   1},
    {"bytes=-100",                100, RANGE_PART,          0, 100},
    {"bytes=-101",                100, RANGE_PART,          0, 100},
    {"bytes=-99999999999999999999", 100, RANGE_PART,        0, 100},
    {"bytes=100-",                100, RANGE_UNSATISFIABLE, 0, 100},
    {"bytes=100-200",             100, RANGE_UNSATISFIABLE, 0, 100},
    {"bytes=99999999999999999999-", 100, RANGE_UNSATISFIABLE, 0, 100},
    {"bytes=-0",                  100, RANGE_UNSATISFIABLE, 0, 100},
    {"bytes=0-",                    0, RANGE_UNSATISFIABLE, 0,   0},
    {"bytes=-5",                    0, RANGE_WHOLE,         0,   0},
    {"bytes=5-4",                 100, RANGE_WHOLE,         0, 100},
    {"bytes=0-1,5-6",             100, RANGE_WHOLE,         0, 100},
    {"bytes=0-1, 5-6",            100, RANGE_WHOLE,         0, 100},
    {"bytes=",                    100, RANGE_WHOLE,         0, 100},
    {"bytes=-",                   100, RANGE_WHOLE,         0, 100},
    {"bytes=--1",                 100, RANGE_WHOLE,         0, 100},
    {"bytes=a-b",                 100, RANGE_WHOLE,         0, 100},
    {"bytes=1",                   100, RANGE_WHOLE,         0, 100},
    {"bytes=1-2x",                100, RANGE_WHOLE,         0, 100},
    {"bytes= 1-2",                100, RANGE_WHOLE,         0, 100},
    {"lines=1-2",                 100, RANGE_WHOLE,         0, 100},
    {"",                          100, RANGE_WHOLE,         0, 100},
    {"bytes=4611686018427387903-", INT64_MAX, RANGE_PART, 4611686018427387903, 4611686018427387904},
    {"bytes=0-",            INT64_MAX, RANGE_PART,          0, INT64_MAX},
};
// clang-format on

static void each_header_means_what_the_rfc_says(void)
{
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int64_t start = -1;
        int64_t len = -1;
        CHECK_INT(range_parse(rows[i].header, rows[i].size, &start, &len), rows[i].kind);
        CHECK_INT(start, rows[i].start);
        CHECK_INT(len, rows[i].len);
    }
}

static void a_range_is_honoured_only_for_the_very_same_file(void)
{
    CHECK(range_allowed(NULL, "\"abc\""));
    CHECK(range_allowed("\"abc\"", "\"abc\""));
    CHECK(!range_allowed("\"abd\"", "\"abc\""));
    CHECK(!range_allowed("W/\"abc\"", "\"abc\""));
    CHECK(!range_allowed("Wed, 21 Oct 2015 07:28:00 GMT", "\"abc\""));
}

int main(void)
{
    RUN(each_header_means_what_the_rfc_says);
    RUN(a_range_is_honoured_only_for_the_very_same_file);
    return check_end();
}
