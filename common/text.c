#include "common/text.h"

#include <string.h>

size_t text_char_len(const char *text, size_t left)
{
    const unsigned char *s = (const unsigned char *)text;
    if (left == 0) {
        return 0;
    }
    unsigned char c = s[0];
    size_t len = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if ((c >= 0x80 && c < 0xc2) || c > 0xf4 || left < len) {
        return 0;
    }
    for (size_t k = 1; k < len; k++) {
        if ((s[k] & 0xc0) != 0x80) {
            return 0;
        }
    }
    unsigned char next = len > 1 ? s[1] : 0;
    if ((c == 0xe0 && next < 0xa0) || (c == 0xed && next > 0x9f) || (c == 0xf0 && next < 0x90) ||
        (c == 0xf4 && next > 0x8f)) {
        return 0;
    }
    return len;
}

bool text_is_utf8(const char *text)
{
    size_t left = strlen(text);
    while (left > 0) {
        size_t n = text_char_len(text, left);
        if (n == 0) {
            return false;
        }
        text += n;
        left -= n;
    }
    return true;
}

void text_repair(char *text)
{
    size_t left = strlen(text);
    while (left > 0) {
        size_t n = text_char_len(text, left);
        if (n == 0) {
            *text = '?';
            n = 1;
        }
        text += n;
        left -= n;
    }
}

size_t text_plain(char *text)
{
    size_t changed = 0;
    for (unsigned char *c = (unsigned char *)text; *c; c++) {
        size_t len = *c < 0x20 || *c == 0x7f                      ? 1
                     : *c == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f ? 2
                                                                  : 0;
        memset(c, ' ', len);
        c += len == 2;
        changed += len;
    }
    return changed;
}
