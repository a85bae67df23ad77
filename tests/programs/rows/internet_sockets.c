/* internet_sockets: a TCP listener, a connection of the program with itself that has bytes on the way, a UDP socket. */
#include "rows.h"
#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, udp = at, got;
    socklen_t length = sizeof at;
    char text[16] = {0};
    int listener = MUST(socket(AF_INET, SOCK_STREAM, 0)), client = MUST(socket(AF_INET, SOCK_STREAM, 0)), box = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(listener, (void *)&at, length)), MUST(listen(listener, 3)), MUST(getsockname(listener, (void *)&at, &length));
    MUST(connect(client, (void *)&at, length));
    int server = MUST(accept(listener, 0, 0));
    MUST(bind(box, (void *)&udp, length)), MUST(getsockname(box, (void *)&udp, &length));
    MUST(write(client, "on the way", 10)), MUST(sendto(box, "datagram", 8, 0, (void *)&udp, length));
    journey();
    IS(read(server, text, 16) == 10 && !strcmp(text, "on the way"));
    IS(write(server, "back", 4) == 4 && read(client, text, 16) == 4);
    IS(recv(box, text, 16, 0) == 8 && !strncmp(text, "datagram", 8));
    IS(getpeername(client, (void *)&got, &length) == 0 && got.sin_port == at.sin_port);
    int another = MUST(socket(AF_INET, SOCK_STREAM, 0));
    IS(connect(another, (void *)&at, length) == 0 && (server = accept(listener, 0, 0)) >= 0);
    IS(write(another, "new", 3) == 3 && read(server, text, 16) == 3);
    return 0;
}
