/* echo_server ADDRESS|/SOCKET PORT CLIENTS: answers each line with itself and its checksum, one client after the other. */
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "pause.h"

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int local = argv[1][0] == '/', one = 1;
    strncpy(un.sun_path, argv[1], sizeof un.sun_path - 1);
    inet_pton(AF_INET, argv[1], &in.sin_addr);
    int s = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(s, local ? (void *)&un : (void *)&in, local ? sizeof un : sizeof in) || listen(s, 8)) {
        perror("listen");
        return 2;
    }
    say("listening");
    for (int clients = atoi(argv[3]); clients > 0; clients--) {
        struct sockaddr_in from = {0};
        socklen_t size = sizeof from;
        int c = accept(s, local ? 0 : (void *)&from, local ? 0 : &size);
        if (c < 0) {
            perror("accept");
            return 2;
        }
        char name[64] = "local", line[4096];
        if (!local)
            inet_ntop(AF_INET, &from.sin_addr, name, sizeof name);
        say("client %s", name);
        FILE *lines = fdopen(c, "r");
        int n = 0;
        while (fgets(line, sizeof line, lines)) {
            unsigned sum = 0;
            line[strcspn(line, "\n")] = 0;
            for (char *p = line; *p; p++)
                sum = sum * 31 + (unsigned char)*p;
            dprintf(c, "%s sum %u\n", line, sum);
            n++;
        }
        say("%d lines", n);
        fclose(lines);
    }
    return 0;
}
