#include "common/pin.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

static const char LEAD[] = "sha256//";
static const char SIGNS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

enum { LEAD_LEN = sizeof(LEAD) - 1 };

/* 32 bytes are ten groups of three and one of two: 43 signs, then '=' for the byte that is not. */
static void print_key(const struct digest *d, char *out)
{
    memcpy(out, LEAD, LEAD_LEN);
    out += LEAD_LEN;
    for (int at = 0; at < DIGEST_SIZE; at += 3) {
        unsigned v = (unsigned)d->bytes[at] << 16 | (unsigned)d->bytes[at + 1] << 8 |
                     (at + 2 < DIGEST_SIZE ? d->bytes[at + 2] : 0U);
        for (int shift = 18; shift >= 0; shift -= 6) {
            *out++ = SIGNS[v >> shift & 63U];
        }
    }
    out[-1] = '=';
}

/* False: not the 52 characters that print_key() writes for some digest. */
static bool parse_key(struct digest *out, const char *text)
{
    if (strncmp(text, LEAD, LEAD_LEN) != 0) {
        return false;
    }
    unsigned v = 0;
    int bits = 0;
    int n = 0;
    for (const char *p = text + LEAD_LEN; p < text + PIN_KEY_LEN - 1; p++) {
        const char *sign = *p ? strchr(SIGNS, *p) : NULL;
        if (!sign) {
            return false;
        }
        v = (v << 6 | (unsigned)(sign - SIGNS)) & 0xffffU;
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            out->bytes[n++] = (uint8_t)(v >> bits);
        }
    }
    // Of the last sign two bits are no byte's: a second spelling, unless they are 0.
    return text[PIN_KEY_LEN - 1] == '=' && (v & 3U) == 0;
}

enum status pin_parse(struct pin *out, const char *text, struct err *e)
{
    struct pin p = {.count = 0};
    const char *at = text;
    bool more = true;
    while (more && p.count < PIN_KEYS_MAX && parse_key(&p.keys[p.count], at)) {
        p.count++;
        at += PIN_KEY_LEN;
        more = *at == ';';
        at += more ? 1 : 0;
    }
    if (more || *at) {
        return err_set(e, ST_INVALID,
                       "'%.110s' is no pin; try sha256// and 44 characters, as the join line has "
                       "it (two with a ';' between them)",
                       text);
    }
    *out = p;
    return ST_OK;
}

void pin_print(const struct pin *p, char out[PIN_TEXT_MAX + 1])
{
    assert(p->count >= 1 && p->count <= PIN_KEYS_MAX);
    for (int i = 0; i < p->count; i++) {
        print_key(&p->keys[i], out);
        out += PIN_KEY_LEN;
        *out++ = ';';
    }
    out[-1] = '\0';
}
