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
    RUN(a_full_disk_is_a_limit_and_leaves_nothing_behind);
    return check_end();
}
