/* internet_sockets: TCP connections of the program with itself, bytes on the way both ways, one that ends half. */
#include "rows.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static struct sockaddr_in at = {.sin_family = AF_INET};
static struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
static char many[60000], back[60000];

/* A listener, and a connection to it: the client's end, then the accepted one. */
static int pair(void *to, socklen_t length, int two[2]) {
    int family = ((struct sockaddr *)to)->sa_family, listener = MUST(socket(family, SOCK_STREAM, 0));
    MUST(bind(listener, to, length)), MUST(listen(listener, 3)), MUST(getsockname(listener, to, &length));
    two[0] = MUST(socket(family, SOCK_STREAM, 0));
    MUST(connect(two[0], to, length));
    two[1] = MUST(accept(listener, 0, 0));
    return listener;
}

static int same_names(int two[2]) {
    struct sockaddr_in own, other;
    socklen_t length = sizeof own;
    return getsockname(two[0], (void *)&own, &length) == 0 && getpeername(two[1], (void *)&other, &length) == 0 &&
        own.sin_port == other.sin_port && own.sin_addr.s_addr == other.sin_addr.s_addr;
}

static int all(int fd, int bytes) {
    int got = 0, n;
    for (; got < bytes && (n = read(fd, back + got, bytes - got)) > 0; got += n);
    return got;
}

int main(void) {
    int one[2], two[2], on = 1, got = 0, no_delay;
    socklen_t length = sizeof got;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = pair(&at, sizeof at, one), other = pair(&six, sizeof six, two);
    MUST(setsockopt(one[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    for (unsigned i = 0; i < sizeof many; i++)
        many[i] = i % 251;
    MUST(write(one[0], "on the way", 10)), MUST(write(one[1], many, sizeof many));
    MUST(write(two[0], "the last", 8)), MUST(shutdown(two[0], SHUT_WR));
    journey();
    IS(same_names(one) && same_names((int[]){one[1], one[0]}));
    IS(all(one[1], 10) == 10 && !memcmp(back, "on the way", 10));
    IS(all(one[0], sizeof many) == sizeof many && !memcmp(back, many, sizeof many));
    IS(write(one[1], "back", 4) == 4 && all(one[0], 4) == 4 && write(one[0], "forth", 5) == 5 && all(one[1], 5) == 5);
    IS(getsockopt(one[0], IPPROTO_TCP, TCP_NODELAY, &no_delay, &length) == 0 && no_delay);
    IS(getsockopt(one[1], SOL_SOCKET, SO_REUSEADDR, &got, &length) == 0 && got == 0);
    IS(all(two[1], 20) == 8 && !memcmp(back, "the last", 8));
    IS(write(two[1], "answer", 6) == 6 && all(two[0], 6) == 6);
    IS(send(two[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    int another = MUST(socket(AF_INET, SOCK_STREAM, 0)), server = -1;
    IS(connect(another, (void *)&at, sizeof at) == 0 && (server = accept(listener, 0, 0)) >= 0);
    IS(write(another, "new", 3) == 3 && all(server, 3) == 3);
    close(one[0]);
    IS(all(one[1], 1) == 0);
    return close(other);
}
