#include "client/utf8.h"

#include <string.h>
#include <utf8proc.h>

#include "common/mem.h"

/* Sequence length by lead byte; 0: no lead. */
static size_t sequence(unsigned char lead)
{
    return lead < 0x80   ? 1
           : lead < 0xc2 ? 0
           : lead < 0xe0 ? 2
           : lead < 0xf0 ? 3
           : lead < 0xf5 ? 4
                         : 0;
}

/* The second byte has a narrower range after four of the leads (Unicode, table 3-7). */
static bool second_ok(unsigned char lead, unsigned char c)
{
    switch (lead) {
    case 0xe0:
        return c >= 0xa0 && c <= 0xbf;
    case 0xed:
        return c >= 0x80 && c <= 0x9f;
    case 0xf0:
        return c >= 0x90 && c <= 0xbf;
    case 0xf4:
        return c >= 0x80 && c <= 0x8f;
    default:
        return c >= 0x80 && c <= 0xbf;
    }
}

int32_t utf8_at(const char *s, size_t n, size_t *len)
{
    unsigned char lead = (unsigned char)s[0];
    size_t want = sequence(lead);
    *len = 1;
    if (want == 1) {
        return lead;
    }
    if (want == 0) {
        return UTF8_BAD;
    }
    int32_t c = lead & (0x7f >> want);
    for (size_t i = 1; i < want; i++) {
        if (i == n) {
            *len = n;
            return UTF8_MORE;
        }
        unsigned char next = (unsigned char)s[i];
        if (i == 1 ? !second_ok(lead, next) : (next & 0xc0) != 0x80) {
            *len = i;
            return UTF8_BAD;
        }
        c = c << 6 | (next & 0x3f);
    }
    *len = want;
    return c;
}

size_t utf8_ascii(const char *s, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t word;
        memcpy(&word, s + i, 8);
        if (word & 0x8080808080808080U) {
            break;
        }
    }
    while (i < n && (unsigned char)s[i] < 0x80) {
        i++;
    }
    return i;
}

size_t utf8_cut(const char *s, size_t n)
{
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = (unsigned char)s[n - back];
        if ((c & 0xc0) != 0x80) {
            size_t len = 0;
            return utf8_at(s + n - back, back, &len) == UTF8_MORE ? back : 0;
        }
    }
    return 0;
}

void utf8_repair(struct buf *out, const char *s, size_t n)
{
    size_t good = 0; // bytes from s on that are known to be valid
    for (size_t i = 0; i < n;) {
        size_t ascii = utf8_ascii(s + i, n - i);
        i += ascii;
        if (i == n) {
            break;
        }
        size_t len = 0;
        if (utf8_at(s + i, n - i, &len) < 0) {
            buf_add(out, s + good, i - good);
            buf_add(out, "\xef\xbf\xbd", 3);
            good = i + len;
        }
        i += len;
    }
    buf_add(out, s + good, n - good);
}

/*
 * Characters that compose with what is before them are combining marks or conjoining jamo, all of
 * which extend a grapheme; what begins one is safe (checked over all of Unicode by the tests).
 */
static bool begins(int32_t c)
{
    if (c < 0x300) {
        return true;
    }
    const utf8proc_property_t *p = utf8proc_get_property(c);
    return p->combining_class == 0 && p->boundclass == UTF8PROC_BOUNDCLASS_OTHER;
}

size_t utf8_nfc_boundary(const char *s, size_t n)
{
    for (size_t i = n; i > 0;) {
        i--;
        size_t len = 0;
        if (((unsigned char)s[i] & 0xc0) != 0x80 && begins(utf8_at(s + i, n - i, &len))) {
            return i;
        }
    }
    return 0;
}

enum status utf8_nfc(struct buf *out, const char *s, size_t n, struct err *e)
{
    if (utf8_ascii(s, n) == n) {
        buf_add(out, s, n);
        return ST_OK;
    }
    static const utf8proc_option_t NFC = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    const utf8proc_uint8_t *text = (const utf8proc_uint8_t *)s;
    // A place a byte holds most text; what decomposes further says how many it needs.
    size_t room = n + 64;
    void *block = NULL;
    TRY(mem_alloc_large(&block, room * sizeof(int32_t), e));
    utf8proc_ssize_t count =
        utf8proc_decompose(text, (utf8proc_ssize_t)n, block, (utf8proc_ssize_t)room, NFC);
    if (count > (utf8proc_ssize_t)room) {
        mem_free(block);
        room = (size_t)count;
        TRY(mem_alloc_large(&block, room * sizeof(int32_t), e));
        count = utf8proc_decompose(text, (utf8proc_ssize_t)n, block, count, NFC);
    }
    if (count >= 0) {
        count = utf8proc_normalize_utf32(block, count, NFC);
    }
    int32_t *chars = block;
    for (utf8proc_ssize_t i = 0; i < count; i++) {
        utf8proc_uint8_t bytes[4];
        buf_add(out, bytes, (size_t)utf8proc_encode_char(chars[i], bytes));
    }
    mem_free(block);
    return count < 0 ? err_set(e, ST_INVALID, "cannot normalize text: %s", utf8proc_errmsg(count))
                     : ST_OK;
}

const char *utf8_unicode_version(void)
{
    return utf8proc_unicode_version();
}
