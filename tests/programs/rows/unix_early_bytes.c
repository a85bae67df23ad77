/* unix_early_bytes: a connection that is not yet accepted and has sent something already. */
#include "rows.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(void) {
    struct sockaddr_un name = {AF_UNIX, "listener"};
    int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    char text[32];
    unlink("listener");
    MUST(bind(listener, (void *)&name, sizeof name)), MUST(listen(listener, 5));
    MUST(connect(client, (void *)&name, sizeof name)), MUST(write(client, "early", 5));
    journey();
    int server = accept(listener, 0, 0);
    IS(server >= 0 && read(server, text, 32) == 5 && !strncmp(text, "early", 5));
    IS(write(server, "back", 4) == 4 && read(client, text, 32) == 4);
    return 0;
}
