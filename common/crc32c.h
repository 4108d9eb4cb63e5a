/*
 * crc32c.h - the Castagnoli CRC of bytes as they stream by (RFC 3720, B.4).
 *
 * Finds what a wire or a disk does to bytes, for a tenth of what SHA-256 costs where the processor
 * has an instruction for it; says nothing of what somebody does on purpose.
 */
#ifndef COMMON_CRC32C_H
#define COMMON_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The CRC of what came before, then these bytes; 0 before the first. */
uint32_t crc32c_add(uint32_t crc, const void *bytes, size_t len);

#endif
