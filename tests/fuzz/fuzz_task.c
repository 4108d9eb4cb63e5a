/* A task that is accepted stays inside its bounds and reads the same twice; a
 * refused one writes nothing. */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "client/task.h"
#include "common/arena.h"
#include "common/id.h"
#include "common/limits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct arena *a = arena_new(64 * 1024 * 1024);
    const struct json *doc = NULL;
    struct err e = {0};
    struct task t;
    struct task again;
    memset(&t, 0x5a, sizeof(t));
    memset(&again, 0x5a, sizeof(again));
    struct task before = t;
    if (len <= LIMIT_CONTROL_BODY && json_parse(&doc, a, (const char *)data, len, &e) == ST_OK) {
        enum status st = task_parse(&t, doc, &e);
        assert(task_parse(&again, doc, &e) == st);
        assert(memcmp(&t, &again, sizeof(t)) == 0);
        if (st) {
            assert(memcmp(&t, &before, sizeof(t)) == 0);
        } else {
            assert(id_valid('t', t.id) && id_valid('r', t.run));
            assert(t.base_bytes > 0 && t.base_bytes <= LIMIT_BLOB);
            assert(t.kind == TASK_EVALUATE || (t.local_steps > 0 && t.chunk_bytes <= LIMIT_CHUNK));
            struct round_key k = task_key(&t);
            assert(strcmp(k.base, t.base_sha256) == 0);
        }
    }
    arena_free(a);
    return 0;
}
