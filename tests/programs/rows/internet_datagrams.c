/* internet_datagrams: datagrams that wait at a UDP socket. */
#include "rows.h"
#include <arpa/inet.h>
#include <sys/socket.h>

int main(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    char text[16] = {0};
    int box = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(box, (void *)&at, length)), MUST(getsockname(box, (void *)&at, &length));
    MUST(sendto(box, "datagram", 8, 0, (void *)&at, length));
    journey();
    IS(recv(box, text, 16, MSG_DONTWAIT) == 8 && !strncmp(text, "datagram", 8));
    IS(sendto(box, "again", 5, 0, (void *)&at, length) == 5 && recv(box, text, 16, 0) == 5);
    return 0;
}
