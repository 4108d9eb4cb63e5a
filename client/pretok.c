#include "client/pretok.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <assert.h>
#include <ctype.h>
#include <pcre2.h>
#include <string.h>

#include "common/buf.h"
#include "common/mem.h"

enum { PATTERN_MAX = 8 * 1024, MATCH_LIMIT = 1000 * 1000, STACK_MIN = 32 * 1024 };
enum { STACK_MAX = 8 * 1024 * 1024 };

// Unicode's White_Space, for use inside [ ].
#define SPACES                                                                                     \
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"        \
    "\\x{205f}\\x{3000}"

static const char GPT2[] = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^" SPACES "\\p{L}\\p{N}]+|"
                           "[" SPACES "]+(?![^" SPACES "])|[" SPACES "]+";

static const uint32_t REGEX = PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;

struct pretok {
    pcre2_code *code;
};

struct pretok_match {
    const pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

static enum status compile(struct pretok **out, const char *pattern, size_t len, uint32_t options,
                           struct err *e)
{
    int code = 0;
    PCRE2_SIZE at = 0;
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)pattern, len, options | PCRE2_UTF, &code, &at, NULL);
    if (!c) {
        PCRE2_UCHAR text[120];
        (void)pcre2_get_error_message(code, text, sizeof(text));
        return err_set(e, ST_INVALID, "the pre-tokenizer's pattern at byte %zu: %s", at,
                       (const char *)text);
    }
    uint32_t behind = 0;
    (void)pcre2_pattern_info(c, PCRE2_INFO_MAXLOOKBEHIND, &behind);
    if (behind > 0) {
        pcre2_code_free(c);
        return err_set(e, ST_INVALID,
                       "the pre-tokenizer's pattern looks behind its match, which "
                       "is not supported");
    }
    // Where JIT is not allowed the interpreter gives the same answers, slower.
    (void)pcre2_jit_compile(c, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
    struct pretok *p = mem_alloc(sizeof(*p));
    p->code = c;
    *out = p;
    return ST_OK;
}

struct pretok *pretok_gpt2(void)
{
    struct pretok *p = NULL;
    enum status st = compile(&p, GPT2, sizeof(GPT2) - 1, REGEX, NULL);
    assert(!st);
    (void)st;
    return p;
}

static enum status unsupported(struct err *e, const char *what, int len)
{
    return err_set(e, ST_INVALID, "the pre-tokenizer's pattern has '%.*s', which is not supported",
                   len, what);
}

/*
 * What begins at c and means another thing, or nothing exact, in a stream cut into blocks: anchors,
 * words and vertical space, references, inline options, verbs. How many bytes of it
 * to show; 0: fine.
 */
static int strange(const char *c, bool class)
{
    if (*c == '\\') {
        // sS are spelled out; p P d D mean the same to all, as do these characters.
        return c[1] == '\0' || (isalnum((unsigned char)c[1]) && !strchr("sSpPdDnrtfx", c[1])) ? 2
                                                                                              : 0;
    }
    if (class) {
        // Oniguruma nests and intersects classes, PCRE2 takes these letters as they are.
        return *c == '[' ? 1 : strncmp(c, "&&", 2) == 0 ? 2 : 0;
    }
    if (*c == '^' || *c == '$') {
        return 1;
    }
    if (strncmp(c, "(*", 2) == 0 || strncmp(c, "[]", 2) == 0) {
        return 2;
    }
    if (strncmp(c, "[^]", 3) == 0) {
        return 3;
    }
    bool group = strncmp(c, "(?", 2) == 0;
    return group && !(c[2] && strchr(":!=>", c[2])) && strncmp(c, "(?i:", 4) != 0 ? 3 : 0;
}

/* Spell \s and \S out, inside and outside of classes. */
static enum status spell(struct buf *out, const char *pattern, struct err *e)
{
    bool class = false;
    for (const char *c = pattern; *c; c++) {
        int bad = strange(c, class);
        if (bad > 0 || (class && c[0] == '\\' && c[1] == 'S')) {
            return unsupported(e, c, bad > 0 ? bad : 2);
        }
        if (*c == '\\' && c[1] == 's') {
            buf_str(out, class ? SPACES : "[" SPACES "]");
            c++;
        } else if (*c == '\\' && c[1] == 'S') {
            buf_str(out, "[^" SPACES "]");
            c++;
        } else if (*c == '\\') {
            buf_add(out, c, 2);
            c++;
        } else {
            class = *c == '[' || (class && *c != ']');
            buf_add(out, c, 1);
            if (*c == '[' && c[1] == '^') {
                buf_add(out, ++c, 1);
            }
        }
    }
    return ST_OK;
}

enum status pretok_regex(struct pretok **out, const char *pattern, struct err *e)
{
    if (strlen(pattern) > PATTERN_MAX) {
        return err_set(e, ST_INVALID, "the pre-tokenizer's pattern is over %d bytes", PATTERN_MAX);
    }
    struct buf b;
    buf_init(&b, PATTERN_MAX * (sizeof(SPACES) + 4));
    enum status st = spell(&b, pattern, e);
    if (!st) {
        st = compile(out, b.data, b.len, REGEX, e);
    }
    buf_release(&b);
    return st;
}

enum status pretok_string(struct pretok **out, const char *text, struct err *e)
{
    if (*text == '\0' || strlen(text) > PATTERN_MAX) {
        return err_set(e, ST_INVALID, "the pre-tokenizer's string must have 1 to %d bytes",
                       PATTERN_MAX);
    }
    return compile(out, text, strlen(text), PCRE2_LITERAL, e);
}

void pretok_free(struct pretok *p)
{
    if (p) {
        pcre2_code_free(p->code);
        mem_free(p);
    }
}

struct pretok_match *pretok_match_new(const struct pretok *p)
{
    struct pretok_match *m = mem_alloc(sizeof(*m));
    m->code = p->code;
    m->data = pcre2_match_data_create_from_pattern(p->code, NULL);
    m->context = pcre2_match_context_create(NULL);
    m->stack = pcre2_jit_stack_create(STACK_MIN, STACK_MAX, NULL);
    assert(m->data && m->context);
    if (m->stack) {
        pcre2_jit_stack_assign(m->context, NULL, m->stack);
    }
    (void)pcre2_set_match_limit(m->context, MATCH_LIMIT);
    return m;
}

void pretok_match_free(struct pretok_match *m)
{
    if (m) {
        pcre2_jit_stack_free(m->stack);
        pcre2_match_context_free(m->context);
        pcre2_match_data_free(m->data);
        mem_free(m);
    }
}

enum status pretok_next(struct pretok_match *m, const char *s, size_t n, size_t from, bool last,
                        size_t *begin, size_t *end, bool *more, struct err *e)
{
    *more = false;
    uint32_t options =
        PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | (last ? 0U : (uint32_t)PCRE2_PARTIAL_HARD);
    int rc = pcre2_match(m->code, (PCRE2_SPTR)s, n, from, options, m->data, m->context);
    if (rc == PCRE2_ERROR_PARTIAL || (rc == PCRE2_ERROR_NOMATCH && !last)) {
        *more = true;
        return ST_OK;
    }
    if (rc == PCRE2_ERROR_NOMATCH) {
        *begin = *end = n;
        return ST_OK;
    }
    if (rc < 0) {
        return err_set(e, ST_LIMIT, "the pre-tokenizer's pattern takes too long (PCRE2 says %d)",
                       rc);
    }
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(m->data);
    *begin = at[0];
    *end = at[1];
    return *begin < *end && *begin >= from
               ? ST_OK
               : err_set(e, ST_INVALID, "the pre-tokenizer's pattern moves its match with \\K");
}

const char *pretok_unicode_version(void)
{
    static _Thread_local char text[24]; // PCRE2 asks for this many at least
    return pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, text) > 0 ? text : "";
}
