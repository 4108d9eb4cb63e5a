#include "server/upload_file.h"

#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/crc32c.h"
#include "server/upload_hash.h"
#include "tests/support/check.h"
#include "tests/support/synced.h"

static const char id[] = "u_01ARZ3NDEKTSV4RRFFQ69G5FAV";
static char dir[64];
static int64_t epoch; // of the writer before

static struct blob_store *fresh(int64_t bytes)
{
    (void)snprintf(dir, sizeof(dir), "/tmp/test_upload_XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    struct blob_store *s = NULL;
    int fd = -1;
    CHECK_INT(blob_store_open(&s, dir, NULL), ST_OK);
    CHECK_INT(blob_tmp_create(s, id, bytes, &fd, NULL), ST_OK);
    CHECK_INT(close(fd), 0);
    upload_hash_forget(id);
    return s;
}

static void gone(struct blob_store *s)
{
    upload_hash_end(s);
    blob_store_close(s);
    char cmd[96];
    (void)snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    CHECK_INT(system(cmd), 0);
}

static enum status chunk(struct blob_store *s, int64_t offset, const char *text, bool keep)
{
    struct upload_file *f = NULL;
    struct chunk_digest d = {0};
    size_t len = strlen(text);
    sha256_of(text, len, &d.sha256);
    enum status st = upload_file_open(&f, s, id, ++epoch, offset, (int64_t)len, &d, NULL);
    for (size_t i = 0; i < len && !st; i++) {
        st = upload_file_add(f, text + i, 1, NULL);
    }
    if (!st) {
        st = upload_file_check(f, NULL);
    }
    if (!st && keep) {
        upload_file_keep(f);
    }
    upload_file_close(f);
    return st;
}

static enum status digest_of(struct blob_store *s, int64_t bytes, struct digest *out)
{
    int fd = -1;
    int64_t at = 0;
    CHECK_INT(blob_tmp_open(s, id, &fd, NULL), ST_OK);
    struct sha256 *h = upload_hash_take(id, &at);
    enum status st = upload_hash_rest(fd, h, at, bytes, out, NULL);
    sha256_free(h);
    CHECK_INT(close(fd), 0);
    return st;
}

static void check_whole(struct blob_store *s, const char *text)
{
    struct digest want;
    struct digest got;
    sha256_of(text, strlen(text), &want);
    CHECK_INT(digest_of(s, (int64_t)strlen(text), &got), ST_OK);
    CHECK(digest_equal(&got, &want));
}

static void chunks_add_up_to_the_digest_of_the_whole(void)
{
    struct blob_store *s = fresh(11);
    CHECK_INT(chunk(s, 0, "hello ", true), ST_OK);
    CHECK_INT(chunk(s, 6, "world", true), ST_OK);
    check_whole(s, "hello world");
    gone(s);
}

static void after_a_restart_the_file_is_read_again(void)
{
    struct blob_store *s = fresh(11);
    CHECK_INT(chunk(s, 0, "hello ", true), ST_OK);
    upload_hash_forget(id); // what a restart does
    CHECK_INT(chunk(s, 6, "world", true), ST_OK);
    check_whole(s, "hello world");
    gone(s);
}

static void a_chunk_that_was_not_committed_is_written_over(void)
{
    struct blob_store *s = fresh(11);
    CHECK_INT(chunk(s, 0, "hello ", true), ST_OK);
    CHECK_INT(chunk(s, 6, "wrong", false), ST_OK); // the commit failed
    CHECK_INT(chunk(s, 6, "world", true), ST_OK);
    check_whole(s, "hello world");
    gone(s);
}

static void bytes_that_do_not_have_their_digest_are_refused(void)
{
    struct blob_store *s = fresh(11);
    struct upload_file *f = NULL;
    struct chunk_digest d = {0};
    sha256_of("hellp ", 6, &d.sha256);
    CHECK_INT(upload_file_open(&f, s, id, ++epoch, 0, 6, &d, NULL), ST_OK);
    CHECK_INT(upload_file_add(f, "hello ", 6, NULL), ST_OK);
    CHECK_INT(upload_file_check(f, NULL), ST_CORRUPT);
    upload_file_close(f);
    CHECK_INT(chunk(s, 0, "hello world", true), ST_OK);
    check_whole(s, "hello world");
    gone(s);
}

static void a_chunk_is_exactly_as_long_as_it_said(void)
{
    struct blob_store *s = fresh(11);
    struct upload_file *f = NULL;
    struct chunk_digest d = {0};
    sha256_of("hell", 4, &d.sha256);
    CHECK_INT(upload_file_open(&f, s, id, ++epoch, 0, 5, &d, NULL), ST_OK);
    CHECK_INT(upload_file_add(f, "hell", 4, NULL), ST_OK);
    CHECK_INT(upload_file_check(f, NULL), ST_INVALID);
    CHECK_INT(upload_file_add(f, "ooo", 3, NULL), ST_INVALID);
    upload_file_close(f);
    gone(s);
}

static void a_newer_writer_takes_the_file_from_an_older_one(void)
{
    struct blob_store *s = fresh(11);
    struct upload_file *old = NULL;
    struct chunk_digest d = {0};
    sha256_of("XXXX", 4, &d.sha256);
    CHECK_INT(upload_file_open(&old, s, id, ++epoch, 0, 4, &d, NULL), ST_OK);
    CHECK_INT(upload_file_add(old, "XXX", 3, NULL), ST_OK);
    CHECK_INT(chunk(s, 0, "hello world", true), ST_OK);
    CHECK_INT(upload_file_add(old, "X", 1, NULL), ST_CONFLICT);
    CHECK(upload_file_check(old, NULL) != ST_OK);
    upload_file_close(old);
    check_whole(s, "hello world");
    gone(s);
}

static void an_older_request_does_not_take_the_file_from_a_newer_one(void)
{
    struct blob_store *s = fresh(11);
    struct upload_file *f = NULL;
    struct upload_file *old = NULL;
    struct chunk_digest d = {0};
    sha256_of("hello world", 11, &d.sha256);
    int64_t older = ++epoch; // it has its number, and is held up on its way
    CHECK_INT(upload_file_open(&f, s, id, ++epoch, 0, 11, &d, NULL), ST_OK);
    CHECK_INT(upload_file_add(f, "hello ", 6, NULL), ST_OK);
    CHECK_INT(upload_file_open(&old, s, id, older, 0, 11, &d, NULL), ST_CONFLICT);
    CHECK_INT(upload_file_add(f, "world", 5, NULL), ST_OK);
    CHECK_INT(upload_file_check(f, NULL), ST_OK);
    upload_file_keep(f);
    upload_file_close(f);
    check_whole(s, "hello world");
    gone(s);
}

static void a_crc_stands_for_a_digest(void)
{
    struct blob_store *s = fresh(5);
    struct upload_file *f = NULL;
    struct chunk_digest d = {.is_crc = true, .crc32c = crc32c_add(0, "hello", 5)};
    CHECK_INT(upload_file_open(&f, s, id, ++epoch, 0, 5, &d, NULL), ST_OK);
    CHECK_INT(upload_file_add(f, "hel", 3, NULL), ST_OK);
    CHECK_INT(upload_file_add(f, "lo", 2, NULL), ST_OK);
    CHECK_INT(upload_file_check(f, NULL), ST_OK);
    upload_file_close(f);
    CHECK_INT(upload_file_open(&f, s, id, ++epoch, 0, 5, &d, NULL), ST_OK);
    CHECK_INT(upload_file_add(f, "hellO", 5, NULL), ST_OK);
    CHECK_INT(upload_file_check(f, NULL), ST_CORRUPT);
    upload_file_close(f);
    gone(s);
}

static void the_digest_of_the_whole_is_made_beside(void)
{
    struct blob_store *s = fresh(11);
    int64_t at = 0;
    CHECK_INT(chunk(s, 0, "hello ", true), ST_OK);
    for (int64_t until = clock_mono_ms() + 20000; at < 6 && clock_mono_ms() < until;) {
        struct sha256 *h = upload_hash_take(id, &at);
        sha256_free(h);
        if (at < 6) { // it had not begun, or was taken in the middle: again
            upload_hash_more(s, id, 6);
            clock_sleep_ms(1);
        }
    }
    CHECK_INT(at, 6);
    gone(s);
}

/* Who asks while the thread is at it gets it after a block, however much is left to read. */
static void a_digest_in_the_making_is_given_back_at_once(void)
{
    const int64_t bytes = (int64_t)1 << 40; // a hole: nothing is on the disk, and minutes to read
    struct blob_store *s = fresh(0);
    int fd = -1;
    CHECK_INT(blob_tmp_open(s, id, &fd, NULL), ST_OK);
    CHECK_INT(ftruncate(fd, bytes), 0);
    CHECK_INT(close(fd), 0);
    for (int i = 0; i < 20; i++) {
        int64_t at = 0;
        upload_hash_more(s, id, bytes);
        clock_sleep_ms(i % 4);
        struct sha256 *h = upload_hash_take(id, &at);
        CHECK(at < bytes);
        sha256_free(h);
    }
    gone(s);
}

/* The thread may be in the middle of a file when its server ends. */
static void a_store_that_is_closed_is_read_no_more(void)
{
    const int64_t bytes = (int64_t)1 << 30;
    for (int i = 0; i < 10; i++) {
        struct blob_store *s = fresh(0);
        int fd = -1;
        int64_t at = 0;
        CHECK_INT(blob_tmp_open(s, id, &fd, NULL), ST_OK);
        CHECK_INT(ftruncate(fd, bytes), 0);
        CHECK_INT(close(fd), 0);
        upload_hash_more(s, id, bytes);
        clock_sleep_ms(1 + i % 4);
        upload_hash_end(s);
        sha256_free(upload_hash_take(id, &at));
        CHECK_INT(at, 0);
        gone(s);
    }
}

static void another_process_keeps_its_file(void)
{
    struct blob_store *s = fresh(11);
    int fd = -1;
    CHECK_INT(blob_tmp_open(s, id, &fd, NULL), ST_OK);
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CHECK_INT(fcntl(fd, F_OFD_SETLK, &l), 0); // to the kernel this is anybody else
    CHECK_INT(chunk(s, 0, "hello world", true), ST_CONFLICT);
    CHECK_INT(close(fd), 0);
    CHECK_INT(chunk(s, 0, "hello world", true), ST_OK);
    gone(s);
}

static void what_is_not_there_is_not_written(void)
{
    struct blob_store *s = fresh(11);
    struct upload_file *f = NULL;
    struct digest d;
    struct chunk_digest any = {0};
    CHECK_INT(upload_file_open(&f, s, "u_01ARZ3NDEKTSV4RRFFQ69G5FAW", 1, 0, 1, &any, NULL),
              ST_NOT_FOUND);
    CHECK_INT(digest_of(s, 12, &d), ST_CORRUPT);
    gone(s);
}

static void more_uploads_than_digests_kept_still_end_well(void)
{
    struct blob_store *s = fresh(11);
    CHECK_INT(chunk(s, 0, "hello ", true), ST_OK);
    for (int i = 0; i < 300; i++) {
        char other[32];
        int fd = -1;
        (void)snprintf(other, sizeof(other), "u_%026d", i);
        CHECK_INT(blob_tmp_create(s, other, 1, &fd, NULL), ST_OK);
        CHECK_INT(close(fd), 0);
        struct upload_file *f = NULL;
        struct chunk_digest d = {0};
        sha256_of("x", 1, &d.sha256);
        CHECK_INT(upload_file_open(&f, s, other, 1, 0, 1, &d, NULL), ST_OK);
        CHECK_INT(upload_file_add(f, "x", 1, NULL), ST_OK);
        CHECK_INT(upload_file_check(f, NULL), ST_OK);
        upload_file_keep(f);
        upload_file_close(f);
    }
    CHECK_INT(chunk(s, 6, "world", true), ST_OK);
    check_whole(s, "hello world");
    gone(s);
}

static void a_chunk_is_on_the_disk_before_its_offset_may_be_committed(void)
{
    struct blob_store *s = fresh(5);
    synced_clear();
    CHECK_INT(chunk(s, 0, "hello", false), ST_OK); // without keep: the check alone must do it
    CHECK(synced_at(id) >= 0);
    gone(s);
}

/* ---- a disk that is slow ---- */

static const char other_id[] = "u_01ARZ3NDEKTSV4RRFFQ69G5FAX";
static sem_t at_the_disk, may_go_on;

static void hang(void)
{
    (void)sem_post(&at_the_disk);
    (void)sem_wait(&may_go_on);
}

struct opening {
    struct blob_store *store;
    const char *id;
    int64_t epoch;
    sem_t open;
};

static void *open_and_close(void *ctx)
{
    struct opening *o = ctx;
    struct upload_file *f = NULL;
    struct chunk_digest any = {.is_crc = true};
    if (upload_file_open(&f, o->store, o->id, o->epoch, 0, 1, &any, NULL) == ST_OK) {
        (void)sem_post(&o->open);
    }
    upload_file_close(f);
    return NULL;
}

static void *write_one(void *ctx)
{
    (void)chunk(ctx, 0, "hello world", false);
    return NULL;
}

static bool within(sem_t *s, int seconds)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += seconds;
    return sem_timedwait(s, &until) == 0;
}

/* One chunk is at the disk, and a newer request waits to take its file: a third upload begins. */
static void a_slow_disk_of_one_upload_does_not_stop_another(void)
{
    struct blob_store *s = fresh(11);
    struct opening same = {.store = s, .id = id, .epoch = epoch + 2};
    struct opening other = {.store = s, .id = other_id, .epoch = 1};
    pthread_t writer;
    pthread_t taker;
    pthread_t opener;
    int fd = -1;
    CHECK_INT(blob_tmp_create(s, other_id, 1, &fd, NULL), ST_OK);
    CHECK_INT(close(fd), 0);
    CHECK(!sem_init(&at_the_disk, 0, 0) && !sem_init(&may_go_on, 0, 0));
    CHECK(!sem_init(&same.open, 0, 0) && !sem_init(&other.open, 0, 0));
    synced_before = hang;
    CHECK_INT(pthread_create(&writer, NULL, write_one, s), 0);
    bool hangs = within(&at_the_disk, 20);
    CHECK_INT(pthread_create(&taker, NULL, open_and_close, &same), 0);
    bool taken_at_once = within(&same.open, 1); // no: and it has had its time to come to the lock
    CHECK_INT(pthread_create(&opener, NULL, open_and_close, &other), 0);
    bool opened = within(&other.open, 10);
    (void)sem_post(&may_go_on);
    CHECK_INT(pthread_join(writer, NULL), 0);
    CHECK_INT(pthread_join(taker, NULL), 0);
    CHECK_INT(pthread_join(opener, NULL), 0);
    synced_before = NULL;
    CHECK(hangs && !taken_at_once);
    CHECK(opened);
    CHECK_INT(sem_trywait(&same.open), 0); // it had the file in the end
    epoch = same.epoch;
    gone(s);
}

int main(void)
{
    RUN(a_chunk_is_on_the_disk_before_its_offset_may_be_committed);
    RUN(chunks_add_up_to_the_digest_of_the_whole);
    RUN(after_a_restart_the_file_is_read_again);
    RUN(a_chunk_that_was_not_committed_is_written_over);
    RUN(bytes_that_do_not_have_their_digest_are_refused);
    RUN(a_chunk_is_exactly_as_long_as_it_said);
    RUN(a_newer_writer_takes_the_file_from_an_older_one);
    RUN(an_older_request_does_not_take_the_file_from_a_newer_one);
    RUN(a_crc_stands_for_a_digest);
    RUN(the_digest_of_the_whole_is_made_beside);
    RUN(a_digest_in_the_making_is_given_back_at_once);
    RUN(a_store_that_is_closed_is_read_no_more);
    RUN(another_process_keeps_its_file);
    RUN(what_is_not_there_is_not_written);
    RUN(more_uploads_than_digests_kept_still_end_well);
    RUN(a_slow_disk_of_one_upload_does_not_stop_another);
    return check_end();
}
