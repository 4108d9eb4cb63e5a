#include "client/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "client/bpe_train.h"
#include "client/utf8.h"
#include "common/hash.h"
#include "common/mem.h"
#include "tests/support/check.h"

enum { IDS_MAX = 1 << 21 };

static int32_t ids[IDS_MAX];
static int32_t id_count;

static enum status collect(void *ctx, const int32_t *more, int32_t count, struct err *e)
{
    (void)ctx;
    if (count > IDS_MAX - id_count) {
        return err_set(e, ST_LIMIT, "too many ids");
    }
    memcpy(ids + id_count, more, (size_t)count * sizeof(*more));
    id_count += count;
    return ST_OK;
}

/* Encodes in blocks of that size. */
static enum status encode_in(const struct tokenizer *t, const char *s, size_t n, size_t block,
                             bool specials)
{
    struct err e = {0};
    struct encoder *enc = encoder_new(t, specials, collect, NULL);
    id_count = 0;
    enum status st = ST_OK;
    for (size_t at = 0; at < n && !st; at += block) {
        st = encoder_add(enc, s + at, n - at < block ? n - at : block, &e);
    }
    st = st ? st : encoder_end(enc, &e);
    encoder_free(enc);
    return st;
}

static void encodes_to(const struct tokenizer *t, const char *s, const char *want)
{
    char got[512] = "";
    size_t len = 0;
    CHECK_INT(encode_in(t, s, strlen(s), 1 << 20, true), ST_OK);
    for (int32_t i = 0; i < id_count && len < sizeof(got) - 12; i++) {
        len += (size_t)snprintf(got + len, sizeof(got) - len, "%s%d", i ? " " : "", ids[i]);
    }
    CHECK_STR(got, want);
}

static void decodes_to(const struct tokenizer *t, const char *want, size_t n)
{
    struct buf b;
    buf_init(&b, 1 << 24);
    tokenizer_decode(t, ids, id_count, true, &b);
    CHECK_INT(b.len, n);
    CHECK_MEM(b.data, want, n);
    buf_release(&b);
}

/* ---- a small tokenizer.json around 256 bytes ---- */

/* Ids: end 0, bytes 1..256, then the tokens in `more`. */
static char *file(const char *more, const char *merges, const char *added, const char *head)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    buf_fmt(&b,
            "{\"added_tokens\":[{\"id\":0,\"content\":\"<|endoftext|>\",\"special\":true}%s],%s",
            added, head);
    buf_str(&b, ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{");
    int id = 1;
    for (int byte = 0; byte < 256; byte++) {
        bool self =
            (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        static int other;
        other = byte == 0 ? 0 : other;
        int c = self ? byte : 0x100 + other++;
        char text[3] = {(char)(c < 0x80 ? c : 0xc0 | c >> 6), (char)(0x80 | (c & 0x3f)), 0};
        text[1] = c < 0x80 ? '\0' : text[1];
        buf_fmt(&b, "%s\"%s%s\":%d", byte ? "," : "", c == '"' || c == '\\' ? "\\" : "", text,
                id++);
    }
    buf_fmt(&b, "%s},\"merges\":[%s]}}", more, merges);
    return buf_take(&b);
}

#define BYTE_LEVEL "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
#define NFC        "\"normalizer\":{\"type\":\"NFC\"},"
// "Ġ" is the space's name.
#define SP "\xc4\xa0"

static const char MORE[] = ",\"th\":257,\"the\":258,\"" SP "th\":259,\"" SP "the\":260,\"aa\":261";
static const char MERGES[] = "\"t h\",\"" SP " th\",[\"th\",\"e\"],\"" SP "th e\",\"a a\"";

static struct tokenizer *small(const char *added, const char *head)
{
    char *json = file(MORE, MERGES, added, head);
    struct tokenizer *t = NULL;
    struct err e = {0};
    enum status st = tokenizer_parse(&t, json, strlen(json), &e);
    mem_free(json);
    CHECK_STR(st ? e.msg : "", "");
    return t;
}

static void refused(const char *more, const char *merges, const char *added, const char *head,
                    const char *says)
{
    char *json = file(more, merges, added, head);
    struct tokenizer *t = NULL;
    struct err e = {0};
    enum status st = tokenizer_parse(&t, json, strlen(json), &e);
    mem_free(json);
    CHECK_INT(st, ST_INVALID);
    CHECK(t == NULL);
    if (!strstr(e.msg, says)) {
        CHECK_STR(e.msg, says);
    }
}

/* ---- texts ---- */

static const char *const TEXTS[] = {
    "",
    "a",
    "the quick brown fox, the lazy dog; don't they'll I've",
    "caf\xc3\xa9 na\xc3\xafve \xe4\xb8\xad\xe6\x96\x87\xe5\xad\x97 "
    "\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e",
    "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7 "
    "\xf0\x9f\x87\xa9\xf0\x9f\x87\xaa",
    "line\r\n\r\n\r\nline \t\t x  \n  y   ",
    "\xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d \xd8\xb3\xd9\x84\xd8\xa7\xd9\x85",
    "nbsp\xc2\xa0here\xe2\x80\xa8there\xe3\x80\x80"
    "end",
    "for (int i = 0; i < 10; i++) { x[i] += 0x1f; }\n\treturn;",
    "12345 3.14159 \xc2\xbd \xe2\x85\xa7",
};
enum { TEXT_COUNT = sizeof(TEXTS) / sizeof(TEXTS[0]) };

static void bytes_are_two_more_than_themselves(void)
{
    struct tokenizer *t = tokenizer_bytes();
    struct tokenizer_info info;
    tokenizer_info(t, &info);
    CHECK_STR(info.sha256, "");
    CHECK_INT(info.vocab_size, 320);
    CHECK_INT(info.end_of_text, 0);
    CHECK_INT(info.padding, 1);

    char all[256];
    for (int i = 0; i < 256; i++) {
        all[i] = (char)i;
    }
    CHECK_INT(encode_in(t, all, 256, 100, false), ST_OK);
    CHECK_INT(id_count, 256);
    CHECK_INT(ids[0], 2);
    CHECK_INT(ids[255], 257);
    decodes_to(t, all, 256);
    CHECK_INT(tokenizer_token_bytes(t, 0), 0);
    CHECK_INT(tokenizer_token_bytes(t, 200), 1);
    CHECK_INT(tokenizer_token_bytes(t, 258), 0);
    CHECK_INT(tokenizer_token_bytes(t, -1), 0);
    tokenizer_free(t);
}

static void merges_go_by_rank_and_from_the_left(void)
{
    struct tokenizer *t = small("", BYTE_LEVEL);
    encodes_to(t, "the", "258");
    encodes_to(t, " the", "260");
    encodes_to(t, "the the", "258 260");
    encodes_to(t, "aaa", "261 98");
    encodes_to(t, "aaaa", "261 261");
    encodes_to(t, "th'the", "257 40 117 105 102"); // 't is a piece
    encodes_to(t, "", "");
    tokenizer_free(t);
}

static void long_pieces_merge_like_short_ones(void)
{
    struct tokenizer *t = small("", BYTE_LEVEL);
    static char text[200];
    memset(text, 'a', 199);
    CHECK_INT(encode_in(t, text, 199, 1000, false), ST_OK);
    CHECK_INT(id_count, 100);
    CHECK_INT(ids[98], 261);
    CHECK_INT(ids[99], 98);
    for (int i = 0; i < 66; i++) {
        memcpy(text + 3 * (size_t)i, i % 5 == 0 ? "xth" : "the", 3);
    }
    CHECK_INT(encode_in(t, text, 198, 1000, false), ST_OK);
    decodes_to(t, text, 198);
    for (int32_t i = 0; i < id_count; i++) {
        CHECK(ids[i] == 258 || ids[i] == 257 || ids[i] == 'x' + 1);
    }
    tokenizer_free(t);
}

static void added_tokens_are_found_leftmost_and_longest(void)
{
    struct tokenizer *t = small(",{\"id\":262,\"content\":\"  \",\"normalized\":true},"
                                "{\"id\":263,\"content\":\"   \",\"normalized\":true},"
                                "{\"id\":264,\"content\":\"<|x|>\",\"special\":true}",
                                NFC BYTE_LEVEL);
    encodes_to(t, "a   b", "98 263 99");
    encodes_to(t, "a    b", "98 263 33 99");
    encodes_to(t, "the<|endoftext|>the", "258 0 258");
    encodes_to(t, "<|x|><|endoftext|>", "264 0");

    // In somebody's document it is only text.
    CHECK_INT(encode_in(t, "<|endoftext|>", 13, 5, false), ST_OK);
    CHECK_INT(id_count, 13);
    CHECK_INT(tokenizer_token_bytes(t, 263), 3);
    CHECK_INT(tokenizer_token_bytes(t, 264), 0);
    tokenizer_free(t);
}

static void text_is_composed_before_it_is_cut(void)
{
    struct tokenizer *t = small("", NFC BYTE_LEVEL);
    CHECK_INT(encode_in(t, "e\xcc\x81x", 4, 1, false), ST_OK);
    decodes_to(t, "\xc3\xa9x", 3);
    CHECK_INT(encode_in(t, "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", 9, 1, false), ST_OK);
    decodes_to(t, "\xed\x95\x9c", 3); // jamo to a syllable
    tokenizer_free(t);
}

static void what_was_encoded_decodes_to_itself(void)
{
    struct tokenizer *t = small("", BYTE_LEVEL);
    for (int i = 0; i < TEXT_COUNT; i++) {
        CHECK_INT(encode_in(t, TEXTS[i], strlen(TEXTS[i]), 1 << 20, true), ST_OK);
        decodes_to(t, TEXTS[i], strlen(TEXTS[i]));
    }
    tokenizer_free(t);
}

static void bad_utf8_becomes_replacement_characters(void)
{
    static const char *const cases[][2] = {
        {"a\xff"
         "b",
         "a\xef\xbf\xbd"
         "b"},
        {"\xe4\xb8", "\xef\xbf\xbd"},                             // cut
        {"\xe4\xb8z", "\xef\xbf\xbdz"},                           // one for the subpart
        {"\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd"},                 // overlong
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, // surrogate
        {"\xf5\x80", "\xef\xbf\xbd\xef\xbf\xbd"},                 // above U+10FFFF
        {"\xf0\x9f\x91\xf0\x9f\x91\xa9", "\xef\xbf\xbd\xf0\x9f\x91\xa9"},
    };
    struct tokenizer *t = small("", NFC BYTE_LEVEL);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (size_t block = 1; block < 4; block++) {
            CHECK_INT(encode_in(t, cases[i][0], strlen(cases[i][0]), block, false), ST_OK);
            decodes_to(t, cases[i][1], strlen(cases[i][1]));
        }
    }
    tokenizer_free(t);
}

/* Every block size must give the ids of the whole. */
static void blocks_do_not_show(void)
{
    struct tokenizer *t =
        small(",{\"id\":262,\"content\":\"  \",\"normalized\":true}", NFC BYTE_LEVEL);
    struct buf all;
    buf_init(&all, 1 << 20);
    for (int i = 0; i < TEXT_COUNT; i++) {
        buf_str(&all, TEXTS[i]);
        buf_str(&all, "e\xcc\x81 <|endoftext|>\xff ");
    }
    static int32_t whole[4096];
    CHECK_INT(encode_in(t, all.data, all.len, all.len, true), ST_OK);
    int32_t count = id_count;
    CHECK(count < 4096);
    memcpy(whole, ids, (size_t)count * sizeof(*ids));
    for (size_t block = 1; block < 40; block++) {
        CHECK_INT(encode_in(t, all.data, all.len, block, true), ST_OK);
        CHECK_INT(id_count, count);
        CHECK_MEM(ids, whole, (size_t)count * sizeof(*ids));
    }
    buf_release(&all);
    tokenizer_free(t);
}

/* W+(?!W) leaves the last space to the next word; U+0085 is a space, U+FEFF and U+180E are none. */
static void pieces_are_those_of_gpt2(void)
{
    struct tokenizer *t = small("", BYTE_LEVEL);
    encodes_to(t, "a  the", "98 33 260");
    encodes_to(t, "a\n the", "98 11 260");
    encodes_to(t, "a \xc2\x85the", "98 33 195 134 258");
    encodes_to(t, "a\xef\xbb\xbfthe", "98 240 188 192 258");
    tokenizer_free(t);
}

static void endless_pieces_are_cut(void)
{
    struct tokenizer *t = small("", BYTE_LEVEL);
    size_t n = (size_t)3 << 20;
    char *text = mem_alloc(n);
    memset(text, 'a', n);
    CHECK_INT(encode_in(t, text, n, 1 << 16, false), ST_OK);
    CHECK_INT(id_count, n / 2);
    mem_free(text);
    tokenizer_free(t);
}

static void a_split_by_another_expression_is_followed(void)
{
    struct tokenizer *t = small("", "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
                                    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}|"
                                    "[^\\\\s\\\\p{N}]+|\\\\s+\"},\"behavior\":\"Isolated\","
                                    "\"invert\":false},{\"type\":\"Split\",\"pattern\":{\"String\":"
                                    "\"h\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\","
                                    "\"add_prefix_space\":false,\"use_regex\":false}]}");
    encodes_to(t, "the 1234aa", "117 105 102 33 50 51 52 53 261");
    tokenizer_free(t);
}

static void what_is_not_supported_is_refused_by_name(void)
{
    refused(MORE, MERGES, "", "\"normalizer\":{\"type\":\"Lowercase\"}," BYTE_LEVEL, "'Lowercase'");
    refused(MORE, MERGES, "", "\"pre_tokenizer\":{\"type\":\"Metaspace\"}", "'Metaspace'");
    refused(MORE, MERGES, "", "\"pre_tokenizer\":null", "not ByteLevel");
    refused(MORE, MERGES, "",
            "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true}",
            "add_prefix_space");
    refused(MORE, MERGES, "",
            "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
            "\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Removed\"}]}",
            "'Removed'");
    refused(MORE, MERGES, "",
            "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?<=a)b\"},"
            "\"behavior\":\"Isolated\"}",
            "'(?<'");
    static const char *const strange[] = {"a$",      "^a",     "a\\\\b",   "\\\\w+",  "(?i)a",
                                          "(*UTF)a", "[a[b]]", "(a)\\\\1", "[^\\\\S]"};
    for (size_t i = 0; i < sizeof(strange) / sizeof(strange[0]); i++) {
        char head[200];
        (void)snprintf(head, sizeof(head),
                       "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},"
                       "\"behavior\":\"Isolated\"}",
                       strange[i]);
        refused(MORE, MERGES, "", head, "which is not supported");
    }
    refused(MORE, MERGES, "",
            "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},"
            "\"behavior\":\"Isolated\"}",
            "pattern at byte 1");
    refused(MORE, MERGES, ",{\"id\":262,\"content\":\"x\",\"lstrip\":true}", BYTE_LEVEL, "lstrip");
    refused(MORE, MERGES, ",{\"id\":5,\"content\":\"the\"}", BYTE_LEVEL, "two ids");
    refused(MORE, MERGES, ",{\"id\":5,\"content\":\"<new>\"}", BYTE_LEVEL, "of another token");
    refused(MORE, MERGES, ",{\"content\":\"x\"}", BYTE_LEVEL, "no id");
    refused(MORE, "\"t h\",\"t h\"", "", BYTE_LEVEL, "twice");
    refused(MORE, "\"t z\"", "", BYTE_LEVEL, "vocab lacks");
    refused(MORE, "\"t\"", "", BYTE_LEVEL, "neither");
    refused(",\"x y\":1", MERGES, "", BYTE_LEVEL, "id 1 twice");
    refused(",\"q\":-1", MERGES, "", BYTE_LEVEL, "twice");
}

/* ---- learning ---- */

static void learn(const char *const *docs, int count, size_t block, int32_t vocab, struct buf *out,
                  int32_t *got)
{
    struct bpe_trainer *tr = bpe_trainer_new();
    struct err e = {0};
    for (int i = 0; i < count; i++) {
        size_t n = strlen(docs[i]);
        for (size_t at = 0; at < n; at += block) {
            CHECK_INT(bpe_trainer_add(tr, docs[i] + at, n - at < block ? n - at : block, &e),
                      ST_OK);
        }
        CHECK_INT(bpe_trainer_end(tr, &e), ST_OK);
    }
    CHECK_INT(bpe_trainer_learn(tr, vocab, NULL, NULL, out, got, &e), ST_OK);
    bpe_trainer_free(tr);
}

static void the_commonest_pair_is_learned_first_and_ties_go_to_small_ids(void)
{
    static const char *const docs[] = {"abab xyxy abab"};
    struct buf out;
    buf_init(&out, 1 << 20);
    int32_t got = 0;
    learn(docs, 1, 100, 400, &out, &got);
    struct tokenizer *t = NULL;
    struct err e = {0};
    CHECK_INT(tokenizer_parse(&t, out.data, out.len, &e), ST_OK);
    struct tokenizer_info info;
    tokenizer_info(t, &info);
    CHECK_INT(info.ids, got);
    // ab 4, then (ab, ab) and (x, y) twice each: x = 122 is the smaller left id than ab = 258.
    static const char *const want[] = {"ab", "xy", "abab"};
    for (int i = 0; i < 3; i++) {
        size_t len = 0;
        const char *text = tokenizer_token(t, 258 + i, &len);
        CHECK_INT(len, strlen(want[i]));
        CHECK_MEM(text, want[i], len);
    }
    CHECK_INT(got, 261);
    tokenizer_free(t);
    buf_release(&out);
}

static void the_file_learned_does_not_depend_on_blocks_or_order(void)
{
    const char *docs[TEXT_COUNT * 2];
    for (int i = 0; i < TEXT_COUNT; i++) {
        docs[i] = docs[2 * TEXT_COUNT - 1 - i] = TEXTS[i];
    }
    struct buf one;
    buf_init(&one, 1 << 20);
    int32_t got = 0;
    learn(docs, 2 * TEXT_COUNT, 1 << 16, 400, &one, &got);
    CHECK_INT(got, 400);
    for (int round = 0; round < 2; round++) {
        struct buf two;
        buf_init(&two, 1 << 20);
        const char *first = docs[0];
        docs[0] = docs[7];
        docs[7] = first;
        learn(docs, 2 * TEXT_COUNT, round ? 1 : 7, 400, &two, &got);
        CHECK_STR(two.data, one.data);
        buf_release(&two);
    }

    struct tokenizer *t = NULL;
    struct err e = {0};
    CHECK_INT(tokenizer_parse(&t, one.data, one.len, &e), ST_OK);
    for (int i = 0; i < TEXT_COUNT; i++) {
        CHECK_INT(encode_in(t, TEXTS[i], strlen(TEXTS[i]), 1 << 20, true), ST_OK);
        CHECK(id_count == 0 || (size_t)id_count < strlen(TEXTS[i]) || strlen(TEXTS[i]) == 1);
        decodes_to(t, TEXTS[i], strlen(TEXTS[i]));
    }
    struct tokenizer_info info;
    tokenizer_info(t, &info);
    struct digest d;
    char hex[65];
    sha256_of(one.data, one.len, &d);
    digest_hex(&d, hex);
    CHECK_STR(info.sha256, hex);
    tokenizer_free(t);
    buf_release(&one);
}

/* ---- Unicode ---- */

/* The assumption behind cutting: whatever composes with what is before it is no boundary. */
static void no_boundary_lies_within_a_composition(void)
{
    int composed = 0;
    for (int32_t c = 0x80; c < 0x110000; c++) {
        int32_t parts[32];
        utf8proc_uint8_t text[8];
        if (c >= 0xd800 && c < 0xe000) {
            continue;
        }
        utf8proc_ssize_t n = utf8proc_decompose(text, utf8proc_encode_char(c, text), parts, 32,
                                                UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
        CHECK(n >= 1 && n <= 32);
        composed += n > 1;
        for (utf8proc_ssize_t i = 1; i < n; i++) {
            text[0] = 'a';
            utf8proc_ssize_t len = utf8proc_encode_char(parts[i], text + 1);
            CHECK_INT(utf8_nfc_boundary((const char *)text, (size_t)len + 1), 0);
        }
    }
    CHECK(composed > 11172 + 900); // Hangul and the rest
    CHECK_INT(utf8_nfc_boundary("aa\xcc\x81", 4), 1);
}

int main(void)
{
    RUN(bytes_are_two_more_than_themselves);
    RUN(merges_go_by_rank_and_from_the_left);
    RUN(long_pieces_merge_like_short_ones);
    RUN(added_tokens_are_found_leftmost_and_longest);
    RUN(text_is_composed_before_it_is_cut);
    RUN(what_was_encoded_decodes_to_itself);
    RUN(bad_utf8_becomes_replacement_characters);
    RUN(blocks_do_not_show);
    RUN(pieces_are_those_of_gpt2);
    RUN(endless_pieces_are_cut);
    RUN(a_split_by_another_expression_is_followed);
    RUN(what_is_not_supported_is_refused_by_name);
    RUN(the_commonest_pair_is_learned_first_and_ties_go_to_small_ids);
    RUN(the_file_learned_does_not_depend_on_blocks_or_order);
    RUN(no_boundary_lies_within_a_composition);
    return check_end();
}
