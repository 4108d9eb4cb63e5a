/* A base on its way: what the heartbeat hears ends it at once, what is there of it is kept. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "client/agent_int.h"
#include "common/hash.h"
#include "tests/support/check.h"
#include "tests/support/http_stub.h"

enum { BASE_BYTES = 200000, HALF = BASE_BYTES / 2, STEP_BYTES = 1000 };

// ---- the server: half of the file, then silence; beats are told so much ----

struct verdict {
    const char *status;
    const char *code;
};

static char base[BASE_BYTES];
static atomic_bool whole;          // the file is sent to its end
static _Atomic int64_t asked_from; // offset of the newest request

static const struct verdict *_Atomic verdict; // on beats, once half of the base has come

// The silo's side, which the server looks at.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char dir[64];
static struct task task;
static char step_sha256[DIGEST_HEX + 1];  // the digest of the first bytes of the base
static char other_sha256[DIGEST_HEX + 1]; // and of one more

static void cached(const char *suffix, char out[STATE_PATH_MAX])
{
    (void)snprintf(out, STATE_PATH_MAX, "%s/cache/%s.safetensors%s", dir, task.base_sha256, suffix);
}

static int64_t size_of(const char *suffix)
{
    char path[STATE_PATH_MAX];
    struct stat s;
    (void)pthread_mutex_lock(&lock);
    cached(suffix, path);
    (void)pthread_mutex_unlock(&lock);
    return stat(path, &s) == 0 ? (int64_t)s.st_size : -1;
}

// ---- a small disk, between the silo and the real one ----

static atomic_int_fast64_t room = -1; // bytes of cache and steps; -1: all that is asked for
static atomic_bool reserves;          // the file system knows how
static atomic_int full_errno = ENOSPC;

static int64_t used(void)
{
    static const char *const folders[] = {"cache", "steps"};
    int64_t bytes = 0;
    for (int i = 0; i < 2; i++) {
        char path[STATE_PATH_MAX];
        (void)snprintf(path, sizeof(path), "%s/%s", dir, folders[i]);
        DIR *d = opendir(path);
        struct stat s;
        for (struct dirent *f = d ? readdir(d) : NULL; f; f = readdir(d)) {
            bool file = f->d_name[0] != '.' && fstatat(dirfd(d), f->d_name, &s, 0) == 0;
            bytes += file ? (int64_t)s.st_size : 0;
        }
        if (d) {
            (void)closedir(d);
        }
    }
    return bytes;
}

static int take_room(int64_t bytes)
{
    if (atomic_load(&room) < 0 || used() + bytes <= atomic_load(&room)) {
        return 0;
    }
    errno = atomic_load(&full_errno);
    return -1;
}

int fallocate(int fd, int mode, off_t at, off_t bytes)
{
    (void)fd;
    (void)mode;
    (void)at;
    if (!atomic_load(&reserves)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return take_room(bytes);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at)
{
    return take_room((int64_t)count) ? -1 : (ssize_t)syscall(SYS_pwrite64, fd, bytes, count, at);
}

static void serve_step(int fd, int bytes)
{
    char head[128];
    int n = snprintf(head, sizeof(head),
                     "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", bytes);
    http_stub_send(fd, head, (size_t)n);
    http_stub_send(fd, base, (size_t)bytes);
}

static void serve_base(int fd, const char *request)
{
    const char *range = strstr(request, "Range: bytes=");
    int64_t from = range ? strtoll(range + 13, NULL, 10) : 0;
    char head[256];
    int n = snprintf(head, sizeof(head),
                     "HTTP/1.1 %s\r\nContent-Length: %" PRId64 "\r\nConnection: close\r\n",
                     range ? "206 Partial Content" : "200 OK", BASE_BYTES - from);
    if (range) {
        n += snprintf(head + n, sizeof(head) - (size_t)n,
                      "Content-Range: bytes %" PRId64 "-%d/%d\r\n", from, BASE_BYTES - 1,
                      BASE_BYTES);
    }
    atomic_store(&asked_from, from);
    http_stub_send(fd, head, (size_t)n);
    http_stub_send(fd, "\r\n", 2);
    int64_t until = atomic_load(&whole) ? BASE_BYTES : HALF;
    http_stub_send(fd, base + from, (size_t)(until - from));
    char byte = 0;
    (void)recv(fd, &byte, 1, 0); // until the silo hangs up
}

static void answer(int fd, const char *request)
{
    const struct verdict *now = atomic_load(&verdict);
    if (step_sha256[0] && strstr(request, step_sha256)) {
        serve_step(fd, STEP_BYTES);
    } else if (other_sha256[0] && strstr(request, other_sha256)) {
        serve_step(fd, STEP_BYTES + 1);
    } else if (strncmp(request, "GET /silo/v1/blobs/", 19) == 0) {
        serve_base(fd, request);
    } else if (now && size_of(".part") == HALF) {
        char body[128];
        (void)snprintf(body, sizeof(body), "{\"code\":\"%s\",\"detail\":\"x\"}", now->code);
        http_stub_json(fd, now->status, body);
    } else {
        http_stub_json(fd, "200 OK", "{\"order\":\"continue\",\"lease_s\":60}");
    }
}

static struct http_stub server = {.answer = answer, .beside = true};

static void start_server(void)
{
    for (int i = 0; i < BASE_BYTES; i++) {
        base[i] = (char)((uint32_t)i * 2654435761u >> 24);
    }
    struct digest step;
    sha256_of(base, STEP_BYTES, &step);
    digest_hex(&step, step_sha256);
    sha256_of(base, STEP_BYTES + 1, &step);
    digest_hex(&step, other_sha256);
    http_stub_start(&server);
}

// ---- a silo with a task ----

static struct agent agent;
static struct agent_config config;

static void begin(void)
{
    atomic_store(&room, -1);
    atomic_store(&reserves, false);
    atomic_store(&full_errno, ENOSPC);
    struct err e = {0};
    char cache[STATE_PATH_MAX];
    (void)pthread_mutex_lock(&lock);
    (void)snprintf(dir, sizeof(dir), "/tmp/photon-base-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    (void)snprintf(cache, sizeof(cache), "%s/cache", dir);
    CHECK_INT(dir_make(cache, &e), ST_OK);
    (void)snprintf(cache, sizeof(cache), "%s/steps", dir);
    CHECK_INT(dir_make(cache, &e), ST_OK);
    config = (struct agent_config){.state_dir = dir};
    agent = (struct agent){.config = &config};
    progress_init(&agent.progress, stderr);
    (void)snprintf(agent.bulk_url, sizeof(agent.bulk_url), "%s", server.url);
    CHECK_INT(agent_bulk(&agent, &e), ST_OK);
    task =
        (struct task){.id = "t_01J0000000000000000000000A", .epoch = 2, .base_bytes = BASE_BYTES};
    sha256_of(base, BASE_BYTES, &task.base);
    digest_hex(&task.base, task.base_sha256);
    (void)pthread_mutex_unlock(&lock);
}

static void end(void)
{
    char command[128];
    transport_close(agent.bulk);
    (void)snprintf(command, sizeof(command), "rm -rf %s", dir);
    CHECK_INT(system(command), 0);
}

/* What fetching the base gives when beats are told that; *order what the silo then knows. */
static enum status fetch(const struct verdict *told, enum beat_order *order)
{
    struct beat_config c = {
        .url = server.url, .token = "secret", .task = task.id, .heartbeat_s = 0.1};
    struct beat *b = NULL;
    struct err e = {0};
    struct own_base got = {.fd = -1};
    double seconds = 0.0;
    atomic_store(&verdict, told);
    CHECK_INT(beat_start(&b, &c, &e), ST_OK);
    struct arena *arena = arena_new(1 << 20);
    enum status st = agent_base(&agent, &task, b, arena, &got, &seconds, &e);
    arena_free(arena);
    *order = beat_order(b);
    beat_stop(b, 0.0);
    return st;
}

static void a_base_is_not_fetched_for_a_round_that_is_over(void)
{
    static const struct {
        struct verdict told;
        enum beat_order order;
    } cases[] = {
        {{"409 Conflict", "ROUND_CLOSED"}, BEAT_CLOSED},
        {{"410 Gone", "RUN_STOPPED"}, BEAT_STOPPED},
        {{"404 Not Found", "NOT_FOUND"}, BEAT_STALE},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        enum beat_order order = BEAT_CONTINUE;
        begin();
        atomic_store(&whole, false);
        CHECK_INT(fetch(&cases[i].told, &order), ST_NET); // without the order it would wait on
        CHECK_INT(order, cases[i].order);
        CHECK_INT(size_of(""), -1);
        CHECK_INT(size_of(".part"), HALF);
        CHECK(agent.fetching == NULL);
        end();
    }
}

static void what_is_there_of_a_base_is_kept(void)
{
    static const struct verdict stale = {"409 Conflict", "STALE_LEASE"};
    enum beat_order order = BEAT_CONTINUE;
    begin();
    atomic_store(&whole, false);
    CHECK_INT(fetch(&stale, &order), ST_NET);
    CHECK_INT(order, BEAT_STALE);
    atomic_store(&whole, true); // claimed again
    CHECK(fetch(NULL, &order) != ST_NET);
    CHECK_INT(order, BEAT_CONTINUE);
    CHECK_INT(atomic_load(&asked_from), HALF);
    CHECK_INT(size_of(""), BASE_BYTES);
    end();
}

// ---- the cache ----

/* A file of the cache, or of another folder, last used so many seconds from now. */
static void put_file(const char *folder, const char *name, int64_t bytes, int64_t used_s)
{
    char path[STATE_PATH_MAX];
    struct err e = {0};
    (void)snprintf(path, sizeof(path), "%s/%s", dir, folder);
    CHECK_INT(dir_make(path, &e), ST_OK);
    (void)snprintf(path, sizeof(path), "%s/%s/%s", dir, folder, name);
    CHECK_INT(file_write(path, name, strlen(name), &e), ST_OK);
    CHECK_INT(truncate(path, bytes), 0);
    struct timespec at[2] = {{.tv_sec = time(NULL) + used_s}, {.tv_sec = time(NULL) + used_s}};
    CHECK_INT(utimensat(AT_FDCWD, path, at, 0), 0);
}

static bool is_there(const char *folder, const char *name)
{
    char path[STATE_PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/%s/%s", dir, folder, name);
    return access(path, F_OK) == 0;
}

/* What an idle silo is told to fetch. */
static void prefetch(const char *step)
{
    struct arena *arena = arena_new(1 << 20);
    agent_prefetch(&agent, arena_fmt(arena, "%s %d", task.base_sha256, BASE_BYTES), step, arena);
    arena_free(arena);
}

static const char OLDER[] =
    "1111111111111111111111111111111111111111111111111111111111111111.safetensors";
static const char NEWER[] =
    "2222222222222222222222222222222222222222222222222222222222222222.safetensors";

static void a_clock_that_was_set_back_costs_no_checkpoint_that_is_wanted_now(void)
{
    enum { DAY = 86400 };
    for (int ahead = 0; ahead < 2; ahead++) {
        enum beat_order order = BEAT_CONTINUE;
        begin();
        put_file("cache", OLDER, 1, DAY);
        put_file("cache", NEWER, 1, DAY + 1);
        atomic_store(&whole, true);
        if (ahead) {
            prefetch("");
        } else {
            CHECK(fetch(NULL, &order) != ST_NET); // it is no checkpoint of this run
        }
        CHECK_INT(size_of(""), BASE_BYTES);
        CHECK(!is_there("cache", OLDER));
        CHECK(is_there("cache", NEWER));
        end();
    }
}

static void what_is_left_of_another_checkpoint_goes(void)
{
    static const char left[] =
        "3333333333333333333333333333333333333333333333333333333333333333.safetensors.part";
    for (int ahead = 0; ahead < 2; ahead++) {
        enum beat_order order = BEAT_CONTINUE;
        begin();
        put_file("cache", left, HALF, -1);
        put_file("cache", OLDER, 1, -3);
        put_file("cache", NEWER, 1, -2);
        atomic_store(&whole, ahead == 0);
        if (ahead) {
            atomic_store(&room, 0); // it does not come, and yet
            prefetch("");
        } else {
            CHECK(fetch(NULL, &order) != ST_NET);
            CHECK(is_there("cache", NEWER));
        }
        CHECK(!is_there("cache", left));
        end();
    }
}

static void a_full_disk_has_room_without_the_former_checkpoints(void)
{
    static const int errnos[] = {ENOSPC, EDQUOT};
    for (int i = 0; i < 8; i++) {
        enum beat_order order = BEAT_CONTINUE;
        begin();
        put_file("cache", OLDER, HALF, -3);
        put_file("cache", NEWER, HALF, -2);
        atomic_store(&whole, true);
        atomic_store(&reserves, i & 1);
        atomic_store(&full_errno, errnos[i >> 2]);
        atomic_store(&room, BASE_BYTES);
        if (i & 2) {
            prefetch("");
        } else {
            enum status st = fetch(NULL, &order);
            CHECK(st != ST_NET && st != ST_LIMIT);
        }
        CHECK_INT(size_of(""), BASE_BYTES);
        CHECK(!is_there("cache", OLDER) && !is_there("cache", NEWER));
        end();
    }
}

static void a_full_disk_is_no_place_for_steps_beside_a_checkpoint_that_they_do_not_need(void)
{
    struct err e = {0};
    enum beat_order order = BEAT_CONTINUE;
    begin();
    put_file("cache", OLDER, BASE_BYTES, -3);
    put_file("cache", NEWER, 1, -2);
    put_file("steps", "another.part", 1, -1);
    struct task_step *s = &task.steps[task.step_count++];
    *s = (struct task_step){.bytes = STEP_BYTES};
    (void)snprintf(s->sha256, sizeof(s->sha256), "%s", step_sha256);
    (void)snprintf(s->base_sha256, sizeof(s->base_sha256), "%.64s", NEWER);
    CHECK_INT(digest_parse(&s->digest, s->sha256, &e), ST_OK);
    atomic_store(&whole, true);
    atomic_store(&reserves, true);
    atomic_store(&room, BASE_BYTES + STEP_BYTES);
    enum status st = fetch(NULL, &order); // by a step that is none, so the whole
    CHECK(st != ST_NET && st != ST_LIMIT);
    CHECK_INT(size_of(""), BASE_BYTES);
    CHECK(!is_there("cache", OLDER));
    CHECK(is_there("cache", NEWER));
    CHECK(!is_there("steps", "another.part"));
    end();
}

static void offer(const char *sha256, int bytes, const char *step, int step_bytes, const char *from)
{
    struct arena *arena = arena_new(1 << 20);
    const char *way = step ? arena_fmt(arena, "%s %d %.64s", step, step_bytes, from) : "";
    agent_prefetch(&agent, arena_fmt(arena, "%.64s %d", sha256, bytes), way, arena);
    arena_free(arena);
}

static void a_silo_without_a_seat_keeps_up_by_steps_while_they_are_less_than_the_whole(void)
{
    static const char mid[] = "5555555555555555555555555555555555555555555555555555555555555555";
    char made[DIGEST_HEX + 16];
    begin();
    (void)snprintf(made, sizeof(made), "%s.safetensors", step_sha256);
    put_file("cache", NEWER, 1, -1);
    atomic_store(&whole, true);
    for (int i = 0; i < 2; i++) { // as often as it asks
        offer(mid, BASE_BYTES, step_sha256, STEP_BYTES, NEWER);
    }
    for (int i = 0; i < 2; i++) {
        offer(task.base_sha256, BASE_BYTES, other_sha256, STEP_BYTES + 1, mid);
    }
    CHECK_INT(size_of(""), -1);
    CHECK(is_there("steps", step_sha256));
    CHECK(is_there("steps", other_sha256));
    CHECK_INT(agent.received_bytes, 2 * STEP_BYTES + 1);
    // The next step would be more bytes than that checkpoint.
    offer(step_sha256, STEP_BYTES, other_sha256, STEP_BYTES + 1, task.base_sha256);
    CHECK(is_there("cache", made));
    CHECK(!is_there("steps", step_sha256));
    CHECK(!is_there("steps", other_sha256));
    CHECK(is_there("cache", NEWER));
    end();
}

static void a_step_from_before_this_process_is_not_fetched_again(void)
{
    begin();
    put_file("cache", NEWER, 1, -1);
    put_file("steps", step_sha256, STEP_BYTES, -1);
    for (int i = 0; i < 2; i++) {
        offer(task.base_sha256, BASE_BYTES, step_sha256, STEP_BYTES, NEWER);
    }
    CHECK_INT(agent.received_bytes, 0);
    CHECK(is_there("steps", step_sha256));
    end();
}

static void without_room_nothing_is_fetched_and_the_server_is_told_why(void)
{
    enum beat_order order = BEAT_CONTINUE;
    begin();
    atomic_store(&whole, true);
    atomic_store(&reserves, true);
    atomic_store(&room, BASE_BYTES - 1);
    CHECK_INT(fetch(NULL, &order), ST_LIMIT);
    CHECK_INT(size_of(".part"), 0);
    atomic_store(&full_errno, EDQUOT);
    CHECK_INT(fetch(NULL, &order), ST_LIMIT);
    CHECK_INT(size_of(".part"), 0);
    atomic_store(&reserves, false); // then the writes tell
    CHECK_INT(fetch(NULL, &order), ST_LIMIT);
    end();
}

static void steps_that_wait_for_a_silo_without_a_seat_do_not_pile_up(void)
{
    static const char old[] = "4444444444444444444444444444444444444444444444444444444444444444";
    for (int by_step = 0; by_step < 2; by_step++) {
        char step[256] = "";
        begin();
        put_file("steps", old, 1, -3);
        put_file("steps", "made", 1, -2);
        atomic_store(&whole, true);
        if (by_step) {
            put_file("cache", NEWER, 1, -1);
            (void)snprintf(step, sizeof(step), "%s %d %.64s", step_sha256, STEP_BYTES, NEWER);
        }
        prefetch(step);
        CHECK_INT(size_of(""), by_step ? -1 : BASE_BYTES);
        CHECK_INT(is_there("steps", step_sha256), by_step);
        CHECK(!is_there("steps", old));
        CHECK(!is_there("steps", "made"));
        end();
    }
}

int main(void)
{
    start_server();
    RUN(a_base_is_not_fetched_for_a_round_that_is_over);
    RUN(what_is_there_of_a_base_is_kept);
    RUN(what_is_left_of_another_checkpoint_goes);
    RUN(a_full_disk_has_room_without_the_former_checkpoints);
    RUN(a_full_disk_is_no_place_for_steps_beside_a_checkpoint_that_they_do_not_need);
    RUN(steps_that_wait_for_a_silo_without_a_seat_do_not_pile_up);
    RUN(a_silo_without_a_seat_keeps_up_by_steps_while_they_are_less_than_the_whole);
    RUN(a_step_from_before_this_process_is_not_fetched_again);
    RUN(without_room_nothing_is_fetched_and_the_server_is_told_why);
    RUN(a_clock_that_was_set_back_costs_no_checkpoint_that_is_wanted_now);
    return check_end();
}
