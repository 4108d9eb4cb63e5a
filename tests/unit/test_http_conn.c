/* The sweeper: who is over time is shut down, who makes progress is not. */
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
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

/* How many are cut that many seconds from now. */
static int sweep_in(double seconds)
{
    return conns_sweep(&conns, clock_mono_s() + seconds);
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

static void work_and_sending_have_no_limit_here(void)
{
    open_pair(LISTENER_CONTROL);
    conn_phase(&conns, conn, CONN_WORK);
    CHECK_INT(sweep_in(3600), 0);
    CHECK_INT(conn_busy(&conns, LISTENER_CONTROL), 1);
    conn_phase(&conns, conn, CONN_SEND);
    CHECK_INT(sweep_in(3600), 0);
    conn_phase(&conns, conn, CONN_IDLE);
    CHECK_INT(conn_busy(&conns, LISTENER_CONTROL), 0);
    CHECK_INT(sweep_in(31), 1);
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
    RUN(work_and_sending_have_no_limit_here);
    RUN(a_peer_that_hung_up_is_seen);
    return check_end();
}
