/*
 * s3_stub.h - the object store of s3_stub.py beside a test program, and how to open it.
 */
#ifndef TESTS_S3_STUB_H
#define TESTS_S3_STUB_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server/s3.h"
#include "tests/support/check.h"
#include "tests/support/tempdir.h"

enum { PART = 64 * 1024 }; // of a large object
static const char SECRET[] = "not/a+secret=";

static pid_t stub;
static int stub_in = -1; // the stub lives as long as this is open
static char endpoint[64];
static struct tempdir dir;

/* False: this machine cannot run it. */
static bool stub_start(const char *faults, const char *page)
{
    int to[2];
    int from[2];
    char port[16] = "";
    CHECK_INT(pipe(to), 0);
    CHECK_INT(pipe(from), 0);
    (void)fflush(NULL);
    stub = fork();
    if (stub == 0) {
        (void)dup2(to[0], 0);
        (void)dup2(from[1], 1);
        (void)close(to[1]);
        (void)close(from[0]);
        (void)execlp("python3", "python3", "-B", "tests/support/s3_stub.py", "--faults", faults,
                     "--seed", "11", "--page", page, (char *)NULL);
        _exit(127);
    }
    (void)close(to[0]);
    (void)close(from[1]);
    stub_in = to[1];
    size_t n = 0;
    while (n < sizeof(port) - 1 && !strchr(port, '\n') && read(from[0], port + n, 1) == 1) {
        n++;
    }
    (void)close(from[0]);
    (void)snprintf(endpoint, sizeof(endpoint), "http://127.0.0.1:%.*s", (int)strcspn(port, "\n"),
                   port);
    tempdir_make(&dir);
    return n > 0;
}

static void stub_stop(void)
{
    int how = 0;
    (void)close(stub_in);
    CHECK_INT(waitpid(stub, &how, 0), stub);
    tempdir_remove(&dir);
}

static enum status open_as(struct s3 **s, const char *url, const char *secret, struct err *e)
{
    (void)setenv("AWS_ACCESS_KEY_ID", "AKIATEST", 1);
    (void)setenv("AWS_SECRET_ACCESS_KEY", secret, 1);
    (void)setenv("AWS_SESSION_TOKEN", "a-session-token", 1);
    (void)setenv("AWS_REGION", "eu-north-1", 1);
    struct s3_config c = {
        .url = url, .endpoint = endpoint, .part_bytes = PART, .patience_s = 60.0, .pause_ms = 2};
    return s3_open(s, &c, e);
}

#endif
