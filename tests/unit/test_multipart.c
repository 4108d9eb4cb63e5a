#include "server/multipart.h"

#include <stdio.h>
#include <string.h>

#include "common/buf.h"
#include "tests/support/check.h"

#define TYPE "multipart/form-data; boundary=XX"

/* What was called, as text: "<name|type>" content "</>". */
static enum status on_begin(void *ctx, const char *name, const char *type, struct err *e)
{
    (void)e;
    buf_fmt(ctx, "<%s|%s>", name, type);
    return ST_OK;
}

static enum status on_bytes(void *ctx, const void *data, size_t len, struct err *e)
{
    (void)e;
    buf_add(ctx, data, len);
    return ST_OK;
}

static enum status on_end(void *ctx, struct err *e)
{
    (void)e;
    buf_str(ctx, "</>");
    return ST_OK;
}

static const struct multipart_handler handler = {on_begin, on_bytes, on_end};

/* Read a body in pieces of that many bytes. The text of what was called is in *b. */
static enum status read_in_pieces(const char *type, const char *body, size_t len, size_t piece,
                                  struct buf *b)
{
    struct multipart *m = NULL;
    struct err e = {0};
    buf_clear(b);
    enum status st = multipart_open(&m, type, &handler, b, &e);
    for (size_t at = 0; at < len && !st; at += piece) {
        st = multipart_feed(m, body + at, len - at < piece ? len - at : piece, &e);
    }
    if (!st) {
        st = multipart_end(m, &e);
    }
    if (st && m) {
        CHECK(e.msg[0] != '\0');
    }
    multipart_free(m);
    return st;
}

static const char good[] =
    "--XX\r\nContent-Disposition: form-data; name=\"meta\"\r\n"
    "Content-Type: application/json\r\n\r\n{}\r\n"
    "--XX\r\ncontent-disposition:form-data; filename=\"../../x\"; name=chunk\r\n"
    "Content-Transfer-Encoding: binary\r\n\r\n"
    "a\r\n--X\r\r\n\r\n--Xb\r\n--XX--\r\n";

static void parts_are_the_same_however_the_body_is_cut(void)
{
    struct buf b;
    buf_init(&b, 4096);
    for (size_t piece = 1; piece <= sizeof(good); piece++) {
        CHECK_INT(read_in_pieces(TYPE, good, sizeof(good) - 1, piece, &b), ST_OK);
        CHECK_STR(b.data, "<meta|application/json>{}</><chunk|>a\r\n--X\r\r\n\r\n--Xb</>");
    }
    buf_release(&b);
}

static void every_body_that_ends_early_is_refused(void)
{
    struct buf b;
    buf_init(&b, 4096);
    for (size_t len = 0; len < sizeof(good) - 1; len++) {
        bool only_the_line_end_is_missing = len == sizeof(good) - 3;
        CHECK_INT(read_in_pieces(TYPE, good, len, 7, &b),
                  only_the_line_end_is_missing ? ST_OK : ST_INVALID);
    }
    buf_release(&b);
}

static void the_boundary_comes_from_the_content_type(void)
{
    struct buf b;
    buf_init(&b, 4096);
    static const struct {
        const char *type;
        enum status want;
    } rows[] = {
        {TYPE, ST_OK},
        {"Multipart/Form-Data;boundary=XX", ST_OK},
        {"multipart/form-data; charset=utf-8; boundary=\"XX\"", ST_OK},
        {"multipart/form-data; BOUNDARY=XX ", ST_OK},
        {NULL, ST_INVALID},
        {"", ST_INVALID},
        {"application/json", ST_INVALID},
        {"multipart/form-data", ST_INVALID},
        {"multipart/form-datax; boundary=XX", ST_INVALID},
        {"multipart/form-data; boundary=", ST_INVALID},
        {"multipart/form-data; boundary=\"XX", ST_INVALID},
        {"multipart/form-data; boundary=XX; boundary=XX", ST_INVALID},
        {"multipart/form-data; boundary=X\"X", ST_INVALID},
        {"multipart/form-data; boundary=\"X\\X\"", ST_INVALID},
        {"multipart/form-data; boundary="
         "12345678901234567890123456789012345678901234567890123456789012345678901",
         ST_INVALID},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        CHECK_INT(read_in_pieces(rows[i].type, good, sizeof(good) - 1, 100, &b), rows[i].want);
    }
    buf_release(&b);
}

static void what_a_lenient_reader_would_guess_at_is_refused(void)
{
    static const char *const bad[] = {
        "preamble\r\n--XX\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--XX--\r\n",
        "\r\n--XX\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--XX--\r\nmore",
        "--XX\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--XXY--\r\n",
        "--XX \r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Type: text/plain\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Disposition: form-data\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Disposition: form-data; name=\"a\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Disposition: form-data; name=a; name=b\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=b"
        "\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Disposition: form-data; name=a\r\n folded: yes\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Disposition: form-data; name=a\nX: y\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Disposition: form-data; name=a\r\nno colon\r\n\r\nx\r\n--XX--\r\n",
        "--XX\r\nContent-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64"
        "\r\n\r\nx\r\n--XX--\r\n",
        "--XX\nContent-Disposition: form-data; name=a\n\nx\n--XX--\n",
    };
    struct buf b;
    buf_init(&b, 4096);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        for (size_t piece = 1; piece < 40; piece += 13) {
            CHECK_INT(read_in_pieces(TYPE, bad[i], strlen(bad[i]), piece, &b), ST_INVALID);
        }
    }
    buf_release(&b);
}

static void headers_are_bounded(void)
{
    struct buf body;
    struct buf b;
    buf_init(&body, 8192);
    buf_init(&b, 4096);
    buf_str(&body, "--XX\r\nContent-Disposition: form-data; name=a\r\nX: ");
    while (body.len < MULTIPART_HEADERS_MAX + 100) {
        buf_str(&body, "y");
    }
    CHECK_INT(read_in_pieces(TYPE, body.data, body.len, 64, &b), ST_INVALID);
    buf_release(&body);
    buf_release(&b);
}

static enum status refuse(void *ctx, const void *data, size_t len, struct err *e)
{
    (void)data;
    (void)len;
    buf_str(ctx, "!");
    return err_set(e, ST_CONFLICT, "no more");
}

static void what_the_handler_says_ends_the_reading(void)
{
    static const struct multipart_handler refusing = {on_begin, refuse, on_end};
    struct buf b;
    buf_init(&b, 4096);
    struct multipart *m = NULL;
    CHECK_INT(multipart_open(&m, TYPE, &refusing, &b, NULL), ST_OK);
    CHECK_INT(multipart_feed(m, good, sizeof(good) - 1, NULL), ST_CONFLICT);
    CHECK_INT(multipart_feed(m, good, sizeof(good) - 1, NULL), ST_CONFLICT);
    CHECK_INT(multipart_end(m, NULL), ST_CONFLICT);
    CHECK_STR(b.data, "<meta|application/json>!");
    multipart_free(m);
    buf_release(&b);
}

int main(void)
{
    RUN(parts_are_the_same_however_the_body_is_cut);
    RUN(every_body_that_ends_early_is_refused);
    RUN(the_boundary_comes_from_the_content_type);
    RUN(what_a_lenient_reader_would_guess_at_is_refused);
    RUN(headers_are_bounded);
    RUN(what_the_handler_says_ends_the_reading);
    return check_end();
}
