#include "common/run_header.h"

#include <inttypes.h>
#include <string.h>

#include "common/limits.h"
#include "common/safetensors.h"

enum { META_COUNT = 4 };

void run_spec_digest(const struct run_spec *spec, struct digest *out)
{
    struct arena *a = arena_new(LIMIT_REQUEST_ARENA);
    const char *text = run_spec_json(a, spec);
    sha256_of(text, strlen(text), out);
    arena_free(a);
}

void *run_header(struct arena *a, const struct run_spec *spec, const struct param_table *table,
                 const char *kind, int32_t round, int64_t *len)
{
    struct digest d;
    char hex[DIGEST_HEX + 1];
    run_spec_digest(spec, &d);
    digest_hex(&d, hex);
    const struct st_meta meta[META_COUNT] = {{"kind", kind},
                                             {"run", spec->name},
                                             {"round", arena_fmt(a, "%08" PRId32, round)},
                                             {"spec_sha256", hex}};
    return st_params_header(a, table, meta, META_COUNT, len);
}
