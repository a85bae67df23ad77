/* unix_abstract: names without a file, of a stream listener with a connected client and of a datagram socket. */
#include "rows.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(void) {
    struct sockaddr_un stream = {AF_UNIX, ""}, datagram = {AF_UNIX, ""}, got;
    socklen_t length = sizeof stream.sun_family + 20;
    char text[32];
    snprintf(stream.sun_path, 20, "%crow stream %07d", 0, getpid()), snprintf(datagram.sun_path, 20, "%crow datagram %05d", 0, getpid());
    int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), client = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), box = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(bind(listener, (void *)&stream, length)), MUST(listen(listener, 3)), MUST(connect(client, (void *)&stream, length));
    int server = MUST(accept(listener, 0, 0));
    MUST(bind(box, (void *)&datagram, length)), MUST(write(client, "queued", 6));
    journey();
    socklen_t size = sizeof got;
    IS(getpeername(client, (void *)&got, &size) == 0 && size == length && !memcmp(&got, &stream, length));
    IS(read(server, text, 32) == 6 && !strncmp(text, "queued", 6));
    int another = socket(AF_UNIX, SOCK_STREAM, 0), sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    IS(connect(another, (void *)&stream, length) == 0);
    IS((server = accept(listener, 0, 0)) >= 0 && write(another, "new", 3) == 3 && read(server, text, 32) == 3);
    IS(sendto(sender, "box", 3, 0, (void *)&datagram, length) == 3 && recv(box, text, 32, 0) == 3);
    IS(bind(sender, (void *)&datagram, length) == -1 && errno == EADDRINUSE);
    return 0;
}
