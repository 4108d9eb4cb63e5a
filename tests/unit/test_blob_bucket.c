/* Blobs as objects of a bucket: which object is the one, and what becomes of the others. */
#include "server/blob_bucket.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/check.h"
#include "tests/support/s3_stub.h"

static const char HELLO[] = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

static struct blob_store *store;
static struct s3 *bucket; // the same, past the store

static bool fresh(void)
{
    struct s3 *s = NULL;
    struct err e = {0};
    if (!stub_start("0", "2")) { // listings are of several pages
        stub_stop();
        return false;
    }
    CHECK_INT(open_as(&s, "s3://bucket-1/p", SECRET, &e), ST_OK);
    CHECK_INT(open_as(&bucket, "s3://bucket-1/p", SECRET, &e), ST_OK);
    CHECK_INT(blob_store_open(&store, tempdir_at(&dir, "store"), &e), ST_OK);
    CHECK_INT(blob_store_bucket(store, s, &e), ST_OK);
    return true;
}

static void gone(void)
{
    blob_store_close(store);
    s3_close(bucket);
    stub_stop();
}

static void write_tmp(const char *id, const char *text, struct digest *d)
{
    int fd = -1;
    size_t len = strlen(text);
    CHECK_INT(blob_tmp_create(store, id, (int64_t)len, &fd, NULL), ST_OK);
    CHECK_INT(pwrite(fd, text, len, 0), len);
    CHECK_INT(close(fd), 0);
    sha256_of(text, len, d);
}

static struct digest put(const char *id, const char *text)
{
    struct digest d;
    write_tmp(id, text, &d);
    CHECK_INT(blob_place(store, id, &d, NULL), ST_OK);
    return d;
}

/* By hand, at that key. */
static void lay(const char *key, const char *text)
{
    struct digest d;
    tempdir_text(&dir, "laid", text);
    int fd = open(tempdir_at(&dir, "laid"), O_RDONLY | O_CLOEXEC);
    sha256_of(text, strlen(text), &d);
    CHECK_INT(s3_put(bucket, key, fd, (int64_t)strlen(text), &d, NULL), ST_OK);
    CHECK_INT(close(fd), 0);
}

static const char *key_of(const char *hex, const char *more)
{
    static char key[200];
    (void)snprintf(key, sizeof(key), "blobs/%.2s/%.2s/%s%s", hex, hex + 2, hex, more);
    return key;
}

struct seen {
    int whole, superseded, strange;
    char old[BLOB_ASIDE_SIZE]; // one that is superseded
};

static enum status see(void *ctx, const struct blob_entry *f, struct err *e)
{
    (void)e;
    struct seen *s = ctx;
    *(f->strange ? &s->strange : f->superseded ? &s->superseded : &s->whole) += 1;
    if (f->superseded) {
        (void)snprintf(s->old, sizeof(s->old), "%s", f->name);
    }
    return ST_OK;
}

static struct seen look(void)
{
    struct seen s = {0};
    CHECK_INT(blob_walk(store, see, &s, NULL), ST_OK);
    return s;
}

static bool is_sound(const struct digest *d)
{
    int64_t bytes = 0;
    return blob_verify(store, d, &bytes, NULL) == ST_OK;
}

static void what_was_staged_is_placed_as_that_object_and_once(void)
{
    struct digest d;
    if (!fresh()) {
        SKIP("python3 plays the store");
    }
    write_tmp("u_1", "hello", &d);
    CHECK_INT(blob_stage(store, "u_1", &d, NULL), ST_OK);
    CHECK_INT(blob_place(store, "u_1", &d, NULL), ST_OK);
    CHECK_INT(blob_place(store, "u_1", &d, NULL), ST_OK); // the reply was lost, asked again
    CHECK(is_sound(&d));
    struct seen s = look();
    CHECK_INT(s.whole, 1);
    CHECK_INT(s.superseded, 0);
    sha256_of("x", 1, &d);
    CHECK_INT(blob_place(store, "u_9", &d, NULL), ST_NOT_FOUND);
    gone();
}

static void what_is_placed_again_is_not_what_is_being_removed(void)
{
    char name[BLOB_ASIDE_SIZE];
    struct err e = {0};
    if (!fresh()) {
        SKIP("python3 plays the store");
    }
    struct digest d = put("u_1", "hello");
    CHECK_INT(blob_set_aside(store, &d, name, &e), ST_OK);
    CHECK_STR(name, key_of(HELLO, "-u_1"));
    (void)put("u_2", "hello");
    CHECK_INT(blob_drop(store, name, &e), ST_OK);
    CHECK_INT(blob_drop(store, name, &e), ST_OK); // carried out once more, and late
    CHECK(is_sound(&d));
    CHECK_INT(look().whole, 1);
    CHECK_INT(blob_set_aside(store, &d, name, &e), ST_OK);
    CHECK_INT(blob_put_back(store, name, &d, &e), ST_OK);
    CHECK(is_sound(&d));
    CHECK_INT(blob_set_aside(store, &d, name, &e), ST_OK);
    CHECK_INT(blob_drop(store, name, &e), ST_OK);
    CHECK_INT(blob_set_aside(store, &d, name, &e), ST_OK);
    CHECK_STR(name, ""); // there is none
    CHECK_INT(blob_drop(store, name, &e), ST_OK);
    int64_t bytes = 0;
    CHECK_INT(blob_stat(store, &d, &bytes, &e), ST_NOT_FOUND);
    gone();
}

static void the_youngest_counts_and_the_others_are_shown_as_superseded(void)
{
    int64_t bytes = 0;
    struct digest other;
    if (!fresh()) {
        SKIP("python3 plays the store");
    }
    lay(key_of(HELLO, ""), "by hand, once");
    lay(key_of(HELLO, "-u_0"), "jello");
    struct digest d = put("u_1", "hello");
    (void)put("u_2", "other");
    sha256_of("other", 5, &other);
    CHECK(is_sound(&d));
    CHECK(is_sound(&other));
    struct seen s = look();
    CHECK_INT(s.whole, 2);
    CHECK_INT(s.superseded, 2);
    for (int left = 2; left > 0; left--) {
        CHECK_INT(blob_drop(store, look().old, NULL), ST_OK);
        CHECK_INT(look().superseded, left - 1);
    }
    CHECK(is_sound(&d));
    CHECK_INT(blob_stat(store, &d, &bytes, NULL), ST_OK);
    CHECK_INT(bytes, 5);
    gone();
}

static void what_is_superseded_goes_with_what_it_was_superseded_by(void)
{
    char name[BLOB_ASIDE_SIZE];
    if (!fresh()) {
        SKIP("python3 plays the store");
    }
    lay(key_of(HELLO, "-u_0"), "jello");
    struct digest d = put("u_1", "hello");
    (void)put("u_2", "hello");
    CHECK_INT(look().superseded, 2);
    CHECK_INT(blob_set_aside(store, &d, name, NULL), ST_OK);
    CHECK(is_sound(&d)); // until it is known that nobody needs it
    CHECK_INT(look().superseded, 0);
    CHECK_INT(blob_drop(store, name, NULL), ST_OK);
    CHECK_INT(look().whole, 0);
    gone();
}

static void what_was_put_there_by_hand_is_found_and_a_stranger_is_not(void)
{
    struct digest d;
    if (!fresh()) {
        SKIP("python3 plays the store");
    }
    lay(key_of(HELLO, ""), "hello");
    lay("blobs/2c/f2/notes.txt", "?");
    lay("blobs/ab/cd/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", "hello");
    sha256_of("hello", 5, &d);
    CHECK(is_sound(&d));
    struct seen s = look();
    CHECK_INT(s.whole, 1);
    CHECK_INT(s.strange, 2);
    gone();
}

int main(void)
{
    RUN(what_was_staged_is_placed_as_that_object_and_once);
    RUN(what_is_placed_again_is_not_what_is_being_removed);
    RUN(the_youngest_counts_and_the_others_are_shown_as_superseded);
    RUN(what_is_superseded_goes_with_what_it_was_superseded_by);
    RUN(what_was_put_there_by_hand_is_found_and_a_stranger_is_not);
    return check_end();
}
