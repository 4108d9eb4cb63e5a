#include "common/crc32c.h"

#include <string.h>

#include "common/rng.h"
#include "tests/support/check.h"

/* One bit at a time, as the polynomial says. */
static uint32_t by_bits(const unsigned char *p, size_t len)
{
    uint32_t c = ~0U;
    for (size_t i = 0; i < len; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++) {
            c = c & 1 ? (c >> 1) ^ 0x82f63b78U : c >> 1;
        }
    }
    return ~c;
}

/* RFC 3720, B.4, and the check value of every catalogue of CRCs. */
static void it_is_the_crc_of_the_standard(void)
{
    unsigned char bytes[32];
    CHECK_INT(crc32c_add(0, "123456789", 9), 0xe3069283U);
    memset(bytes, 0, sizeof(bytes));
    CHECK_INT(crc32c_add(0, bytes, 32), 0x8a9136aaU);
    memset(bytes, 0xff, sizeof(bytes));
    CHECK_INT(crc32c_add(0, bytes, 32), 0x62a8ab43U);
    for (int i = 0; i < 32; i++) {
        bytes[i] = (unsigned char)i;
    }
    CHECK_INT(crc32c_add(0, bytes, 32), 0x46dd794eU);
    CHECK_INT(crc32c_add(0, bytes, 0), 0);
}

static void pieces_add_up_however_they_are_cut(void)
{
    unsigned char bytes[1000];
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (unsigned char)rng_u64(1, i);
    }
    for (size_t cut = 0; cut <= sizeof(bytes); cut += 7) {
        uint32_t crc = crc32c_add(0, bytes, cut);
        CHECK_INT(crc32c_add(crc, bytes + cut, sizeof(bytes) - cut), by_bits(bytes, sizeof(bytes)));
        CHECK_INT(crc32c_add(0, bytes + cut % 9, cut / 2), by_bits(bytes + cut % 9, cut / 2));
    }
}

int main(void)
{
    RUN(it_is_the_crc_of_the_standard);
    RUN(pieces_add_up_however_they_are_cut);
    return check_end();
}
