#include "client/progress.h"

#include <math.h>
#include <string.h>

#include "tests/support/check.h"

static void the_line_is_the_one_the_manual_shows(void)
{
    struct progress_values v = {.round = 12,
                                .rounds = 200,
                                .step = 384,
                                .steps = 500,
                                .loss = 3.412,
                                .ppl = 30.3,
                                .tokens_per_s = 41200,
                                .up_bytes = 118000000,
                                .down_bytes = -1,
                                .eta_s = 11520};
    char text[240];
    progress_line(text, sizeof(text), &v);
    CHECK_STR(text, "round 12/200  step 384/500  loss 3.412  ppl 30.3  41.2k tok/s  up 118 MB  "
                    "eta 3h12m");
    progress_pairs(text, sizeof(text), &v);
    CHECK_STR(text, "round=12 rounds=200 step=384 steps=500 loss=3.4120 ppl=30.3 "
                    "tokens_per_s=41200 up_bytes=118000000 eta_s=11520");
}

static void what_is_not_known_is_left_out(void)
{
    struct progress_values v = progress_none();
    char text[64];
    progress_line(text, sizeof(text), &v);
    CHECK_STR(text, "");
    v.round = 3;
    v.note = "waiting for 2 more silos";
    progress_line(text, sizeof(text), &v);
    CHECK_STR(text, "round 3  waiting for 2 more silos");
    progress_pairs(text, sizeof(text), &v);
    CHECK_STR(text, "round=3 note=\"waiting for 2 more silos\"");
}

static void a_short_buffer_cuts_and_never_overruns(void)
{
    struct progress_values v = progress_none();
    v.round = 123456;
    v.rounds = 123456;
    v.note = "a long note that does not fit";
    char text[16];
    memset(text, 'x', sizeof(text));
    progress_line(text, 8, &v);
    CHECK_INT(strlen(text), 7);
    CHECK_INT(text[8], 'x');
}

static void counts_have_three_digits(void)
{
    static const struct {
        double n;
        const char *want;
    } cases[] = {{0, "0"},         {950, "950"},     {999.4, "999"},   {1000, "1.00k"},
                 {41200, "41.2k"}, {412000, "412k"}, {3.1e6, "3.10M"}, {1.2e9, "1.20G"},
                 {5e15, "5000T"},  {999999, "1.00M"}};
    char text[16];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        format_count(text, cases[i].n);
        CHECK_STR(text, cases[i].want);
    }
}

static void bytes_and_seconds_read_well(void)
{
    char text[16];
    format_bytes(text, 0);
    CHECK_STR(text, "0 B");
    format_bytes(text, 4244000);
    CHECK_STR(text, "4.24 MB");
    format_bytes(text, 42440000);
    CHECK_STR(text, "42.4 MB");
    format_bytes(text, 118000000);
    CHECK_STR(text, "118 MB");
    format_seconds(text, 0.4);
    CHECK_STR(text, "0s");
    format_seconds(text, 59.6);
    CHECK_STR(text, "1m00s");
    format_seconds(text, 3661);
    CHECK_STR(text, "1h01m");
    format_seconds(text, 90000);
    CHECK_STR(text, "1d01h");
    format_seconds(text, 1e300);
    CHECK_STR(text, "9999d00h");
}

int main(void)
{
    RUN(the_line_is_the_one_the_manual_shows);
    RUN(what_is_not_known_is_left_out);
    RUN(a_short_buffer_cuts_and_never_overruns);
    RUN(counts_have_three_digits);
    RUN(bytes_and_seconds_read_well);
    return check_end();
}
