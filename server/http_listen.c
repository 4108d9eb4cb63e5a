#include "server/http_listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BACKLOG = 1024, FILES_OF_OUR_OWN = 256 };

enum status listen_address_parse(struct listen_address *out, const char *text, struct err *e)
{
    const char *colon = strrchr(text, ':');
    const char *digits = colon ? colon + 1 : "";
    size_t n = strlen(digits);
    if (n == 0 || n > 5 || strspn(digits, "0123456789") != n) {
        return err_set(e, ST_INVALID, "'%s' is no host:port; try 127.0.0.1:8080", text);
    }
    long port = strtol(digits, NULL, 10);
    if (port > 65535) {
        return err_set(e, ST_INVALID, "port %ld is over 65535", port);
    }
    size_t len = (size_t)(colon - text);
    if (len >= 2 && text[0] == '[' && text[len - 1] == ']') { // IPv6 in brackets
        text++;
        len -= 2;
    } else if (memchr(text, ':', len)) {
        return err_set(e, ST_INVALID, "'%s': write an IPv6 address in brackets", text);
    }
    if (len >= sizeof(out->host)) {
        return err_set(e, ST_INVALID, "the host's name is too long");
    }
    memcpy(out->host, text, len);
    out->host[len] = '\0';
    out->port = (int)port;
    return ST_OK;
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) {
        struct sockaddr_in in;
        memcpy(&in, a, sizeof(in));
        return (ntohl(in.sin_addr.s_addr) >> 24) == 127;
    }
    struct sockaddr_in6 in6;
    memcpy(&in6, a, sizeof(in6));
    return IN6_IS_ADDR_LOOPBACK(&in6.sin6_addr);
}

static enum status open_socket(int *out, const struct addrinfo *ai, const char *address,
                               struct err *e)
{
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return err_set(e, ST_IO, "no socket for %s: %s", address, strerror(errno));
    }
    int on = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)); // a restart must not wait
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        int why = errno;
        (void)close(fd);
        if (why == EADDRINUSE) {
            return err_set(e, ST_CONFLICT, "%s is taken; try another port, or port 0", address);
        }
        return err_set(e, why == EACCES ? ST_DENIED : ST_IO, "cannot listen on %s: %s", address,
                       strerror(why));
    }
    *out = fd;
    return ST_OK;
}

static enum status port_of(int fd, int *port, struct err *e)
{
    struct sockaddr_storage got = {0};
    socklen_t len = sizeof(got);
    if (getsockname(fd, (struct sockaddr *)&got, &len) != 0) {
        return err_set(e, ST_IO, "getsockname: %s", strerror(errno));
    }
    char text[8];
    if (getnameinfo((struct sockaddr *)&got, len, NULL, 0, text, sizeof(text), NI_NUMERICSERV)) {
        return err_set(e, ST_IO, "the port of a listening socket is unknown");
    }
    *port = (int)strtol(text, NULL, 10);
    return ST_OK;
}

/* The address as the system knows it, if it may be served; freeaddrinfo() by the caller. */
static enum status resolve(struct addrinfo **out, const char *address, bool tls, struct err *e)
{
    struct listen_address a;
    TRY(listen_address_parse(&a, address, e));

    char service[8];
    (void)snprintf(service, sizeof(service), "%d", a.port);
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    int rc = getaddrinfo(a.host[0] ? a.host : NULL, service, &hints, &found);
    if (rc != 0) {
        return err_set(e, ST_INVALID, "cannot listen on %s: %s", address, gai_strerror(rc));
    }
    if (!tls && !is_loopback(found->ai_addr)) {
        freeaddrinfo(found);
        return err_set(e, ST_DENIED,
                       "%s is not loopback and there is no TLS, tokens would travel in the clear; "
                       "try --tls auto, --tls-cert and --tls-key, or 127.0.0.1 behind a proxy",
                       address);
    }
    *out = found;
    return ST_OK;
}

enum status http_listen_check(const char *control, const char *bulk, bool tls, struct err *e)
{
    struct listen_address a;
    struct addrinfo *one = NULL;
    struct addrinfo *two = NULL;
    TRY(listen_address_parse(&a, control, e));
    TRY(resolve(&one, control, tls, e));
    enum status st = resolve(&two, bulk, tls, e);
    if (st) {
        freeaddrinfo(one);
        return st;
    }
    if (a.port != 0 && one->ai_addrlen == two->ai_addrlen &&
        memcmp(one->ai_addr, two->ai_addr, one->ai_addrlen) == 0) {
        st = err_set(e, ST_INVALID, "control and bulk are both to listen on %s; try another port",
                     control);
    }
    freeaddrinfo(one);
    freeaddrinfo(two);
    return st;
}

enum status http_listen(int *fd, int *port, const char *address, bool tls, struct err *e)
{
    struct addrinfo *found = NULL;
    TRY(resolve(&found, address, tls, e));
    int got = -1;
    enum status st = open_socket(&got, found, address, e);
    freeaddrinfo(found);
    if (st) {
        return st;
    }
    *fd = got;
    return port_of(got, port, e);
}

int http_connection_limit(int wanted)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) {
        return wanted / 8;
    }
    if (files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
        (void)getrlimit(RLIMIT_NOFILE, &files);
    }
    if (files.rlim_cur == RLIM_INFINITY ||
        files.rlim_cur >= (rlim_t)wanted * 2 + FILES_OF_OUR_OWN) {
        return wanted;
    }
    int room = ((int)files.rlim_cur - FILES_OF_OUR_OWN) / 2;
    return room > 16 ? room : 16;
}
