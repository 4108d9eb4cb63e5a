/*
 * http_stub.h - a server on loopback, for tests of what talks to one.
 *
 * Binds a free port, reads each request to the end that its Content-Length gives, and hands it to
 * the test's answer(), which writes what it likes, or nothing, to fd; then the connection ends.
 * Connections are served one after the other, or `beside` each other in threads of their own. It
 * runs until the process ends. What answer() shares with the test is the test's to guard.
 */
#ifndef TESTS_SUPPORT_HTTP_STUB_H
#define TESTS_SUPPORT_HTTP_STUB_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/mem.h"

enum { STUB_REQUEST_MAX = 1 << 20 };

struct http_stub {
    void (*answer)(int fd, const char *request); /* ends in NUL; a body may hold others */
    bool beside;
    char url[64]; /* of its root, without a slash */
    int listener;
};

struct http_stub_connection {
    const struct http_stub *stub;
    int fd;
};

static inline void http_stub_send(int fd, const char *bytes, size_t len)
{
    for (ssize_t n = 0; len > 0; bytes += n, len -= (size_t)n) {
        n = send(fd, bytes, len, MSG_NOSIGNAL);
        if (n <= 0) {
            return;
        }
    }
}

/* status is a number and its words: "200 OK". */
static inline void http_stub_json(int fd, const char *status, const char *body)
{
    char text[1024];
    int n = snprintf(text, sizeof(text),
                     "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                     "Connection: close\r\n\r\n%s",
                     status, strlen(body), body);
    http_stub_send(fd, text, (size_t)n);
}

/* False: it broke off. */
static inline bool http_stub_read(int fd, char *request)
{
    size_t len = 0;
    size_t want = 0;
    bool continued = false;
    for (;;) {
        ssize_t n = recv(fd, request + len, STUB_REQUEST_MAX - 1 - len, 0);
        if (n <= 0) {
            return false;
        }
        len += (size_t)n;
        request[len] = '\0';
        const char *end = strstr(request, "\r\n\r\n");
        if (end && want == 0) {
            const char *length = strstr(request, "Content-Length: ");
            long body = length && length < end ? strtol(length + 16, NULL, 10) : 0;
            want = (size_t)(end + 4 - request) + (size_t)body;
        }
        if (end && !continued && strstr(request, "Expect: 100-continue")) {
            continued = true;
            http_stub_send(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25);
        }
        if (end && len >= want) {
            return true;
        }
    }
}

static inline void *http_stub_one(void *ctx)
{
    struct http_stub_connection *c = ctx;
    char *request = mem_alloc(STUB_REQUEST_MAX);
    if (http_stub_read(c->fd, request)) {
        c->stub->answer(c->fd, request);
    }
    (void)shutdown(c->fd, SHUT_WR);
    (void)close(c->fd);
    mem_free(request);
    mem_free(c);
    return NULL;
}

static inline void *http_stub_serve(void *ctx)
{
    const struct http_stub *s = ctx;
    for (int fd = 0; (fd = accept(s->listener, NULL, NULL)) >= 0;) {
        struct http_stub_connection *c = mem_alloc(sizeof(*c));
        *c = (struct http_stub_connection){s, fd};
        pthread_t thread;
        if (!s->beside) {
            (void)http_stub_one(c);
        } else if (pthread_create(&thread, NULL, http_stub_one, c) == 0) {
            (void)pthread_detach(thread);
        } else {
            abort();
        }
    }
    return NULL;
}

/* answer and beside are set; s lives as long as the process. */
static inline void http_stub_start(struct http_stub *s)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(at);
    pthread_t thread;
    s->listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(s->listener, (struct sockaddr *)&at, sizeof(at)) != 0 ||
        listen(s->listener, 16) != 0 ||
        getsockname(s->listener, (struct sockaddr *)&at, &len) != 0) {
        abort();
    }
    (void)snprintf(s->url, sizeof(s->url), "http://127.0.0.1:%d", ntohs(at.sin_port));
    if (pthread_create(&thread, NULL, http_stub_serve, s) != 0) {
        abort();
    }
    (void)pthread_detach(thread);
}

#endif
