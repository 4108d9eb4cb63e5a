#include "client/spec_edit.h"

#include <string.h>

#include "common/buf.h"
#include "common/json.h"
#include "common/limits.h"

/*
 * Documents are read-only here, so a change is a copy: print every member but the one on the path,
 * and recurse into that one.
 */
static enum status write_with(struct buf *b, struct arena *a, const char *key, const struct json *v,
                              const char *path, const char *value, struct err *e)
{
    size_t n = strcspn(path, ".");
    bool last = path[n] == '\0';
    if (n == 0 || (path[n] == '.' && path[n + 1] == '\0')) {
        return err_set(e, ST_INVALID, "--set '%.60s' has an empty key; try outer.lr=0.7", path);
    }
    if (v && json_kind(v) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "--set '%.60s' goes into something that is no object", path);
    }
    const char *name = arena_fmt(a, "%.*s", (int)n, path);
    jw_object(b, key);
    int count = v ? json_len(v) : 0;
    for (int i = 0; i < count; i++) {
        const char *k = json_key_at(v, i);
        if (strcmp(k, name) != 0) {
            jw_raw(b, k, json_print(a, json_at(v, i)));
        }
    }
    if (last) {
        const struct json *parsed = NULL;
        struct err unused = {0};
        if (json_parse(&parsed, a, value, strlen(value), &unused) == ST_OK) {
            jw_raw(b, name, json_print(a, parsed));
        } else {
            jw_str(b, name, value);
        }
    } else {
        TRY(write_with(b, a, name, v ? json_get(v, name) : NULL, path + n + 1, value, e));
    }
    jw_end_object(b);
    return ST_OK;
}

static enum status apply_set(struct arena *a, const char *set, const char **text, struct err *e)
{
    const char *eq = strchr(set, '=');
    if (!eq) {
        return err_set(e, ST_INVALID, "--set '%.60s' has no '='; try outer.lr=0.7", set);
    }
    const struct json *doc = NULL;
    TRY(json_parse(&doc, a, *text, strlen(*text), e));
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_BODY);
    enum status st =
        write_with(&b, a, NULL, doc, arena_fmt(a, "%.*s", (int)(eq - set), set), eq + 1, e);
    if (!st && b.full) {
        st = err_set(e, ST_LIMIT, "the spec is over %d bytes", LIMIT_CONTROL_BODY);
    }
    if (!st) {
        *text = arena_fmt(a, "%s", b.data);
    }
    buf_release(&b);
    return st;
}

enum status spec_edit(struct arena *a, const char *text, const char *const *sets, int count,
                      const char **out, struct err *e)
{
    const struct json *doc = NULL;
    TRY(json_parse(&doc, a, text, strlen(text), e));
    if (json_kind(doc) != JSON_OBJECT) {
        return err_set(e, ST_INVALID, "a run spec is a JSON object");
    }
    for (int i = 0; i < count; i++) {
        TRY(apply_set(a, sets[i], &text, e));
    }
    *out = text;
    return ST_OK;
}
