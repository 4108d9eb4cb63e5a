#include "common/pin.h"

#include <stdio.h>
#include <string.h>

#include "tests/support/check.h"

// SHA-256 of nothing and of "abc", in base64 as openssl prints them.
#define EMPTY "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
#define ABC   "sha256//ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="

static void a_pin_is_the_digest_that_curl_prints(void)
{
    struct pin p;
    struct digest d;
    struct err e = {0};
    char text[PIN_TEXT_MAX + 1];
    CHECK_INT(pin_parse(&p, EMPTY, &e), ST_OK);
    sha256_of("", 0, &d);
    CHECK_INT(p.count, 1);
    CHECK_MEM(&p.keys[0], &d, sizeof(d));
    pin_print(&p, text);
    CHECK_STR(text, EMPTY);

    CHECK_INT(pin_parse(&p, ABC ";" EMPTY, &e), ST_OK);
    CHECK_INT(p.count, 2);
    CHECK_MEM(&p.keys[1], &d, sizeof(d));
    sha256_of("abc", 3, &d);
    CHECK_MEM(&p.keys[0], &d, sizeof(d));
    pin_print(&p, text);
    CHECK_STR(text, ABC ";" EMPTY);
    CHECK_INT(strlen(text), PIN_TEXT_MAX);
}

static void every_digest_reads_back(void)
{
    for (int i = 0; i < 2000; i++) {
        struct pin p = {.count = 1};
        struct pin back;
        struct err e = {0};
        char text[PIN_TEXT_MAX + 1];
        sha256_of(&i, sizeof(i), &p.keys[0]);
        pin_print(&p, text);
        CHECK_INT(strlen(text), PIN_KEY_LEN);
        CHECK_INT(pin_parse(&back, text, &e), ST_OK);
        CHECK_INT(back.count, 1);
        CHECK_MEM(&back.keys[0], &p.keys[0], sizeof(struct digest));
    }
}

static void no_other_spelling_is_taken(void)
{
    static const char *const bad[] = {
        "",
        "sha256//",
        "sha256//=",
        "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",         // without its name
        "sha1//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",   // another digest
        "SHA256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", // other letters
        " " EMPTY,                                              // spaces
        EMPTY " ",                                              //
        EMPTY "\n",                                             //
        "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",  // cut
        "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuF==", // 31 bytes
        "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=", // bits that are no byte's
        "sha256//47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU=", // base64url
        "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFUA", // 33 bytes
        "sha256//47DEQpj8HBSa+/TImW+5JCeuQe=km5NMpJWZG3hSuFU=", // an end in the middle
        EMPTY ";",                                              // a second that is not there
        ";" EMPTY,                                              //
        EMPTY ABC,                                              // nothing between
        EMPTY ";;" ABC,                                         //
        EMPTY ";" ABC ";" EMPTY,                                // three
        EMPTY ";pins.pem",                                      //
        "pins.pem",                                             // libcurl would read a file
        "/etc/passwd",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct pin p;
        struct pin before;
        struct err e = {0};
        memset(&p, 0x5a, sizeof(p));
        before = p;
        CHECK_INT(pin_parse(&p, bad[i], &e), ST_INVALID);
        CHECK_MEM(&p, &before, sizeof(p));
        CHECK(strstr(e.msg, "; try sha256//") != NULL);
    }
}

static void each_changed_character_is_another_pin_or_none(void)
{
    struct pin want;
    struct err e = {0};
    CHECK_INT(pin_parse(&want, ABC, &e), ST_OK);
    for (size_t at = 0; at < PIN_KEY_LEN; at++) {
        for (int c = 0; c < 256; c++) {
            char text[] = ABC;
            struct pin p;
            if ((char)c == text[at]) {
                continue;
            }
            text[at] = (char)c;
            CHECK(pin_parse(&p, text, &e) || !digest_equal(&p.keys[0], &want.keys[0]));
        }
    }
}

int main(void)
{
    RUN(a_pin_is_the_digest_that_curl_prints);
    RUN(every_digest_reads_back);
    RUN(no_other_spelling_is_taken);
    RUN(each_changed_character_is_another_pin_or_none);
    return check_end();
}
