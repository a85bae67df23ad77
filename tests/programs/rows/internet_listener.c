/* internet_listener: a TCP listener and UDP sockets, bound and connected, with options. */
#include "rows.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, udp = at, got;
    socklen_t length = sizeof at, size = sizeof(int);
    char text[16] = {0};
    int listener = MUST(socket(AF_INET, SOCK_STREAM, 0)), box = MUST(socket(AF_INET, SOCK_DGRAM, 0)), to = MUST(socket(AF_INET, SOCK_DGRAM, 0)), on = 1;
    MUST(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on)), MUST(setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    MUST(bind(listener, (void *)&at, length)), MUST(listen(listener, 3)), MUST(getsockname(listener, (void *)&at, &length));
    MUST(bind(box, (void *)&udp, length)), MUST(getsockname(box, (void *)&udp, &length)), MUST(connect(to, (void *)&udp, length));
    journey();
    IS(getsockname(listener, (void *)&got, &length) == 0 && got.sin_port == at.sin_port);
    IS(getsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, &size) == 0 && on);
    int client = MUST(socket(AF_INET, SOCK_STREAM, 0)), server = -1;
    IS(connect(client, (void *)&at, length) == 0 && (server = accept(listener, 0, 0)) >= 0);
    IS(write(client, "new", 3) == 3 && read(server, text, 16) == 3);
    IS(send(to, "datagram", 8, 0) == 8 && recv(box, text, 16, 0) == 8 && !strncmp(text, "datagram", 8));
    IS(getpeername(to, (void *)&got, &length) == 0 && got.sin_port == udp.sin_port);
    return 0;
}
