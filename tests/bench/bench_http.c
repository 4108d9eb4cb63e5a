/*
 * bench_http.c - how many requests a second one route answers, and how long the slow ones take.
 *
 *     bench_http PORT PATH TOKEN SECONDS CONNECTIONS
 *
 * Each connection is a thread that asks again as soon as it was answered, over one kept-alive
 * socket to 127.0.0.1. Prints one JSON line: requests/s, median and 99th percentile in
 * milliseconds, answers that were not 200.
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/mem.h"

enum { SAMPLES_MAX = 1 << 20, ANSWER_MAX = 1 << 20, THREADS_MAX = 64 };

struct client {
    int port;
    char request[1024];
    double until_s;
    float *ms;
    int64_t count;
    int64_t not_ok;
    bool broken;
};

static int dial(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0) {
        return -1;
    }
    int one = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

/* Reads one whole answer with a Content-Length; its status, or -1. */
static int read_answer(int fd, char *buffer)
{
    size_t len = 0;
    for (;;) {
        ssize_t n = read(fd, buffer + len, ANSWER_MAX - 1 - len);
        if (n <= 0) {
            return -1;
        }
        len += (size_t)n;
        buffer[len] = '\0';
        const char *end = strstr(buffer, "\r\n\r\n");
        if (!end) {
            continue;
        }
        const char *field = strcasestr(buffer, "\r\ncontent-length:");
        if (!field || field > end) {
            return -1;
        }
        size_t want = (size_t)(end + 4 - buffer) + (size_t)strtoull(field + 17, NULL, 10);
        if (len >= want) {
            return (int)strtol(buffer + 9, NULL, 10);
        }
    }
}

static void *ask_again_and_again(void *arg)
{
    struct client *c = arg;
    char *buffer = mem_alloc(ANSWER_MAX);
    int fd = dial(c->port);
    size_t size = strlen(c->request);
    while (fd >= 0 && clock_mono_s() < c->until_s && c->count < SAMPLES_MAX) {
        double start = clock_mono_s();
        if (write(fd, c->request, size) != (ssize_t)size) {
            c->broken = true;
            break;
        }
        int status = read_answer(fd, buffer);
        if (status < 0) {
            c->broken = true;
            break;
        }
        c->not_ok += status != 200;
        c->ms[c->count++] = (float)((clock_mono_s() - start) * 1e3);
    }
    c->broken = c->broken || fd < 0;
    if (fd >= 0) {
        (void)close(fd);
    }
    mem_free(buffer);
    return NULL;
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a;
    float y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        (void)fprintf(stderr, "usage: bench_http PORT PATH TOKEN SECONDS CONNECTIONS\n");
        return 2;
    }
    int threads = (int)strtol(argv[5], NULL, 10);
    double seconds = strtod(argv[4], NULL);
    if (threads < 1 || threads > THREADS_MAX || !(seconds > 0.0)) {
        (void)fprintf(stderr, "bench_http: 1 to %d connections, seconds above 0\n", THREADS_MAX);
        return 2;
    }

    static struct client clients[THREADS_MAX];
    static pthread_t ids[THREADS_MAX];
    double start = clock_mono_s();
    for (int i = 0; i < threads; i++) {
        struct client *c = &clients[i];
        c->port = (int)strtol(argv[1], NULL, 10);
        c->until_s = start + seconds;
        c->ms = mem_alloc(SAMPLES_MAX * sizeof(float));
        (void)snprintf(c->request, sizeof(c->request),
                       "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n\r\n",
                       argv[2], argv[3]);
        if (pthread_create(&ids[i], NULL, ask_again_and_again, c) != 0) {
            (void)fprintf(stderr, "bench_http: no thread\n");
            return 1;
        }
    }
    int64_t total = 0;
    int64_t not_ok = 0;
    bool broken = false;
    for (int i = 0; i < threads; i++) {
        (void)pthread_join(ids[i], NULL);
        total += clients[i].count;
        not_ok += clients[i].not_ok;
        broken = broken || clients[i].broken;
    }
    double took = clock_mono_s() - start;
    if (total == 0 || broken) {
        (void)fprintf(stderr, "bench_http: a connection was refused or broken\n");
        return 1;
    }

    float *all = mem_alloc((size_t)total * sizeof(float));
    int64_t at = 0;
    for (int i = 0; i < threads; i++) {
        memcpy(all + at, clients[i].ms, (size_t)clients[i].count * sizeof(float));
        at += clients[i].count;
        mem_free(clients[i].ms);
    }
    qsort(all, (size_t)total, sizeof(float), by_value);
    (void)printf(
        "{\"bench\": \"http\", \"path\": \"%s\", \"connections\": %d, \"requests\": %" PRId64
        ", \"not_200\": %" PRId64 ", \"requests_per_s\": %.0f, \"ms\": {\"median\": %.2f, "
        "\"p99\": %.2f}}\n",
        argv[2], threads, total, not_ok, (double)total / took, (double)all[total / 2],
        (double)all[total - 1 - total / 100]);
    mem_free(all);
    return not_ok > 0;
}
