/* tcp: a server and a client in one process, made after the move: readiness by poll, select and epoll in each of its modes. */
#include "pause.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>

static int ready(int ep, int timeout) {
    struct epoll_event events[4];
    int n = epoll_wait(ep, events, 4, timeout);
    for (int i = 0; i < n; i++)
        say("  event %x of %lu", events[i].events, (unsigned long)events[i].data.u64);
    return n;
}

int main(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, peer;
    socklen_t length = sizeof at, peer_length = sizeof peer;
    char text[100] = {0};
    moment();
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), value = 1;
    TRY(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &value, sizeof value));
    TRY(bind(listener, (void *)&at, sizeof at) + listen(listener, 5) + getsockname(listener, (void *)&at, &length));
    TRY(connect(client, (void *)&at, sizeof at));
    struct pollfd fds[] = {{client, POLLIN | POLLOUT, 0}, {listener, POLLIN, 0}, {-1, POLLIN, 7}, {99, POLLIN, 0}};
    TRY(poll(fds, 4, 1000));
    say("  %x %x %x %x", fds[0].revents, fds[1].revents, fds[2].revents, fds[3].revents);
    length = sizeof value;
    TRY(getsockopt(client, SOL_SOCKET, SO_ERROR, &value, &length) + value);
    int server = accept4(listener, (void *)&peer, &peer_length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    say("  %d from %s, length %d, flags %o", server > 0, inet_ntoa(peer.sin_addr), peer_length, fcntl(server, F_GETFL));
    TRY(getpeername(client, (void *)&peer, &peer_length) + (peer.sin_port == at.sin_port));
    TRY(connect(client, (void *)&at, sizeof at));
    int ep = epoll_create1(EPOLL_CLOEXEC);
    TRY(epoll_ctl(ep, EPOLL_CTL_ADD, server, &(struct epoll_event){EPOLLIN | EPOLLET, {.u64 = 1ul << 40}}));
    TRY(epoll_ctl(ep, EPOLL_CTL_ADD, client, &(struct epoll_event){EPOLLOUT | EPOLLONESHOT, {.u64 = 2}}));
    TRY(ready(ep, 0)), TRY(ready(ep, 0));
    TRY(write(client, "hello world", 11));
    TRY(ready(ep, 1000)), TRY(ready(ep, 10));
    TRY(epoll_ctl(ep, EPOLL_CTL_MOD, server, &(struct epoll_event){EPOLLIN | EPOLLRDHUP, {.u64 = 3}}));
    TRY(ready(ep, 0)), TRY(ready(ep, 0));
    TRY(recv(server, text, 5, MSG_PEEK) + recv(server, text, 50, MSG_PEEK | MSG_TRUNC));
    TRY(read(server, text, 6));
    fd_set in, out;
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_SET(server, &in);
    FD_SET(client, &in);
    FD_SET(client, &out);
    struct timeval tv = {5, 0};
    TRY(select(client + server + 1, &in, &out, 0, &tv));
    say("  %d %d %d, %ld left", FD_ISSET(server, &in), FD_ISSET(client, &in), FD_ISSET(client, &out), tv.tv_sec);
    TRY(recv(server, text, 50, MSG_DONTWAIT)), TRY(recv(server, text, 50, 0));
    TRY(shutdown(client, SHUT_WR)), TRY(ready(ep, 1000)), TRY(read(server, text, 5)), TRY(write(server, "still", 5));
    fcntl(client, F_SETFL, 0);
    TRY(recv(client, text, 5, MSG_WAITALL)), TRY(send(client, "x", 1, MSG_NOSIGNAL));
    value = 0, length = sizeof value;
    TRY(setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &(int){1}, 4) + getsockopt(server, IPPROTO_TCP, TCP_NODELAY, &value, &length) + value);
    struct linger linger = {1, 0};
    TRY(setsockopt(server, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) + close(server)), TRY(read(client, text, 5));
    TRY(epoll_ctl(ep, EPOLL_CTL_DEL, client, 0)), TRY(ready(ep, 0)), TRY(close(listener));
    TRY(connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&at, sizeof at));
    return 0;
}
