/* unix_datagram: queued datagrams keep their limits and their sender's name. */
#include "rows.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(void) {
    struct sockaddr_un here = {AF_UNIX, "receiver"}, there = {AF_UNIX, "sender"}, from;
    socklen_t length = sizeof from;
    int receiver = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), sender = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), pair[2];
    char text[32] = {0};
    unlink("receiver"), unlink("sender");
    MUST(bind(receiver, (void *)&here, sizeof here)), MUST(bind(sender, (void *)&there, sizeof there));
    MUST(connect(sender, (void *)&here, sizeof here));
    MUST(send(sender, "one", 3, 0)), MUST(send(sender, "", 0, 0)), MUST(send(sender, "three", 5, 0));
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair)), MUST(send(pair[0], "pair", 4, 0));
    journey();
    IS(recvfrom(receiver, text, 2, MSG_TRUNC, (void *)&from, &length) == 3 && !strncmp(text, "on", 2));
    IS(!strcmp(from.sun_path, "sender"));
    IS(recv(receiver, text, 32, 0) == 0);
    IS(recv(receiver, text, 32, 0) == 5 && !strncmp(text, "three", 5));
    IS(recv(receiver, text, 32, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    IS(send(sender, "more", 4, 0) == 4 && recv(receiver, text, 32, 0) == 4);
    IS(recv(pair[1], text, 32, 0) == 4 && send(pair[1], "x", 1, 0) == 1 && recv(pair[0], text, 32, 0) == 1);
    length = sizeof from;
    IS(getpeername(sender, (void *)&from, &length) == 0 && !strcmp(from.sun_path, "receiver"));
    return 0;
}
