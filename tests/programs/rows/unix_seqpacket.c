/* unix_seqpacket: queued records stay records; the end of the other side comes after them. */
#include "rows.h"
#include <sys/socket.h>

int main(void) {
    int pair[2], closed[2];
    char text[32] = {0};
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair)), MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, closed));
    MUST(send(pair[0], "first", 5, 0)), MUST(send(pair[0], "second", 6, 0)), MUST(send(pair[1], "back", 4, 0));
    MUST(send(closed[0], "farewell", 8, 0)), close(closed[0]);
    journey();
    IS(recv(pair[1], text, 3, 0) == 3 && !strncmp(text, "fir", 3));
    IS(recv(pair[1], text, 32, 0) == 6 && !strncmp(text, "second", 6));
    IS(recv(pair[0], text, 32, 0) == 4 && !strncmp(text, "back", 4));
    IS(recv(pair[0], text, 32, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    IS(recv(closed[1], text, 32, 0) == 8 && recv(closed[1], text, 32, 0) == 0);
    IS(send(pair[1], "more", 4, 0) == 4 && recv(pair[0], text, 32, 0) == 4);
    return 0;
}
