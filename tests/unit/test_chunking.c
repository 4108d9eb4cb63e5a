#include "client/chunking.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "tests/support/check.h"

static const int64_t MIB = 1024 * 1024;

static void a_fast_link_gets_the_largest_pieces(void)
{
    CHECK_INT(chunk_next(8 * MIB, 0.01, true, 64 * MIB), 32 * MIB); // four times at a time
    CHECK_INT(chunk_next(32 * MIB, 0.05, true, 64 * MIB), 64 * MIB);
    CHECK_INT(chunk_next(64 * MIB, 0.1, true, 64 * MIB), 64 * MIB);
    CHECK_INT(chunk_next(8 * MIB, 0.0, true, 64 * MIB), 32 * MIB);
}

static void a_slow_link_gets_what_ten_seconds_take(void)
{
    CHECK_INT(chunk_next(8 * MIB, 40.0, true, 64 * MIB), 2 * MIB);
    CHECK_INT(chunk_next(2 * MIB, 10.0, true, 64 * MIB), 2 * MIB);
    CHECK_INT(chunk_next(2 * MIB, 1000.0, true, 64 * MIB), 1 * MIB);
    CHECK_INT(chunk_next(8 * MIB, 2.0, true, 64 * MIB), 32 * MIB);
}

static void a_cut_halves_them_down_to_the_least(void)
{
    int64_t size = 64 * MIB;
    for (int i = 0; i < 20; i++) {
        int64_t next = chunk_next(size, 1.0, false, 64 * MIB);
        CHECK(next <= size && next >= MIB);
        size = next;
    }
    CHECK_INT(size, MIB);
}

static void what_the_server_takes_is_the_most(void)
{
    CHECK_INT(chunk_next(1000, 0.1, true, 1000), 1000);
    CHECK_INT(chunk_next(1000, 0.1, false, 1000), 1000);
}

static char text[3 * 1024 * 1024 + 5];

static int file_of(void)
{
    char path[] = "/tmp/photon-ahead-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK_INT(unlink(path), 0);
    for (size_t i = 0; i < sizeof(text); i++) {
        text[i] = (char)(i * 2654435761U >> 24);
    }
    CHECK_INT(write(fd, text, sizeof(text)), (ssize_t)sizeof(text));
    return fd;
}

static void check_piece(struct ahead *a, int64_t offset, int64_t asked, int64_t want)
{
    struct err e = {0};
    uint32_t crc = 0;
    int64_t bytes = asked;
    CHECK_INT(ahead_take(a, offset, &bytes, &crc, &e), ST_OK);
    CHECK_INT(bytes, want);
    CHECK_INT(crc, crc32c_add(0, text + offset, (size_t)want));
}

static void the_next_piece_is_ready_or_made_when_asked_for(void)
{
    int fd = file_of();
    struct ahead *a = ahead_new(fd);
    check_piece(a, 0, MIB, MIB); // nothing was begun
    ahead_start(a, MIB, 2 * MIB);
    check_piece(a, MIB, MIB, 2 * MIB); // what was begun decides the size
    ahead_start(a, 3 * MIB, 5);
    check_piece(a, MIB, 7, 7); // the upload goes on elsewhere
    ahead_start(a, 0, 10);
    ahead_start(a, 3 * MIB, 5);
    check_piece(a, 3 * MIB, 5, 5);
    ahead_start(a, 0, MIB);
    ahead_free(a); // in mid-work
    CHECK_INT(close(fd), 0);
}

static void a_file_that_is_too_short_is_said(void)
{
    int fd = file_of();
    struct ahead *a = ahead_new(fd);
    struct err e = {0};
    uint32_t crc = 0;
    int64_t bytes = 10;
    CHECK_INT(ahead_take(a, (int64_t)sizeof(text) - 9, &bytes, &crc, &e), ST_IO);
    ahead_start(a, 0, (int64_t)sizeof(text) + 1);
    CHECK_INT(ahead_take(a, 0, &bytes, &crc, &e), ST_IO);
    bytes = 10;
    CHECK_INT(ahead_take(a, 0, &bytes, &crc, &e), ST_OK); // once more is another try
    ahead_free(a);
    CHECK_INT(close(fd), 0);
}

int main(void)
{
    RUN(a_fast_link_gets_the_largest_pieces);
    RUN(a_slow_link_gets_what_ten_seconds_take);
    RUN(a_cut_halves_them_down_to_the_least);
    RUN(what_the_server_takes_is_the_most);
    RUN(the_next_piece_is_ready_or_made_when_asked_for);
    RUN(a_file_that_is_too_short_is_said);
    return check_end();
}
