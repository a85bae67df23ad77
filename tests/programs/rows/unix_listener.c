/* unix_listener: a listener by path with connections that are not yet accepted. */
#include "rows.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(void) {
    struct sockaddr_un name = {AF_UNIX, "listener"};
    int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), clients[3], servers[3], on = 0;
    socklen_t length = sizeof on;
    char text[32];
    unlink("listener");
    MUST(bind(listener, (void *)&name, sizeof name)), MUST(listen(listener, 5));
    for (int i = 0; i < 3; i++)
        clients[i] = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(clients[0], (void *)&name, sizeof name)), MUST(connect(clients[1], (void *)&name, sizeof name));
    journey();
    IS(getsockopt(listener, SOL_SOCKET, SO_ACCEPTCONN, &on, &length) == 0 && on == 1);
    IS(connect(clients[2], (void *)&name, sizeof name) == 0);
    for (int i = 0; i < 3; i++)
        servers[i] = MUST(accept(listener, 0, 0));
    IS(write(clients[1], "two", 3) == 3 && read(servers[1], text, 32) == 3 && !strncmp(text, "two", 3));
    IS(write(servers[0], "one", 3) == 3 && read(clients[0], text, 32) == 3);
    IS(write(clients[2], "three", 5) == 5 && read(servers[2], text, 32) == 5);
    IS(fcntl(listener, F_SETFL, O_NONBLOCK) == 0 && accept(listener, 0, 0) == -1 && errno == EAGAIN);
    return 0;
}
