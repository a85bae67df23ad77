/* unix_stream: connected pairs with bytes queued both ways, half closed, with options; a child at one end. */
#include "rows.h"
#include <sys/socket.h>

int main(void) {
    int pair[2], half[2], with[2], size = 50000, got;
    socklen_t length = sizeof got;
    char text[32] = {0};
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)), MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, half));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, with));
    MUST(write(pair[0], "there", 5)), MUST(write(pair[1], "and back", 8)), MUST(write(half[0], "last", 4)), MUST(shutdown(half[0], SHUT_WR));
    MUST(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    MUST(getsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, &length));
    int child = CHILD({
        close(with[0]);
        MUST(read(with[1], text, 4));
        write(with[1], strcmp(text, "ping") ? "bad" : "pong", 4) == 4 ? 32 : 1;
    });
    close(with[1]);
    journey_while(child, SYS_read);
    IS(read(pair[1], text, 32) == 5 && !strncmp(text, "there", 5));
    IS(read(pair[0], text, 32) == 8 && !strncmp(text, "and back", 8));
    IS(getsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &got, &length) == 0 && got == size);
    IS(read(half[1], text, 32) == 4 && read(half[1], text, 32) == 0);
    IS(read(half[0], text, 32) == -1 && errno == EAGAIN);
    IS(write(half[1], "x", 1) == 1 && read(half[0], text, 32) == 1);
    memset(text, 0, sizeof text);
    MUST(write(with[0], "ping", 4));
    IS(read(with[0], text, 4) == 4 && !strcmp(text, "pong"));
    IS(read(with[0], text, 4) == 0);
    IS(ended(child) == 32);
    return 0;
}
