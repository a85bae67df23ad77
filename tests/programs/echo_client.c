/* echo_client ADDRESS|/SOCKET PORT COUNT: sends a line at a time over one connection and prints what comes back. */
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "pause.h"

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int local = argv[1][0] == '/';
    strncpy(un.sun_path, argv[1], sizeof un.sun_path - 1);
    inet_pton(AF_INET, argv[1], &in.sin_addr);
    int s = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
    if (connect(s, local ? (void *)&un : (void *)&in, local ? sizeof un : sizeof in)) {
        perror("connect");
        return 2;
    }
    FILE *from = fdopen(s, "r");
    for (int i = 1; i <= atoi(argv[3]); i++) {
        dprintf(s, "line %d\n", i);
        char back[256];
        if (!fgets(back, sizeof back, from))
            return 3;
        back[strcspn(back, "\n")] = 0;
        say("%d %s", i, back);
        pause_ms(50);
    }
    return 0;
}
