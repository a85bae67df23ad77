/* tcp serve PORT: answers each request (64 bytes: how many bytes are wanted) with that many bytes, for one client after the
 * other. tcp ask ADDRESS PORT N BYTES: N requests for BYTES, one after the other; prints the nanoseconds of one. */
#include "clock.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char block[1 << 20];

static int tcp_socket(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0)
        fail("socket");
    return fd;
}

static void at_once(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void serve(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listener = tcp_socket();
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 8) != 0)
        fail("listen");
    puts("listening");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, 0, 0);
        if (fd < 0)
            fail("accept");
        at_once(fd);
        while (recv(fd, block, 64, MSG_WAITALL) == 64) {
            long left = atol(block);
            while (left > 0) {
                ssize_t sent = send(fd, block, left < (long)sizeof block ? left : (long)sizeof block, MSG_NOSIGNAL);
                if (sent <= 0)
                    break;
                left -= sent;
            }
        }
        close(fd);
    }
}

static void ask(const char *host, int port, long n, long bytes) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    char request[64] = {0};
    int fd = tcp_socket();
    inet_pton(AF_INET, host, &address.sin_addr);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        fail("connect");
    at_once(fd);
    snprintf(request, sizeof request, "%ld", bytes);
    double start = now();
    for (long i = 0; i < n; i++) {
        if (send(fd, request, sizeof request, 0) != sizeof request)
            fail("send");
        for (long left = bytes; left > 0;) {
            ssize_t got = recv(fd, block, left < (long)sizeof block ? left : (long)sizeof block, 0);
            if (got <= 0)
                fail("recv");
            left -= got;
        }
    }
    printf("%.3f\n", (now() - start) / n);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "serve") == 0)
        serve(atoi(argv[2]));
    else if (argc == 6 && strcmp(argv[1], "ask") == 0)
        ask(argv[2], atoi(argv[3]), atol(argv[4]), atol(argv[5]));
    return 2 * (argc != 6);
}
