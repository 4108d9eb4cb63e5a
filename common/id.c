#include "common/id.h"

#include <stdint.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"

static const char DIGITS[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

void id_new(char prefix, char out[ID_LEN + 1])
{
    uint64_t ms = (uint64_t)clock_wall_ms();
    uint8_t noise[16];
    random_bytes(noise, sizeof(noise));
    out[0] = prefix;
    out[1] = '_';
    for (int i = 0; i < 10; i++) {
        out[2 + i] = DIGITS[(ms >> (45 - 5 * i)) & 31];
    }
    for (int i = 0; i < 16; i++) {
        out[12 + i] = DIGITS[noise[i] & 31];
    }
    out[ID_LEN] = '\0';
}

bool id_valid(char prefix, const char *text)
{
    if (!text || strlen(text) != ID_LEN || text[0] != prefix || text[1] != '_') {
        return false;
    }
    return strspn(text + 2, DIGITS) == ID_LEN - 2;
}
