/* The sweeper: who is over time is shut down, who makes progress is not. */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/http_int.h"
#include "tests/support/check.h"

static struct conns conns;
static struct conn *conn;
static int peer;

static void open_pair(enum listener l)
{
    int fds[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    conns_init(&conns);
    conn = conn_opened(&conns, fds[0], l);
    peer = fds[1];
}

static void close_pair(void)
{
    int fd = conn->fd;
    conn_closed(&conns, conn);
    CHECK_INT(conn_count(&conns, LISTENER_CONTROL) + conn_count(&conns, LISTENER_BULK), 0);
    (void)close(fd);
    (void)close(peer);
    conns_destroy(&conns);
}

/* How many are cut when the phase has lasted that many seconds, whatever the test itself takes. */
static int sweep_in(double seconds)
{
    return conns_sweep(&conns, conn->since_s + seconds);
}

static bool peer_sees_the_end(void)
{
    char byte;
    return recv(peer, &byte, 1, MSG_DONTWAIT) == 0;
}

static void a_head_has_ten_seconds_and_is_cut_once(void)
{
    open_pair(LISTENER_CONTROL);
    CHECK_INT(sweep_in(9.5), 0);
    CHECK(!peer_sees_the_end());
    CHECK_INT(sweep_in(10.5), 1);
    CHECK(peer_sees_the_end());
    CHECK_INT(sweep_in(11), 0);
    close_pair();
}

static void a_control_body_has_thirty_whatever_arrives(void)
{
    open_pair(LISTENER_CONTROL);
    conn_phase(&conns, conn, CONN_BODY);
    conn_bytes(&conns, conn, 60000);
    CHECK_INT(sweep_in(29), 0);
    CHECK_INT(sweep_in(31), 1);
    close_pair();
}

static void a_bulk_body_goes_on_while_bytes_arrive(void)
{
    open_pair(LISTENER_BULK);
    conn_phase(&conns, conn, CONN_BODY);
    CHECK_INT(sweep_in(59), 0);
    conn_bytes(&conns, conn, (size_t)60 * 16 * 1024);
    CHECK_INT(sweep_in(61), 0);  // enough in this minute
    CHECK_INT(sweep_in(120), 0); // the next has not passed yet
    CHECK_INT(sweep_in(122), 1); // and brought nothing
    close_pair();
}

static void work_has_no_limit_here(void)
{
    open_pair(LISTENER_CONTROL);
    conn_phase(&conns, conn, CONN_WORK);
    CHECK_INT(sweep_in(3600), 0);
    CHECK_INT(conn_busy(&conns, LISTENER_CONTROL), 1);
    conn_phase(&conns, conn, CONN_IDLE);
    CHECK_INT(conn_busy(&conns, LISTENER_CONTROL), 0);
    CHECK_INT(sweep_in(31), 1);
    close_pair();
}

static void open_tcp(enum listener l)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(at);
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_INT(bind(listening, (struct sockaddr *)&at, len), 0);
    CHECK_INT(listen(listening, 1), 0);
    CHECK_INT(getsockname(listening, (struct sockaddr *)&at, &len), 0);
    peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_INT(connect(peer, (struct sockaddr *)&at, len), 0);
    conns_init(&conns);
    conn = conn_opened(&conns, accept(listening, NULL, NULL), l);
    (void)close(listening);
}

/* The peer takes that many bytes of an answer. */
static void deliver(size_t size)
{
    static char block[64 * 1024];
    for (size_t done = 0; done < size; done += sizeof(block)) {
        CHECK_INT(send(conn->fd, block, sizeof(block), 0), (long)sizeof(block));
        CHECK_INT(recv(peer, block, sizeof(block), MSG_WAITALL), (long)sizeof(block));
    }
}

static void an_answer_goes_on_while_the_peer_takes_it(void)
{
    open_tcp(LISTENER_CONTROL);
    conn_phase(&conns, conn, CONN_SEND);
    CHECK_INT(sweep_in(1), 0); // the first look says where it stands
    CHECK_INT(sweep_in(59), 0);
    deliver((size_t)1 << 20);
    CHECK_INT(sweep_in(61), 0);
    deliver((size_t)64 * 1024); // not enough for a minute
    CHECK_INT(sweep_in(120), 0);
    CHECK_INT(sweep_in(122), 1);
    CHECK(peer_sees_the_end());
    close_pair();
}

/* Neither side's kernel makes it wait for bytes that nobody reads. */
static void a_slow_reader_is_told_at_once_and_costs_nothing_more(void)
{
    static char block[64 * 1024];
    open_tcp(LISTENER_CONTROL);
    conn_phase(&conns, conn, CONN_SEND);
    while (send(conn->fd, block, sizeof(block), MSG_DONTWAIT) > 0) {
    }
    CHECK_INT(sweep_in(1), 0);
    CHECK_INT(sweep_in(61), 1);
    int fd = conn->fd;
    conn_closed(&conns, conn);
    (void)close(fd); // as libmicrohttpd does, and before this a reset is not due
    struct pollfd seen = {.fd = peer, .events = POLLRDHUP};
    CHECK_INT(poll(&seen, 1, 5000), 1);
    int why = 0;
    socklen_t len = sizeof(why);
    CHECK_INT(getsockopt(peer, SOL_SOCKET, SO_ERROR, &why, &len), 0);
    CHECK_INT(why, ECONNRESET);
    (void)close(peer);
    conns_destroy(&conns);
}

static void connections_of_a_token_are_counted_until_the_request_is_over(void)
{
    open_pair(LISTENER_BULK);
    struct conn *second = conn_opened(&conns, 0, LISTENER_BULK);
    CHECK_INT(conn_owned(&conns, conn, "k_one"), 1);
    CHECK_INT(conn_owned(&conns, second, "k_two"), 1);
    CHECK_INT(conn_owned(&conns, second, "k_one"), 2);
    conn_phase(&conns, second, CONN_IDLE);
    CHECK_INT(conn_owned(&conns, conn, "k_one"), 1);
    conn_closed(&conns, second);
    close_pair();
}

static void a_peer_that_hung_up_is_seen(void)
{
    open_pair(LISTENER_CONTROL);
    CHECK(!conn_peer_gone(conn));
    CHECK_INT(send(peer, "x", 1, 0), 1);
    CHECK(!conn_peer_gone(conn)); // a pipelined request is no farewell
    char byte;
    CHECK_INT(recv(conn->fd, &byte, 1, 0), 1);
    CHECK_INT(shutdown(peer, SHUT_WR), 0);
    CHECK(conn_peer_gone(conn));
    close_pair();
}

int main(void)
{
    RUN(a_head_has_ten_seconds_and_is_cut_once);
    RUN(a_control_body_has_thirty_whatever_arrives);
    RUN(a_bulk_body_goes_on_while_bytes_arrive);
    RUN(work_has_no_limit_here);
    RUN(an_answer_goes_on_while_the_peer_takes_it);
    RUN(a_slow_reader_is_told_at_once_and_costs_nothing_more);
    RUN(connections_of_a_token_are_counted_until_the_request_is_over);
    RUN(a_peer_that_hung_up_is_seen);
    return check_end();
}
