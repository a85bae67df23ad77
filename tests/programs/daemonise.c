/* daemonise FILE: leaves a daemon that writes FILE a line at a time and ends; its first process exits with 4 at once. */
#include "pause.h"

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    if (fork())
        return 4;
    setsid();
    if (fork())
        _exit(0);
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    FILE *out = fopen(argv[1], "w");
    for (int i = 1; out && i <= 10; i++) {
        fprintf(out, "%d\n", i);
        fflush(out);
        pause_ms(50);
    }
    return 0;
}
