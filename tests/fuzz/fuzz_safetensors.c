/*
 * Any bytes as the beginning of a safetensors file; the first 8 bytes say how long the whole file
 * is. Property: the tensors of an accepted header cover its data exactly, in order, each as large
 * as its shape says.
 */
#include <stdlib.h>
#include <string.h>

#include "common/safetensors.h"

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

static void check(const struct st_header *h)
{
    int64_t at = 0;
    for (int32_t i = 0; i < h->tensor_count; i++) {
        const struct st_tensor *t = &h->tensors[i];
        int64_t count = 1;
        for (int32_t d = 0; d < t->rank; d++) {
            count *= t->shape[d];
        }
        if (t->begin != at || t->end < t->begin || (t->end - t->begin) % (count > 0 ? count : 1) ||
            t->name[0] == '\0' || strstr(t->name, "..")) {
            abort();
        }
        at = t->end;
    }
    if (at != h->data_bytes) {
        abort();
    }
    for (int32_t i = 0; i < h->meta_count; i++) {
        if (!st_meta_get(h, h->meta[i].key)) {
            abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size)
{
    int64_t file_bytes = 0;
    if (size < sizeof(file_bytes)) {
        return 0;
    }
    memcpy(&file_bytes, bytes, sizeof(file_bytes));
    bytes += sizeof(file_bytes);
    size -= sizeof(file_bytes);
    struct arena *a = arena_new(1 << 22);
    struct st_header h;
    struct err e = {0};
    if (st_parse(&h, a, bytes, (int64_t)size, file_bytes, &e) == ST_OK) {
        check(&h);
    } else if (e.msg[0] == '\0') {
        abort();
    }
    arena_free(a);
    return 0;
}
