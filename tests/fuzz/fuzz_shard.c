/*
 * Any bytes as a token shard (first byte even) or as a manifest (odd). Properties: an accepted head
 * describes exactly the bytes there are; an accepted manifest prints as one that prints the same.
 */
#include <stdlib.h>
#include <string.h>

#include "client/shard.h"

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

static void head(const unsigned char *bytes, size_t size)
{
    struct shard_head h;
    if (shard_head_parse(&h, bytes, (int64_t)size, (int64_t)size, NULL) == ST_OK) {
        if (SHARD_HEAD_BYTES + h.tokens * h.width != (int64_t)size) {
            abort();
        }
        struct shard s = {.head = h, .map = bytes, .map_bytes = (int64_t)size};
        int32_t ids[16];
        int64_t some = h.tokens < 16 ? h.tokens : 16;
        shard_read(&s, h.tokens - some, some, ids);
        unsigned char again[SHARD_HEAD_BYTES];
        shard_head_write(&h, again);
        if (memcmp(again, bytes, 12) != 0) {
            abort();
        }
    }
}

static void manifest(const unsigned char *bytes, size_t size)
{
    struct arena *a = arena_new((size_t)1 << 26);
    struct manifest m;
    struct err e = {0};
    if (manifest_parse(&m, a, (const char *)bytes, size, &e) == ST_OK) {
        struct buf one;
        struct buf two;
        buf_init(&one, MANIFEST_MAX);
        buf_init(&two, MANIFEST_MAX);
        manifest_print(&one, &m);
        if (manifest_parse(&m, a, one.data, one.len, &e)) {
            abort();
        }
        manifest_print(&two, &m);
        if (strcmp(one.data, two.data) != 0) {
            abort();
        }
        buf_release(&one);
        buf_release(&two);
    }
    arena_free(a);
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size)
{
    if (size > 0) {
        (bytes[0] % 2 == 0 ? head : manifest)(bytes + 1, size - 1);
    }
    return 0;
}
