#include "server/blob.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/check.h"
#include "tests/support/synced.h"

static char dir[64];

static struct blob_store *fresh(void)
{
    (void)snprintf(dir, sizeof(dir), "/tmp/test_blob_XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    struct blob_store *s = NULL;
    CHECK_INT(blob_store_open(&s, dir, NULL), ST_OK);
    return s;
}

static void gone(struct blob_store *s)
{
    blob_store_close(s);
    char cmd[96];
    (void)snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    CHECK_INT(system(cmd), 0);
}

static struct digest put(struct blob_store *s, const char *id, const char *text)
{
    int fd = -1;
    size_t len = strlen(text);
    CHECK_INT(blob_tmp_create(s, id, (int64_t)len, &fd, NULL), ST_OK);
    CHECK_INT(pwrite(fd, text, len, 0), len);
    CHECK_INT(close(fd), 0);
    struct digest d;
    sha256_of(text, len, &d);
    CHECK_INT(blob_place(s, id, &d, NULL), ST_OK);
    return d;
}

static bool path_exists(const char *below)
{
    char path[256];
    (void)snprintf(path, sizeof(path), "%s/%s", dir, below);
    struct stat sb;
    return lstat(path, &sb) == 0;
}

static void what_is_placed_can_be_opened_by_its_digest(void)
{
    struct blob_store *s = fresh();
    struct digest d = put(s, "u_1", "hello");
    int fd = -1;
    int64_t bytes = 0;
    CHECK_INT(blob_open(s, &d, &fd, &bytes, NULL), ST_OK);
    CHECK_INT(bytes, 5);
    char text[6] = "";
    CHECK_INT(read(fd, text, 5), 5);
    CHECK_STR(text, "hello");
    CHECK_INT(close(fd), 0);
    CHECK(path_exists(
        "blobs/2c/f2/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"));
    CHECK(!path_exists("tmp/u_1"));
    gone(s);
}

static void placing_the_same_content_again_changes_nothing(void)
{
    struct blob_store *s = fresh();
    struct digest d = put(s, "u_1", "hello");
    CHECK_INT(blob_place(s, "u_1", &d, NULL), ST_OK); // the reply was lost, asked again
    (void)put(s, "u_2", "hello");                     // another silo sent the same bytes
    CHECK(!path_exists("tmp/u_2"));
    int fd = -1;
    int64_t bytes = 0;
    CHECK_INT(blob_open(s, &d, &fd, &bytes, NULL), ST_OK);
    CHECK_INT(bytes, 5);
    struct stat sb;
    CHECK_INT(fstat(fd, &sb), 0);
    CHECK_INT(sb.st_mode & 0777, 0400);
    CHECK_INT(close(fd), 0);
    gone(s);
}

static void what_was_never_written_cannot_be_placed_or_opened(void)
{
    struct blob_store *s = fresh();
    struct digest d;
    sha256_of("x", 1, &d);
    int fd = -1;
    int64_t bytes = 0;
    CHECK_INT(blob_place(s, "u_9", &d, NULL), ST_NOT_FOUND);
    CHECK_INT(blob_open(s, &d, &fd, &bytes, NULL), ST_NOT_FOUND);
    CHECK_INT(blob_tmp_open(s, "u_9", &fd, NULL), ST_NOT_FOUND);
    CHECK_INT(blob_remove(s, &d, NULL), ST_OK);
    gone(s);
}

static void a_temporary_name_never_leaves_its_folder(void)
{
    struct blob_store *s = fresh();
    static const char *const bad[] = {"",    ".",   "..", "../x", "a/b", "/etc/passwd",
                                      "a.b", "a b", "a\n"};
    struct digest d;
    sha256_of("x", 1, &d);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        int fd = -1;
        CHECK_INT(blob_tmp_create(s, bad[i], 1, &fd, NULL), ST_INVALID);
        CHECK_INT(blob_tmp_open(s, bad[i], &fd, NULL), ST_INVALID);
        CHECK_INT(blob_place(s, bad[i], &d, NULL), ST_INVALID);
    }
    gone(s);
}

static void a_link_in_the_folder_is_not_followed(void)
{
    struct blob_store *s = fresh();
    char path[256];
    (void)snprintf(path, sizeof(path), "%s/tmp/u_1", dir);
    CHECK_INT(symlink("/etc/passwd", path), 0);
    int fd = -1;
    CHECK_INT(blob_tmp_open(s, "u_1", &fd, NULL), ST_IO);
    CHECK_INT(blob_tmp_create(s, "u_1", 1, &fd, NULL), ST_CONFLICT);
    gone(s);
}

static void one_name_is_created_once(void)
{
    struct blob_store *s = fresh();
    int fd = -1;
    int other = -1;
    CHECK_INT(blob_tmp_create(s, "u_1", 4096, &fd, NULL), ST_OK);
    CHECK_INT(blob_tmp_create(s, "u_1", 4096, &other, NULL), ST_CONFLICT);
    CHECK_INT(other, -1);
    struct stat sb;
    CHECK_INT(fstat(fd, &sb), 0);
    CHECK_INT(sb.st_size, 4096);
    CHECK(sb.st_blocks > 0); // reserved, not only promised
    CHECK_INT(close(fd), 0);
    CHECK_INT(blob_tmp_open(s, "u_1", &other, NULL), ST_OK);
    CHECK_INT(close(other), 0);
    blob_tmp_remove(s, "u_1");
    CHECK_INT(blob_tmp_open(s, "u_1", &other, NULL), ST_NOT_FOUND);
    gone(s);
}

static void a_removed_blob_is_gone_and_removing_it_again_is_fine(void)
{
    struct blob_store *s = fresh();
    struct digest d = put(s, "u_1", "hello");
    CHECK_INT(blob_remove(s, &d, NULL), ST_OK);
    CHECK_INT(blob_remove(s, &d, NULL), ST_OK);
    int fd = -1;
    int64_t bytes = 0;
    CHECK_INT(blob_open(s, &d, &fd, &bytes, NULL), ST_NOT_FOUND);
    gone(s);
}

static void a_folder_that_cannot_be_is_refused_with_its_name(void)
{
    struct blob_store *s = NULL;
    struct err e = {0};
    CHECK_INT(blob_store_open(&s, "/proc/no-such-folder", &e), ST_IO);
    CHECK(strstr(e.msg, "/proc/no-such-folder") != NULL);
    CHECK_INT(blob_store_open(&s, "/etc/passwd", &e), ST_IO);
}

static void a_full_disk_is_a_limit_and_leaves_nothing_behind(void)
{
    if (geteuid() != 0) {
        SKIP("mounting a small disk needs root");
    }
    (void)snprintf(dir, sizeof(dir), "/tmp/test_blob_XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    if (mount("none", dir, "tmpfs", 0, "size=1m")) {
        (void)rmdir(dir);
        SKIP("this system does not let us mount a small disk");
    }
    struct blob_store *s = NULL;
    enum status opened = blob_store_open(&s, dir, NULL);
    int fd = -1;
    struct err e = {0};
    enum status full = opened ? opened : blob_tmp_create(s, "u_1", 2 << 20, &fd, &e);
    bool left = path_exists("tmp/u_1");
    enum status after = opened ? opened : blob_tmp_create(s, "u_2", 64 << 10, &fd, NULL);
    if (fd >= 0) {
        (void)close(fd);
    }
    int64_t room = opened ? -1 : blob_free_bytes(s);
    blob_store_close(s);
    CHECK_INT(umount(dir), 0);
    CHECK_INT(rmdir(dir), 0);
    CHECK_INT(full, ST_LIMIT);
    CHECK(!left);
    CHECK_INT(after, ST_OK); // recovers without a restart
    CHECK(room > 0 && room < 1 << 20);
}

static void what_would_leave_less_than_the_floor_is_refused(void)
{
    struct blob_store *s = fresh();
    struct blob_floor floor;
    int fd = -1;
    int64_t room = blob_free_bytes(s);
    CHECK(blob_floor_bytes(s) <= (int64_t)2 << 30); // of any disk
    CHECK(blob_floor_bytes(s) > 0);
    floor = (struct blob_floor){.bytes = room + ((int64_t)1 << 40)}; // whatever others remove now
    blob_store_floor(s, &floor);
    CHECK_INT(blob_tmp_create(s, "u_1", 1, &fd, NULL), ST_LIMIT);
    CHECK(!path_exists("tmp/u_1"));
    CHECK_INT(blob_floor_parse(&floor, "0", NULL), ST_OK);
    blob_store_floor(s, &floor);
    CHECK_INT(blob_tmp_create(s, "u_1", 1, &fd, NULL), ST_OK);
    CHECK_INT(close(fd), 0);
    gone(s);
}

static void a_floor_is_a_share_or_bytes(void)
{
    struct blob_floor f;
    CHECK_INT(blob_floor_parse(&f, "12.5%", NULL), ST_OK);
    CHECK(f.percent == 12.5 && f.most == INT64_MAX);
    CHECK_INT(blob_floor_parse(&f, "3G", NULL), ST_OK);
    CHECK(f.percent == 0.0 && f.bytes == (int64_t)3 << 30);
    CHECK_INT(blob_floor_parse(&f, "512M", NULL), ST_OK);
    CHECK_INT(f.bytes, 512 << 20);
    static const char *const bad[] = {"", "G", "-1G", "91%", "nan", "inf", "1e300T", "10 %", "5x"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_INT(blob_floor_parse(&f, bad[i], NULL), ST_INVALID);
    }
}

struct seen {
    int blobs, tmp, strange;
    char last[320];
};

static enum status count_entry(void *ctx, const struct blob_entry *f, struct err *e)
{
    (void)e;
    struct seen *seen = ctx;
    CHECK(f->age_s >= 0 && f->age_s < 3600); // new here, whatever age it claims
    if (f->strange) {
        (void)snprintf(seen->last, sizeof(seen->last), "%s", f->name);
    }
    (*(f->tmp ? &seen->tmp : f->strange ? &seen->strange : &seen->blobs))++;
    return ST_OK;
}

static void a_walk_shows_blobs_temporary_files_and_strangers(void)
{
    struct blob_store *s = fresh();
    (void)put(s, "u_1", "hello");
    (void)put(s, "u_1", "world");
    int fd = -1;
    char path[256];
    CHECK_INT(blob_tmp_create(s, "u_2", 1, &fd, NULL), ST_OK);
    CHECK_INT(close(fd), 0);
    (void)snprintf(path, sizeof(path), "%s/blobs/2c/f2/notes.txt", dir);
    fd = open(path, O_CREAT | O_WRONLY, 0600);
    struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    CHECK_INT(futimens(fd, old), 0);
    CHECK_INT(close(fd), 0);
    struct seen seen = {0};
    CHECK_INT(blob_walk(s, count_entry, &seen, NULL), ST_OK);
    CHECK_INT(seen.blobs, 2);
    CHECK_INT(seen.tmp, 1);
    CHECK_INT(seen.strange, 1);
    CHECK_STR(seen.last, "blobs/2c/f2/notes.txt");
    gone(s);
}

static void a_damaged_file_is_replaced_in_one_step(void)
{
    struct blob_store *s = fresh();
    struct digest d = put(s, "u_1", "hello");
    char path[256];
    (void)snprintf(path, sizeof(path), "%s/blobs/2c/f2/%s", dir,
                   "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    int old = -1;
    int64_t bytes = 0;
    CHECK_INT(chmod(path, 0600), 0);
    int fd = open(path, O_WRONLY);
    CHECK_INT(pwrite(fd, "jello", 5, 0), 5);
    CHECK_INT(close(fd), 0);
    CHECK_INT(blob_open(s, &d, &old, &bytes, NULL), ST_OK);
    CHECK_INT(blob_tmp_create(s, "u_2", 5, &fd, NULL), ST_OK);
    CHECK_INT(pwrite(fd, "hello", 5, 0), 5);
    CHECK_INT(close(fd), 0);
    CHECK_INT(blob_replace(s, "u_2", &d, NULL), ST_OK);
    char text[6] = "";
    CHECK_INT(pread(old, text, 5, 0), 5);
    CHECK_STR(text, "jello"); // who reads it finds out by the digest
    CHECK_INT(close(old), 0);
    CHECK_INT(blob_open(s, &d, &fd, &bytes, NULL), ST_OK);
    CHECK_INT(pread(fd, text, 5, 0), 5);
    CHECK_STR(text, "hello");
    CHECK_INT(close(fd), 0);

    CHECK_INT(chmod(path, 0600), 0);
    CHECK_INT(truncate(path, 3), 0); // lost half: a placing of the same content heals it too
    (void)put(s, "u_3", "hello");
    CHECK_INT(blob_stat(s, &d, &bytes, NULL), ST_OK);
    CHECK_INT(bytes, 5);
    gone(s);
}

/* A crash at any point leaves a whole file under its name, or none. */
static void a_blob_is_synced_before_it_is_named_and_its_folder_after(void)
{
    struct blob_store *s = fresh();
    int fd = -1;
    struct digest d;
    sha256_of("durable", 7, &d);
    CHECK_INT(blob_tmp_create(s, "u_1", 7, &fd, NULL), ST_OK);
    CHECK_INT(pwrite(fd, "durable", 7, 0), 7);
    CHECK_INT(close(fd), 0);
    synced_clear();
    CHECK_INT(blob_place(s, "u_1", &d, NULL), ST_OK);

    char hex[DIGEST_HEX + 1];
    char folder[16];
    digest_hex(&d, hex);
    (void)snprintf(folder, sizeof(folder), "blobs/%.2s/%.2s", hex, hex + 2);
    int file = synced_at("tmp/u_1");
    int name = synced_at("rename u_1");
    CHECK(file >= 0 && name > file);
    CHECK(synced_last(folder) > name);
    CHECK(synced_at("blobs") < name && synced_at("blobs") >= 0); // the folders' own names before
    gone(s);
}

int main(void)
{
    RUN(a_blob_is_synced_before_it_is_named_and_its_folder_after);
    RUN(what_is_placed_can_be_opened_by_its_digest);
    RUN(placing_the_same_content_again_changes_nothing);
    RUN(what_was_never_written_cannot_be_placed_or_opened);
    RUN(a_temporary_name_never_leaves_its_folder);
    RUN(a_link_in_the_folder_is_not_followed);
    RUN(one_name_is_created_once);
    RUN(a_removed_blob_is_gone_and_removing_it_again_is_fine);
    RUN(a_folder_that_cannot_be_is_refused_with_its_name);
    RUN(what_would_leave_less_than_the_floor_is_refused);
    RUN(a_floor_is_a_share_or_bytes);
    RUN(a_walk_shows_blobs_temporary_files_and_strangers);
    RUN(a_damaged_file_is_replaced_in_one_step);
    RUN(a_full_disk_is_a_limit_and_leaves_nothing_behind);
    return check_end();
}
